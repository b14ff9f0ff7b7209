"""Workers made ready before their first block, and what they then do with blocks.

Who says what there is to do? A writer gets an array and knows of no model; a runner knows of no worker. But whatever
a worker needs travels in the array's graph already, as an argument of the function that computes a block. So the graph
is asked: an argument that has a ``preparation()`` is something for which a worker can be prepared. A graph in which
nobody finds one, as of a raster that was computed before, is computed as ever.

The preparation goes to the workers as a plugin, for the scheduler hands that to workers that come later, too. It is
carried out in a thread of its own, so that the worker's heart goes on beating, and on all workers at once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import dask.array as da
import numpy as np
from dask.blockwise import Blockwise
from dask.utils import format_bytes
from distributed import Client, Worker, get_worker

from .allocator import give_back_freed_memory
from .blocks import HandedOver, Index, NotKeptError, Tally, write_run
from .errors import GeodlError, MissingDependencyError, SchedulerLostError
from .failures import lost
from .readiness import GetReady, Preparation, sees, until_ready
from .sending import pack_parcel, sending

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""So long nobody is told that there are no workers."""
FORGET_WITHIN_S = 5.0
"""So long a run that ends waits for its workers to forget it: a stopped one has little time."""


@runtime_checkable
class NeedsPreparation(Protocol):
    """An argument of the function that computes blocks."""

    def preparation(self) -> Preparation:
        """What a worker has to do before it computes one."""
        ...


def preparations_of(array: da.Array) -> list[Preparation]:
    """What the graph of ``array`` wants done on workers before its first block."""
    layers = [layer for layer in array.dask.layers.values() if isinstance(layer, Blockwise)]
    plain = [argument for layer in layers for argument, index in layer.indices if index is None]
    named = [argument for layer in layers for argument in layer.task.kwargs.values()]
    return [argument.preparation() for argument in (*plain, *named) if isinstance(argument, NeedsPreparation)]


@dataclass
class Crew:
    """The workers of a run."""

    name: str | None = None
    """Of the plugin that makes them ready; None where there is nothing to do."""
    blind: dict[str, str] = field(default_factory=dict)
    """Address and host of the workers that do not see the folder in which the result grows."""

    def note_blind(self, worker: str, host: str) -> None:
        """Remember, and say once for each host, that a worker does not see it."""
        if host not in self.blind.values():
            log.warning(
                "The workers on %s do not see the folder of the output: they hand their pixels to this process, which "
                "writes them. A folder that all machines share is faster.",
                host,
            )
        self.blind[worker] = host


@contextmanager
def prepared_workers(client: Client, array: da.Array, folder: Path | None = None) -> Iterator[Crew]:
    """Every worker is ready for the blocks of ``array``, or will be before its first one. Forgotten afterwards.

    folder : in which the result grows; the workers say whether they see it.
    Workers in this very process are ready: who planned the run has loaded the model.
    Raises what a worker raised, of the same kind where it is one of ours, with the worker's name.
    """
    is_here = _is_here(client)
    preparations = [] if is_here else preparations_of(array)
    if is_here or not (preparations or folder):
        yield Crew()
        return
    name = f"geodl_dask-{secrets.token_hex(4)}"
    files = [each.files for each in preparations]
    parcels = [pack_parcel(name, each) for each in files]
    with _token(folder, name) as token, sending(client, dict(zip(parcels, files, strict=True))):
        crew = Crew(name)
        try:
            _register(client, GetReady(name, list(zip(preparations, parcels, strict=True)), token))
            for address, (host, is_seen) in _readiness(client, name).items():
                if not is_seen:
                    crew.note_blind(address, host)
            yield crew
        finally:
            with suppress(Exception):  # the scheduler may be lost, or closed, or a worker never answer
                client.sync(client._unregister_worker_plugin, name, callback_timeout=FORGET_WITHIN_S)


@contextmanager
def _token(folder: Path | None, name: str) -> Iterator[str | None]:
    """A file by which others know the folder."""
    if folder is None:
        yield None
        return
    token = folder / f"{name}.seen"
    token.touch()
    try:
        yield str(token)
    finally:
        token.unlink(missing_ok=True)


def _register(client: Client, plugin: GetReady) -> None:
    try:
        client.register_plugin(plugin)
    except OSError as error:  # a worker left meanwhile; those that come get the plugin
        log.debug("a worker could not be asked to get ready: %s", error)
    except Exception as error:  # so Dask tells what went wrong with the message itself
        if "ModuleNotFoundError" not in f"{type(error).__name__}: {error}":
            raise
        raise MissingDependencyError(
            f"The workers' Python lacks what this one has: {error}. Install geodl_dask there as it is here."
        ) from error


def _readiness(client: Client, name: str) -> dict[str, tuple[str, bool]]:
    """Of each worker its host, and whether it sees the output. Raises what one of them raised."""
    try:
        answers = client.run(until_ready, name, on_error="return")
    except OSError as error:
        raise lost(client) from error
    for _, answer in sorted(answers.items()):
        if isinstance(answer, GeodlError):
            raise answer
    return {address: answer for address, answer in answers.items() if isinstance(answer, tuple)}


def all_see(client: Client, folder: Path) -> bool:
    """Whether every worker sees a folder of this machine."""
    if _is_here(client):
        return True
    with _token(folder, f"geodl_dask-{secrets.token_hex(4)}") as token:
        return all(client.run(_look_for, token, on_error="ignore").values())


async def _look_for(token: str) -> bool:
    """Runs in a worker's event loop, which goes on meanwhile."""
    return await asyncio.to_thread(sees, Path(token))


def _is_here(client: Client) -> bool:
    """Whether the workers are threads of this process."""
    address: str = client.scheduler_info().get("address", "")  # of a client that has given its scheduler up it has none
    return address.startswith("inproc://")


@dataclass
class Report:
    """What a worker has done with a run of blocks."""

    worker: str
    """Its address."""
    host: str
    """Its machine."""
    tally: Tally = field(default_factory=Tally)
    """What became of the blocks."""
    not_kept: str | None = None
    """Why a block could not be kept."""
    unfit: GeodlError | None = None
    """Why the worker cannot do any block."""
    pixels: dict[Index, np.ndarray] | None = None
    """The blocks, (y, x) each, of a worker that does not see where they are to be kept."""


def work(crew: str | None, recipe: bytes, run: list[Index]) -> Report:
    """Compute and keep some blocks, once the worker is ready. Runs in a thread of a worker."""
    worker = get_worker()
    report = Report(worker.address, socket.gethostname())
    plugin = worker.plugins.get(crew) if crew else None
    try:
        sees_output = plugin.ready.result() if isinstance(plugin, GetReady) else True
    except GeodlError as error:
        report.unfit = error
        return report
    store = None if sees_output else HandedOver()
    try:
        report.tally = write_run(recipe, run, store)
    except NotKeptError as error:
        report.not_kept = str(error)
    if store is not None:
        report.pixels = store.blocks
    _stay_below_limit(worker)
    return report


def _stay_below_limit(worker: Worker) -> None:
    """Dask gives a worker nothing more to do while its process is too large, be it by memory that it only keeps."""
    memory: Any = worker.memory_manager
    if not (memory.memory_limit and memory.memory_pause_fraction):
        return
    if worker.monitor.get_process_memory() > memory.memory_limit * memory.memory_pause_fraction:
        give_back_freed_memory()


_ABSENT = "There are no workers, and the run waits for some. What is finished is kept."
_PAUSED = (
    "Dask has paused the workers, for their memory is nearly full, and the run waits for it to be freed. If that does "
    "not happen, stop the run: what is finished is kept. Smaller --chunks (chunks=) or fewer workers need less; of "
    "workers that are threads of this process a higher memory_limit helps, too."
)


def worker_info(client: Client, most: int = -1) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of the workers, by their addresses. Raises SchedulerLostError.

    most : of so many of them, or -1 for all, which takes longer.
    """
    # Not by scheduler_info (distributed 2026.8): now and then it returns what the client asks for by itself, in which
    # there are no workers.
    scheduler: Any = client.scheduler
    try:
        info: dict[str, Any] = client.sync(scheduler.identity, n_workers=most)
    except OSError as error:
        raise lost(client) from error
    return info["workers"]


def memory_limit(client: Client) -> int:
    """Of the worker process that may take least, bytes; 0: not limited."""
    return min({worker["memory_limit"] for worker in worker_info(client).values()} - {0, None}, default=0)


def memory_of(client: Client) -> str:
    """What a worker process may take, in words; nothing where that is not limited."""
    limit = memory_limit(client)
    return f" of {format_bytes(limit)}" if limit else ""


def _states(client: Client, most: int) -> set[str]:
    """How workers are, such as running or paused. most : as of `worker_info`."""
    return {worker["status"] for worker in worker_info(client, most).values()}


@contextmanager
def noticing_absence(client: Client) -> Iterator[None]:
    """While the block lasts, say when no worker takes work, for then nothing happens; and when one does again."""
    ended = threading.Event()

    def watch() -> None:
        missing_since: float | None = None
        is_said = False
        while not ended.wait(PATIENCE_S / 5):
            try:
                states = _states(client, 5)
                states = states if "running" in states else _states(client, -1)
            except (SchedulerLostError, RuntimeError, AttributeError):  # lost, or closed
                continue
            now = time.monotonic()
            missing_since = None if "running" in states else missing_since or now
            if is_said and not missing_since:
                log.warning("There are workers again.")
                is_said = False
            elif not is_said and missing_since and now - missing_since > PATIENCE_S:
                log.warning(_PAUSED if "paused" in states else _ABSENT)
                is_said = True

    thread = threading.Thread(target=watch, name="geodl-dask-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1)  # a scheduler that is lost does not answer
