"""Which one GPU, or the CPU, is this process's."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
from filelock import FileLock, Timeout

from .errors import DeviceError

Processor = Literal["auto", "cpu", "gpu"]
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class _Bound(NamedTuple):
    """The one GPU that this process was bound to."""

    gpu_id: int
    name: str  # in the words of CUDA_VISIBLE_DEVICES
    before: str | None  # what that variable was


_bound: _Bound | None = None

_plans_for_others = ContextVar("_plans_for_others", default=False)


@contextmanager
def planning_for_others() -> Iterator[None]:
    """While the block lasts, a GPU that is asked for need not be here: a model is tried on the CPU where none is.

    On the login node of a cluster there is none; the workers, which do the work, refuse to begin without one.
    """
    before = _plans_for_others.set(True)
    try:
        yield
    finally:
        _plans_for_others.reset(before)


def choose_device(processor: Processor = "auto") -> Literal["cpu", "cuda"]:
    """``"cuda"`` (the GPU that this process sees as 0) or ``"cpu"``; ``"auto"`` takes a GPU where there is one.

    Raises DeviceError where a GPU is asked for and none is there, but for `planning_for_others`.
    """
    if processor not in ("auto", "cpu", "gpu"):
        raise DeviceError(f"processor type is {processor!r}; auto, cpu or gpu is needed.")
    if processor == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if processor == "gpu" and not _plans_for_others.get():
        raise DeviceError(
            "A GPU was asked for, and torch sees none in this process. Check nvidia-smi, CUDA_VISIBLE_DEVICES and that "
            "torch is a CUDA build, or ask for the processor type cpu."
        )
    return "cpu"


def memory_share(device: Literal["cpu", "cuda"]) -> int:
    """Bytes that one prediction may take: of a GPU 0.4 of what is free, of a CPU a core's share of half the memory."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0] * 0.4)
    return int(psutil.virtual_memory().available // 2 // (os.cpu_count() or 1))


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, in the words of CUDA_VISIBLE_DEVICES: numbers, or names of parts (MIG)."""
    import torch

    count = torch.cuda.device_count()
    listed = os.environ.get(_VISIBLE)
    names = [str(number) for number in range(count)] if listed is None else [name.strip() for name in listed.split(",")]
    return tuple(names[:count])


def bind_gpu(gpu_id: int | None) -> None:
    """Make one of the GPUs, from 0, the only one that this process sees; None gives back those that it saw before.

    Raises DeviceError where it is not there, or torch has taken another one in this process already.
    """
    global _bound
    import torch

    if _bound is not None and os.environ.get(_VISIBLE) != _bound.name:
        _bound = None  # somebody else has chosen since
    if gpu_id == (None if _bound is None else _bound.gpu_id):
        return
    if torch.cuda.is_initialized() and (_bound is not None or len(visible_gpus()) > 1):
        raise DeviceError(
            f"{'All GPUs were' if gpu_id is None else f'GPU {gpu_id} was'} asked for, and torch has taken "
            f"{'a GPU' if _bound is None else f'GPU {_bound.gpu_id}'} in this process already. Ask before anything "
            "else, or start another Python."
        )
    if _bound is not None:
        if _bound.before is None:
            del os.environ[_VISIBLE]
        else:
            os.environ[_VISIBLE] = _bound.before
        _bound = None
    if gpu_id is None:
        return
    gpus = visible_gpus()
    if not 0 <= gpu_id < len(gpus):
        there = f"those from 0 to {len(gpus) - 1} are" if gpus else "none is"
        raise DeviceError(f"GPU {gpu_id} was asked for; {there} visible to this process (see nvidia-smi).")
    _bound = _Bound(gpu_id, gpus[gpu_id], os.environ.get(_VISIBLE))
    os.environ[_VISIBLE] = gpus[gpu_id]


_claimed: tuple[str, FileLock] | None = None
_claiming = threading.Lock()


def claim_gpu() -> None:
    """Make one of the GPUs that this process sees its only one, and no other worker's. Runs in worker processes.

    A job gets all of its GPUs in one CUDA_VISIBLE_DEVICES, and may have a worker process for each. The first that no
    other holds is taken, by a lock in the machine's temporary folder which the system takes back however the process
    ends: so a worker that replaces another one gets the GPU that this has left. Does nothing where no GPU is visible.
    Raises DeviceError where each has a worker, or torch has taken one of several already.
    """
    with _claiming:  # a run that follows a stopped one gets its workers ready while that is loading there yet
        _claim_gpu()


def _claim_gpu() -> None:
    global _claimed
    gpus = visible_gpus()
    if not gpus or (_claimed is not None and _claimed[0] == os.environ.get(_VISIBLE)):
        return
    import torch

    if len(gpus) > 1 and torch.cuda.is_initialized():
        raise DeviceError(
            f"This worker sees the GPUs {', '.join(gpus)}, and torch has taken one in it already. Start the workers "
            "again, or each with one GPU in CUDA_VISIBLE_DEVICES."
        )
    folder = Path(tempfile.gettempdir(), f"geodl_dask-gpus-{psutil.Process().username().replace(os.sep, '-')}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for gpu in gpus:
        lock = FileLock(folder / f"{_identities().get(gpu, gpu).replace('/', '-')}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            return  # without locks each takes what it was given
        os.environ[_VISIBLE] = gpu
        _claimed = gpu, lock
        return
    raise DeviceError(
        f"This worker sees {'the GPU' if len(gpus) == 1 else 'the GPUs'} {', '.join(gpus)}, and another worker has "
        f"{'it' if len(gpus) == 1 else 'each of them'} already. Start one worker process for a GPU, and no more."
    )


@lru_cache(maxsize=1)
def _identities() -> dict[str, str]:
    """The lasting name of each GPU by its number, for in another container or job the number may mean another one."""
    try:
        query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split(", ", 1) for line in listed.splitlines() if ", " in line)


def worker_gpus(processor: str, *, gpu_id: int | None = None, workers: int | None = None) -> tuple[str, ...]:
    """The GPUs that get a local worker process each; none where this process, or workers without GPU, do the work.

    gpu_id : the one GPU to use; None: all, and where there are several a worker for each. workers : how many worker
    processes were asked for.
    Raises DeviceError for a GPU that is not there, or more workers than GPUs.
    """
    if processor == "cpu":
        if gpu_id is not None:
            raise DeviceError(f"GPU {gpu_id} and the processor type cpu were asked for. Leave one out.")
        return ()
    bind_gpu(gpu_id)
    gpus = visible_gpus()
    if workers is None:
        return gpus if len(gpus) > 1 else ()
    if gpus and workers > len(gpus):
        raise DeviceError(
            f"{workers} workers were asked for, and a GPU has one at the most; there is "
            f"{len(gpus)} to use. Ask for no more workers than that, or for the processor type cpu."
        )
    return gpus[:workers]
