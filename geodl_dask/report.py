"""Tables of what changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from .areas import SQUARE_METRES_PER_HECTARE, AreaOn, PixelAreas, add_up, choose_area, map_area
from .classes import ClassTable, ModelClass
from .confidence import layers_of
from .errors import RasterInputError
from .manifest import Manifest
from .outputs import manifest_of, was_edited
from .results import ResultLike, grid_of_result, opened
from .survey import ask_blocks
from .tiling import Window


@dataclass(frozen=True)
class ClassArea:
    """How much of a change raster one class covers."""

    model_class: ModelClass
    """The class."""
    pixels: int
    """Pixels of the class."""
    share: float
    """Of the area with an observation, 0 to 1; of the pixels where areas are not known."""
    hectares: float | None
    """Area; None where counts do not tell: the CRS is in degrees, or a map that does not keep areas."""


def change_table(change: ResultLike, *, area: AreaOn = "auto") -> pd.DataFrame:
    """How much of a result each class covers, in the order of its class table, unlisted values after it.

    change : path of a result, or a DataArray or Dataset as of `detect_change` or `open_change`, also cut or masked.
    area : ``"auto"`` measures on the map where its CRS is in lengths (metres, feet) and its areas are within 1 % of
        those on the ellipsoid, and else on the ellipsoid: degrees, Web Mercator. ``"map"`` and ``"ellipsoid"`` say
        which; the table's ``attrs["area"]`` says which it was.

    Returns the columns value, class, pixels, hectares, and share of the area that has an observation.
    It is counted block by block on the active Dask client, else in this process, or taken from the manifest of a result
    that is given by path, where all pixels are alike and no program has written to the file since. Of what is not
    computed yet, everything is.
    Raises RasterInputError where there is no class table, or no area.
    """
    classes, _ = opened(change)
    _require_table(classes)
    grid = grid_of_result(classes)
    areas = PixelAreas(grid, choose_area(grid, area))
    pixels, square_metres = _recorded(change, areas) or _counted(classes, areas)
    rows = [
        {"value": each.model_class.value, "class": each.model_class.name, "pixels": each.pixels,
         "hectares": each.hectares, "share": each.share}
        for each in class_areas(classes, pixels, square_metres)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table.attrs["area"] = f"on the {areas.on}"
    return table


def class_areas(
    change: xr.DataArray | xr.Dataset, pixels: Mapping[int, int], square_metres: Mapping[int, float] | None = None
) -> tuple[ClassArea, ...]:
    """Area per class, in the order of the class table, unlisted values after it, from counts by value.

    change : the raster that was counted. pixels : as `Written.pixels`. square_metres : of those pixels; None where the
    map's own are meant, if it keeps areas. Raises RasterInputError for a raster without class table.
    """
    change, _ = layers_of(change)
    nodata = change.attrs.get("_FillValue")
    counts = {value: count for value, count in pixels.items() if value != nodata}
    if square_metres is None:
        each_metres = _metres_on_map(change.odc.geobox)
        known = None if each_metres is None else {value: count * each_metres for value, count in counts.items()}
    else:
        known = {value: square_metres[value] for value in counts}
    weights: Mapping[int, float] = counts if known is None else known
    observed = sum(weights.values())
    return tuple(
        ClassArea(
            each,
            counts.get(each.value, 0),
            weights.get(each.value, 0) / observed if observed else 0.0,
            None if known is None else known.get(each.value, 0.0) / SQUARE_METRES_PER_HECTARE,
        )
        for each in _require_table(change).with_unlisted(counts).classes
    )


def _require_table(change: xr.DataArray) -> ClassTable:
    table = ClassTable.from_attrs(change.attrs)
    if table is None:
        raise RasterInputError(
            "The raster has no class table in its attributes (flag_values, flag_colors, class_names)."
        )
    return table


def _metres_on_map(grid: GeoBox) -> float | None:
    if grid.crs is None or not (grid.crs.projected or grid.crs.geographic):
        return None
    return map_area(grid) if choose_area(grid, "auto") == "map" else None


def _recorded(change: ResultLike, areas: PixelAreas) -> tuple[dict[int, int], dict[int, float]] | None:
    """Pixels and square metres by value as the manifest beside a result has them; None where that does not suffice."""
    if not isinstance(change, str | os.PathLike) or areas.each is None:
        return None
    manifest = Manifest.read(manifest_of(Path(change)))
    if manifest is None or manifest.pixels is None or not manifest.is_on(areas.grid) or was_edited(Path(change)):
        return None
    return manifest.pixels, {value: count * areas.each for value, count in manifest.pixels.items()}


def _counted(classes: xr.DataArray, areas: PixelAreas) -> tuple[dict[int, int], dict[int, float]]:
    """Pixels and square metres by value, block by block."""
    pixels: Counter[int] = Counter()
    square_metres: dict[int, float] = {}
    for answer in ask_blocks(classes, None, partial(_count_block, areas)).flat:
        for value, (count, metres) in answer.items():
            pixels[value] += count
            square_metres[value] = square_metres.get(value, 0.0) + metres
    return dict(pixels), square_metres


def _count_block(
    areas: PixelAreas, window: Window, classes: np.ndarray, confidence: np.ndarray | None
) -> dict[int, tuple[int, float]]:
    return add_up(classes, areas.of(window))
