"""The place of a raster in the words of the Zarr conventions ``proj``, ``spatial`` and ``multiscales`` (GeoZarr)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr_cm
from odc.geo.geobox import GeoBox
from pyproj import CRS

_READERS_KEYS = {"_CRS", "coordinates", "grid_mapping", "zarr_conventions"}
"""Attributes of a store by which readers find the place, and which xarray writes itself."""
_PLACE_KEYS = {*zarr_cm.proj.CONVENTION_KEYS, *zarr_cm.spatial.CONVENTION_KEYS}


def array_attrs(attrs: Mapping[str, Any], grid: GeoBox) -> dict[str, Any]:
    """``attrs`` of an array (y, x), with CRS, transform, bounds and shape; those of another store are replaced."""
    others = {key: value for key, value in attrs.items() if key not in _PLACE_KEYS}
    spatial: Any = zarr_cm.spatial.create(
        dimensions=["y", "x"], bbox=_bounds(grid), transform_type="affine", transform=_transform(grid),
        shape=list(grid.shape), registration="pixel",
    )  # fmt: skip
    return dict(zarr_cm.insert_many(others, {"proj": _crs(grid), "spatial": spatial}))


def without_place(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a store's array without those that say where it lies, which do not hold for a part of it."""
    kept = {key: value for key, value in attrs.items() if key not in _PLACE_KEYS | _READERS_KEYS}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in kept.items()}


def group_attrs(grid: GeoBox) -> dict[str, Any]:
    """Of a group of arrays on one grid: what holds for its coarser levels too."""
    # Without spatial:registration, which is "pixel" if it is not said: GDAL 3.13 warns, where it is, of each level
    # that is not exactly half as long as the one before.
    spatial: Any = zarr_cm.spatial.create(dimensions=["y", "x"], bbox=_bounds(grid))
    return dict(zarr_cm.create_many({"proj": _crs(grid), "spatial": spatial}))


def with_levels(attrs: Mapping[str, Any], levels: Iterable[tuple[str, GeoBox]]) -> dict[str, Any]:
    """``attrs`` of a group, with the path and grid of each array in a pyramid, the finest first."""
    layout: list[Any] = []
    for path, grid in levels:
        place = {"spatial:shape": list(grid.shape), "spatial:transform": _transform(grid)}
        if not layout:
            layout.append({"asset": path, "transform": {"scale": [1.0, 1.0], "translation": [0.0, 0.0]}, **place})
        else:
            to_next = {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}
            layout.append({"asset": path, "derived_from": layout[-1]["asset"], "transform": to_next, **place})
    multiscales: Any = zarr_cm.multiscales.create(layout=layout, resampling_method="mode")
    return dict(zarr_cm.insert_many(attrs, {"multiscales": multiscales}, overwrite=True))


def _crs(grid: GeoBox) -> dict[str, Any]:
    """The code, where it says all of the CRS, else WKT."""
    crs = CRS.from_user_input(grid.crs)
    authority = crs.to_authority(min_confidence=100)
    if authority:
        return dict(zarr_cm.proj.create(code=":".join(authority)))
    return dict(zarr_cm.proj.create(wkt2=crs.to_wkt("WKT2_2019")))


def _bounds(grid: GeoBox) -> list[float]:
    box = grid.boundingbox
    return [box.left, box.bottom, box.right, box.top]


def _transform(grid: GeoBox) -> list[float]:
    """Six numbers in the order of affine and rasterio, which is the convention's."""
    return list(grid.transform)[:6]
