# ruff: noqa
import numpy as np
from plain import Plain


class TwoRasters(Plain):
    rasters = [{"name": "earlier", "dataType": "raster"}, {"name": "later", "dataType": "raster"}]
    configuration = {"inputMask": True, "compositeRasters": True}

    def selectRasters(self, tlc, shape, props):
        return None

    def updatePixels(self, tlc, shape, props, **blocks):
        assert np.array_equal(
            blocks["compositeraster_pixels"], np.concatenate([blocks["earlier_pixels"], blocks["later_pixels"]])
        )
        assert blocks["later_mask"].shape == blocks["later_pixels"].shape
        return {"output_pixels": self.classes(blocks["earlier_pixels"][0], blocks["later_pixels"][0])}
