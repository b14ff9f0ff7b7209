"""Networks that ONNX Runtime runs (``.onnx``)."""

from __future__ import annotations

import numpy as np

from ..errors import DeviceError, MissingDependencyError, ModelFileError
from . import RunnerSpec


class OnnxNetwork:
    """An ONNX network on one device. Raises ModelFileError, DeviceError or MissingDependencyError."""

    def __init__(self, spec: RunnerSpec) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                'This model is an ONNX file, and ONNX Runtime is not installed: pip install "geodl_dask[onnx]"'
            ) from error
        self.is_thread_safe = spec.device == "cpu"  # one GPU has one lane
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
        self.batch_changes_bits = False
        shape = [length if isinstance(length, int) else None for length in inputs[0].shape]
        self.batch_size = shape[0]
        self.tile_yx = (shape[2], shape[3]) if shape[2] and shape[3] else None

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """float32 (tile, band, y, x) in, the network's first output out."""
        if len(inputs) != len(self._inputs):
            raise ModelFileError(
                f"The network of {self._source} has {len(self._inputs)} input(s) {self._inputs}; it is given "
                f'{len(inputs)}. Say which with "GeodlDask": {{"input": "pair" or "stack"}}.'
            )
        try:
            answer = self._session.run(None, dict(zip(self._inputs, inputs, strict=True)))[0]
        except Exception as error:  # onnxruntime's errors derive from Exception alone
            shapes = " and ".join(str(each.shape) for each in inputs)
            raise ModelFileError(
                f"The network of {self._source} does not take {shapes} (tile, band, y, x): {error}"
            ) from error
        return np.asarray(answer)
