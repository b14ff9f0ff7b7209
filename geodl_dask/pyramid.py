"""Coarser levels of a raster of classes: each pixel is the most frequent value of the four below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from .errors import MissingDependencyError

COARSEST_PX = 512
"""The longer side of the last level is at most that."""
_STRIP_PX = 512
"""Rows that are reduced at a time, since the library makes several copies."""
_WIDER = {1: np.uint16, 2: np.uint32, 4: np.uint64}


@dataclass(frozen=True)
class Level:
    """A raster seen from further away."""

    factor: int
    """Pixels of the full raster along a side of one of its pixels: 2, 4, 8 ..."""
    grid: GeoBox
    """Its CRS, transform and shape; where a length is odd, it reaches beyond the full raster."""

    @property
    def name(self) -> str:
        """Of its group, as GDAL names them."""
        return f"ovr_{self.factor}x"


def levels_of(grid: GeoBox) -> list[Level]:
    """The levels of a raster's pyramid, the finest first; none for a raster of up to 512 pixels."""
    levels: list[Level] = []
    while max(grid.shape) > COARSEST_PX:
        shape_yx = (-(-grid.shape[0] // 2), -(-grid.shape[1] // 2))
        grid = GeoBox(shape_yx, grid.transform @ Affine.scale(2), grid.crs)
        levels.append(Level(2 ** (len(levels) + 1), grid))
    return levels


def halved(below: str) -> da.Array:
    """An array of half the size, lazy: each block is made of four chunks of the Zarr array (y, x) at ``below``."""
    array = zarr.open_array(below, mode="r")
    shape_yx = tuple(-(-length // 2) for length in array.shape)
    block_yx = tuple(min(pair) for pair in zip(array.chunks, shape_yx, strict=True))
    return da.map_blocks(
        partial(_halve_block, below, block_yx), chunks=da.core.normalize_chunks(block_yx, shape_yx),
        dtype=array.dtype, meta=np.empty((0, 0), array.dtype),
    )  # fmt: skip


def most_frequent_of_four(values: np.ndarray) -> np.ndarray:
    """The most frequent value of each 2 x 2 pixels, nodata counting like any other: (y, x) integers to half of each.

    Of values that are as frequent one is taken, always the same. A row or column that is left over counts twice.
    Raises MissingDependencyError.
    """
    mode = windowed_mode()
    if values.dtype.itemsize == 8:
        found, places = np.unique(values, return_inverse=True)
        return found[most_frequent_of_four(places.astype(np.uint32))]
    # The library adds 1 to all values, and takes 0 for none: 255 of eight bits was never found.
    pattern, wider = f"u{values.dtype.itemsize}", _WIDER[values.dtype.itemsize]
    halves = []
    for start in range(0, len(values), _STRIP_PX):
        strip = values[start : start + _STRIP_PX].view(pattern).astype(wider)
        even = np.pad(strip, [(0, length % 2) for length in strip.shape], mode="edge")
        halves.append(mode(even, (2, 2)).astype(pattern))
    return np.concatenate(halves).view(values.dtype)


def windowed_mode() -> Callable[..., Any]:
    """The library's function. Raises MissingDependencyError."""
    try:
        from xarray_multiscale.reducers import windowed_mode
    except ImportError as error:
        raise MissingDependencyError(
            "A pyramid needs xarray-multiscale, which is not installed. Install it with: "
            'pip install "geodl_dask[pyramid]"'
        ) from error
    return windowed_mode


def _halve_block(below: str, block_yx: tuple[int, ...], block_id: tuple[int, ...]) -> np.ndarray:
    """One block of `halved`: (y, x). Runs on workers."""
    rows, cols = (
        slice(2 * number * length, 2 * (number + 1) * length) for number, length in zip(block_id, block_yx, strict=True)
    )
    return most_frequent_of_four(np.asarray(zarr.open_array(below, mode="r")[rows, cols]))
