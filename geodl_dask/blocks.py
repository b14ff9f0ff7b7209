"""Compute the blocks of a lazy array in a rolling window, and hand each to a store.

A raster has more blocks than a scheduler should hold at once, so a bounded number of tasks is under
way at any time. Each takes a few neighbouring blocks, computes and writes them where it runs, and
returns a few bytes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from itertools import islice, product
from typing import Any, Protocol

import cloudpickle
import dask.array as da
import numpy as np
import xarray as xr
from dask.blockwise import Blockwise
from dask.delayed import delayed
from dask.system import CPU_COUNT
from distributed import Client, as_completed, default_client

from .errors import BlockFailedError

log = logging.getLogger(__name__)

Index = tuple[int, int]
Progress = Callable[[int, int], None]
"""Called with the pixels that are done and those to be done in all."""

Counts = Generator[dict[int, int], None, None]
"""Pixels by value of what has just been written."""

MOST_TASKS = 20_000
"""Blocks are put together into runs, so that a raster of any size makes about this many tasks at the most."""
RETRIES = 2


class BlockStore(Protocol):
    """All that a storage back end offers. Picklable; writing a block twice, even at once, leaves it whole."""

    def is_done(self, index: Index) -> bool:
        """Whether block ``index`` (row, column) is finished."""
        ...

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Keep block ``index``: (y, x) class values. Runs on workers."""
        ...


def store_blocks(array: da.Array, store: BlockStore, progress: Progress | None = None) -> dict[int, int]:
    """Write every block of ``array`` that ``store`` has not, on the active Dask client or else in this process.

    array : (y, x) integers. Returns pixels written by value. Raises BlockFailedError.
    """
    rows, cols = array.numblocks
    missing = [index for index in product(range(rows), range(cols)) if not store.is_done(index)]
    heights, widths = array.chunks
    kept = array.size - sum(heights[row] * widths[col] for row, col in missing)
    pixels: Counter[int] = Counter()
    write = _rolling if stands_alone(array) else _at_once
    with _active_client() as client, closing(write(client, array, store, missing)) as finished:
        for counts in finished:
            pixels.update(counts)
            if progress:
                progress(kept + pixels.total(), array.size)
    return dict(pixels)


def regular_blocks(change: xr.DataArray) -> da.Array:
    """The data of a DataArray (y, x), lazy or computed, in blocks of one size but for the last ones."""
    array = da.asarray(change.data)
    sizes = tuple(max(lengths) for lengths in array.chunks)
    return array.rechunk(sizes)


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
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
        ) as own:  # fmt: skip
            yield own
    else:
        yield client


def _rolling(client: Client, array: da.Array, store: BlockStore, missing: list[Index]) -> Counts:
    length = -(-len(missing) // MOST_TASKS) or 1
    runs = iter([missing[start : start + length] for start in range(0, len(missing), length)])
    recipe = cloudpickle.dumps((array, store))
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


def _at_once(client: Client, array: da.Array, store: BlockStore, missing: list[Index]) -> Counts:
    blocks = array.to_delayed()
    writes = [delayed(_write_block)(store, index, blocks[index]) for index in missing]
    futures = client.compute(writes, retries=RETRIES)
    index_of = dict(zip(futures, missing, strict=True))
    pending = as_completed(futures, loop=client.loop)
    try:
        for future in pending:
            yield _result(future, array, index_of[future])
    finally:
        client.cancel(list(pending.futures))


def _result(future: Any, array: da.Array, index: Index) -> dict[int, int]:
    try:
        return future.result()
    except BlockFailedError:
        raise
    except Exception as error:  # of the graph that the caller gave us, or a worker that died
        raise _failure(array, index, error) from error


def _write_run(recipe: bytes, run: list[Index]) -> dict[int, int]:
    """Compute and keep some neighbouring blocks. Runs on workers."""
    array, store = _recipe(recipe)
    pixels: Counter[int] = Counter()
    for index in run:
        failure = None
        try:
            values = np.asarray(array.blocks[index].compute(scheduler="synchronous"))
            pixels.update(_write_block(store, index, values))
        except Exception as error:
            log.debug("block %s failed", index, exc_info=True)
            failure = _failure(array, index, error)
        if failure:  # out here without a cause, for not every error can be pickled on its way to the client
            raise failure
    return dict(pixels)


def _failure(array: da.Array, index: Index, error: Exception) -> BlockFailedError:
    row, col = (sum(lengths[:position]) for lengths, position in zip(array.chunks, index, strict=True))
    return BlockFailedError(f"The block at row {row}, column {col} failed: {type(error).__name__}: {error}")


def _write_block(store: BlockStore, index: Index, values: np.ndarray) -> dict[int, int]:
    store.write_block(index, values)
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        found, counts = np.unique(values, return_counts=True)
    else:
        everywhere = np.bincount(values.ravel())
        found = np.flatnonzero(everywhere)
        counts = everywhere[found]
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


@lru_cache(maxsize=4)
def _recipe(recipe: bytes) -> Any:
    return cloudpickle.loads(recipe)
