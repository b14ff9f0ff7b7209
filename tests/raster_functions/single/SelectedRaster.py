# ruff: noqa
import numpy as np
from plain import Plain


class SelectedRaster(Plain):
    rasters = [{"name": "earlier", "dataType": "raster"}, {"name": "later", "dataType": "raster"}]
    configuration = {"inputMask": True}

    def selectRasters(self, tlc, shape, props):
        return ("later",)

    def updatePixels(self, tlc, shape, props, **blocks):
        assert sorted(blocks) == ["later_mask", "later_pixels"]
        return {"output_pixels": np.where(blocks["later_pixels"][0] > 100, 7, 0)}
