# ruff: noqa
"""What the small functions of this folder share: change is where the first band grew."""

import json
import os

import numpy as np

RASTERS = [{"name": "raster", "dataType": "raster", "required": True}]


class Plain:
    rasters = RASTERS
    parameters = []
    configuration = {}

    def initialize(self, model):
        self.model = model
        with open(model) as f:
            self.json_info = json.load(f)

    def getParameterInfo(self):
        return self.rasters + [{"name": "model", "dataType": "string"}] + self.parameters

    def getConfiguration(self, **scalars):
        self.scalars = scalars
        return dict(self.configuration)

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        pixels = pixelBlocks["raster_pixels"]
        half = len(pixels) // 2
        pixelBlocks["output_pixels"] = self.classes(pixels[0], pixels[half])[np.newaxis]
        return pixelBlocks

    def classes(self, before, after):
        return np.where(after > before, 7, 0)
