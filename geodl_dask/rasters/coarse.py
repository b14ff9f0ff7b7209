"""A raster on a much coarser grid, for pictures: from its overviews or in steps, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, cast

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from ..errors import GridMismatchError
from ..tiling import Window
from .files import RasterFile, at_overview
from .grids import describe_grid
from .overlap import nearest_turn, share_covered, shrink_factor
from .placing import find_move, move_raster
from .windows import WindowedRaster

LONGEST_STEP = 8
"""A pixel is made from so many at most along a side; more are taken in steps, lest the source of a window fill the
memory."""

PART_PX = 256
"""Side of what is made at a time."""

Method = Literal["average", "mode"]


def coarsened(raster: WindowedRaster, grid: GeoBox, method: Method) -> WindowedRaster:
    """A raster on a grid whose pixels may be any number of times as long as its own, or the same ones.

    method : ``"average"`` for images, ``"mode"`` for classes, whose overviews, if any, hold the most frequent class.
    What is not valid does not count. Raises GridMismatchError where the two do not overlap.
    """
    if isinstance(raster, RasterFile):
        coarser = at_overview(raster, min(shrink_factor(nearest_turn(raster.grid, grid), grid)))
        raster = replace(coarser, grid=nearest_turn(coarser.grid, grid))
    if not share_covered(raster.grid, grid):
        raise GridMismatchError(f"{raster.name} is {describe_grid(raster.grid)}, and does not overlap the result.")
    while (factor := int(min(*shrink_factor(raster.grid, grid), LONGEST_STEP) + 1e-6)) > 1:
        raster = Shrunk(raster, factor, method)
    return cast("WindowedRaster", move_raster(raster, find_move(raster.grid, grid, method)))


def zoomed_out(grid: GeoBox, factor: int) -> GeoBox:
    """A grid with the same corner whose pixels are so many times as long, over all of the ground."""
    shape_yx = (-(-grid.shape.y // factor), -(-grid.shape.x // factor))
    return GeoBox(shape_yx, grid.transform @ Affine.scale(factor), grid.crs)


@dataclass(frozen=True)
class Shrunk:
    """A windowed raster whose pixels are made of a square of another's."""

    source: WindowedRaster
    """Where pixels come from."""
    factor: int
    """Side of the square, pixels of the source."""
    method: Method
    """The mean of the valid ones, or the most frequent one of them."""

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
        """That of the source, zoomed out; it reaches beyond where a length is no whole number of squares."""
        return zoomed_out(self.source.grid, self.factor)

    @property
    def band_names(self) -> tuple[str, ...]:
        """One for each band."""
        return self.source.band_names

    @property
    def dtype(self) -> str:
        """NumPy name of the pixel type."""
        return self.source.dtype

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """As `WindowedRaster.read`; the source is read in parts, which its own source may be read for in parts."""
        pixels = np.empty((len(self.band_names), window.height, window.width), self.dtype)
        valid = np.empty((window.height, window.width), bool)
        for row, col in product(range(0, window.height, PART_PX), range(0, window.width, PART_PX)):
            height, width = min(PART_PX, window.height - row), min(PART_PX, window.width - col)
            at = slice(row, row + height), slice(col, col + width)
            part = Window(window.row_off + row, window.col_off + col, height, width)
            pixels[:, *at], valid[at] = self._read_part(part)
        return pixels, valid

    def _read_part(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        rows, cols = self.source.grid.shape.yx
        row, col = window.row_off * self.factor, window.col_off * self.factor
        height, width = min(window.height * self.factor, rows - row), min(window.width * self.factor, cols - col)
        pixels, valid = self.source.read(Window(row, col, height, width))
        missing = (0, window.height * self.factor - height), (0, window.width * self.factor - width)
        pixels, valid = np.pad(pixels, ((0, 0), *missing)), np.pad(valid, missing)
        return (self._mean if self.method == "average" else self._mode)(pixels, valid), self._any(valid)

    def _parts(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """Each place of the square in turn: (..., y, x) of the coarser grid."""
        for row, col in np.ndindex(self.factor, self.factor):
            yield array[..., row :: self.factor, col :: self.factor]

    def _any(self, valid: np.ndarray) -> np.ndarray:
        return np.logical_or.reduce(list(self._parts(valid)))

    def _mean(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        wide = np.uint32 if pixels.dtype.itemsize <= 2 and pixels.dtype.kind == "u" else np.float64
        counted = pixels if valid.all() else np.where(valid, pixels, pixels.dtype.type(0))
        first = next(self._parts(counted))
        total, count = np.zeros(first.shape, wide), np.zeros(first.shape[1:], np.uint32)
        for part, is_valid in zip(self._parts(counted), self._parts(valid), strict=True):
            total += part
            count += is_valid
        mean = total / np.maximum(count, 1)
        return (mean if pixels.dtype.kind == "f" else np.rint(mean)).astype(pixels.dtype)

    def _mode(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        return np.stack([self._mode_of_band(band, valid) for band in pixels])

    def _mode_of_band(self, band: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(y, x); of values that are as frequent the lowest."""
        most = next(self._parts(band)).copy()
        highest = np.zeros(most.shape, np.uint8)
        for value in np.unique(band[valid]):
            count = np.zeros(most.shape, np.uint8)
            for part in self._parts((band == value) & valid):
                count += part
            most[count > highest] = value
            np.maximum(highest, count, out=highest)
        return most
