"""A raster that is read window by window, by whoever needs one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import dask.array as da
import numpy as np
from odc.geo.geobox import GeoBox

from ..tiling import Window

Chunks = tuple[tuple[int, ...], tuple[int, ...]]
"""Lengths of blocks along y and x, as Dask has them."""

CANONICAL_TILE_PX = 256
"""Side of the tiles in which pixels are made that depend on where a window begins: warped ones, rasterised ones.

They are anchored at the upper-left corner of the grid, so that a pixel is the same whatever window asks for it.
"""


class WindowedRaster(Protocol):
    """Small and picklable; any thread of any process may read, and no two reads depend on each other."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def kind(self) -> str:
        """What it is, for people."""
        ...

    @property
    def grid(self) -> GeoBox:
        """CRS, affine transform and shape."""
        ...

    @property
    def band_names(self) -> tuple[str, ...]:
        """One for each band of what is read."""
        ...

    @property
    def dtype(self) -> str:
        """NumPy name of the pixel type."""
        ...

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and validity of a window inside the grid. Runs on workers.

        Returns pixels (band, y, x) in ``dtype`` and validity (y, x) bool, True where every band has an observation.
        Raises RasterReadError.
        """
        ...


def chunked(raster: WindowedRaster, chunks: Chunks) -> tuple[da.Array, da.Array]:
    """A windowed raster as lazy Dask arrays: pixels (band, y, x) and validity (y, x) in the given chunks."""
    starts = tuple(np.cumsum((0, *lengths[:-1])) for lengths in chunks)
    bands, dtype = len(raster.band_names), np.dtype(raster.dtype)
    stacked = da.map_blocks(
        _read_stacked, raster, starts, chunks, chunks=((bands + 1,), *chunks), dtype=dtype,
        meta=np.empty((0, 0, 0), dtype),
    )  # fmt: skip
    return stacked[:bands], stacked[bands] != 0


def canonical_tiles(window: Window, shape_yx: tuple[int, int]) -> Iterator[Window]:
    """The canonical tiles that a window touches, clipped to the grid."""
    side = CANONICAL_TILE_PX
    for row in range(window.row_off // side * side, window.row_off + window.height, side):
        for col in range(window.col_off // side * side, window.col_off + window.width, side):
            yield Window(row, col, min(side, shape_yx[0] - row), min(side, shape_yx[1] - col))


def shared_slices(tile: Window, window: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the ground that both share lies in ``tile``, and where in ``window``."""
    top, left = max(tile.row_off, window.row_off), max(tile.col_off, window.col_off)
    bottom = min(tile.row_off + tile.height, window.row_off + window.height)
    right = min(tile.col_off + tile.width, window.col_off + window.width)
    inner, outer = (
        (slice(top - of.row_off, bottom - of.row_off), slice(left - of.col_off, right - of.col_off))
        for of in (tile, window)
    )
    return inner, outer


def _read_stacked(raster: WindowedRaster, starts: Any, chunks: Any, block_id: tuple[int, int, int]) -> np.ndarray:
    """Pixels and, as the last band, validity: one read for both."""
    pixels, valid = raster.read(_window_of_block(block_id[1:], starts, chunks))
    return np.concatenate([pixels, valid[None].astype(pixels.dtype)])


def _window_of_block(block_id: tuple[int, int], starts: tuple[np.ndarray, ...], chunks: Chunks) -> Window:
    row, col = block_id
    return Window(int(starts[0][row]), int(starts[1][col]), chunks[0][row], chunks[1][col])
