# ruff: noqa
import arcpy
from arcpy.ia.util import get_available_device
from plain import Plain


class Arcpy(Plain):
    def initialize(self, **kwargs):
        arcpy.env.processorType = "GPU" if kwargs["device"] >= 0 else "CPU"
        self.device = get_available_device()
        arcpy.SetProgressorLabel("loading")
        arcpy.AddMessage("on the " + arcpy.env.processorType)

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        import arcpy as again

        assert again is arcpy
        return Plain.updatePixels(self, tlc, shape, props, **pixelBlocks)
