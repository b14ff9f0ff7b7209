# ruff: noqa
"""No network: change is where the 3 x 3 sum of absolute differences is above a threshold. Integers, hence exact."""

import numpy as np

from Networks.base import BaseClassifier


class ChildImageClassifier(BaseClassifier):
    def getParameterInfo(self, required):
        required.append(
            {
                "name": "threshold",
                "dataType": "numeric",
                "value": 900,
                "required": True,
                "displayName": "Threshold",
                "description": "Sum of differences above which a pixel is change",
            }
        )
        return required

    def inference(self, batch, **scalars):
        half = batch.shape[1] // 2
        difference = np.abs(batch[:, :half].astype("i8") - batch[:, half:].astype("i8")).sum(axis=1)
        padded = np.pad(difference, ((0, 0), (1, 1), (1, 1)))
        height, width = difference.shape[1:]
        total = sum(padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
        found = np.where(total > int(scalars["threshold"]), 7, 0)[:, np.newaxis].astype("u1")
        if self.model_padding:
            found = found[:, :, self.model_padding : -self.model_padding, self.model_padding : -self.model_padding]
        return found
