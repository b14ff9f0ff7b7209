# ruff: noqa
import numpy as np
import onnxruntime

from Networks.base import BaseClassifier


class ChildImageClassifier(BaseClassifier):
    """The file's batch axis is 1, which is this function's own business."""

    def load_model(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def inference(self, batch, **scalars):
        values = np.array([c["Value"] for c in self.json_info["Classes"]])
        name = self.session.get_inputs()[0].name
        scores = np.concatenate([self.session.run(None, {name: tile[np.newaxis].astype("f4")})[0] for tile in batch])
        return values[scores.argmax(axis=1)][:, np.newaxis]
