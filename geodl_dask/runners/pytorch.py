"""Networks that torch runs: TorchScript (``.pt``) and torch.export (``.pt2``), or one that was built here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from queue import SimpleQueue
from typing import Any

import torch

from ..allocator import LESS_MEMORY, is_memory_shortage, keep_freed_memory, with_kept_memory
from ..errors import MemoryShortageError, ModelFileError
from . import RunnerSpec
from .torch_files import is_export, require_plain_network

logger = logging.getLogger(__name__)

LARGE_PX = 1 << 17
"""Pixels from which on a prediction takes and frees so much that where its memory comes from matters."""
LANES_OF_A_GPU = 2
"""Predictions that are under way at once: while one computes, the other's pixels are copied."""


class TorchNetwork:
    """A torch network on one device. Raises ModelFileError where the file cannot be loaded or run.

    On a CPU its weights lie channels last, which its convolutions are faster with, and TorchScript is frozen: a
    normalisation that follows a convolution becomes part of its weights. On a GPU weights lie channels last where it
    computes in half precision.

    module : the network, in eval mode, where it does not stand in the model's file.
    """

    def __init__(self, spec: RunnerSpec, module: torch.nn.Module | None = None) -> None:
        self._path, self._given, self._is_compiled = spec.definition.model_file or "", module, spec.compiled
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
        self._is_channels_last = on_cpu or self._precision is not None
        self._module = self._ready_module()

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
                self._module = self._ready_module()
                return self(*inputs)
            if not is_memory_shortage(error):
                raise self._refusal(inputs, error) from error
            cause = _first_line(error).removesuffix(".")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise MemoryShortageError(
            f"There is not memory enough for {self._source} and {_shapes(inputs)}: {cause}. {LESS_MEMORY}"
        )

    def _ready_module(self) -> torch.nn.Module:
        """The network on its device, as fast as it can be made without another answer, but for rounding."""
        order = torch.channels_last if self._is_channels_last else torch.contiguous_format
        module = self._given.to(self.device) if self._given else self._load_plain()
        module.to(memory_format=order)  # type: ignore[call-overload]
        if not isinstance(module, torch.jit.ScriptModule):
            if self._is_compiled:
                module.compile()
            return module
        if self._is_compiled:
            raise ModelFileError(
                f"{self._path} is TorchScript, which torch cannot compile. Save it by torch.export.save."
            )
        return self._frozen(module) if self.device.type == "cpu" and self._precision is None else module

    def _frozen(self, module: torch.jit.ScriptModule) -> torch.nn.Module:
        try:
            with _torchscript_is_deprecated():
                return torch.jit.freeze(module)
        except RuntimeError as error:  # some scripts change what would have to stay as it is
            logger.debug("%s stays as it is: %s", self._path, _first_line(error))
            return module

    def _answer(self, *inputs: torch.Tensor) -> torch.Tensor:
        is_large = self.device.type == "cpu" and inputs[0][:, 0].numel() >= LARGE_PX
        answer = with_kept_memory(self._run, *inputs) if is_large else self._run(*inputs)
        if not isinstance(answer, torch.Tensor):
            raise ModelFileError(
                f"The network of {self._source} answers with a {type(answer).__name__}; one tensor is needed."
            )
        return answer

    def _run(self, *inputs: torch.Tensor) -> Any:
        half = nullcontext() if self._precision is None else torch.autocast(self.device.type, self._precision)
        with torch.inference_mode(), half, one_thread() if self.device.type == "cpu" else nullcontext():
            return self._module(*inputs)

    def _refusal(self, inputs: tuple[torch.Tensor, ...], error: Exception) -> ModelFileError:
        return ModelFileError(
            f"The network of {self._source} does not take {_shapes(inputs)} (tile, band, y, x): {_first_line(error)}. "
            'Check the bands of the rasters, ImageHeight and ImageWidth, and "GeodlDask": {"input": "pair" or "stack"}.'
        )

    def _load_plain(self) -> torch.nn.Module:
        path = self._path
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
            with _torchscript_is_deprecated():
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


@contextmanager
def _torchscript_is_deprecated() -> Iterator[None]:
    """By torch 2.13, whose word for that nobody has to read; it is what people have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
