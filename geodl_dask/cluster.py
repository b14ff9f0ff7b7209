"""Local workers, or a scheduler that runs already -> a Dask client."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
from collections.abc import Sequence

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed import Client, Worker, WorkerPlugin
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import get_backend

from .allocator import keep_freed_memory
from .errors import RequestError

GPU_WORKER_THREADS = 3
"""Of a worker with a GPU: one that predicts, and others that read and write meanwhile."""


def connect(cluster: str = "local", *, workers: int | None = None, gpus: Sequence[str] = ()) -> Client:
    """A Dask client to compute on; close it, or use it in a ``with`` statement.

    cluster : ``"local"``, or the address of a scheduler that runs.
    workers : local worker processes, which share the cores; None computes in this process, which needs no
        start-up and no second copy of the model. A scheduler that runs has its own.
    gpus : GPUs as `geodl_dask.devices.visible_gpus` names them: one local worker process for each, which sees no other.
    Raises RequestError for what is no cluster or cannot be reached, or fewer workers than one.
    """
    if cluster != "local":
        if "://" not in cluster:
            raise RequestError(f"cluster is {cluster!r}; local or a scheduler's address (tcp://host:port) is needed.")
        if workers is not None or gpus:
            raise RequestError(f"The scheduler at {cluster} has its own workers and GPUs. Leave workers and gpus out.")
        try:
            _knock(cluster)
            return Client(cluster)
        except (OSError, ValueError, TypeError) as error:  # TypeError: tls without certificates
            raise RequestError(f"No Dask scheduler can be reached at {cluster}: {error}. Does it run?") from error
    if workers is not None and workers < 1:
        raise RequestError(f"workers is {workers}; at least 1 is needed.")
    if gpus and workers not in (None, len(gpus)):
        raise RequestError(f"workers is {workers}, and {len(gpus)} GPUs have a worker each. Leave workers out.")
    count = len(gpus) or workers or 1
    has_processes = bool(gpus) or workers is not None
    client = Client(
        n_workers=count,
        threads_per_worker=GPU_WORKER_THREADS if gpus else max(1, CPU_COUNT // count),
        processes=has_processes,
        # Without an address distributed takes port 8787, and warns where that is in use.
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": bool(importlib.util.find_spec("bokeh"))},
    )
    if has_processes:
        client.register_plugin(_LocalWorker())
    if gpus:
        client.register_plugin(_OneGpuEach(tuple(gpus)))
    return client


def _knock(address: str) -> None:
    """Raise ValueError or OSError for an address where nobody can listen, or nobody does.

    A client that fails to connect goes on trying when it is thrown away, and may then lock up the process
    (distributed 2026.8).
    """
    scheme, location = parse_address(address)
    get_backend(scheme)
    if scheme in ("tcp", "tls"):
        timeout_s = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
        socket.create_connection(parse_host_port(location), timeout=timeout_s).close()


class _OneGpuEach(WorkerPlugin):
    """Each worker process sees the GPU of its number alone; set before torch, which reads it once, is used."""

    name = "one-gpu-each"

    def __init__(self, gpus: tuple[str, ...]) -> None:
        self.gpus = gpus

    def setup(self, worker: Worker) -> None:
        """Runs in a worker process, a replacement for a lost one too."""
        os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(worker.name)]


class _LocalWorker(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal: worker processes leave it to the client, which closes them.

    And the memory that networks free is kept, which must be settled before there are threads.
    """

    name = "local-worker"

    def setup(self, worker: Worker) -> None:
        """Runs in the main thread of a worker process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        keep_freed_memory()


def dashboard_of(client: Client) -> str | None:
    """Address of the dashboard of the client's scheduler; None where it has none (bokeh is not installed)."""
    port = client.scheduler_info()["services"].get("dashboard")
    if not port:
        return None
    # The dashboard of a scheduler in this process listens to this machine alone, whatever the link says.
    is_inside = client.scheduler_info()["address"].startswith("inproc")
    return f"http://127.0.0.1:{port}/status" if is_inside else client.dashboard_link
