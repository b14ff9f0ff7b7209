# ruff: noqa
import json
import os
import sys

sys.path.append(os.path.join(os.path.dirname(__file__), os.pardir))
import rectangles


class BaseClassifier:
    def initialize(self, model, model_as_file):
        with open(model, "r") as f:
            self.json_info = json.load(f)
        path = self.json_info.get("ModelFile")
        if path is not None and not os.path.isabs(path):
            path = os.path.abspath(os.path.join(os.path.dirname(model), path))
        self.load_model(path)

    def load_model(self, path):
        pass

    def getParameterInfo(self, required):
        return required

    def getConfiguration(self, **scalars):
        self.batch_size = int(self.json_info.get("BatchSize", scalars.get("batch_size", 1)))
        self.model_padding = self.json_info.get("ModelPadding", 0)
        self.padding = self.model_padding or int(scalars["padding"])
        self.scalars = scalars
        self.rows, self.cols = rectangles.rectangle(self.batch_size)
        return {
            "extractBands": tuple(self.json_info["ExtractBands"]),
            "padding": self.padding,
            "tx": (self.json_info["ImageWidth"] - 2 * self.padding) * self.cols,
            "ty": (self.json_info["ImageHeight"] - 2 * self.padding) * self.rows,
            "fixedTileSize": 1,
        }

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        height, width = self.json_info["ImageHeight"], self.json_info["ImageWidth"]
        block = pixelBlocks["raster_pixels"]
        batch = rectangles.block_to_batch(block, height, width, self.padding, self.rows, self.cols)
        found = self.inference(batch, **self.scalars)
        if self.model_padding == 0 and self.padding != 0:
            found = found[:, :, self.padding : -self.padding, self.padding : -self.padding]
        return rectangles.batch_to_block(found, self.rows, self.cols)
