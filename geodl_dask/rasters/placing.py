"""A raster on another grid: cut and filled where pixels are the same ones, warped where they are not."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np
from odc.geo.geobox import GeoBox

from ..tiling import Window
from .arrays import RasterArray
from .grids import whole_pixel_offset
from .overlap import shrink_factor
from .warping import Warp
from .windows import WindowedRaster, shared_slices


@dataclass(frozen=True)
class Shift:
    """How pixels come to a grid of the same pixels: cut, and invalid where there are none."""

    grid: GeoBox
    """The grid they come to."""
    offset_yx: tuple[int, int]
    """Row and column, in the source, of the grid's upper-left pixel."""

    def read(self, source: WindowedRaster, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and validity of a window of the grid, as `WindowedRaster.read`."""
        pixels = np.zeros((len(source.band_names), window.height, window.width), source.dtype)
        valid = np.zeros((window.height, window.width), bool)
        row, col = window.row_off + self.offset_yx[0], window.col_off + self.offset_yx[1]
        wanted = Window(row, col, window.height, window.width)
        inside = _intersection(wanted, source.grid.shape.yx)
        if inside:
            _, outer = shared_slices(inside, wanted)
            pixels[:, *outer], valid[outer] = source.read(inside)
        return pixels, valid

    def arrays(self, pixels: da.Array, valid: da.Array, source: GeoBox) -> tuple[da.Array, da.Array]:
        """Pixels (band, y, x) and validity (y, x) on the grid, lazily."""
        return _shifted(pixels, self.offset_yx, self.grid), _shifted(valid, self.offset_yx, self.grid)


@dataclass(frozen=True)
class MovedRaster:
    """A windowed raster on another grid."""

    source: WindowedRaster
    """Where pixels come from."""
    move: Shift | Warp
    """How they come."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.source.name

    @property
    def kind(self) -> str:
        """What it is, for people."""
        return self.source.kind

    @property
    def grid(self) -> GeoBox:
        """The grid that it was moved to."""
        return self.move.grid

    @property
    def band_names(self) -> tuple[str, ...]:
        """One for each band."""
        return self.source.band_names

    @property
    def dtype(self) -> str:
        """NumPy name of the pixel type."""
        return self.source.dtype

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """As `WindowedRaster.read`."""
        return self.move.read(self.source, window)


def find_move(source: GeoBox, target: GeoBox, resampling: str) -> Shift | Warp | None:
    """How pixels come from one grid to another; None where the two are one."""
    offset = whole_pixel_offset(source, target)
    if offset is None:
        return Warp(target, resampling, shrink_factor(source, target))
    return None if offset == (0, 0) and source.shape == target.shape else Shift(target, offset)


def move_raster(raster: WindowedRaster | RasterArray, move: Shift | Warp | None) -> WindowedRaster | RasterArray:
    """A raster on another grid, lazily."""
    if move is None:
        return raster
    if not isinstance(raster, RasterArray):
        return MovedRaster(raster, move)
    pixels, valid = move.arrays(raster.pixels, raster.valid, raster.grid)
    return RasterArray(raster.name, raster.kind, move.grid, raster.band_names, pixels, valid)


def _shifted(array: da.Array, offset_yx: tuple[int, int], grid: GeoBox) -> da.Array:
    """(..., y, x) cut and filled with zeros, which for validity is False."""
    for axis, offset, length in zip((-2, -1), offset_yx, grid.shape, strict=True):
        axis %= array.ndim
        first, last = max(0, offset), min(array.shape[axis], offset + length)
        array = array[(slice(None),) * axis + (slice(first, max(first, last)),)]
        before = min(length, max(0, -offset))
        filling = [(0, 0)] * array.ndim
        filling[axis] = (before, length - before - array.shape[axis])
        array = da.pad(array, filling) if any(filling[axis]) else array
    return array


def _intersection(window: Window, shape_yx: tuple[int, int]) -> Window | None:
    top, left = max(0, window.row_off), max(0, window.col_off)
    bottom = min(shape_yx[0], window.row_off + window.height)
    right = min(shape_yx[1], window.col_off + window.width)
    return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None
