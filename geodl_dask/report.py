"""Tables of what changed."""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr
from odc.geo.geobox import GeoBox

from .classes import ClassTable, ModelClass
from .confidence import layers_of

SQUARE_METRES_PER_HECTARE = 10_000


@dataclass(frozen=True)
class ClassArea:
    """How much of a change raster one class covers."""

    model_class: ModelClass
    """The class."""
    pixels: int
    """Pixels of the class."""
    share: float
    """Of all pixels with an observation, 0 to 1."""
    hectares: float | None
    """Area on the map; None where the CRS is not in lengths."""


def class_areas(change: xr.DataArray | xr.Dataset, pixels: dict[int, int]) -> tuple[ClassArea, ...]:
    """Area per class, in the order of the class table, unlisted values after it, from pixel counts by value.

    change : the raster that was written. pixels : `Written.pixels`. Raises ValueError for a raster without class table.
    """
    change, _ = layers_of(change)
    table = ClassTable.from_attrs(change.attrs)
    if table is None:
        raise ValueError("The raster has no class table in its attributes (flag_values, flag_colors, class_names).")
    counts = {value: count for value, count in pixels.items() if value != change.attrs.get("_FillValue")}
    observed = sum(counts.values())
    hectares = _hectares_per_pixel(change.odc.geobox)
    return tuple(
        ClassArea(
            each,
            pixels.get(each.value, 0),
            pixels.get(each.value, 0) / observed if observed else 0.0,
            None if hectares is None else pixels.get(each.value, 0) * hectares,
        )
        for each in table.with_unlisted(counts).classes
    )


def _hectares_per_pixel(grid: GeoBox) -> float | None:
    if grid.crs is None or not grid.crs.projected:
        return None
    metres = float(grid.crs.proj.axis_info[0].unit_conversion_factor)
    return abs(grid.transform.determinant) * metres**2 / SQUARE_METRES_PER_HECTARE
