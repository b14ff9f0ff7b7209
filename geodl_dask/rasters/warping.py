"""Pixels from one grid to another by GDAL's warper, the same ones whatever window asks for them.

Warped pixels are made in canonical tiles (see `windows`), each from its own window of the source: GDAL's own warped
windows differ by a count here and there from one window to the next. Windowed rasters and arrays are warped by the same
function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import ceil, floor
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key
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
SOURCE_BLOCK_PX = 1024
"""Side of the largest blocks of an array that are handed to a task whole."""
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
    """Source rows and columns in one pixel of the grid; GDAL would guess it anew for every window."""

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
        """Pixels (band, y, x) and validity (y, x) of a tile, from those of ``source``, its source window.

        Integers of 64 bits are warped as real numbers, which hold 53 bits; by the nearest, they stay what they are.
        """
        if self.resampling == "nearest" and pixels.dtype.kind in "iu" and pixels.dtype.itemsize == 8:
            index = np.arange(valid.size, dtype=np.int32).reshape(1, *valid.shape)
            nearest, is_valid = self.make(index, valid, source, tile)
            return np.where(is_valid, pixels.reshape(len(pixels), -1)[:, nearest[0]], pixels.dtype.type(0)), is_valid
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

        One task per canonical tile, with the source's blocks that it needs; its last band carries the validity.
        """
        pixels = pixels.rechunk((-1, *(_split(lengths) for lengths in pixels.chunks[1:])))
        valid = valid.rechunk(pixels.chunks[1:])
        starts = [np.cumsum((0, *lengths)) for lengths in valid.chunks]
        chunks = tuple(_tile_lengths(length) for length in self.grid.shape)
        name, bands = f"warp-{tokenize(self, pixels, valid, source)}", pixels.shape[0]
        tasks: dict[Key, Any] = {}
        for row, col in np.ndindex(len(chunks[0]), len(chunks[1])):
            tile = Window(row * CANONICAL_TILE_PX, col * CANONICAL_TILE_PX, chunks[0][row], chunks[1][col])
            place = self.source_window(source, tile)
            if place is None:
                nothing = partial(np.zeros, (bands + 1, tile.height, tile.width), pixels.dtype)
                tasks[name, 0, row, col] = (nothing,)
                continue
            rows = _touched(starts[0], place.row_off, place.height)
            cols = _touched(starts[1], place.col_off, place.width)
            inner = replace(
                place, row_off=place.row_off - int(starts[0][rows[0]]), col_off=place.col_off - int(starts[1][cols[0]])
            )
            make = partial(_make_stacked, self, _part(source, place), tile, inner)
            tasks[name, 0, row, col] = (
                make,
                [[(pixels.name, 0, i, j) for j in cols] for i in rows],
                [[(valid.name, i, j) for j in cols] for i in rows],
            )
        graph = HighLevelGraph.from_collections(name, tasks, dependencies=[pixels, valid])  # type: ignore[list-item]
        stacked = da.Array(graph, name, ((bands + 1,), *chunks), dtype=pixels.dtype)
        return stacked[:bands], stacked[bands] != 0


def _make_stacked(
    warp: Warp, source: GeoBox, tile: Window, inner: Window,
    pixels: list[list[np.ndarray]], valid: list[list[np.ndarray]],
) -> np.ndarray:  # fmt: skip
    """Pixels and, as the last band, validity of a tile. Runs on workers.

    inner : the tile's source window within the blocks. pixels, valid : rows of blocks.
    """
    at = slice(inner.row_off, inner.row_off + inner.height), slice(inner.col_off, inner.col_off + inner.width)
    made, is_valid = warp.make(np.block(pixels)[:, *at], np.block(valid)[at], source, tile)
    return np.concatenate([made, is_valid[None].astype(made.dtype)])


def _split(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Blocks cut, where they are long, so that a tile needs not much more than its own pixels."""
    cut = ([*range(0, length, SOURCE_BLOCK_PX), length] for length in lengths)
    return tuple(int(part) for edges in cut for part in np.diff(edges))


def _tile_lengths(length: int) -> tuple[int, ...]:
    return tuple(min(CANONICAL_TILE_PX, length - start) for start in range(0, length, CANONICAL_TILE_PX))


def _touched(starts: np.ndarray, first: int, length: int) -> range:
    """The blocks, whose edges are ``starts``, that so many pixels from ``first`` on lie in."""
    return range(int(np.searchsorted(starts, first, "right")) - 1, int(np.searchsorted(starts, first + length, "left")))


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
    if made.dtype.kind != "f":
        return np.clip(filled, limits.min, limits.max).astype(dtype)
    # The largest of 64 bits is no real number, and the one next to it is beyond.
    beyond = filled >= float(limits.max)
    cut = np.where(beyond, 0, np.maximum(np.rint(filled), limits.min)).astype(dtype)
    return np.where(beyond, dtype.type(limits.max), cut)


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
