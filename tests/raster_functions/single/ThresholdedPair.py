# ruff: noqa
"""Change where the stacked pair's first bands differ by more than a threshold; takes what the reference's example gives."""

import json

import numpy as np


class ThresholdedPair:
    def initialize(self, **kwargs):
        with open(kwargs["model"]) as f:
            self.values = [c["Value"] for c in json.load(f)["Classes"]]

    def getParameterInfo(self):
        number = {"dataType": "numeric", "required": False, "description": ""}
        return [
            {"name": "raster", "dataType": "raster", "required": True, "displayName": "Raster", "description": ""},
            {"name": "model", "dataType": "string", "required": True, "displayName": "Model", "description": ""},
            {"name": "device", "value": 0, "displayName": "Device", **number},
            {"name": "padding", "value": 0, "displayName": "Padding", **number},
            {"name": "score_threshold", "value": 0.9, "displayName": "Score", **number},
            {"name": "batch_size", "value": 1, "displayName": "Batch size", **number},
        ]

    def getConfiguration(self, **scalars):
        self.threshold = float(scalars["score_threshold"]) * 255
        return {"extractBands": tuple(range(6)), "padding": int(scalars["padding"]), "tx": 16, "ty": 16}

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"].update(bandCount=1, pixelType="u1")
        return kwargs

    def updatePixels(self, tlc, shape, props, **blocks):
        pixels = blocks["raster_pixels"].astype(int)
        found = abs(pixels[3] - pixels[0]) > self.threshold
        return {"output_pixels": np.where(found, self.values[1], self.values[0])[np.newaxis].astype("u1")}
