"""Pixels from one grid to another by GDAL's warper, the same ones whatever window asks for them.

Warped pixels are made in canonical tiles (see `windows`), each from its own window of the source: GDAL's own warped
windows differ by a count here and there from one window to the next. Windowed rasters and arrays are warped by the same
function.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil, floor
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT

from ..tiling import Window
from .overlap import bounds_on
from .windows import CANONICAL_TILE_PX, WindowedRaster, canonical_tiles, shared_slices

KERNEL_RADIUS_PX = {"nearest": 1, "bilinear": 1, "cubic": 2, "cubic_spline": 2, "lanczos": 3}
"""How far each method looks, source pixels; the others look at the target pixel's own ground."""
OVERVIEW_METHODS = {"bilinear", "cubic", "cubic_spline", "lanczos", "average"}
"""Those for which an overview, whose pixels are means, is as good as what it was made from."""
TILE_SOURCE_LIMIT = 2**27
"""A canonical tile may be made from so many pixels, counted in all bands."""
TRANSFORM_TOLERANCE_PX = 1e-3
"""How exact GDAL is about where a pixel comes from."""
AT_ONCE_PX = 2**25
"""Up to this many source pixels are read in one piece for a window; more, tile by tile."""


@dataclass(frozen=True)
class Warp:
    """How pixels come to a grid."""

    grid: GeoBox
    """The grid they come to."""
    resampling: str
    """By rasterio's names."""
    shrink_yx: tuple[float, float]
    """Source pixels, along the source's rows and columns, in one of the grid's; GDAL would guess it for every window."""

    @property
    def tile_source_px(self) -> float:
        """About how many source pixels, of one band, a canonical tile is made from."""
        return float(CANONICAL_TILE_PX**2 * np.prod(np.maximum(self.shrink_yx, 1)))

    def source_window(self, source: GeoBox, tile: Window) -> Window | None:
        """The pixels of ``source`` that the tile is made of; None where there are none."""
        place = bounds_on(source, _part(self.grid, tile))
        if place is None:
            return None
        radius = KERNEL_RADIUS_PX.get(self.resampling, 1)
        margin_y, margin_x = (ceil(radius * max(1.0, shrink)) + 2 for shrink in self.shrink_yx)
        top, bottom = max(0, floor(place[0]) - margin_y), min(source.shape.y, ceil(place[1]) + margin_y)
        left, right = max(0, floor(place[2]) - margin_x), min(source.shape.x, ceil(place[3]) + margin_x)
        return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None

    def make(
        self, pixels: np.ndarray, valid: np.ndarray, source: GeoBox, tile: Window
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (band, y, x) and validity (y, x) of a tile, from those of ``source``, its source window."""
        stored, nodata = _with_nodata(pixels, valid)
        part = _part(self.grid, tile)
        scale_y, scale_x = (1.0 if shrink < 1.05 else 1.0 / shrink for shrink in self.shrink_yx)
        bands, height, width = stored.shape
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff", count=bands, height=height, width=width, dtype=stored.dtype, nodata=nodata,
                crs=str(source.crs), transform=source.transform,
            ) as dataset:  # fmt: skip
                dataset.write(stored)
            with (
                memory.open() as dataset,
                WarpedVRT(
                    dataset, crs=str(part.crs), transform=part.transform, height=tile.height, width=tile.width,
                    resampling=Resampling[self.resampling], tolerance=TRANSFORM_TOLERANCE_PX, src_nodata=nodata,
                    nodata=nodata, XSCALE=scale_x, YSCALE=scale_y,
                ) as warped,
            ):  # fmt: skip
                made = warped.read()
        missing = np.isnan(made) if np.isnan(nodata) else made == nodata
        return _back_to(made, missing, pixels.dtype), ~missing.any(axis=0)

    def read(self, source: WindowedRaster, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and validity of a window of the grid, as `WindowedRaster.read`."""
        pixels = np.zeros((len(source.band_names), window.height, window.width), source.dtype)
        valid = np.zeros((window.height, window.width), bool)
        sources = {
            tile: place
            for tile in canonical_tiles(window, self.grid.shape.yx)
            if (place := self.source_window(source.grid, tile))
        }
        whole = _around(list(sources.values()))
        at_once = source.read(whole) if whole and whole.height * whole.width <= AT_ONCE_PX else None
        for tile, place in sources.items():
            read = _cut(*at_once, whole, place) if at_once and whole else source.read(place)
            made = self.make(*read, _part(source.grid, place), tile)
            inner, outer = shared_slices(tile, window)
            pixels[:, *outer], valid[outer] = made[0][:, *inner], made[1][inner]
        return pixels, valid

    def arrays(self, pixels: da.Array, valid: da.Array, source: GeoBox) -> tuple[da.Array, da.Array]:
        """Pixels (band, y, x) and validity (y, x) on the grid, lazily.

        One task per canonical tile, with the pixels of its source window; its last band carries the validity.
        """
        rows, cols = (range(0, length, CANONICAL_TILE_PX) for length in self.grid.shape)
        bands, make = pixels.shape[0], delayed(_make_stacked, pure=True)
        tiles: dict[tuple[int, int], da.Array] = {}
        for row, col in product(rows, cols):
            tile = next(canonical_tiles(Window(row, col, 1, 1), self.grid.shape.yx))
            place = self.source_window(source, tile)
            shape = (bands + 1, tile.height, tile.width)
            if place is None:
                tiles[row, col] = da.zeros(shape, dtype=pixels.dtype, chunks=-1)
                continue
            at = slice(place.row_off, place.row_off + place.height), slice(place.col_off, place.col_off + place.width)
            parts = pixels[:, *at].rechunk(-1), valid[at].rechunk(-1)
            blocks = [part.to_delayed().ravel()[0] for part in parts]
            made = make(self, *blocks, _part(source, place), tile)
            tiles[row, col] = da.from_delayed(made, shape, pixels.dtype)
        stacked = da.block([[tiles[row, col] for col in cols] for row in rows])
        return stacked[:bands], stacked[bands] != 0


def _make_stacked(warp: Warp, pixels: np.ndarray, valid: np.ndarray, source: GeoBox, tile: Window) -> np.ndarray:
    made, is_valid = warp.make(pixels, valid, source, tile)
    return np.concatenate([made, is_valid[None].astype(made.dtype)])


def _with_nodata(pixels: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, float]:
    """Pixels in a type with room for a value that none of them has, which stands where they are not valid."""
    dtype = pixels.dtype
    if dtype.kind == "f":
        wider, nodata = np.result_type(dtype, np.float32), np.nan
    elif dtype.itemsize <= 2:
        wider = np.dtype(np.int16 if dtype.itemsize == 1 else np.int32)
        nodata = float(np.iinfo(wider).min)
    else:
        wider, nodata = np.dtype(np.float64), np.nan
    return np.where(valid, pixels, wider.type(nodata)).astype(wider, copy=False), nodata


def _back_to(made: np.ndarray, missing: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """In the type the pixels came in; what a method swings beyond it is cut off."""
    filled = np.where(missing, made.dtype.type(0), made)
    if dtype.kind == "f":
        return filled.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    filled = np.rint(filled) if made.dtype.kind == "f" else filled
    return np.clip(filled, limits.min, limits.max).astype(dtype)


def _part(grid: GeoBox, window: Window) -> GeoBox:
    rows = slice(window.row_off, window.row_off + window.height)
    return grid[rows, window.col_off : window.col_off + window.width]


def _around(windows: list[Window]) -> Window | None:
    if not windows:
        return None
    top, left = min(each.row_off for each in windows), min(each.col_off for each in windows)
    bottom = max(each.row_off + each.height for each in windows)
    right = max(each.col_off + each.width for each in windows)
    return Window(top, left, bottom - top, right - left)


def _cut(pixels: np.ndarray, valid: np.ndarray, whole: Window, part: Window) -> tuple[np.ndarray, np.ndarray]:
    _, at = shared_slices(part, whole)
    return pixels[:, *at], valid[at]
