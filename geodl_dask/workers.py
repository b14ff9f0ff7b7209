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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import cloudpickle
import dask.array as da
import numpy as np
from dask.blockwise import Blockwise
from distributed import Client, Worker, WorkerPlugin, get_worker

from .allocator import keep_freed_memory
from .blocks import HandedOver, Index, NotKeptError, Tally, in_words, write_run
from .errors import GeodlError, MissingDependencyError, SchedulerLostError, WorkerSetupError
from .sending import Parcel, pack_parcel, sending

log = logging.getLogger(__name__)

SOON_S = 5.0
"""A shared folder shows on every machine what was written on one, after as long as that at the most."""
PATIENCE_S = 10.0
"""So long nobody is told that there are no workers."""


class Preparation(Protocol):
    """What a worker has to do before its first block; picklable."""

    @property
    def files(self) -> Mapping[str, str]:
        """What a worker may lack: of each file a name, and its path on the client."""
        ...

    def prepare(self, fetch: Callable[[], Path]) -> None:
        """Do it. fetch : gives the folder in which the files are, and has them sent if need be. Runs on workers."""
        ...


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
            _register(client, _GetReady(name, list(zip(preparations, parcels, strict=True)), token))
            for address, (host, sees) in _readiness(client, name).items():
                if not sees:
                    crew.note_blind(address, host)
            yield crew
        finally:
            with suppress(Exception):  # the scheduler may be lost, or closed
                client.unregister_worker_plugin(name)


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


def _register(client: Client, plugin: _GetReady) -> None:
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
    answers = client.run(_until_ready, name, on_error="return")
    for _, answer in sorted(answers.items()):
        if isinstance(answer, GeodlError):
            raise answer
    return {address: answer for address, answer in answers.items() if isinstance(answer, tuple)}


async def _until_ready(name: str, dask_worker: Worker) -> tuple[str, bool] | GeodlError | None:
    """Runs in a worker's event loop, which goes on meanwhile. An error is returned, for Dask logs what is raised."""
    plugin = dask_worker.plugins.get(name)
    if not isinstance(plugin, _GetReady):
        return None
    try:
        return socket.gethostname(), await asyncio.wrap_future(plugin.ready)
    except GeodlError as error:
        return error


class _GetReady(WorkerPlugin):
    """Prepares the process of a worker, be it there now or come later."""

    def __init__(self, name: str, preparations: list[tuple[Preparation, Parcel]], token: str | None) -> None:
        self.name = name
        # Packed: what it takes to load is imported in the thread.
        self._preparations, self._token = cloudpickle.dumps(preparations), token

    def setup(self, worker: Worker) -> None:
        """Begin. Runs in the worker's event loop."""
        self.ready: Future[bool] = Future()
        """Whether the worker sees the output, once it is ready."""
        if threading.current_thread() is threading.main_thread():  # in a process of its own, before it has others
            keep_freed_memory()
        threading.Thread(target=self._settle, args=(worker,), name="geodl-dask-setup", daemon=True).start()

    def _settle(self, worker: Worker) -> None:
        try:
            preparations: list[tuple[Preparation, Parcel]] = cloudpickle.loads(self._preparations)
            for preparation, parcel in preparations:
                preparation.prepare(lambda parcel=parcel: parcel.fetch(worker))  # type: ignore[misc]
            self.ready.set_result(self._token is None or _sees(Path(self._token)))
        except BaseException as error:  # a model's own code may say sys.exit()
            missing = MissingDependencyError if isinstance(error, ImportError) else WorkerSetupError
            kind = type(error) if isinstance(error, GeodlError) else missing
            cause = str(error) if isinstance(error, GeodlError) else in_words(error)
            where = f"Worker {worker.name} ({worker.address}) on {socket.gethostname()} cannot begin"
            self.ready.set_exception(kind(f"{where}: {cause}"))


def all_see(client: Client, folder: Path) -> bool:
    """Whether every worker sees a folder of this machine."""
    if _is_here(client):
        return True
    with _token(folder, f"geodl_dask-{secrets.token_hex(4)}") as token:
        return all(client.run(_look_for, token, on_error="ignore").values())


async def _look_for(token: str) -> bool:
    """Runs in a worker's event loop, which goes on meanwhile."""
    return await asyncio.to_thread(_sees, Path(token))


def _is_here(client: Client) -> bool:
    """Whether the workers are threads of this process."""
    return bool(client.scheduler_info()["address"].startswith("inproc://"))


def _sees(path: Path) -> bool:
    until = time.monotonic() + SOON_S
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


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
        sees_output = plugin.ready.result() if isinstance(plugin, _GetReady) else True
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
    return report


@contextmanager
def noticing_absence(client: Client) -> Iterator[None]:
    """While the block lasts, say when there are no workers, for then nothing happens; and when there are again."""
    ended = threading.Event()

    def watch() -> None:
        missing_since: float | None = None
        is_said = False
        while not ended.wait(PATIENCE_S / 5):
            try:
                is_anybody_there = bool(client.nthreads())
            except (OSError, SchedulerLostError, RuntimeError, AttributeError):  # lost, or closed
                continue
            now = time.monotonic()
            missing_since = None if is_anybody_there else missing_since or now
            if is_said and is_anybody_there:
                log.warning("There are workers again.")
                is_said = False
            elif not is_said and missing_since and now - missing_since > PATIENCE_S:
                log.warning("There are no workers, and the run waits for some. What is finished is kept.")
                is_said = True

    thread = threading.Thread(target=watch, name="geodl-dask-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1)  # a scheduler that is lost does not answer
