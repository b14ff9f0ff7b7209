"""Workers as jobs of Slurm, PBS, LSF or Grid Engine, by dask-jobqueue.

A job has one worker process, or one for each of its GPUs. Workers leave a while before their job's walltime, so that
what they have begun is finished or goes to others; a job that has ended is submitted again while its workers are
wanted.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
import shutil
import signal
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_bytes, parse_timedelta
from distributed import Client
from distributed.core import Status
from distributed.deploy.cluster import Cluster

from .cluster_config import GPU_WORKER_THREADS, QUEUES, ClusterConfig
from .errors import MissingDependencyError, RequestError
from .tls import security_of

if TYPE_CHECKING:
    from dask_jobqueue.core import JobQueueCluster

log = logging.getLogger(__name__)

CORES, MEMORY_PER_CORE = 4, "4GiB"
"""Of a job that says nothing of them, and has no GPU."""
LOOK_EVERY_S = 10
"""How often a queue is asked for jobs that are waited for."""
TRY_AGAIN_S = 60
"""After how long a queue that did not take a job is asked again."""
LEAVE_EARLY_S = 300
"""How long before its walltime a job's workers leave at the most; a fifth of a short walltime."""
_REFUSALS = (RuntimeError, ValueError, OSError)
"""What becomes of a job that is not taken: by the queue, by dask-jobqueue, which does not understand what the queue
says, or by the system, which does not find the queue's command."""
SCHEDULER = "tcp://SCHEDULER:PORT"
"""Stands in a script for the address that is known once a scheduler runs."""
_KEEPS_FREED_MEMORY = "export MALLOC_ARENA_MAX=1"
"""Lets `allocator` have the processes of a job keep what networks free."""


@dataclass(frozen=True)
class _System:
    """What a job queue is called by dask-jobqueue and in a shell."""

    class_name: str
    submits: str
    lists: str
    """Shows the state of the jobs whose numbers follow."""


_SYSTEMS = {
    "slurm": _System("SLURMCluster", "sbatch", "squeue --jobs="),
    "pbs": _System("PBSCluster", "qsub", "qstat "),
    "lsf": _System("LSFCluster", "bsub", "bjobs "),
    "sge": _System("SGECluster", "qsub", "qstat -j "),
}


def check_job_queue(config: ClusterConfig) -> None:
    """Raise MissingDependencyError without dask-jobqueue, RequestError where no job can be submitted from here."""
    _cluster_class(config)
    command = _SYSTEMS[config.cluster].submits
    if not shutil.which(command):
        raise RequestError(
            f"cluster is {config.cluster}, and its command {command} is not on this machine. Start this where jobs are "
            "submitted, such as a login node; geodl-dask cluster-script prints what would be."
        )


def job_script(config: ClusterConfig) -> str:
    """The script of one job, as it would be submitted. Raises RequestError for what is no job queue."""
    if not config.is_queue:
        raise RequestError(f"cluster is {config.cluster}; a job queue ({', '.join(QUEUES)}) is needed.")
    cluster_class: Any = _cluster_class(config)
    return str(cluster_class.job_cls(SCHEDULER, name="geodl-dask", **job_options(config)).job_script())


def submit_jobs(config: ClusterConfig) -> JobQueueCluster:
    """A scheduler in this process, and its workers' jobs, which are cancelled when the cluster is closed.

    Raises RequestError with the queue's own words where it does not take them.
    """
    check_job_queue(config)
    least, most = config.worker_range
    with ExitStack() as undo:
        try:
            cluster = _lasting(_cluster_class(config))(**job_options(config), scheduler_options=_of_scheduler(config))
            undo.callback(cluster.close)
            cluster.sync(cluster.submit, least // config.processes)
        except _REFUSALS as error:
            raise RequestError(f"{config.cluster} took no job: {_words_of_queue(error)}") from error
        if most > least:
            cluster.adapt(minimum=least, maximum=most)
        undo.pop_all()
    return cluster


def jobs_of(client: Client) -> list[str]:
    """The numbers of the jobs that a client's workers are, or will be."""
    cluster: Any = client.cluster
    return sorted(job.job_id for job in cluster.workers.values() if job.job_id)


def await_worker(client: Client, config: ClusterConfig) -> None:
    """Wait for the first worker, however long the queue is. Raises RequestError where all jobs have ended before."""
    while True:
        try:
            return client.wait_for_workers(1, timeout=LOOK_EVERY_S)
        except TimeoutError:
            jobs = jobs_of(client)
            if config.cluster == "slurm" and jobs and not _are_in_slurm(jobs):
                raise RequestError(
                    f"All jobs ({', '.join(jobs)}) ended before a worker came. What they wrote, to slurm-{jobs[0]}.out "
                    "unless a directive says another file, tells why."
                ) from None


def how_to_look(config: ClusterConfig, jobs: list[str]) -> str:
    """The shell command that shows the state of jobs."""
    return _SYSTEMS[config.cluster].lists + ("," if config.cluster in ("slurm", "sge") else " ").join(jobs)


def _are_in_slurm(jobs: list[str]) -> bool:
    """Whether any of them waits or runs."""
    listed = subprocess.run(["squeue", "--noheader", f"--jobs={','.join(jobs)}"], capture_output=True, text=True)
    return bool(listed.stdout.strip()) or (listed.returncode != 0 and "Invalid job id" not in listed.stderr)


def job_options(config: ClusterConfig) -> dict[str, Any]:
    """What dask-jobqueue's classes are to be called with; what is not said is left to the site's jobqueue.yaml."""
    threads = config.processes * GPU_WORKER_THREADS if config.gpus_per_node else config.cores
    threads = threads or _of_site(config, "cores") or CORES
    booked = config.cores or threads
    memory = config.memory or _of_site(config, "memory") or f"{booked * parse_bytes(MEMORY_PER_CORE)}B"
    walltime = config.walltime or _of_site(config, "walltime")
    prologue = [*(config.setup_lines or _of_site(config, "job-script-prologue") or ()), _KEEPS_FREED_MEMORY]
    options = {
        "cores": threads, "processes": config.processes, "memory": memory, "walltime": walltime, "queue": config.queue,
        "interface": config.interface, "job_script_prologue": prologue,
        "job_name": "geodl-dask",
        "worker_extra_args": [
            "--no-dashboard", *(_of_site(config, "worker-extra-args") or ()), *_leave_before(walltime)
        ],
    }  # fmt: skip
    if config.tls:
        options |= {"security": security_of(config.tls), "protocol": "tls://"}
    special, directives = _OF_SYSTEM[config.cluster](config, booked, memory)
    directives += [*(_of_site(config, "job-extra-directives") or ()), *config.directives]
    return {**options, **special, "job_extra_directives": directives}


def _slurm(config: ClusterConfig, cores: int, memory: str) -> tuple[dict[str, Any], list[str]]:
    gpus = [f"--gres=gpu:{config.gpus_per_node}"] if config.gpus_per_node else []
    return {"account": config.account, "job_cpu": cores}, gpus


def _pbs(config: ClusterConfig, cores: int, memory: str) -> tuple[dict[str, Any], list[str]]:
    from dask_jobqueue.pbs import pbs_format_bytes_ceil

    size = pbs_format_bytes_ceil(parse_bytes(memory))
    with_gpus = f"select=1:ncpus={cores}:mem={size}:ngpus={config.gpus_per_node}"
    return {"account": config.account, "resource_spec": with_gpus if config.gpus_per_node else None}, []


def _lsf(config: ClusterConfig, cores: int, memory: str) -> tuple[dict[str, Any], list[str]]:
    gpus = [f'-gpu "num={config.gpus_per_node}"'] if config.gpus_per_node else []
    options = {"project": config.account, "ncpus": cores}
    if config.walltime:
        minutes = -(-(_seconds(config.walltime) or 0) // 60)
        options["walltime"] = f"{minutes // 60:02}:{minutes % 60:02}"
    return options, gpus


def _sge(config: ClusterConfig, cores: int, memory: str) -> tuple[dict[str, Any], list[str]]:
    return {"project": config.account}, [f"-l gpu={config.gpus_per_node}"] if config.gpus_per_node else []


_OF_SYSTEM = {"slurm": _slurm, "pbs": _pbs, "lsf": _lsf, "sge": _sge}


def _leave_before(walltime: str | None) -> list[str]:
    """The worker's options by which it leaves in time, and not all workers at once."""
    length_s = _seconds(walltime)
    if length_s is None:
        return []
    early_s = min(LEAVE_EARLY_S, length_s // 5)
    return ["--lifetime", f"{length_s - early_s}s", "--lifetime-stagger", f"{early_s // 5}s"]


def _seconds(walltime: str | None) -> int | None:
    """Of HH:MM:SS or, in LSF's way, HH:MM; None for what a site may have written else."""
    parts = re.fullmatch(r"(\d+):(\d\d)(?::(\d\d))?", str(walltime))
    if parts is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return hours * 3600 + minutes * 60 + seconds


def _of_site(config: ClusterConfig, name: str) -> Any:
    return dask.config.get(f"jobqueue.{config.cluster}.{name}")


def _of_scheduler(config: ClusterConfig) -> dict[str, Any]:
    # Without an address distributed takes port 8787, and warns where that is in use.
    ours = {"dashboard_address": ":0", "dashboard": bool(importlib.util.find_spec("bokeh"))}
    return {**ours, **(_of_site(config, "scheduler-options") or {})}


def _cluster_class(config: ClusterConfig) -> type[JobQueueCluster]:
    heeded = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise MissingDependencyError(
            f'cluster is {config.cluster}, which needs dask-jobqueue: pip install "geodl_dask[hpc]"'
        ) from error
    if signal.getsignal(signal.SIGINT) is not heeded:
        signal.signal(signal.SIGINT, heeded)  # dask-jobqueue 0.9 would end the process by Ctrl-C, with status 0
    found: type[JobQueueCluster] = getattr(dask_jobqueue, _SYSTEMS[config.cluster].class_name)
    return found


def _lasting(base: type[JobQueueCluster]) -> Any:
    """The same, but a job that has ended is submitted again.

    SpecCluster (distributed 2026.8) forgets such a job and starts no other, and of a job with several worker processes
    it does not even see the end.
    """

    class Lasting(base):  # type: ignore[misc,valid-type]
        async def submit(self, jobs: int) -> None:
            """Like scale, which however would only log why the queue does not take them."""
            while len(self.worker_spec) < jobs:
                self.worker_spec.update(self.new_worker_spec())
            # An interrupt ends this, and not what has begun: closing waits for it, and cancels what has become jobs.
            await asyncio.shield(self._submit_missing())

        async def _submit_missing(self) -> None:
            try:
                await self._correct_state()
            except _REFUSALS:
                for name, job in list(self.workers.items()):
                    if job.job_id is None:
                        job.status = Status.failed
                        del self.workers[name]
                raise

        def _update_worker_status(self, op: str, msg: Any) -> None:
            if op == "remove":
                if msg not in self.scheduler_info["workers"]:
                    return  # told twice; an error would be the end of all that is told here
                name = self._job_of(self.scheduler_info["workers"][msg]["name"])
                grace_s = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
                self._soon(grace_s, name, self._number(name))
            Cluster._update_worker_status(self, op, msg)

        def _number(self, name: str) -> str | None:
            return getattr(self.workers.get(name), "job_id", None)

        def _soon(self, delay_s: float, name: str, number: str | None) -> None:
            # The number only: closing asserts that nobody holds a job any more.
            def submit() -> None:
                self._futures.add(asyncio.ensure_future(self._submit_again(name, number)))

            asyncio.get_running_loop().call_later(delay_s, submit)

        async def _submit_again(self, name: str, number: str | None) -> None:
            there = {self._job_of(worker["name"]) for worker in self.scheduler_info["workers"].values()}
            is_another = self._number(name) != number
            if self.status != Status.running or name not in self.worker_spec or name in there or is_another:
                return
            if number is not None:
                await self.workers.pop(name).close()
            try:
                await self._submit_missing()
            except _REFUSALS as error:
                log.warning(
                    "No job was submitted for one that ended; tried again in a while: %s", _words_of_queue(error)
                )
                self._soon(TRY_AGAIN_S, name, None)

        def _job_of(self, worker: str) -> str:
            return worker.rpartition("-")[0] if self._job_kwargs["processes"] > 1 else worker

    Lasting.__name__ = base.__name__  # jobs and workers are named by it
    return Lasting


def _words_of_queue(error: Exception) -> str:
    """Of dask-jobqueue's error what the command itself said."""
    return " ".join((str(error).partition("stderr:")[2] or str(error)).split())
