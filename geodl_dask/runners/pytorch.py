"""Networks that torch loads without their source: TorchScript (``.pt``) and torch.export (``.pt2``)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from ..errors import ModelFileError
from . import RunnerSpec
from .torch_files import is_export, require_plain_network


class TorchNetwork:
    """A torch network on one device. Raises ModelFileError where the file cannot be loaded or run."""

    def __init__(self, spec: RunnerSpec) -> None:
        path = spec.definition.model_file or ""
        self._source = spec.definition.source
        self._device = torch.device(spec.device)
        self.is_thread_safe = spec.device == "cpu"  # one GPU has one lane
        self.batch_changes_bits = spec.device == "cpu"
        self.batch_size: int | None = None
        self.tile_yx: tuple[int, int] | None = None
        require_plain_network(path)
        try:
            self._module = self._load(path)
        except Exception as error:  # whatever a damaged file leads torch into
            raise ModelFileError(
                f"{path} cannot be loaded as {'torch.export' if is_export(path) else 'TorchScript'} by torch "
                f"{torch.__version__}: {_first_line(error)}. Weights alone (a state dict) need their network: export "
                "it with torch.export.save or torch.jit.save."
            ) from error

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """float32 (tile, band, y, x) in, the network's answer out, on the CPU."""
        try:
            with one_thread() if self._device.type == "cpu" else nullcontext(), torch.inference_mode():
                answer = self._module(*(torch.from_numpy(each).to(self._device) for each in inputs))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            shapes = " and ".join(str(each.shape) for each in inputs)
            raise ModelFileError(
                f"The network of {self._source} does not take {shapes} (tile, band, y, x): {_first_line(error)}. Check "
                'the bands of the rasters, ImageHeight and ImageWidth, and "GeodlDask": {"input": "pair" or "stack"}.'
            ) from error
        if not isinstance(answer, torch.Tensor):
            raise ModelFileError(
                f"The network of {self._source} answers with a {type(answer).__name__}; one tensor is needed."
            )
        return np.asarray(answer.cpu().numpy())

    def _load(self, path: str) -> Callable[..., Any]:
        if not is_export(path):
            with warnings.catch_warnings():  # TorchScript is deprecated in torch 2.13, and what people have
                warnings.simplefilter("ignore")
                return torch.jit.load(path, map_location=self._device).eval()
        program = _load_export(path)
        inputs = program.graph_signature.user_inputs
        meta = next(node.meta["val"] for node in program.graph.nodes if node.name == inputs[0])
        count, *_, height, width = meta.shape
        self.batch_size = count if isinstance(count, int) else None
        self.tile_yx = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        return program.module().to(self._device)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's work of this thread on one core: blocks run side by side, and the bits must not depend on the cores."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _load_export(path: str) -> torch.export.ExportedProgram:
    """torch.export.load, less its log: it logs what went wrong, then raises that its log says so."""
    causes: list[BaseException] = []

    def keep_cause(record: logging.LogRecord) -> bool:
        causes.extend([record.exc_info[1]] if record.exc_info and record.exc_info[1] else [])
        return False

    log = logging.getLogger("torch.export")
    log.addFilter(keep_cause)
    try:
        return torch.export.load(path)
    except Exception as error:
        raise (causes[0] if causes else error) from None
    finally:
        log.removeFilter(keep_cause)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
