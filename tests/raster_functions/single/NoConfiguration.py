# ruff: noqa
"""As little as a function can be: no initialize, no configuration, so no padding, no tx, no ty."""

import numpy as np


class NoConfiguration:
    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster"}, "a stray text, as in a published template"]

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        pixels = pixelBlocks["raster_pixels"]
        return {"output_pixels": np.where(pixels[len(pixels) // 2] > pixels[0], 7, 0)}
