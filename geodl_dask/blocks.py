"""Compute the blocks of a lazy array in a rolling window, and hand each to a store.

A raster has more blocks than a scheduler should hold at once, so a bounded number of tasks is under
way at any time. Each takes a few neighbouring blocks, computes and writes them where it runs, and
returns a few bytes.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import cloudpickle
import dask.array as da
import numpy as np
import xarray as xr
from dask.blockwise import Blockwise
from dask.delayed import delayed
from dask.system import CPU_COUNT
from distributed import Client, as_completed, default_client

from .confidence import join_layers, layers_of, pair_type
from .errors import BlockFailedError, OutputError

log = logging.getLogger(__name__)

Index = tuple[int, int]
Progress = Callable[[int, int], None]
"""Called with the pixels that are done and those to be done in all."""

Tallies = Generator["Tally", None, None]
"""Of what has just been written."""

MOST_TASKS = 20_000
"""Blocks are put together into runs, so that a raster of any size makes about this many tasks at the most."""
RETRIES = 2


@dataclass
class Tally:
    """What was written."""

    pixels: Counter[int] = field(default_factory=Counter)
    """Pixels by value."""
    tiles: int = 0
    """Tiles that the blocks are made of; 0 where the lattice is not known."""
    empty_tiles: int = 0
    """Of those, how many have nothing but nodata in their core: the model has not run on them."""

    def add(self, other: Tally) -> None:
        """Count ``other`` too."""
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


def store_blocks(
    array: da.Array, store: BlockStore, progress: Progress | None = None, lattice: Lattice | None = None
) -> Tally:
    """Write every block of ``array`` that ``store`` has not, on the active Dask client or else in this process.

    array : (y, x) as of `regular_blocks`. Returns what the store then holds: blocks that it had are counted too. Raises
    BlockFailedError.
    """
    tally = Tally()
    write = _rolling if stands_alone(array) else _at_once
    with _active_client() as client, closing(write(client, array, store, lattice)) as finished:
        for more in finished:
            tally.add(more)
            if progress:
                progress(tally.pixels.total(), array.size)
    return tally


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
            f"The raster to write holds {change.dtype}; integers are needed, for instance by astype('uint8')."
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


@contextmanager
def _active_client() -> Iterator[Client]:
    try:
        client = default_client()
    except ValueError:
        with Client(
            processes=False, n_workers=1, threads_per_worker=CPU_COUNT, set_as_default=False,
            # No dashboard; but without an address distributed takes port 8787, and warns where that is in use.
            dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        ) as own:  # fmt: skip
            yield own
    else:
        yield client


def _rolling(client: Client, array: da.Array, store: BlockStore, lattice: Lattice | None) -> Tallies:
    indices = list(np.ndindex(*array.numblocks))
    length = -(-len(indices) // MOST_TASKS)
    runs = iter([indices[start : start + length] for start in range(0, len(indices), length)])
    recipe = zlib.compress(cloudpickle.dumps((array, store, lattice)))  # it goes with every task
    lanes = max(1, sum(client.nthreads().values()))
    first_of: dict[Any, Index] = {}

    def submit(some: Iterable[list[Index]]) -> list[Any]:
        begun = {client.submit(_write_run, recipe, run, pure=False, retries=RETRIES): run[0] for run in some}
        first_of.update(begun)
        return list(begun)

    pending = as_completed(submit(islice(runs, 2 * lanes)), loop=client.loop)
    try:
        for future in pending:
            yield _result(future, array, first_of.pop(future))
            pending.update(submit(islice(runs, 1)))
    finally:
        client.cancel(list(pending.futures))


def _at_once(client: Client, array: da.Array, store: BlockStore, lattice: Lattice | None) -> Tallies:
    indices = list(np.ndindex(*array.numblocks))
    there = {index: delayed(_count_kept)(store, lattice, index) for index in indices if store.is_done(index)}
    missing = set(indices) - set(there)
    for index, tally in _each(client, array, there):
        if tally is None:
            missing.add(index)
        else:
            yield tally
    blocks = array.to_delayed()
    writes = {index: delayed(_write_block)(store, lattice, index, blocks[index]) for index in sorted(missing)}
    for _, tally in _each(client, array, writes):
        yield tally


def _each(client: Client, array: da.Array, tasks: dict[Index, Any]) -> Generator[tuple[Index, Any], None, None]:
    """What the task of each block returns, as they end."""
    futures = client.compute(list(tasks.values()), retries=RETRIES)
    index_of = dict(zip(futures, tasks, strict=True))
    pending = as_completed(futures, loop=client.loop)
    try:
        for future in pending:
            yield index_of[future], _result(future, array, index_of[future])
    finally:
        client.cancel(list(pending.futures))


def _result(future: Any, array: da.Array, index: Index) -> Any:
    try:
        return future.result()
    except BlockFailedError:
        raise
    except Exception as error:  # of the graph that the caller gave us, or a worker that died
        raise _failure(array, index, error) from error


def _write_run(recipe: bytes, run: list[Index]) -> Tally:
    """Compute and keep those of some neighbouring blocks that are not kept yet. Runs on workers."""
    array, store, lattice = _recipe(recipe)
    tally = Tally()
    for index in run:
        failure = None
        try:
            done = _count_kept(store, lattice, index) if store.is_done(index) else None
            if done is None:
                values = np.asarray(array.blocks[index].compute(scheduler="synchronous"))
                done = _write_block(store, lattice, index, values)
            tally.add(done)
        except Exception as error:
            log.debug("block %s failed", index, exc_info=True)
            failure = _failure(array, index, error)
        if failure:  # out here without a cause, for not every error can be pickled on its way to the client
            raise failure
    return tally


def _failure(array: da.Array, index: Index, error: Exception) -> BlockFailedError:
    row, col = (sum(lengths[:position]) for lengths, position in zip(array.chunks, index, strict=True))
    return BlockFailedError(f"The block at row {row}, column {col} failed: {type(error).__name__}: {error}")


def _write_block(store: BlockStore, lattice: Lattice | None, index: Index, values: np.ndarray) -> Tally:
    store.write_block(index, values)
    return _count(values, lattice)


def _count_kept(store: BlockStore, lattice: Lattice | None, index: Index) -> Tally | None:
    """None where the block cannot be read, so that it has to be computed again."""
    try:
        return _count(store.read_block(index), lattice)
    except Exception as error:  # GDAL, a codec: each has its own
        log.warning("Block %s is kept but unreadable, and computed again: %s: %s", index, type(error).__name__, error)
        return None


def _count(values: np.ndarray, lattice: Lattice | None) -> Tally:
    values = values if values.dtype.names is None else values["class"]
    tiles, empty = (0, 0) if lattice is None else _count_tiles(values, lattice)
    return Tally(_count_pixels(values), tiles, empty)


def _count_pixels(values: np.ndarray) -> Counter[int]:
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        found, counts = np.unique(values, return_counts=True)
    else:
        everywhere = np.bincount(values.ravel())
        found = np.flatnonzero(everywhere)
        counts = everywhere[found]
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _count_tiles(values: np.ndarray, lattice: Lattice) -> tuple[int, int]:
    """How many tiles a block has, and how many of them hold nothing but nodata."""
    is_class = values != lattice.nodata
    for axis, stride in enumerate(lattice.stride_yx):
        is_class = np.logical_or.reduceat(is_class, np.arange(0, values.shape[axis], stride), axis=axis)
    return is_class.size, int(is_class.size - is_class.sum())


@lru_cache(maxsize=4)
def _recipe(recipe: bytes) -> Any:
    return cloudpickle.loads(zlib.decompress(recipe))
