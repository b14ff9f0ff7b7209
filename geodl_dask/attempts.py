"""What became of each task of a run, and which blocks are tried again, and where."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import dask.array as da
from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError

from .blocks import BlockStore, Index, Lattice, NotKeptError, Tally, count_kept, in_words, pack_recipe, write_block
from .errors import GeodlError
from .failures import NONE, event, failure, killed, lost, not_kept, place
from .reputation import Reputation
from .workers import Crew, Report, memory_of, work

log = logging.getLogger(__name__)

DEADLY = 5
"""When so many blocks have each cost several workers and none could be computed, the others are not tried."""
COUNT_EVERY_S = 1.0
"""How often the scheduler is asked for its workers, which takes longer than to hand it a task."""
MOST_PUT_OFF = 20
"""So many blocks may have failed before anything has been computed, and wait for that, before no more are begun."""


@dataclass(frozen=True)
class _Failure:
    """Blocks that are tried again together, or not."""

    run: list[Index]
    cause: str
    is_of_store: bool = False
    """Whether a block was computed, and could not be kept: then nothing is."""


class Attempts:
    """The tasks of a run that writes ``array`` to ``store``."""

    def __init__(self, client: Client, array: da.Array, store: BlockStore, lattice: Lattice | None, crew: Crew) -> None:
        self.suspects: list[Index] = []
        """Blocks whose worker died again and again, by them or by what was computed beside them."""
        self._client, self._array, self._memory = client, array, memory_of(client)
        self._store, self._lattice, self._crew = store, lattice, crew
        self._recipe = pack_recipe(array, store, lattice)
        self._runs: dict[Future[Any], list[Index]] = {}
        self._again: list[tuple[list[Index], list[str]]] = []
        self._put_off: list[_Failure] = []
        self._kept = Tally()
        self._reputation = Reputation()
        self._hosts: dict[str, str] = {}
        self._is_any_done = False
        self._lane_count, self._counted = 0, -math.inf

    @property
    def open(self) -> list[Future[Any]]:
        """Tasks that are under way."""
        return list(self._runs)

    def room(self) -> int:
        """Tasks that may be added, for as many workers as there are by now."""
        if time.monotonic() > self._counted + COUNT_EVERY_S:
            self._lane_count, self._counted = sum(self._lanes().values()), time.monotonic()
        if len(self._put_off) >= MOST_PUT_OFF:
            return 0
        return max(0, 2 * max(1, self._lane_count) - len(self._runs))

    def _lanes(self) -> dict[str, int]:
        """The threads of each worker that is there."""
        try:
            lanes: dict[str, int] = self._client.nthreads()
        except OSError as error:
            raise lost(self._client) from error
        self._reputation.alive = set(lanes)
        return lanes

    def begin(self, runs: Iterable[list[Index]], among: list[str] | None = None) -> list[Future[Any]]:
        """Tasks for some runs of blocks. among : workers that are to do them, if they are there still."""
        options = {"workers": among, "allow_other_workers": True} if among else {}
        begun = []
        for run in runs:
            future = self._client.submit(work, self._crew.name, self._recipe, run, pure=False, **options)
            self._runs[future] = run
            begun.append(future)
        return begun

    def begin_again(self) -> list[Future[Any]]:
        """Tasks for what is to be tried again."""
        again, self._again = self._again, []
        return [future for run, among in again for future in self.begin([run], among)]

    def missing(self, runs: Iterable[list[Index]]) -> Iterator[list[Index]]:
        """The runs; while workers do not see what is kept, one by one those of their blocks that are not.

        Their pixels come back here, so that no more of them are under way than there are tasks.
        """
        for run in runs:
            if not self._crew.blind:
                yield run
                continue
            for index in run:
                kept = count_kept(self._store, self._lattice, index) if self._store.is_done(index) else None
                if kept is None:
                    yield [index]
                else:
                    self._kept.add(kept)

    def settle(self, future: Future[Any], *, is_alone: bool = False) -> Tally:
        """What a task has done for good. Raises what ends the run."""
        run = self._runs.pop(future)
        tally = self.take_kept()
        try:
            report = future.result()
        except FutureCancelledError as error:
            raise lost(self._client) from error
        except KilledWorker as error:
            tally.failed |= self._after_death(run, error, is_alone=is_alone)
        except Exception as error:  # not of a block: the task itself could not run, and its cause says why
            cause = in_words(error.__cause__ or error)
            tally.add(self._after_report(Report("", "", Tally(failed=dict.fromkeys(run, cause))), run))
        else:
            tally.add(self._after_report(report, run))
        self._is_any_done |= bool(tally.pixels)
        put_off, self._put_off = self._put_off, []
        for each in put_off:
            tally.failed |= self._judge(each)
        return tally

    def take_kept(self) -> Tally:
        """What was kept already, of blocks that were not sent for that."""
        kept, self._kept = self._kept, Tally()
        return kept

    def _after_report(self, report: Report, run: list[Index]) -> Tally:
        self._hosts[report.worker] = report.host
        tally = report.tally if report.pixels is None else self._take_over(report)
        if report.unfit:
            tally = self._after_refusal(report, report.unfit, run)
        failures = [_Failure([index], self._located(cause, report)) for index, cause in tally.failed.items()]
        if report.not_kept:
            failures = [_Failure(run, self._located(report.not_kept, report), is_of_store=True)]
        elif tally.computed:
            for worker in self._reputation.note_done(report.worker, [each for each in run if each not in tally.failed]):
                self._dismiss(worker, "it fails at blocks that others can do")
        tally.failed = {}
        for each in failures:
            self._reputation.note_failed(report.worker, each.run[0])
            tally.failed |= self._judge(each)
        return tally

    def _after_refusal(self, report: Report, cause: GeodlError, run: list[Index]) -> Tally:
        """Of a run that a worker could not begin. Raises the cause where nobody else is there, or has been."""
        self._lanes()
        if self._reputation.set_aside(report.worker):
            self._dismiss(report.worker, in_words(cause))
        elif not self._is_any_done:
            raise cause
        return Tally(failed=dict.fromkeys(run, in_words(cause)))

    def _take_over(self, report: Report) -> Tally:
        """Keep the blocks of a worker that does not see where."""
        self._crew.note_blind(report.worker, report.host)
        tally = Tally(failed=report.tally.failed)
        for index, values in (report.pixels or {}).items():
            try:
                tally.add(write_block(self._store, self._lattice, index, values))
            except NotKeptError as error:
                raise not_kept(self._array, index, str(error)) from error
        return tally

    def _judge(self, failed: _Failure) -> dict[Index, str]:
        """The cause of what has failed for good; else it is tried again, now or later."""
        index = failed.run[0]
        verdict, among = self._reputation.judge(index, is_waiting=bool(self._runs))
        if verdict == "final" and failed.is_of_store:
            raise not_kept(self._array, index, failed.cause)
        if verdict == "final":
            return {index: failed.cause}
        if verdict == "later":
            self._put_off.append(failed)
        else:
            told = event("block_retried", block=index, cause=failed.cause)
            log.info("The block at %s is tried again: %s", place(self._array, index), failed.cause, extra=told)
            self._again.append((failed.run, among))
        return {}

    def _after_death(self, run: list[Index], error: KilledWorker, *, is_alone: bool) -> dict[Index, str]:
        """Of a run whose worker died several times, what has failed for good."""
        told = event("worker_lost", worker=str(error.last_worker.address), blocks=run)
        log.info("A worker died with the block at %s", place(self._array, run[0]), extra=told)
        if len(run) > 1:
            self._again += [([index], []) for index in run]
            return {}
        if is_alone:
            return {run[0]: killed(error, self._memory)}
        self.suspects.append(run[0])
        if not self._is_any_done and len(self.suspects) >= DEADLY:
            raise failure(self._array, dict.fromkeys(self.suspects, killed(error, self._memory)), NONE) from error
        return {}

    def _located(self, cause: str, report: Report) -> str:
        return cause if report.host in ("", socket.gethostname()) else f"{cause} (on {report.host})"

    def _dismiss(self, worker: str, cause: str) -> None:
        """Let a worker go. What it has under way is done by others too, which leaves each block whole."""
        log.warning("Worker %s on %s is set aside: %s", worker, self._hosts.get(worker, "its host"), cause)
        with suppress(OSError):  # it has left, or the scheduler is lost, which the next task shows
            self._client.retire_workers([worker], close_workers=True)
