"""Blocks on a worker: computed, handed to a store, and counted."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import cloudpickle
import dask.array as da
import numpy as np
import xarray as xr
from dask.blockwise import Blockwise
from dask.local import get_sync

from .confidence import join_layers, layers_of, pair_type
from .errors import OutputError

log = logging.getLogger(__name__)

Index = tuple[int, int]


class NotKeptError(Exception):
    """A store could not keep a block; made with one string, for it travels from a worker."""


@dataclass
class Tally:
    """What became of some blocks."""

    computed: int = 0
    """Blocks that were computed and kept."""
    kept: int = 0
    """Blocks that an earlier run had kept."""
    failed: dict[Index, str] = field(default_factory=dict)
    """Causes, by row and column, why blocks could not be computed."""

    pixels: Counter[int] = field(default_factory=Counter)
    """Pixels by value."""
    tiles: int = 0
    """Tiles that the blocks are made of; 0 where the lattice is not known."""
    empty_tiles: int = 0
    """Of those, how many have nothing but nodata in their core: the model has not run on them."""

    def add(self, other: Tally) -> None:
        """Count ``other`` too."""
        self.computed += other.computed
        self.kept += other.kept
        self.failed |= other.failed
        self.pixels.update(other.pixels)
        self.tiles += other.tiles
        self.empty_tiles += other.empty_tiles


@dataclass(frozen=True)
class Lattice:
    """Where a block's tiles lie: it begins with one."""

    stride_yx: tuple[int, int]
    """Height and width of a tile's core, pixels."""
    nodata: int
    """The value of pixels without class."""


class BlockStore(Protocol):
    """All that a storage back end offers. Picklable; writing a block twice, even at once, leaves it whole."""

    def is_done(self, index: Index) -> bool:
        """Whether block ``index`` (row, column) is finished."""
        ...

    def read_block(self, index: Index) -> np.ndarray:
        """Block ``index``, which is finished: (y, x) as `regular_blocks` has it. Runs on workers."""
        ...

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Keep block ``index``: (y, x) as `regular_blocks` has it. Runs on workers."""
        ...


class BlockReader(Protocol):
    """A result whose blocks can be read again. Picklable."""

    def read_block(self, index: Index) -> np.ndarray:
        """Block ``index``: (y, x) class values. Runs on workers."""
        ...


@dataclass(frozen=True)
class Continued:
    """Block store that takes over, from a result in which some blocks failed, those that did not."""

    store: BlockStore
    """Where the blocks go."""
    result: BlockReader
    """Where they are."""
    failed: frozenset[Index]
    """Those that are not there."""

    def is_done(self, index: Index) -> bool:
        """Whether the block is there or here."""
        return index not in self.failed or self.store.is_done(index)

    def read_block(self, index: Index) -> np.ndarray:
        """The block, which is here afterwards. Runs on workers."""
        if not self.store.is_done(index):
            self.store.write_block(index, self.result.read_block(index))
        return self.store.read_block(index)

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Keep a block that was computed. Runs on workers."""
        self.store.write_block(index, values)


def regular_blocks(change: xr.DataArray | xr.Dataset) -> da.Array:
    """The data of a DataArray (y, x) of integers, lazy or computed, in blocks of one size but for the last ones.

    Of a Dataset that has confidence beside them: pixels of the two fields class and confidence, block by block.
    Raises OutputError for anything else.
    """
    change, confidence = layers_of(change)
    if not isinstance(change, xr.DataArray):
        raise OutputError(f"What to write is a {type(change).__name__}; a DataArray as of detect_change is needed.")
    if change.dtype.kind not in "ui":
        raise OutputError(
            f"The raster to write holds {change.dtype}; integers are needed, for instance by "
            "fillna(255).astype('uint8')."
        )
    if change.dims != ("y", "x"):
        raise OutputError(
            f"The raster to write has dimensions {change.dims}; ('y', 'x') are needed. See its methods transpose, "
            "squeeze and rename."
        )
    array = da.asarray(change.data)
    sizes = tuple(max(lengths) for lengths in array.chunks)
    blocks = array.rechunk(sizes)
    if confidence is None:
        return blocks
    beside = da.asarray(confidence.transpose("y", "x").data).rechunk(blocks.chunks)
    dtype = pair_type(blocks.dtype, beside.dtype)
    return da.map_blocks(join_layers, blocks, beside, dtype=dtype, meta=np.empty((0, 0), dtype))


def lattice_of(change: xr.DataArray, blocks: da.Array) -> Lattice | None:
    """Where the tiles of a raster's blocks lie; None where that is not known, or blocks cut them."""
    size_yx, padding, nodata = (change.attrs.get(key) for key in ("tile_size", "padding", "_FillValue"))
    if size_yx is None or padding is None or nodata is None:
        return None
    stride_y, stride_x = (length - 2 * padding for length in size_yx)
    is_whole = all(
        not length % stride
        for lengths, stride in zip(blocks.chunks, (stride_y, stride_x), strict=True)
        for length in lengths[:-1]
    )
    return Lattice((stride_y, stride_x), int(nodata)) if is_whole else None


def stands_alone(array: da.Array) -> bool:
    """Whether each block of ``array`` is computed without any other: then a worker needs the recipe alone."""
    return all(isinstance(layer, Blockwise) for layer in array.dask.layers.values())


def pack_recipe(array: da.Array, store: BlockStore, lattice: Lattice | None) -> bytes:
    """What `write_run` needs of a raster; small, for it goes with every task."""
    return zlib.compress(cloudpickle.dumps((array, store, lattice)))


@dataclass(frozen=True)
class HandedOver:
    """Block store that keeps blocks for whoever asked for them."""

    blocks: dict[Index, np.ndarray] = field(default_factory=dict)
    """What was handed over: (y, x) each."""

    def is_done(self, index: Index) -> bool:
        """Never: who asks for a block wants it."""
        return False

    def read_block(self, index: Index) -> np.ndarray:
        """A block that was handed over."""
        return self.blocks[index]

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Keep it."""
        self.blocks[index] = values


def write_run(recipe: bytes, run: list[Index], elsewhere: BlockStore | None = None) -> Tally:
    """Compute and keep those of some neighbouring blocks that are not kept yet. Runs on workers.

    elsewhere : where they go, and not to the recipe's store.
    A block that fails is in the tally's ``failed``, for not every error can be pickled, and the others go on. Raises
    NotKeptError.
    """
    array, store, lattice = _recipe(recipe)
    store = elsewhere or store
    tally = Tally()
    for index in run:
        done = count_kept(store, lattice, index) if store.is_done(index) else None
        if done is None:
            try:
                values = _compute(array, index)
            except (Exception, SystemExit) as error:  # a model's own code may say sys.exit()
                log.debug("block %s failed", index, exc_info=True)
                done = Tally(failed={index: in_words(error)})
            else:
                done = write_block(store, lattice, index, values)
        tally.add(done)
    return tally


def _compute(array: da.Array, index: Index) -> np.ndarray:
    """One block of an array that stands alone; slicing it out would take a second where there are a million."""
    key = (array.name, *index)
    return np.asarray(get_sync(array.dask.cull([key]), key))


def write_block(store: BlockStore, lattice: Lattice | None, index: Index, values: np.ndarray) -> Tally:
    """Keep one block. Runs on workers. Raises NotKeptError."""
    cause = None
    try:
        store.write_block(index, values)
    except (Exception, SystemExit) as error:
        cause = in_words(error)
    if cause:  # out here, and without what caused it, which may not pickle
        raise NotKeptError(cause)
    tally = _count(values, lattice)
    tally.computed = 1
    return tally


def in_words(error: BaseException) -> str:
    """Kind and message of an error."""
    return f"{type(error).__name__}: {error}"


def count_kept(store: BlockStore, lattice: Lattice | None, index: Index) -> Tally | None:
    """What a kept block holds; None where it cannot be read, so that it has to be computed again. Runs on workers."""
    try:
        tally = _count(store.read_block(index), lattice)
        tally.kept = 1
        return tally
    except Exception as error:  # GDAL, a codec: each has its own
        log.warning("Block %s is kept but unreadable, and computed again: %s", index, in_words(error))
        return None


def _count(values: np.ndarray, lattice: Lattice | None) -> Tally:
    values = values if values.dtype.names is None else values["class"]
    tiles, empty = (0, 0) if lattice is None else _count_tiles(values, lattice)
    return Tally(pixels=_count_pixels(values), tiles=tiles, empty_tiles=empty)


def _count_pixels(values: np.ndarray) -> Counter[int]:
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        found, counts = np.unique(values, return_counts=True)
    else:
        everywhere = np.bincount(values.ravel()) if values.dtype.itemsize > 1 else _count_bytes(values)
        found = np.flatnonzero(everywhere)
        counts = everywhere[found]
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _count_bytes(values: np.ndarray) -> np.ndarray:
    """How often each of 256 values occurs; taken two by two, which is three times as fast."""
    flat = values.ravel()
    pairs = np.bincount(flat[: flat.size // 2 * 2].view(np.uint16), minlength=1 << 16).reshape(256, 256)
    return pairs.sum(axis=0) + pairs.sum(axis=1) + np.bincount(flat[flat.size // 2 * 2 :], minlength=256)


def _count_tiles(values: np.ndarray, lattice: Lattice) -> tuple[int, int]:
    """How many tiles a block has, and how many of them hold nothing but nodata."""
    is_class = values != lattice.nodata
    for axis, stride in enumerate(lattice.stride_yx):
        is_class = np.logical_or.reduceat(is_class, np.arange(0, values.shape[axis], stride), axis=axis)
    return is_class.size, int(is_class.size - is_class.sum())


@lru_cache(maxsize=4)
def _recipe(recipe: bytes) -> Any:
    return cloudpickle.loads(zlib.decompress(recipe))
