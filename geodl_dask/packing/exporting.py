"""From a torch module to a file that runs without the module's code."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from ..errors import ModelFileError

Exporter = Literal["torch.export", "torch.jit"]

_SUFFIXES: dict[str, str] = {"torch.export": ".pt2", "torch.jit": ".pt"}


def export_module(
    module: torch.nn.Module, stem: Path, *, channels: Sequence[int], tile_yx: tuple[int, int], exporter: Exporter
) -> Path:
    """The file that a copy of ``module``, in eval mode, is exported to: ``stem`` with its suffix.

    channels : of each input. ``"torch.export"`` (``.pt2``) leaves the length of the batch, and height and width where
    the network takes others, open; ``"torch.jit"`` (``.pt``) traces what the network does with two tiles of zeros.
    Raises ModelFileError where the network cannot be exported.
    """
    if exporter not in _SUFFIXES:
        raise ModelFileError(f"exporter is {exporter!r}; {' or '.join(_SUFFIXES)} is needed.")
    path = stem.with_name(stem.name + _SUFFIXES[exporter])
    ready = copy.deepcopy(module).cpu().eval()
    example = tuple(torch.zeros(2, count, *tile_yx) for count in channels)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)  # both warn of themselves
            if exporter == "torch.jit":
                torch.jit.trace(ready, example).save(str(path))
            else:
                torch.export.save(_export(ready, example), path)
    except Exception as error:  # whatever the module's own code raises
        other = next(each for each in _SUFFIXES if each != exporter)
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelFileError(
            f"{type(module).__name__} cannot be exported by {exporter} with "
            f"{' and '.join(str(tuple(each.shape)) for each in example)} (tile, band, y, x): {first_line}. Check "
            f"bands, tile_size and input, try exporter={other!r}, or export it yourself and give the file."
        ) from error
    return path


def _export(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    open_axes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(module, example, dynamic_shapes=(open_axes,) * len(example))
    for node in program.graph.nodes:
        # Where each line of the network stood on this machine is nobody else's business.
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)
    return program
