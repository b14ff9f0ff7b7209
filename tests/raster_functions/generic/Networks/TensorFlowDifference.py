# ruff: noqa
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import numpy as np
import tensorflow as tf

from Networks.base import BaseClassifier


class ChildImageClassifier(BaseClassifier):
    def load_model(self, path):
        self.model = tf.saved_model.load(os.path.dirname(path))

    def inference(self, batch, **scalars):
        values = np.array([c["Value"] for c in self.json_info["Classes"]])
        scores = self.model.score(tf.constant(np.transpose(batch, (0, 2, 3, 1)).astype("f4"))).numpy()
        return values[scores.argmax(axis=-1)][:, np.newaxis]
