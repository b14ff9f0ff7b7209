"""Which one GPU, or the CPU, is this process's."""

from __future__ import annotations

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
