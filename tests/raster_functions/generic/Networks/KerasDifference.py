# ruff: noqa
import os

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
import numpy as np

from Networks.base import BaseClassifier


class ChildImageClassifier(BaseClassifier):
    def load_model(self, path):
        self.model = keras.models.load_model(path)

    def inference(self, batch, **scalars):
        values = np.array([c["Value"] for c in self.json_info["Classes"]])
        scores = self.model.predict(np.transpose(batch, (0, 2, 3, 1)).astype("f4"), verbose=0)
        return values[scores.argmax(axis=-1)][:, np.newaxis]
