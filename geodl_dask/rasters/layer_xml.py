"""A web layer -> the XML text by which GDAL's WMS driver reads it.

There is no ``Cache`` element, so GDAL keeps no tiles on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from .network import TIMEOUT_S

RGBA = 4
"""Bands of pictures: red, green, blue and alpha. GDAL completes tiles that lack alpha."""

MISSING = "204,404"
"""Answers that mean there is no tile, so that its pixels, alpha included, are 0. Any other failure fails the read."""


@dataclass(frozen=True)
class Layer:
    """What is asked of a server, block by block."""

    service: dict[str, str]
    """Children of ``Service``; its name under ``name``."""
    crs: str
    """As GDAL reads it."""
    bounds: tuple[float, float, float, float]
    """Left, bottom, right, top of the full grid."""
    shape: tuple[int, int]
    """Of the full grid, (y, x)."""
    block: tuple[int, int] = (256, 256)
    """Of one answer, (y, x)."""
    overviews: int = 0
    """How many coarser levels there are, each half of the one before."""
    bands: int = RGBA
    """Of an answer."""
    dtype: str = "Byte"
    """GDAL's name of the pixel type."""
    nodata: float | None = None
    """The value that means no observation."""
    first_tile: tuple[int, int] | None = None
    """Number of the upper left tile of the finest level, (y, x); None: not a layer of tiles."""
    level: int = 0
    """Number of the finest level."""
    is_bottom_up: bool = False
    """Whether tiles are counted from below."""

    def xml(self) -> str:
        """The text that GDAL opens."""
        root = Xml.Element("GDAL_WMS")
        service = Xml.SubElement(root, "Service", name=self.service["name"])
        _add(service, {key: value for key, value in self.service.items() if key != "name"})
        left, bottom, right, top = self.bounds
        window = {"UpperLeftX": left, "UpperLeftY": top, "LowerRightX": right, "LowerRightY": bottom}
        _add(
            Xml.SubElement(root, "DataWindow"),
            {**window, "SizeX": self.shape[1], "SizeY": self.shape[0], **self._tiles()},
        )
        _add(
            root,
            {
                "Projection": self.crs, "BlockSizeX": self.block[1], "BlockSizeY": self.block[0],
                "OverviewCount": self.overviews, "BandsCount": self.bands, "DataType": self.dtype,
                "Timeout": 6 * TIMEOUT_S, "MaxConnections": 4, "UserAgent": "geodl_dask",
            },
        )  # fmt: skip
        if self.nodata is not None:
            Xml.SubElement(root, "DataValues", NoData=" ".join([repr(self.nodata)] * self.bands))
        if self.bands == RGBA and self.first_tile is not None:
            _add(root, {"ZeroBlockHttpCodes": MISSING})
        return Xml.tostring(root, encoding="unicode")

    def xml_without_alpha(self) -> str:
        """The same for a layer whose last band is no alpha.

        The driver takes a 2nd or 4th band for alpha; a virtual raster around it says nothing of the sort.
        """
        if self.bands not in (2, RGBA):
            return self.xml()
        inner, (rows, cols) = self.xml(), self.shape
        left, bottom, right, top = self.bounds
        root = Xml.Element("VRTDataset", rasterXSize=str(cols), rasterYSize=str(rows))
        step = (right - left) / cols, (bottom - top) / rows
        _add(root, {"SRS": self.crs, "GeoTransform": f"{left!r}, {step[0]!r}, 0, {top!r}, 0, {step[1]!r}"})
        size = {"xOff": "0", "yOff": "0", "xSize": str(cols), "ySize": str(rows)}
        for number in range(1, self.bands + 1):
            band = Xml.SubElement(
                root, "VRTRasterBand", dataType=self.dtype, band=str(number),
                blockXSize=str(self.block[1]), blockYSize=str(self.block[0]),
            )  # fmt: skip
            if self.nodata is not None:
                _add(band, {"NoDataValue": self.nodata})
            source = Xml.SubElement(band, "SimpleSource")
            _add(source, {"SourceFilename": inner, "SourceBand": number})
            for name in ("SrcRect", "DstRect"):
                Xml.SubElement(source, name, size)
        return Xml.tostring(root, encoding="unicode")

    def _tiles(self) -> dict[str, object]:
        if self.first_tile is None:
            return {}
        return {
            "TileX": self.first_tile[1], "TileY": self.first_tile[0], "TileLevel": self.level,
            "YOrigin": "bottom" if self.is_bottom_up else "top",
        }  # fmt: skip


def _add(parent: Xml.Element, children: Mapping[str, object]) -> None:
    for name, value in children.items():
        Xml.SubElement(parent, name).text = repr(value) if isinstance(value, float) else str(value)
