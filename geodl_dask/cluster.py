"""Workers here, of a job queue, or of a scheduler that runs already -> a Dask client."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import signal
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed import Client, LocalCluster, Worker, WorkerPlugin
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.core import connect as open_comm
from distributed.comm.registry import get_backend
from distributed.security import Security

from .cluster_config import CLUSTERS, GPU_WORKER_THREADS, ClusterConfig, read_cluster_config
from .devices import visible_gpus, worker_gpus
from .errors import DeviceError, RequestError
from .job_queue import check_job_queue, submit_jobs
from .local_client import LocalClient, forget_servers
from .tls import security_of

log = logging.getLogger(__name__)


def connect(
    cluster: str | None = None,
    *,
    workers: int | tuple[int, int] | None = None,
    gpus: Sequence[str] = (),
    config: ClusterConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> Client:
    """A Dask client to compute on; close it, or use it in a ``with`` statement: its workers go with it.

    cluster : ``"local"`` (what None means where ``config`` says nothing else). ``"cuda"``: a worker for each GPU of
        this machine. ``"slurm"``, ``"pbs"``, ``"lsf"``, ``"sge"``: jobs of that queue (``pip install
        "geodl_dask[hpc]"``); the client is there at once, and work begins with the first worker. The address of a
        scheduler that runs, or the path of its scheduler file, which have workers of their own.
    workers : worker processes. Local ones share the cores; None computes in this process, which needs no start-up and
        no second copy of the model. Of a job queue also the least and the most, ``(2, 16)``, as the work needs them.
    gpus : GPUs as `geodl_dask.devices.visible_gpus` names them: one local worker process for each, which sees no other.
    config : further options, as a dict or the path of a YAML file, see `geodl_dask.cluster_config.ClusterConfig`;
        ``cluster`` and ``workers`` win over it.
    Raises RequestError for what is no cluster or cannot be reached, options that are wrong or of another cluster, and
    jobs that the queue does not take; MissingDependencyError without dask-jobqueue.
    """
    options = read_cluster_config(config, cluster=cluster, workers=workers)
    if gpus and not options.is_here:
        raise RequestError(f"gpus are of this machine, and the cluster is {options.cluster}. Leave gpus out.")
    if options.kind == "scheduler":
        return _client_of_scheduler(options)
    if options.is_queue:
        return _OwningClient(submit_jobs(options))
    if gpus and options.local_workers not in (None, len(gpus)):
        raise RequestError(f"workers is {options.workers}, and {len(gpus)} GPUs have a worker each. Leave workers out.")
    if options.kind == "cuda":
        gpus = gpus or local_gpus(options, "gpu")
        if importlib.util.find_spec("dask_cuda"):
            return _cuda_client(gpus, options.tls)
        log.info("dask-cuda is not installed: the workers are started without it.")
    return _local_client(options.local_workers, tuple(gpus), options.tls)


def check_cluster(config: ClusterConfig) -> None:
    """Raise RequestError where `connect` would, as far as that is seen without starting anything."""
    if config.kind == "scheduler":
        _reach(config)
    elif config.is_queue:
        check_job_queue(config)
    security_of(config.tls)


def local_gpus(config: ClusterConfig, processor: str, gpu_id: int | None = None) -> tuple[str, ...]:
    """The GPUs of this machine that get a worker process each.

    Raises DeviceError for GPUs that are not there, RequestError for one of this machine where workers are elsewhere.
    """
    if not config.is_here:
        if gpu_id is not None:
            raise RequestError(f"gpu_id is of this machine, and the cluster is {config.cluster}. Leave it out.")
        return ()
    if config.kind == "local":
        return worker_gpus(processor, gpu_id=gpu_id, workers=config.local_workers)
    if processor == "cpu":
        raise DeviceError("The cluster cuda and the processor type cpu were asked for. Leave one out.")
    gpus = worker_gpus(processor, gpu_id=gpu_id, workers=config.local_workers) or visible_gpus()
    if not gpus:
        raise DeviceError(
            "The cluster is cuda, and torch sees no GPU here. Check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch is "
            "a CUDA build, or take the cluster local."
        )
    return gpus


class _OwningClient(Client):
    """A client that closes its cluster with itself, as one that has started its own local workers does."""

    def close(self, *args: Any, **keywords: Any) -> None:
        cluster: Any = self.cluster
        super().close(*args, **keywords)
        cluster.close()
        forget_servers()

    def __del__(self) -> None:
        """Nothing: this may be the thread that closing waits for, and distributed closes clusters at exit."""


def _local_client(workers: int | None, gpus: tuple[str, ...], tls: str | None) -> Client:
    count = len(gpus) or workers or 1
    has_processes = bool(gpus) or workers is not None
    threads = GPU_WORKER_THREADS if gpus else max(1, CPU_COUNT // count)
    options = {"n_workers": count, "threads_per_worker": threads, "processes": has_processes, **_of_scheduler()}
    is_reachable = has_processes and tls  # threads of one process have nothing to encrypt
    # They keep no results, but freed memory: Dask, which pauses them until they have less, would wait for ever.
    with dask.config.set({"distributed.worker.memory.pause": False}):
        client = _OwningClient(LocalCluster(**options, **_encrypted(tls))) if is_reachable else LocalClient(**options)
    if has_processes:
        client.register_plugin(_LocalWorker())
    if gpus:
        client.register_plugin(_OneGpuEach(gpus))
    return client


def _cuda_client(gpus: Sequence[str], tls: str | None) -> Client:
    """By dask-cuda: its workers also keep to the cores that are near their GPU."""
    from dask_cuda import LocalCUDACluster

    client = _OwningClient(LocalCUDACluster(**_cuda_options(gpus), **_encrypted(tls)))
    client.register_plugin(_LocalWorker())
    return client


def _cuda_options(gpus: Sequence[str]) -> dict[str, Any]:
    return {"CUDA_VISIBLE_DEVICES": list(gpus), "threads_per_worker": GPU_WORKER_THREADS, **_of_scheduler()}


def _of_scheduler() -> dict[str, Any]:
    # Without an address distributed takes port 8787, and warns where that is in use.
    return {
        "dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"dashboard": bool(importlib.util.find_spec("bokeh"))},
    }


def _encrypted(tls: str | None) -> dict[str, Any]:
    return {"security": security_of(tls), "protocol": "tls://"} if tls else {}


def _client_of_scheduler(config: ClusterConfig) -> Client:
    address = _reach(config)
    try:
        return Client(address, security=security_of(config.tls))
    except (OSError, ValueError, TypeError) as error:
        raise _unreachable(config.cluster, error) from error


def _reach(config: ClusterConfig) -> str:
    """The address of the scheduler at an address or of a scheduler file, which somebody listens at, and talks to us."""
    cluster = config.cluster
    address = cluster if "://" in cluster else _address_in(Path(cluster))
    named = cluster if address == cluster else f"{address}, which {cluster} names"
    if config.tls and not address.startswith("tls://"):
        raise RequestError(
            f"tls is {config.tls}, and the scheduler at {named} is not encrypted; tls://host:port is needed. "
            "Start it with that certificate, or leave tls out."
        )
    security = security_of(config.tls) or Security()
    try:
        _knock(address, security)
    except (ssl.SSLError, TypeError) as error:  # TypeError: tls without certificates
        said = "and this side has no certificate" if isinstance(error, TypeError) else f"and the ends differ ({error})"
        raise RequestError(
            f"The scheduler at {named} talks to holders of its certificate alone, {said}. Say --tls FILE (tls=), the "
            "file that it was started with."
        ) from error
    except (OSError, ValueError) as error:
        raise _unreachable(named, error) from error
    return address


def _unreachable(cluster: str, error: Exception) -> RequestError:
    return RequestError(f"No Dask scheduler can be reached at {cluster}: {error}. Does it run?")


def _address_in(path: Path) -> str:
    """What a file that ``dask scheduler --scheduler-file`` has written says."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(f"cluster is {str(path)!r}, and no such file is there; {CLUSTERS} is needed.") from error
    except OSError as error:
        raise RequestError(f"The scheduler file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not what dask scheduler --scheduler-file writes: {error}.") from error
    address = content.get("address") if isinstance(content, dict) else None
    if not isinstance(address, str):
        raise RequestError(f"{path} is not what dask scheduler --scheduler-file writes: it has no address.")
    return address


def _knock(address: str, security: Security) -> None:
    """Raise ValueError, TypeError or OSError for an address where no scheduler is, or one that refuses us.

    A client that fails to connect goes on trying when it is thrown away, and may then lock up the process; of one that
    says nothing it waits for a greeting for ever (distributed 2026.8).
    """
    scheme, location = parse_address(address)
    get_backend(scheme)
    if scheme in ("tcp", "tls"):
        timeout_s = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
        with socket.create_connection(parse_host_port(location), timeout=timeout_s) as plain:
            if scheme == "tls":
                _shake_hands(plain, security)
        with ThreadPoolExecutor(1) as pool:  # this thread may have an event loop already, as in a notebook
            pool.submit(asyncio.run, _greet(address, security, timeout_s)).result()


def _shake_hands(plain: socket.socket, security: Security) -> None:
    """Raise SSLError where an end does not take the other's certificate, TypeError where this one has none."""
    context = security.get_connection_args("client").get("ssl_context")
    if context is None:
        raise TypeError("no certificate")
    with context.wrap_socket(plain) as encrypted:
        encrypted.recv(1)  # by TLS 1.3 the other end's refusal comes after the handshake, in place of Dask's greeting


async def _greet(address: str, security: Security, timeout_s: float) -> None:
    try:
        comm = await asyncio.wait_for(open_comm(address, **security.get_connection_args("client")), timeout_s)
    except TimeoutError as error:
        raise OSError(f"who listens there has said nothing for {timeout_s:g} s") from error
    except (OSError, TypeError):
        raise
    except Exception as error:  # whatever becomes of words that are not Dask's
        raise OSError("who listens there is no Dask scheduler; a dashboard has another port") from error
    await comm.close()


class _OneGpuEach(WorkerPlugin):
    """Each worker process sees the GPU of its number alone; set before torch, which reads it once, is used."""

    name = "one-gpu-each"

    def __init__(self, gpus: tuple[str, ...]) -> None:
        self.gpus = gpus

    def setup(self, worker: Worker) -> None:
        """Runs in a worker process, a replacement for a lost one too."""
        os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(worker.name)]


class _LocalWorker(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal: worker processes leave it to the client, which closes them."""

    name = "local-worker"

    def setup(self, worker: Worker) -> None:
        """Runs in the main thread of a worker process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def dashboard_of(client: Client) -> str | None:
    """Address of the dashboard of the client's scheduler; None where it has none (bokeh is not installed)."""
    port = client.scheduler_info()["services"].get("dashboard")
    if not port:
        return None
    # The dashboard of a scheduler in this process listens to this machine alone, whatever the link says.
    is_inside = client.scheduler_info()["address"].startswith("inproc")
    return f"http://127.0.0.1:{port}/status" if is_inside else client.dashboard_link
