"""Networks that ONNX Runtime runs (``.onnx``)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from ..allocator import LESS_MEMORY, is_memory_shortage
from ..errors import DeviceError, MemoryShortageError, MissingDependencyError, ModelFileError
from . import RunnerSpec
from .pytorch import one_thread


class OnnxNetwork:
    """An ONNX network on one device. Raises ModelFileError, DeviceError or MissingDependencyError."""

    def __init__(self, spec: RunnerSpec) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                'This model is an ONNX file, and ONNX Runtime is not installed: pip install "geodl_dask[onnx]"'
            ) from error
        self.device = torch.device("cpu")  # it copies to a GPU itself
        self._lock = nullcontext() if spec.device == "cpu" else threading.Lock()
        path, self._source = spec.definition.model_file or "", spec.definition.source
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # blocks run side by side
        options.log_severity_level = 3
        provider = "CUDAExecutionProvider" if spec.device == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise DeviceError(
                f"{path} should run on the GPU, and this ONNX Runtime has no {provider}: pip install onnxruntime-gpu, "
                "or ask for the processor type cpu."
            )
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[provider])
        except Exception as error:  # onnxruntime's errors derive from Exception alone
            raise ModelFileError(
                f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}"
            ) from error
        inputs = self._session.get_inputs()
        if not 1 <= len(inputs) <= 2 or any(len(each.shape) != 4 for each in inputs):
            raise ModelFileError(
                f"The network of {self._source} takes {[each.shape for each in inputs]}; one stack or a pair of shape "
                "(tile, band, y, x) is needed."
            )
        self._inputs = [each.name for each in inputs]
        shape = [length if isinstance(length, int) else None for length in inputs[0].shape]
        self.batch_size = shape[0]
        self.tile_yx = (shape[2], shape[3]) if shape[2] and shape[3] else None

    @contextmanager
    def lane(self) -> Iterator[None]:
        """One thread at a time on a GPU; on a CPU any number, with a core each."""
        with self._lock, one_thread():
            yield

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """float32 (tile, band, y, x) in, the network's first output out."""
        if len(inputs) != len(self._inputs):
            raise ModelFileError(
                f"The network of {self._source} has {len(self._inputs)} input(s) {self._inputs}; it is given "
                f'{len(inputs)}. Say which with "GeodlDask": {{"input": "pair" or "stack"}}.'
            )
        given = [each.numpy() for each in inputs]
        try:
            answer = self._session.run(None, dict(zip(self._inputs, given, strict=True)))[0]
        except Exception as error:  # onnxruntime's errors derive from Exception alone
            shapes, cause = " and ".join(str(each.shape) for each in given), str(error).removesuffix(".")
            if is_memory_shortage(error):
                raise MemoryShortageError(
                    f"There is not memory enough for {self._source} and {shapes}: {cause}. {LESS_MEMORY}"
                ) from error
            raise ModelFileError(
                f"The network of {self._source} does not take {shapes} (tile, band, y, x): {error}"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(answer))
