# ruff: noqa
"""Answers what the argument says, as an expression."""

import numpy as np
from plain import Plain


class Answers(Plain):
    parameters = [{"name": "answer", "dataType": "string", "value": "{}"}]

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return eval(self.scalars["answer"], {"np": np, "shape": shape, "pixels": pixelBlocks["raster_pixels"]})
