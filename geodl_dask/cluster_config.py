"""Which workers a run shall have: options by name, of a dict, a YAML file and the command line -> one checked value."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from .errors import RequestError

QUEUES = ("slurm", "pbs", "lsf", "sge")
"""Systems that jobs are submitted to."""
GPU_WORKER_THREADS = 3
"""Of a worker with a GPU: one that predicts, and others that read and write meanwhile."""
CLUSTERS = "local, cuda, slurm, pbs, lsf, sge, a scheduler's address (tcp://host:port) or the path of a scheduler file"


@dataclass(frozen=True)
class ClusterConfig:
    """Which workers are wanted. Raises RequestError where the options contradict each other."""

    cluster: str = "local"
    """``local``, ``cuda``, one of `QUEUES`, a scheduler's address, or the path of a scheduler file."""
    workers: int | tuple[int, int] | None = None
    """Worker processes in all; a pair is the least and the most of a job queue, as the work needs them."""
    gpus_per_node: int | None = None
    """Of a job: its GPUs, each of which has a worker process."""
    walltime: str | None = None
    """Of a job: how long it may run, HH:MM:SS."""
    queue: str | None = None
    """Of a job: the queue, which Slurm calls a partition."""
    account: str | None = None
    """Of a job: who pays, which LSF and Grid Engine call a project."""
    memory: str | None = None
    """Of a job, such as ``32GB``."""
    cores: int | None = None
    """Of a job."""
    interface: str | None = None
    """The network interface that scheduler and workers talk over, such as ``ib0``; None: the one that leads out."""
    directives: tuple[str, ...] = ()
    """Of a job: what else to ask the queue for, each without its ``#SBATCH`` or the like."""
    setup_lines: tuple[str, ...] = ()
    """Of a job: shell lines before its workers start, such as ``module load cuda``."""
    tls: str | None = None
    """Encrypt all connections: a PEM file with the authority's certificate and one with its key; ``auto`` where all
    workers are on this machine, and ours: made for this run."""

    def __post_init__(self) -> None:
        of_jobs = [field.name for field in fields(self)[2:-1] if getattr(self, field.name)]
        if of_jobs and not self.is_queue:
            raise RequestError(
                f"{' and '.join(of_jobs)} can be said to a job queue ({', '.join(QUEUES)}), and the cluster is "
                f"{self.cluster}. Leave it out."
            )
        if self.workers is not None and self.kind == "scheduler":
            raise RequestError(f"The scheduler at {self.cluster} has its own workers. Leave workers out.")
        if isinstance(self.workers, tuple) and not self.is_queue:
            raise RequestError(
                f"workers is {self.workers[0]} to {self.workers[1]}; that is for job queues ({', '.join(QUEUES)}), and "
                f"the cluster is {self.cluster}. Give one number."
            )
        if self.tls == "auto" and not self.is_here:
            raise RequestError(
                f"tls is auto, and the workers of {self.cluster} cannot know what is made here. Give the PEM file that "
                "all of them have, such as `source cluster/tls.sh` makes."
            )
        if any(count % self.processes for count in self.worker_range):
            raise RequestError(
                f"workers is {self.workers}, and a job has {self.processes}, one for each of its GPUs (gpus_per_node). "
                f"Give a multiple of {self.processes}."
            )

    @property
    def kind(self) -> Literal["local", "cuda", "queue", "scheduler"]:
        """Where the workers come from."""
        if self.cluster in ("local", "cuda"):
            return "local" if self.cluster == "local" else "cuda"
        return "queue" if self.cluster in QUEUES else "scheduler"

    @property
    def is_queue(self) -> bool:
        """Whether jobs are to be submitted."""
        return self.kind == "queue"

    @property
    def is_here(self) -> bool:
        """Whether the workers are on this machine, and are ours."""
        return self.kind in ("local", "cuda")

    @property
    def local_workers(self) -> int | None:
        """Worker processes on this machine; None: this process alone, or one for each GPU."""
        return self.workers if isinstance(self.workers, int) else None

    @property
    def processes(self) -> int:
        """Worker processes of a job."""
        return self.gpus_per_node or 1

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the most workers of a job queue; those of one job where nothing is said."""
        if isinstance(self.workers, tuple):
            return self.workers
        return (self.workers or self.processes,) * 2


def read_cluster_config(
    config: ClusterConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None, **given: Any
) -> ClusterConfig:
    """The options of ``config``, a dict or the path of a YAML file, but for those in ``given`` that are not None.

    Raises RequestError for a file that is none, a name that is not known, or a value that is none for its name.
    """
    said = {name: value for name, value in given.items() if value is not None}
    if isinstance(config, ClusterConfig):
        return replace(config, **_read_values(said))
    if isinstance(config, str | os.PathLike):
        config = _read_yaml(Path(config))
    return ClusterConfig(**_read_values({**(config or {}), **said}))


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        # All as text: YAML's own types make 12:00:00 the number 43,200, 2:16 the number 136, and no a False.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise RequestError(f"The cluster's options cannot be read from {path}: {error.strerror}.") from error
    except RecursionError as error:
        raise RequestError(f"The cluster's options in {path} are nested too deep; names and values will do.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"The cluster's options in {path} are no YAML: {' '.join(str(error).split())}.") from error
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise RequestError(f'The cluster\'s options in {path} are no list of names and values, such as "queue: gpu".')
    _require_known(content)
    return {name: value for name, value in content.items() if value != ""}  # a name without value


def _read_values(given: Mapping[str, Any]) -> dict[str, Any]:
    _require_known(given)
    return {name: _READERS[name](name, value) for name, value in given.items() if value is not None}


def _require_known(given: Mapping[str, Any]) -> None:
    unknown = [str(name) for name in given if name not in _READERS]
    if unknown:
        raise RequestError(f"{' and '.join(unknown)}: no such option of a cluster; there are {', '.join(_READERS)}.")


def _wrong(name: str, value: Any, needed: str) -> RequestError:
    short = reprlib.Repr()  # a few lines of YAML may stand for a value of any length
    short.maxlevel, short.maxstring, short.maxother = 2, 200, 200
    return RequestError(f"{name} is {short.repr(value)}; {needed} is needed.")


def _count(name: str, value: Any) -> int:
    needed = "a number, at least 1,"
    if not isinstance(value, int | str) or not re.fullmatch(r"-?[0-9]{1,9}", str(value).strip()) or int(value) < 1:
        raise _wrong(name, value, needed)
    return int(value)


def _workers(name: str, value: Any) -> int | tuple[int, int]:
    parts: Sequence[Any] = value.split(":") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return _count(name, value)
    if len(parts) == 1:
        return _count(name, parts[0])
    least_and_most = tuple(_count(name, part) for part in parts)
    if len(least_and_most) != 2 or least_and_most[0] > least_and_most[1]:
        raise _wrong(name, value, "a number, or the least and the most (2:16),")
    return least_and_most


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise _wrong(name, value, "text, all in one line,")
    return value.strip()


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "a list of texts")
    return tuple(_text(name, each) for each in value)


def _matching(pattern: str, needed: str) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value.strip(), re.IGNORECASE):
            raise _wrong(name, value, needed)
        return value.strip()

    return read


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "cluster": _text,
    "workers": _workers,
    "gpus_per_node": _count,
    "walltime": _matching(r"(?=.*[1-9])\d{1,4}:[0-5]\d:[0-5]\d", 'text as "02:00:00" (hours:minutes:seconds)'),
    "queue": _text,
    "account": _text,
    "memory": _matching(r"(?=.*[1-9])\d+(\.\d+)? ?[KMGT]i?B", 'text as "32GB"'),
    "cores": _count,
    "interface": _text,
    "directives": _texts,
    "setup_lines": _texts,
    "tls": _text,
}
