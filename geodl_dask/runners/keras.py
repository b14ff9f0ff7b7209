"""Networks that Keras loads whole (``.keras``, ``.h5``), on the back end that its settings name, torch without any."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ..errors import DeviceError, MissingDependencyError, ModelFileError
from . import RunnerSpec
from .pytorch import one_thread


class KerasNetwork:
    """A Keras network, channels last as Keras has them. Its file may carry code, so loading it needs trust.

    Raises ModelFileError, DeviceError or MissingDependencyError.
    """

    def __init__(self, spec: RunnerSpec) -> None:
        os.environ.setdefault("KERAS_BACKEND", "torch")
        try:
            import keras
        except ImportError as error:
            raise MissingDependencyError(
                f'This model is a Keras file, and Keras cannot be imported ({error}): pip install "geodl_dask[keras]"'
            ) from error
        if spec.device == "cuda":
            raise DeviceError("Keras files run on the CPU here. Ask for the processor type cpu.")
        path, self._source = spec.definition.model_file or "", spec.definition.source
        try:
            self._model = keras.saving.load_model(path, compile=False)
        except Exception as error:  # whatever the layers raise
            raise ModelFileError(f"{path} cannot be loaded by Keras {keras.__version__}: {error}") from error
        inputs = getattr(self._model, "inputs", None)
        if not inputs:
            raise ModelFileError(
                f"The network of {self._source} does not say what it takes. Save it again after it was built: give its "
                "first layer an input shape, or call it on a batch."
            )
        shape = inputs[0].shape
        if len(inputs) > 2 or len(shape) != 4:
            raise ModelFileError(
                f"The network of {self._source} takes {[each.shape for each in inputs]}; one stack or a pair of shape "
                "(tile, y, x, band) is needed."
            )
        self.device, self._lock = torch.device("cpu"), threading.Lock()
        self.batch_size: int | None = shape[0]
        self.tile_yx = (shape[1], shape[2]) if shape[1] and shape[2] else None

    @contextmanager
    def lane(self) -> Iterator[None]:
        """One thread at a time, on one core: what a back end allows is not known."""
        with self._lock, one_thread():
            yield

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """float32 (tile, band, y, x) in, the network's answer (tile, class, y, x) or (tile, y, x) out."""
        import keras

        given = [np.moveaxis(each.numpy(), 1, -1) for each in inputs]
        try:
            answer = self._model(given if len(given) > 1 else given[0], training=False)
        except Exception as error:  # whatever the layers raise
            shapes = " and ".join(str(each.shape) for each in given)
            raise ModelFileError(f"The network of {self._source} does not take {shapes}: {error}") from error
        answer = torch.tensor(keras.ops.convert_to_numpy(answer))
        return answer.moveaxis(-1, 1) if answer.ndim == 4 else answer
