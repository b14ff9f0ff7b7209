# ruff: noqa
"""A generic classifier in the published style: the network is a child class in the folder that Framework names."""

import importlib
import json
import os
import sys

import numpy as np

sys.path.append(os.path.dirname(__file__))
from legend import legend
import rectangles


class PairClassifier:
    def __init__(self):
        self.name = "Pair Classifier"
        self.description = "Classifies the pixels of a stacked pair"

    def initialize(self, **kwargs):
        if "model" not in kwargs:
            return
        with open(kwargs["model"], "r") as f:
            self.json_info = json.load(f)
        sys.path.append(os.path.dirname(__file__))
        configuration = self.json_info["ModelConfiguration"]
        if not isinstance(configuration, str):
            configuration = configuration["Name"]
        module = importlib.import_module("{}.{}".format(self.json_info["Framework"], configuration))
        os.environ["CUDA_VISIBLE_DEVICES"] = str(kwargs.get("device", -1))
        self.child = module.ChildImageClassifier()
        self.child.initialize(kwargs["model"], True)

    def getParameterInfo(self):
        parameters = [
            {"name": "raster", "dataType": "raster", "required": True, "displayName": "Raster", "description": ""},
            {"name": "model", "dataType": "string", "required": True, "displayName": "Model", "description": ""},
            {"name": "device", "dataType": "numeric", "required": False, "displayName": "Device", "description": ""},
        ]
        if "ModelPadding" not in self.json_info:
            parameters.append(
                {
                    "name": "padding",
                    "dataType": "numeric",
                    "value": 0,
                    "required": False,
                    "displayName": "Padding",
                    "description": "Cut from every side",
                }
            )
        if "BatchSize" not in self.json_info:
            parameters.append(
                {
                    "name": "batch_size",
                    "dataType": "numeric",
                    "value": 1,
                    "required": False,
                    "displayName": "Batch Size",
                    "description": "Tiles at a time",
                }
            )
        return self.child.getParameterInfo(parameters)

    def getConfiguration(self, **scalars):
        configuration = self.child.getConfiguration(**scalars)
        if "DataRange" in self.json_info:
            configuration["dataRange"] = tuple(self.json_info["DataRange"])
        configuration["inheritProperties"] = 2 | 4 | 8
        configuration["inputMask"] = True
        return configuration

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"]["bandCount"] = 1
        kwargs["output_info"]["pixelType"] = "i4"
        legend["features"] = [
            {"attributes": {"OID": i + 1, "Value": c["Value"], "Class": c["Name"], "Red": c["Color"][0]}}
            for i, c in enumerate(self.json_info["Classes"])
        ]
        kwargs["output_info"]["rasterAttributeTable"] = json.dumps(legend)
        return kwargs

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        pixels = pixelBlocks["raster_pixels"]
        pixels[np.where(pixelBlocks["raster_mask"] == 0)] = 0
        pixelBlocks["raster_pixels"] = pixels
        answer = self.child.updatePixels(tlc, shape, props, **pixelBlocks)
        pixelBlocks["output_pixels"] = answer.astype(props["pixelType"], copy=False)
        return pixelBlocks
