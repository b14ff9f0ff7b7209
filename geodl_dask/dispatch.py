"""Send the blocks of a lazy array to the workers, a bounded number at a time, and learn what became of each.

A raster has more blocks than a scheduler should hold at once, so a rolling window of tasks is under way. Each takes a
few neighbouring blocks, computes and writes them where it runs, and returns a few bytes. A block that fails is tried
again, and set aside when it goes on failing, so that all others are finished first.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import dask.array as da
from dask.delayed import delayed
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from distributed import Client, Future, KilledWorker, as_completed, default_client
from distributed.client import FutureCancelledError

from .blocks import (
    BlockStore,
    Index,
    Lattice,
    NotKeptError,
    Tally,
    count_kept,
    in_words,
    pack_recipe,
    stands_alone,
    write_block,
    write_run,
)
from .errors import BlockFailedError, SchedulerLostError
from .shards import Shard

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the pixels that are done and those to be done in all."""

Tallies = Generator[Tally, None, None]
"""Of what has just become of some blocks."""

MOST_TASKS = 10_000
"""Blocks are put together into runs, so that a raster of any size makes about this many tasks at the most."""
TRIES = 3
HOPELESS = 20
"""When this many blocks have failed and none could be computed, the others are not tried."""
DEADLY = 5
"""The same for blocks of which each has cost several workers."""
NONE = "none could be computed, so the others were not tried"
NAMED = 3
"""Blocks that an error names, of those that failed."""


def store_blocks(
    array: da.Array,
    store: BlockStore,
    progress: Progress | None = None,
    lattice: Lattice | None = None,
    *,
    keep_going: bool = False,
    shard: Shard = Shard(),  # noqa: B008  # frozen
) -> Tally:
    """Write every block of ``array`` that ``store`` has not, on the active Dask client or else in this process.

    array : (y, x) as of `regular_blocks`. keep_going : blocks that fail are in the tally, and no error. shard : the
    blocks to be written, unless all.
    Returns what the store then holds of them: blocks that it had are counted too. Raises BlockFailedError once all
    others are kept, or at once where a block cannot be kept or none can be computed, and SchedulerLostError.
    """
    tally, blocks, pixels = Tally(), shard.block_count(array.numblocks), shard.pixel_count(array.chunks)
    write = _rolling if stands_alone(array) else _at_once
    with _active_client() as client, closing(write(client, array, store, lattice, shard)) as finished:
        for more in finished:
            tally.add(more)
            _log_tally(array, more, tally, blocks=blocks, pixels=pixels)
            if progress and more.pixels:
                progress(tally.pixels.total(), pixels)
            if len(tally.failed) >= HOPELESS and not (tally.computed or tally.kept or keep_going):
                raise _failure(array, tally.failed, NONE)
    if tally.failed and (not keep_going or not tally.pixels):
        raise _failure(array, tally.failed, "all others are done" if tally.pixels else "none could be computed")
    return tally


def _log_tally(array: da.Array, more: Tally, tally: Tally, *, blocks: int, pixels: int) -> None:
    """What has just been done; handlers find numbers beside the text (see `run_log`)."""
    for index, cause in more.failed.items():
        place = _place(array, index)
        log.info("The block at %s failed: %s", place, cause, extra=_event("block_failed", block=index, cause=cause))
    done = tally.computed + tally.kept
    facts = {"done": done, "blocks": blocks, "done_px": tally.pixels.total(), "all_px": pixels}
    log.debug("%s of %s blocks are done", done, blocks, extra=_event("progress", **facts))


def _event(name: str, **facts: Any) -> dict[str, Any]:
    return {"event": name, "facts": facts}


@contextmanager
def _active_client() -> Iterator[Client]:
    try:
        client = default_client()
    except ValueError:
        with Client(
            processes=False, n_workers=1, threads_per_worker=CPU_COUNT, set_as_default=False,
            # No dashboard; but without an address distributed takes port 8787, and warns where that is in use.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        ) as own:  # fmt: skip
            yield own
    else:
        yield client


def _rolling(client: Client, array: da.Array, store: BlockStore, lattice: Lattice | None, shard: Shard) -> Tallies:
    recipe, runs = pack_recipe(array, store, lattice), _runs_of(array, shard)
    attempts = _Attempts(client, array)

    def submit(some: Iterable[list[Index]]) -> list[Future[Any]]:
        return [attempts.of(client.submit(write_run, recipe, run, pure=False), run) for run in some]

    def room() -> int:
        """Tasks that may be added, for as many workers as there are by now."""
        try:
            lanes = sum(client.nthreads().values())
        except OSError as error:
            raise _lost(client) from error
        return max(0, 2 * max(1, lanes) - len(attempts.open))

    pending = as_completed(submit(islice(runs, room())), loop=client.loop)
    try:
        for future in pending:
            tally, again = attempts.settle(future)
            yield tally
            pending.update(submit(again or islice(runs, room())))
        # Whoever computed beside a block that kills its worker dies with it; alone, each answers for itself.
        for index in attempts.suspects:
            pending.update(submit([[index]]))
            for future in pending:
                tally, again = attempts.settle(future, is_alone=True)
                yield tally
                pending.update(submit(again))
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


class _Attempts:
    """What became of each task, and which blocks are to be tried again."""

    def __init__(self, client: Client, array: da.Array) -> None:
        self.suspects: list[Index] = []
        """Blocks whose worker died again and again, by them or by what was computed beside them."""
        self._client, self._array, self._memory = client, array, _memory_of(client)
        self._runs: dict[Future[Any], list[Index]] = {}
        self._failures: Counter[Index] = Counter()
        self._is_any_done = False

    @property
    def open(self) -> list[Future[Any]]:
        """Tasks that are under way."""
        return list(self._runs)

    def of(self, future: Future[Any], run: list[Index]) -> Future[Any]:
        """Note which blocks a task computes."""
        self._runs[future] = run
        return future

    def settle(self, future: Future[Any], *, is_alone: bool = False) -> tuple[Tally, list[list[Index]]]:
        """What a task has done for good, and the runs that are to be tried again. Raises what ends the run."""
        run = self._runs.pop(future)
        try:
            tally = future.result()
        except FutureCancelledError as error:
            raise _lost(self._client) from error
        except NotKeptError as error:
            if self._is_final(run[0]):
                raise _not_kept(self._array, run[0], error) from error
            return Tally(), [run]
        except KilledWorker as error:
            lost = _event("worker_lost", worker=str(error.last_worker.address), blocks=run)
            log.info("A worker died with the block at %s", _place(self._array, run[0]), extra=lost)
            if len(run) > 1:
                return Tally(), [[index] for index in run]
            if not is_alone:
                self.suspects.append(run[0])
                if not self._is_any_done and len(self.suspects) >= DEADLY:
                    failed = dict.fromkeys(self.suspects, _killed(error, self._memory))
                    raise _failure(
                        self._array, failed, "none could be computed, so the others were not tried"
                    ) from error
                return Tally(), []
            return Tally(failed={run[0]: _killed(error, self._memory)}), []
        except Exception as error:  # not of a block: the task itself could not run, and its cause says why
            tally = Tally(failed=dict.fromkeys(run, in_words(error.__cause__ or error)))
        self._is_any_done |= bool(tally.pixels)
        again = [index for index in tally.failed if not self._is_final(index)]
        for index in again:
            place, cause = _place(self._array, index), tally.failed.pop(index)
            again_of = _event("block_retried", block=index, cause=cause)
            log.info("The block at %s is tried again: %s", place, cause, extra=again_of)
        return tally, [[index] for index in again]

    def _is_final(self, index: Index) -> bool:
        self._failures[index] += 1
        return self._failures[index] >= TRIES


def _at_once(client: Client, array: da.Array, store: BlockStore, lattice: Lattice | None, shard: Shard) -> Tallies:
    """One graph for all, of an array whose blocks hang on one another."""
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
    index_of, memory = dict(zip(futures, tasks, strict=True)), _memory_of(client)
    pending = as_completed(futures, loop=client.loop)
    try:
        for future in pending:
            index = index_of[future]
            try:
                yield index, future.result()
            except FutureCancelledError as error:
                raise _lost(client) from error
            except NotKeptError as error:
                raise _not_kept(array, index, error) from error
            except KilledWorker as error:
                yield index, Tally(failed={index: _killed(error, memory)})
            except Exception as error:  # of the graph that the caller gave us
                yield index, Tally(failed={index: in_words(error)})
    finally:
        client.cancel(list(pending.futures))


def _memory_of(client: Client) -> str:
    """What a worker process may take, in words; nothing where that is not limited."""
    limits = {worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()} - {0, None}
    return f" of {format_bytes(min(limits))}" if limits else ""


def _killed(error: KilledWorker, memory: str) -> str:
    return (
        f"its worker process died {error.allowed_failures + 1} times. Most often that is memory{memory}: take smaller "
        "--chunks (chunks=) or fewer workers"
    )


def _lost(client: Client) -> SchedulerLostError:
    address = client.scheduler.address if client.scheduler else "its address"
    return SchedulerLostError(f"The Dask scheduler at {address} was lost. Start it again, and go on.")


def _not_kept(array: da.Array, index: Index, error: NotKeptError) -> BlockFailedError:
    return BlockFailedError(f"The block at {_place(array, index)} could not be kept: {error}")


def _failure(array: da.Array, failed: dict[Index, str], how: str) -> BlockFailedError:
    causes = [f"{_place(array, index)}: {failed[index]}" for index in sorted(failed)[:NAMED]]
    more = ["and more"] if len(failed) > NAMED else []
    return BlockFailedError(
        f"{len(failed):,} of {array.npartitions:,} blocks failed; {how}. At {'; '.join([*causes, *more])}"
    )


def _place(array: da.Array, index: Index) -> str:
    row, col = (sum(lengths[:position]) for lengths, position in zip(array.chunks, index, strict=True))
    return f"row {row}, column {col}"
