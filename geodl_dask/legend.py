"""What GIS software shows of a band of classes: colours, names, a table of them, statistics; as GDAL's XML.

GeoTIFF holds the colours and the statistics. Names and table stand beside it, in ``OUT.tif.aux.xml`` (GDAL's PAM),
where GDAL, QGIS and ArcGIS look for them; GDAL from 3.12 on puts the table into the file too.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .classes import ClassTable

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold."""
_INTEGER, _REAL, _TEXT = "0", "1", "2"
"""GDAL's column types (GDALRATFieldType)."""
_COLUMNS = {
    "Value": (_INTEGER, "5"), "Count": (_REAL, "1"), "Class_Name": (_TEXT, "2"),
    "Red": (_INTEGER, "6"), "Green": (_INTEGER, "7"), "Blue": (_INTEGER, "8"),
}  # fmt: skip
"""Type and usage (GDALRATFieldUsage) by name; ArcGIS goes by the names. Counts outgrow GDAL's 32-bit integers."""


def add_legend(band: ET.Element, attrs: Mapping[str, Any], pixels: Mapping[int, int], dtype: np.dtype[Any]) -> None:
    """Colours, names and table of a raster's classes, if it has some, into a band of GDAL's virtual raster or PAM.

    attrs : the raster's, its class table among them. pixels : how many there are, by value.
    """
    table = ClassTable.from_attrs(attrs)
    if table is None:
        return
    table = ClassTable(tuple(replace(each, name=_NOT_XML.sub(" ", each.name)) for each in table.classes))
    if dtype.itemsize <= 2:  # no GeoTIFF has a palette for more bits, and names would go to 4 billion
        by_value = {each.value: each for each in table.classes}
        everything = [by_value.get(value) for value in range(max(by_value) + 1)]
        names, palette = ET.SubElement(band, "CategoryNames"), ET.SubElement(band, "ColorTable")
        ET.SubElement(band, "ColorInterp").text = "Palette"
        for each in everything:
            ET.SubElement(names, "Category").text = each.name if each else ""
            red, green, blue, alpha = map(str, (*each.color, 255) if each else (0, 0, 0, 0))
            ET.SubElement(palette, "Entry", c1=red, c2=green, c3=blue, c4=alpha)
    rows = [(each.value, pixels.get(each.value, 0), each.name, *each.color) for each in table.classes]
    _add_table(band, sorted(rows))


def add_statistics(band: ET.Element, pixels: Mapping[int, int], nodata: int | None) -> None:
    """Statistics of the valid pixels, under the names that GDAL gives them, into a band of GDAL's virtual raster.

    pixels : how many there are, by value. Nothing where none is valid.
    """
    valid = {value: count for value, count in pixels.items() if value != nodata and count}
    if not valid:
        return
    # In whole numbers until the last division, so that it is exact for any number of pixels.
    count, total = sum(valid.values()), sum(value * times for value, times in valid.items())
    squares = sum(value**2 * times for value, times in valid.items())
    found = {
        "MINIMUM": min(valid), "MAXIMUM": max(valid), "MEAN": total / count,
        "STDDEV": math.sqrt((squares * count - total**2) / count**2),
        "VALID_PERCENT": 100 * count / sum(pixels.values()),
    }  # fmt: skip
    metadata = ET.SubElement(band, "Metadata")
    for name, value in found.items():
        ET.SubElement(metadata, "MDI", key=f"STATISTICS_{name}").text = repr(value)


def side_text(attrs: Mapping[str, Any], pixels: Mapping[int, int], dtype: np.dtype[Any]) -> str | None:
    """The text of the file beside a raster, for its first band; None where it has no classes."""
    dataset = ET.Element("PAMDataset")
    band = ET.SubElement(dataset, "PAMRasterBand", band="1")
    add_legend(band, attrs, pixels, dtype)
    if not len(band):
        return None
    ET.indent(dataset)
    return ET.tostring(dataset, encoding="unicode") + "\n"


def _add_table(band: ET.Element, rows: list[tuple[Any, ...]]) -> None:
    """A GDAL raster attribute table."""
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for number, (name, (kind, usage)) in enumerate(_COLUMNS.items()):
        column = ET.SubElement(table, "FieldDefn", index=str(number))
        ET.SubElement(column, "Name").text = name
        is_large = any(isinstance(row[number], int) and row[number] > 2**31 - 1 for row in rows)
        ET.SubElement(column, "Type").text = _REAL if is_large else kind
        ET.SubElement(column, "Usage").text = usage
    for number, row in enumerate(rows):
        entry = ET.SubElement(table, "Row", index=str(number))
        for value in row:
            ET.SubElement(entry, "F").text = str(value)
