"""A web layer's plain URL -> what GDAL opens."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree as Xml

from ..errors import RasterInputError
from .arcgis import image_service, map_server
from .network import fetch
from .ogc import WMTS, wms_layer, wmts_layer
from .tiles import tms_layer, xyz_layer


def layer_by_address(url: str, choice: str, role: str) -> tuple[str, str] | None:
    """What GDAL opens for a layer whose kind its URL tells, and what it is for people; None: the URL does not tell.

    Raises RasterNotFoundError or RasterInputError.
    """
    if re.search(r"\{[xz]\}", url):
        return xyz_layer(url, choice, role)
    parts = urlsplit(url)
    path = parts.path.rstrip("/").lower()
    if path.endswith("/imageserver"):
        return image_service(url, role)
    if path.endswith("/mapserver") and "/services/" in path:
        return map_server(url, role)
    query = {key.lower(): value.lower() for key, value in parse_qsl(parts.query)}
    if query.get("service") == "wms" or query.get("request") == "getmap":
        return wms_layer(url, role)
    return None


def layer_by_document(url: str, choice: str, role: str) -> tuple[str, str] | None:
    """The same for a URL that answers with an XML document; None: it is none of a layer.

    Raises RasterNotFoundError or RasterInputError.
    """
    try:
        root = Xml.fromstring(fetch(url, role))
    except Xml.ParseError as error:
        raise RasterInputError(f"{role} {url} answers with XML that is broken: {error}.") from error
    if root.tag == f"{WMTS}Capabilities":
        return wmts_layer(url, root, choice, role)
    if root.tag == "TileMap":
        return tms_layer(url, root, role)
    if root.tag == "VRTDataset" or root.tag == "GDALTileIndexDataset":
        return None
    said = " ".join("".join(root.itertext()).split())[:120]
    raise RasterInputError(
        f"{role} {url} answers with the XML document {root.tag.rpartition('}')[2]} ({said}); a raster, WMTS "
        "capabilities or a TileMap is needed."
    )
