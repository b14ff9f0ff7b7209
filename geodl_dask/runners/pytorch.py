"""Networks that torch runs: TorchScript (``.pt``) and torch.export (``.pt2``), or one that was built here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from queue import SimpleQueue

import torch

from ..allocator import LESS_MEMORY, is_memory_shortage, keep_freed_memory
from ..errors import MemoryShortageError, ModelFileError
from . import RunnerSpec
from .torch_files import is_export, require_plain_network

LANES_OF_A_GPU = 2
"""Predictions that are under way at once: while one computes, the other's pixels are copied."""


class TorchNetwork:
    """A torch network on one device. Raises ModelFileError where the file cannot be loaded or run.

    On a CPU its weights lie channels last, which its convolutions are faster with; on a GPU so do they where it
    computes in half precision.

    module : the network, in eval mode, where it does not stand in the model's file.
    """

    def __init__(self, spec: RunnerSpec, module: torch.nn.Module | None = None) -> None:
        path = spec.definition.model_file or ""
        self._source = spec.definition.source
        self.device = torch.device(spec.device)
        on_cpu = self.device.type == "cpu"
        self._precision = None if spec.precision == "float32" else getattr(torch, spec.precision)
        self._streams: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
        for _ in range(0 if on_cpu else LANES_OF_A_GPU):
            self._streams.put(torch.cuda.Stream())
        self.batch_size: int | None = None
        self.tile_yx: tuple[int, int] | None = None
        if on_cpu:
            keep_freed_memory()
        self._module = module.to(self.device) if module else self._load_plain(path)
        self._is_channels_last = on_cpu or self._precision is not None
        if self._is_channels_last:
            self._lay_out(torch.channels_last)
        if spec.compiled:
            if isinstance(self._module, torch.jit.ScriptModule):
                raise ModelFileError(
                    f"{path} is TorchScript, which torch cannot compile. Save it by torch.export.save."
                )
            self._module.compile()

    @contextmanager
    def lane(self) -> Iterator[None]:
        """One core of a CPU, or one of a GPU's two streams, so that one copies pixels while the other computes."""
        if self.device.type == "cpu":
            with one_thread():
                yield
            return
        stream = self._streams.get()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._streams.put(stream)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """float32 (tile, band, y, x) in, the network's answer out, both on the network's device."""
        try:
            return self._answer(*inputs)
        except (MemoryError, RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            if self._is_channels_last and "view size is not compatible" in str(error):  # it counts on the other order
                self._is_channels_last = False
                self._lay_out(torch.contiguous_format)
                return self(*inputs)
            if not is_memory_shortage(error):
                raise self._refusal(inputs, error) from error
            cause = _first_line(error).removesuffix(".")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise MemoryShortageError(
            f"There is not memory enough for {self._source} and {_shapes(inputs)}: {cause}. {LESS_MEMORY}"
        )

    def _lay_out(self, order: torch.memory_format) -> None:
        self._module.to(memory_format=order)  # type: ignore[call-overload]

    def _answer(self, *inputs: torch.Tensor) -> torch.Tensor:
        half = nullcontext() if self._precision is None else torch.autocast(self.device.type, self._precision)
        with torch.inference_mode(), half:
            answer = self._module(*inputs)
        if not isinstance(answer, torch.Tensor):
            raise ModelFileError(
                f"The network of {self._source} answers with a {type(answer).__name__}; one tensor is needed."
            )
        return answer

    def _refusal(self, inputs: tuple[torch.Tensor, ...], error: Exception) -> ModelFileError:
        return ModelFileError(
            f"The network of {self._source} does not take {_shapes(inputs)} (tile, band, y, x): {_first_line(error)}. "
            'Check the bands of the rasters, ImageHeight and ImageWidth, and "GeodlDask": {"input": "pair" or "stack"}.'
        )

    def _load_plain(self, path: str) -> torch.nn.Module:
        require_plain_network(path)
        try:
            return self._load(path)
        except Exception as error:  # whatever a damaged file leads torch into
            raise ModelFileError(
                f"{path} cannot be loaded as {'torch.export' if is_export(path) else 'TorchScript'} by torch "
                f"{torch.__version__}: {_first_line(error)}. Weights alone (a state dict) need their network: export "
                "it with torch.export.save or torch.jit.save."
            ) from error

    def _load(self, path: str) -> torch.nn.Module:
        if not is_export(path):
            with warnings.catch_warnings():  # TorchScript is deprecated in torch 2.13, and what people have
                warnings.simplefilter("ignore")
                return torch.jit.load(path, map_location=self.device).eval()
        program = _load_export(path)
        inputs = program.graph_signature.user_inputs
        meta = next(node.meta["val"] for node in program.graph.nodes if node.name == inputs[0])
        count, *_, height, width = meta.shape
        self.batch_size = count if isinstance(count, int) else None
        self.tile_yx = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        return program.module().to(self.device)


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


def _shapes(inputs: tuple[torch.Tensor, ...]) -> str:
    return " and ".join(str(tuple(each.shape)) for each in inputs)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
