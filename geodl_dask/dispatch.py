"""Send the blocks of a lazy array to the workers, a bounded number at a time, and learn what became of each.

A raster has more blocks than a scheduler should hold at once, so a rolling window of tasks is under way. Each takes a
few neighbouring blocks, computes and writes them where it runs, and returns a few bytes. A block that fails is tried
again, and set aside when it goes on failing, so that all others are finished first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import dask
import dask.array as da
from dask.delayed import delayed
from dask.system import CPU_COUNT
from distributed import Client, KilledWorker, as_completed, default_client
from distributed.client import FutureCancelledError

from .attempts import Attempts
from .blocks import BlockStore, Index, Lattice, NotKeptError, Tally, count_kept, in_words, stands_alone, write_block
from .errors import OutputError
from .failures import NONE, event, failure, killed, lost, not_kept, noticing_loss, place
from .local_client import LocalClient
from .reputation import TRIES
from .shards import Shard
from .workers import Crew, all_see, memory_of, noticing_absence, prepared_workers

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the pixels that are done and those to be done in all."""

Tallies = Generator[Tally, None, None]
"""Of what has just become of some blocks."""

MOST_TASKS = 10_000
"""Blocks are put together into runs, so that a raster of any size makes about this many tasks at the most."""
HOPELESS = 20
"""When this many blocks have failed and none could be computed, the others are not tried."""


def store_blocks(
    array: da.Array,
    store: BlockStore,
    progress: Progress | None = None,
    lattice: Lattice | None = None,
    *,
    keep_going: bool = False,
    folder: Path | None = None,
    shard: Shard = Shard(),  # noqa: B008  # frozen
) -> Tally:
    """Write every block of ``array`` that ``store`` has not, on the active Dask client or else in this process.

    array : (y, x) as of `regular_blocks`. keep_going : blocks that fail are in the tally, and no error.
    folder : in which the store is; workers that do not see it hand their blocks to this process.
    shard : the blocks to be written, unless all.
    Returns what the store then holds of them: blocks that it had are counted too. Raises BlockFailedError once all
    others are kept, or at once where a block cannot be kept or none can be computed, and SchedulerLostError.
    """
    tally, blocks, pixels = Tally(), shard.block_count(array.numblocks), shard.pixel_count(array.chunks)
    write = _rolling if stands_alone(array) else _at_once
    with (
        _active_client() as client,
        noticing_loss(client),
        noticing_absence(client),
        prepared_workers(client, array, folder) as crew,
        closing(write(client, array, store, lattice, crew, shard)) as finished,
    ):
        for more in finished:
            tally.add(more)
            _log_tally(array, more, tally, blocks=blocks, pixels=pixels)
            if progress and more.pixels:
                progress(tally.pixels.total(), pixels)
            if len(tally.failed) >= HOPELESS and not (tally.computed or tally.kept or keep_going):
                raise failure(array, tally.failed, NONE)
    if tally.failed and (not keep_going or not tally.pixels):
        raise failure(array, tally.failed, "all others are done" if tally.pixels else "none could be computed")
    return tally


def _log_tally(array: da.Array, more: Tally, tally: Tally, *, blocks: int, pixels: int) -> None:
    """What has just been done; handlers find numbers beside the text (see `run_log`)."""
    for index, cause in more.failed.items():
        where = place(array, index)
        log.info("The block at %s failed: %s", where, cause, extra=event("block_failed", block=index, cause=cause))
    if not more.pixels:
        return
    done = tally.computed + tally.kept
    facts = {"done": done, "blocks": blocks, "done_px": tally.pixels.total(), "all_px": pixels}
    log.debug("%s of %s blocks are done", done, blocks, extra=event("progress", **facts))


@contextmanager
def where_seen(folder: Path) -> Iterator[None]:
    """While the block lasts this process computes, if the active client has workers that do not see ``folder``."""
    try:
        client = default_client()
    except ValueError:
        client = None
    if client is None:
        yield
        return
    with noticing_loss(client):
        is_seen = all_see(client, folder)
    if is_seen:
        yield
        return
    with _own_client() as own, own.as_current():
        yield


@contextmanager
def _active_client() -> Iterator[Client]:
    try:
        client = default_client()
    except ValueError:
        with _own_client() as own:
            yield own
    else:
        yield client


def _own_client() -> Client:
    """Workers in this process."""
    # Dask would pause them for all that the process holds, and so for ever.
    with dask.config.set({"distributed.worker.memory.pause": False}):
        return LocalClient(
            processes=False, n_workers=1, threads_per_worker=CPU_COUNT, set_as_default=False,
            # No dashboard; but without an address distributed takes port 8787, and warns where that is in use.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        )  # fmt: skip


def _rolling(
    client: Client, array: da.Array, store: BlockStore, lattice: Lattice | None, crew: Crew, shard: Shard
) -> Tallies:
    attempts = Attempts(client, array, store, lattice, crew)
    runs = attempts.missing(_runs_of(array, shard))
    pending = as_completed(attempts.begin(islice(runs, attempts.room())), loop=client.loop)
    try:
        for future in pending:
            yield attempts.settle(future)
            pending.update(attempts.begin_again() or attempts.begin(islice(runs, attempts.room())))
        yield attempts.take_kept()
        # Whoever computed beside a block that kills its worker dies with it; alone, each answers for itself.
        for index in attempts.suspects:
            pending.update(attempts.begin([[index]]))
            for future in pending:
                yield attempts.settle(future, is_alone=True)
                pending.update(attempts.begin_again())
    finally:
        client.cancel(attempts.open)


def _runs_of(array: da.Array, shard: Shard) -> Iterator[list[Index]]:
    """Neighbouring blocks, row by row."""
    indices = shard.indices(array.numblocks)
    length = blocks_per_task(shard.block_count(array.numblocks))
    return iter(lambda: list(islice(indices, length)), [])


def blocks_per_task(blocks: int) -> int:
    """How many neighbouring blocks of so many make a task."""
    return max(1, -(-blocks // MOST_TASKS))


def _at_once(
    client: Client, array: da.Array, store: BlockStore, lattice: Lattice | None, crew: Crew, shard: Shard
) -> Tallies:
    """One graph for all, of an array whose blocks hang on one another."""
    if crew.blind:
        raise OutputError(
            f"The workers on {', '.join(sorted(set(crew.blind.values())))} do not see the folder of the output, and "
            "this raster is computed from other Dask arrays. Write to a folder that all machines share."
        )
    indices = list(shard.indices(array.numblocks))
    there = {index: delayed(count_kept)(store, lattice, index) for index in indices if store.is_done(index)}
    missing = set(indices) - set(there)
    for index, tally in _each(client, array, there):
        if tally is None:
            missing.add(index)
        else:
            yield tally
    blocks = array.to_delayed()
    writes = {index: delayed(write_block)(store, lattice, index, blocks[index]) for index in sorted(missing)}
    for _, tally in _each(client, array, writes):
        yield tally


def _each(client: Client, array: da.Array, tasks: dict[Index, Any]) -> Generator[tuple[Index, Any], None, None]:
    """What the task of each block returns, as they end; a tally that says why where it failed."""
    futures = client.compute(list(tasks.values()), retries=TRIES - 1)
    index_of, memory = dict(zip(futures, tasks, strict=True)), memory_of(client)
    pending = as_completed(futures, loop=client.loop)
    try:
        for future in pending:
            index = index_of[future]
            try:
                yield index, future.result()
            except FutureCancelledError as error:
                raise lost(client) from error
            except NotKeptError as error:
                raise not_kept(array, index, str(error)) from error
            except KilledWorker as error:
                yield index, Tally(failed={index: killed(error, memory)})
            except Exception as error:  # of the graph that the caller gave us
                yield index, Tally(failed={index: in_words(error)})
    finally:
        client.cancel(list(pending.futures))
