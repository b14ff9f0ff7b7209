"""Ask each block of a result, where it is computed or read, and gather the answers: the whole is nowhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from .errors import RasterInputError
from .tiling import Window

BLOCK_PX = 2_048
"""Side of the blocks of what is in memory, or was opened from a file of smaller ones."""

Question = Callable[[Window, np.ndarray, np.ndarray | None], Any]
"""Takes where a block lies, its classes (y, x), and their confidence if there is one. Picklable; runs on workers."""


def ask_blocks(classes: xr.DataArray, confidence: xr.DataArray | None, question: Question) -> np.ndarray:
    """The answer of each block, (block row, block column), on the active Dask client or in this process's threads.

    classes, confidence : (y, x), lazy or computed. Raises RasterInputError for other dimensions.
    """
    blocks = _blocks_of(classes)
    layers = [blocks] if confidence is None else [blocks, _blocks_of(confidence).rechunk(blocks.chunks)]
    starts = tuple(tuple(accumulate(lengths, initial=0)) for lengths in blocks.chunks)
    answers = da.map_blocks(
        partial(_ask, question, starts), *layers, chunks=tuple((1,) * count for count in blocks.numblocks),
        dtype=object, meta=np.empty((0, 0), object),
    )  # fmt: skip
    return np.asarray(answers.compute())


def _blocks_of(layer: xr.DataArray) -> da.Array:
    if layer.dims != ("y", "x"):
        raise RasterInputError(
            f"The raster has dimensions {layer.dims}; ('y', 'x') are needed. Of a stack of years, take one at a time: "
            "change.sel(year=2024)."
        )
    return layer.data if isinstance(layer.data, da.Array) else da.from_array(layer.data, chunks=BLOCK_PX)


def _ask(question: Question, starts: Any, *layers: np.ndarray, block_id: tuple[int, int]) -> np.ndarray:
    row_off, col_off = (offsets[number] for offsets, number in zip(starts, block_id, strict=True))
    answer = np.empty((1, 1), object)
    answer[0, 0] = question(Window(row_off, col_off, *layers[0].shape), layers[0], layers[1] if layers[1:] else None)
    return answer
