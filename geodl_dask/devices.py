"""Which one GPU, or the CPU, is this process's."""

from __future__ import annotations

import os
from typing import Literal

from .errors import DeviceError

Processor = Literal["auto", "cpu", "gpu"]


def choose_device(processor: Processor = "auto") -> Literal["cpu", "cuda"]:
    """``"cuda"`` (the GPU that this process sees as 0) or ``"cpu"``; ``"auto"`` takes a GPU where there is one.

    Raises DeviceError where a GPU is asked for and none is there.
    """
    if processor not in ("auto", "cpu", "gpu"):
        raise DeviceError(f"processor type is {processor!r}; auto, cpu or gpu is needed.")
    if processor == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if processor == "gpu":
        raise DeviceError(
            "A GPU was asked for, and torch sees none in this process. Check nvidia-smi, CUDA_VISIBLE_DEVICES and that "
            "torch is a CUDA build, or ask for the processor type cpu."
        )
    return "cpu"


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, in the words of CUDA_VISIBLE_DEVICES: numbers, or names of parts (MIG)."""
    import torch

    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if listed is None else [name.strip() for name in listed.split(",")]
    return tuple(names[:count])


def bind_gpu(gpu_id: int) -> None:
    """Make one of the visible GPUs, from 0, the only one that this process sees.

    Raises DeviceError where it is not there, or torch has taken another one in this process already.
    """
    import torch

    gpus = visible_gpus()
    if not 0 <= gpu_id < len(gpus):
        there = f"those from 0 to {len(gpus) - 1} are" if gpus else "none is"
        raise DeviceError(f"GPU {gpu_id} was asked for; {there} visible to this process (see nvidia-smi).")
    if torch.cuda.is_initialized() and len(gpus) > 1:
        raise DeviceError(
            f"GPU {gpu_id} was asked for, and torch has taken a GPU in this process already. Ask before anything else, "
            "or set CUDA_VISIBLE_DEVICES before Python starts."
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[gpu_id]
