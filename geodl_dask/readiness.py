"""What makes a worker ready before its first block: a plugin, which the scheduler hands to those that come later, too.

It is light to import, since a worker does that in its event loop: what it takes to load a model is imported in the
thread in which that is done.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import cloudpickle
from distributed import Worker, WorkerPlugin

from .allocator import keep_freed_memory
from .errors import GeodlError, MissingDependencyError, WorkerSetupError
from .sending import Parcel

SOON_S = 5.0
"""A shared folder shows on every machine what was written on one, after as long as that at the most."""

_MEND = "Mend that on its machine, or leave that worker out, and start again."


class Preparation(Protocol):
    """What a worker has to do before its first block; picklable."""

    @property
    def files(self) -> Mapping[str, str]:
        """What a worker may lack: of each file a name, and its path on the client."""
        ...

    def prepare(self, fetch: Callable[[], Path]) -> None:
        """Do it. fetch : gives the folder in which the files are, and has them sent if need be. Runs on workers."""
        ...


class GetReady(WorkerPlugin):
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
            self.ready.set_result(self._token is None or sees(Path(self._token)))
        except BaseException as error:  # a model's own code may say sys.exit()
            missing = MissingDependencyError if isinstance(error, ImportError) else WorkerSetupError
            kind = type(error) if isinstance(error, GeodlError) else missing
            words = str(error).removesuffix(".")
            cause = str(error) if isinstance(error, GeodlError) else f"{type(error).__name__}: {words}. {_MEND}"
            where = f"Worker {worker.name} ({worker.address}) on {socket.gethostname()} cannot begin"
            self.ready.set_exception(kind(f"{where}: {cause}"))


async def until_ready(name: str, dask_worker: Worker) -> tuple[str, bool] | GeodlError | None:
    """Runs in a worker's event loop, which goes on meanwhile. An error is returned, for Dask logs what is raised."""
    plugin = dask_worker.plugins.get(name)
    if not isinstance(plugin, GetReady):
        return None
    try:
        return socket.gethostname(), await asyncio.wrap_future(plugin.ready)
    except GeodlError as error:
        return error


def sees(path: Path) -> bool:
    """Whether a file shows here, soon."""
    until = time.monotonic() + SOON_S
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True
