"""Rasters of one lattice -> the text of a GDAL virtual raster, which is opened as any file.

The text holds absolute names, so any process may open it, and nothing is written anywhere.

Where several rasters cover a pixel, a later one rules, band by band, wherever it has an observation. What a
raster calls an observation (nodata, mask or alpha) stays its own affair: the virtual raster asks each for its mask, and
makes of them one mask band of its own. So no pixel value has to stand for a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

import numpy as np
from affine import Affine

from .members import Member, MemberBand, lattice_offset_px

GDAL_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "uint64": "UInt64", "int64": "Int64", "float32": "Float32", "float64": "Float64",
}  # fmt: skip

LARGEST_COVER = 10_000_000
"""Cells up to which it is checked whether rasters leave gaps; beyond, they are taken to."""


@dataclass(frozen=True)
class Layer:
    """One band of the virtual raster."""

    name: str
    """Description; may be empty."""
    sources: tuple[tuple[Member, MemberBand], ...]
    """Later over earlier."""

    @property
    def members(self) -> tuple[Member, ...]:
        """The raster of each source."""
        return tuple(member for member, _ in self.sources)


def virtual_raster(layers: Sequence[Layer]) -> str:
    """XML of a raster with these bands over the bounds of all of their sources.

    The sources are on one lattice; those of a band have one type.
    """
    members = [member for layer in layers for member in layer.members]
    origin, shape = _frame(members)
    shared = len({layer.members for layer in layers}) == 1 and all(member.all_valid for member in members)
    root = Xml.Element("VRTDataset", rasterXSize=str(shape[1]), rasterYSize=str(shape[0]))
    Xml.SubElement(root, "SRS").text = members[0].crs.to_wkt()
    Xml.SubElement(root, "GeoTransform").text = ", ".join(map(repr, map(float, origin.to_gdal())))
    for number, layer in enumerate(layers, 1):
        band = Xml.SubElement(root, "VRTRasterBand", _band_attributes(layer), band=str(number))
        _label(band, layer)
        for member, source in layer.sources:
            _add_source(band, member, source, str(source.number), origin)
        if not shared and not _leaves_no_gap(layer.members, origin, shape):
            _add_mask(band, layer, origin)
    if shared and not _leaves_no_gap(layers[0].members, origin, shape):
        _add_mask(root, layers[0], origin)
    return Xml.tostring(root, encoding="unicode")


def _frame(members: Sequence[Member]) -> tuple[Affine, tuple[int, int]]:
    """Transform and (y, x) shape of the bounds of all."""
    lattice = members[0].transform
    starts = [tuple(map(round, lattice_offset_px(member, lattice))) for member in members]
    top, left = (min(start[axis] for start in starts) for axis in (0, 1))
    bottom, right = (
        max(start[axis] + member.shape[axis] for start, member in zip(starts, members, strict=True)) for axis in (0, 1)
    )
    return lattice @ Affine.translation(left, top), (bottom - top, right - left)


def _leaves_no_gap(members: Sequence[Member], origin: Affine, shape: tuple[int, int]) -> bool:
    """Whether every pixel has an observation for certain, so that no mask is needed."""
    if not all(member.all_valid for member in members):
        return False
    boxes = [_box(member, origin) for member in members]
    rows = np.unique([edge for row, _, height, _ in boxes for edge in (row, row + height)] + [0, shape[0]])
    cols = np.unique([edge for _, col, _, width in boxes for edge in (col, col + width)] + [0, shape[1]])
    if len(rows) * len(cols) > LARGEST_COVER:
        return False
    covered = np.zeros((len(rows) - 1, len(cols) - 1), bool)
    for row, col, height, width in boxes:
        above, below = np.searchsorted(rows, (row, row + height))
        before, after = np.searchsorted(cols, (col, col + width))
        covered[above:below, before:after] = True
    return bool(covered.all())


def _box(member: Member, origin: Affine) -> tuple[int, int, int, int]:
    row, col = map(round, lattice_offset_px(member, origin))
    return row, col, *member.shape


def _band_attributes(layer: Layer) -> dict[str, str]:
    first = layer.sources[0][1]
    height, width = first.block_shape
    tiled = {"blockXSize": str(width), "blockYSize": str(height)} if height > 1 else {}
    return {"dataType": GDAL_TYPES[first.dtype], **tiled}


def _label(band: Xml.Element, layer: Layer) -> None:
    first = layer.sources[0][1]
    if layer.name:
        Xml.SubElement(band, "Description").text = layer.name
    Xml.SubElement(band, "ColorInterp").text = first.meaning.name.capitalize()
    if first.scaling != (1.0, 0.0):
        Xml.SubElement(band, "Scale").text, Xml.SubElement(band, "Offset").text = map(repr, first.scaling)
    if first.colors:
        colors, table = dict(first.colors), Xml.SubElement(band, "ColorTable")
        for value in range(max(colors) + 1):
            names = ("c1", "c2", "c3", "c4")
            entry = zip(names, map(str, colors.get(value, (0, 0, 0, 0))), strict=True)
            Xml.SubElement(table, "Entry", dict(entry))


def _add_mask(parent: Xml.Element, layer: Layer, origin: Affine) -> None:
    mask = Xml.SubElement(Xml.SubElement(parent, "MaskBand"), "VRTRasterBand", dataType="Byte")
    for member, source in layer.sources:
        element = _add_source(mask, member, source, f"mask,{source.number}", origin)
        if not member.all_valid:  # what is masked here may have been seen by an earlier one
            Xml.SubElement(element, "NODATA").text = "0"


def _add_source(band: Xml.Element, member: Member, source: MemberBand, number: str, origin: Affine) -> Xml.Element:
    row, col, height, width = _box(member, origin)
    element = Xml.SubElement(band, "SimpleSource" if member.all_valid else "ComplexSource")
    Xml.SubElement(element, "SourceFilename").text = member.dataset
    Xml.SubElement(element, "SourceBand").text = number
    Xml.SubElement(  # GDAL opens the file only when a window touches it, for these say what it would ask
        element, "SourceProperties", RasterXSize=str(width), RasterYSize=str(height),
        DataType="Byte" if number.startswith("mask") else GDAL_TYPES[source.dtype],
        BlockXSize=str(source.block_shape[1]), BlockYSize=str(source.block_shape[0]),
    )  # fmt: skip
    size = {"xSize": str(width), "ySize": str(height)}
    Xml.SubElement(element, "SrcRect", size, xOff="0", yOff="0")
    Xml.SubElement(element, "DstRect", size, xOff=str(col), yOff=str(row))
    if not member.all_valid and not number.startswith("mask"):
        Xml.SubElement(element, "UseMaskBand").text = "true"
    return element
