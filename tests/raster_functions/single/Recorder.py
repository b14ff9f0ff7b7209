# ruff: noqa
"""Tells what it was given in calls.json beside itself, prints, and logs beside itself."""

import json
import logging
import os

from plain import Plain

log = logging.getLogger("Recorder")
log.propagate = False
log.setLevel(logging.INFO)
handler = logging.FileHandler(os.path.join(os.path.dirname(__file__), "recorder.log"), delay=True)
log.addHandler(handler)


class Recorder(Plain):
    rasters = Plain.rasters + [{"name": "device", "dataType": "numeric"}]
    parameters = [
        {"name": "whole", "dataType": "numeric", "value": 8.0, "displayName": "Whole", "description": "A whole number"},
        {"name": "part", "dataType": "GPDouble", "value": 0.25, "domain": (0, 1)},
        {"name": "flag", "dataType": "boolean", "value": True},
        {"name": "way", "dataType": "string", "value": "mean", "domain": ["mean", "max"]},
        {"name": "prompt", "dataType": "string", "value": None},
    ]
    configuration = {"padding": 2, "tx": 12, "ty": 20, "inputMask": True, "samplingFactor": 1}

    def initialize(self, **kwargs):
        self.calls = [["initialize", sorted(kwargs), type(kwargs["device"]).__name__]]

    def getParameterInfo(self):
        self.calls.append(["getParameterInfo"])
        return Plain.getParameterInfo(self)

    def getConfiguration(self, **scalars):
        scalars["model"] = os.path.basename(scalars["model"])
        self.calls.append(["getConfiguration", scalars])
        return dict(self.configuration)

    def updateRasterInfo(self, **kwargs):
        self.calls.append(["updateRasterInfo", kwargs["raster_info"]["bandCount"], kwargs["output_info"]["pixelType"]])
        kwargs["output_info"]["pixelType"] = "i4"
        return kwargs

    def updateKeyMetadata(self, names, bandIndex, **metadata):
        self.calls.append(["updateKeyMetadata", list(names), bandIndex])

    def selectRasters(self, tlc, shape, props):
        self.calls.append(["selectRasters", list(tlc), list(shape)])

    def updatePixels(self, tlc, shape, props, **blocks):
        pixels, mask = blocks["raster_pixels"], blocks["raster_mask"]
        flags = [pixels.flags.writeable, pixels.flags.c_contiguous, mask.flags.writeable]
        self.calls.append(
            [
                "updatePixels",
                props["pixelType"],
                list(props["extent"]),
                list(pixels.shape),
                str(pixels.dtype),
                list(mask.shape),
                str(mask.dtype),
                int(mask[0].sum()),
                flags,
            ]
        )
        print("predicting")
        log.info("predicting")
        handler.close()
        with open(os.path.join(os.path.dirname(__file__), "calls.json"), "w") as f:
            json.dump(self.calls, f)
        answer = self.classes(pixels[0], pixels[3])[2:-2, 2:-2]
        pixels[:] = 0
        mask[:] = 0
        return {"output_pixels": answer}
