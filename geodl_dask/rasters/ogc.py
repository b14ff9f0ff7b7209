"""WMTS and WMS layers by their plain URL."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from xml.etree import ElementTree as Xml

import pyproj
import pyproj.exceptions

from ..errors import RasterInputError
from .layer_xml import MISSING, Layer

WMTS = "{http://www.opengis.net/wmts/1.0}"
OWS = "{http://www.opengis.net/ows/1.1}"

OWN = {
    "SERVICE", "REQUEST", "VERSION", "LAYERS", "STYLES", "CRS", "SRS", "BBOX", "WIDTH", "HEIGHT", "FORMAT",
    "TRANSPARENT",
}  # fmt: skip
"""What GDAL writes into a WMS request itself."""


def wmts_layer(url: str, capabilities: Xml.Element, choice: str, role: str) -> tuple[str, str]:
    """What GDAL opens for a layer of a WMTS, by its capabilities, and what it is for people.

    Raises RasterInputError, which lists the layers where none of several was chosen.
    """
    names = [each.findtext(f"{OWS}Identifier", "") for each in capabilities.iterfind(f"{WMTS}Contents/{WMTS}Layer")]
    name = choice or (names[0] if len(names) == 1 else "")
    if name not in names or not name:
        raise RasterInputError(
            f"{role} {url} has the layers {', '.join(names) or 'none'}{f', not {choice}' if choice else ''}. Choose "
            f"one: ...#{names[0] if names else 'LAYER'}"
        )
    root = Xml.Element("GDAL_WMTS")
    for key, value in {
        "GetCapabilitiesUrl": url, "Layer": name, "BandsCount": "4", "DataType": "Byte", "ZeroBlockHttpCodes": MISSING,
        "ZeroBlockOnServerException": "false", "UserAgent": "geodl_dask",
    }.items():  # fmt: skip
        Xml.SubElement(root, key).text = value
    return Xml.tostring(root, encoding="unicode"), f"WMTS layer {name}"


def wms_layer(url: str, role: str) -> tuple[str, str]:
    """What GDAL opens for a GetMap request, whose bounds and size make the grid, and what it is for people.

    Raises RasterInputError.
    """
    parts = urlsplit(url)
    written = parse_qsl(parts.query, keep_blank_values=True)
    asked = {key.upper(): value for key, value in written}
    version = asked.get("VERSION", "1.3.0")
    reference = "CRS" if version >= "1.3" else "SRS"
    try:
        first, second, third, fourth = map(float, asked["BBOX"].split(","))
        shape = int(asked["HEIGHT"]), int(asked["WIDTH"])
        crs, layers = asked[reference], asked["LAYERS"]
    except (KeyError, ValueError) as error:
        raise RasterInputError(
            f"{role} {url} is no complete GetMap request ({error}). A WMS has no pixels of its own: "
            f"its address needs LAYERS, {reference}, BBOX (of all that is wanted), WIDTH and HEIGHT "
            "(which say the pixel size)."
        ) from error
    is_swapped = version >= "1.3" and _is_north_first(crs, f"{role} {url}")
    rest = urlencode([(key, value) for key, value in written if key.upper() not in OWN])
    address = urlunsplit(parts._replace(query=rest, fragment="")) + ("&" if rest else "?")
    layer = Layer(
        {
            "name": "WMS", "Version": version, "ServerUrl": address,
            "Layers": layers, "Styles": asked.get("STYLES", ""), reference: crs,
            "ImageFormat": asked.get("FORMAT", "image/png"), "Transparent": asked.get("TRANSPARENT", "TRUE"),
            "BBoxOrder": "yxYX" if is_swapped else "xyXY",
        },
        crs=crs,
        bounds=(second, first, fourth, third) if is_swapped else (first, second, third, fourth),
        shape=shape,
        block=(min(1024, shape[0]), min(1024, shape[1])),
        overviews=max(0, (max(shape) // 1024).bit_length()),
    )  # fmt: skip
    return layer.xml(), f"WMS layer {layers}"


def _is_north_first(crs: str, name: str) -> bool:
    """Whether the first coordinate goes north, as WMS 1.3.0 takes the order of axes from the CRS."""
    if crs.upper().startswith("CRS:"):  # WMS's own, longitude first
        return False
    try:
        axis = pyproj.CRS.from_user_input(crs).axis_info[0]
    except pyproj.exceptions.CRSError as error:
        raise RasterInputError(f"{name} names the CRS {crs}, which PROJ does not know ({error}).") from error
    return bool(re.match(r"(geodetic )?lat|north", axis.name, re.IGNORECASE))
