# ruff: noqa
"""Does what the argument of a stage says, as a statement."""

import os

import numpy as np
from plain import Plain


class Raises(Plain):
    parameters = [
        {"name": "statement", "dataType": "string", "value": "pass"},
        {"name": "number", "dataType": "string"},
    ]

    def initialize(self, model):
        Plain.initialize(self, model)
        exec(self.json_info.get("Statement", "pass"), {"os": os})

    def getConfiguration(self, **scalars):
        if "number" in scalars:
            int(scalars["number"])
        return Plain.getConfiguration(self, **scalars)

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        self.go_deeper()
        return Plain.updatePixels(self, tlc, shape, props, **pixelBlocks)

    def go_deeper(self):
        exec(self.scalars["statement"], {"os": os, "np": np})
