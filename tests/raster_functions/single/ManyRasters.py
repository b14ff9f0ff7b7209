# ruff: noqa
from plain import Plain


class ManyRasters(Plain):
    rasters = [{"name": "rasters", "dataType": "rasters"}]
    configuration = {"inputMask": True}

    def updateRasterInfo(self, **kwargs):
        assert [info["bandCount"] for info in kwargs["rasters_info"]] == [3, 3]
        return kwargs

    def updatePixels(self, tlc, shape, props, **blocks):
        before, after = blocks["rasters_pixels"]
        assert [mask.shape for mask in blocks["rasters_mask"]] == [before.shape, after.shape]
        return {"output_pixels": self.classes(before[0], after[0])}
