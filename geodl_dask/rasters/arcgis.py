"""Image Services and Map Servers of ArcGIS by their plain URL.

ArcGIS REST API: ``?f=json`` describes a service, ``exportImage``, ``export`` and ``tile`` hand out pixels.
"""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from ..errors import RasterInputError
from .layer_xml import RGBA, Layer
from .network import fetch_json
from .tiles import consecutive_halves

PIXEL_TYPES = {
    "U1": "Byte", "U2": "Byte", "U4": "Byte", "U8": "Byte", "S8": "Int8", "U16": "UInt16", "S16": "Int16",
    "U32": "UInt32", "S32": "Int32", "F32": "Float32", "F64": "Float64",
}  # fmt: skip

BLOCK_PX = 1024
"""Side of what is asked for at once, unless the service allows less."""

LEVELS_OF_CACHE = 8
"""Coarser levels of a tiled Map Server that are used; its grid begins at a whole tile of the coarsest."""


def image_service(url: str, role: str) -> tuple[str, str]:
    """What GDAL opens for an ``.../ImageServer``, and what it is for people: pixels as the service stores them.

    Raises RasterNotFoundError or RasterInputError.
    """
    about = _about(url, role)
    try:
        dtype, bands = PIXEL_TYPES[about["pixelType"]], int(about["bandCount"])
        size = float(about["pixelSizeX"]), float(about["pixelSizeY"])
        bounds, shape = _grid(about["extent"], size)
        crs = _crs(about["extent"]["spatialReference"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise _not_understood(url, "an Image Service", role, error) from error
    is_rgb = dtype == "Byte" and bands == 3
    nodata = about.get("noDataValue")
    wanted = {"interpolation": "RSP_NearestNeighbor"}
    if any(each.get("name") == "None" for each in about.get("rasterFunctionInfos") or ()):
        wanted["renderingRule"] = json.dumps({"rasterFunction": "None"})  # or its default stretches the pixels
    if nodata is not None and not is_rgb:
        wanted["noData"] = f"{nodata:.17g}"
    block = min(BLOCK_PX, int(about.get("maxImageHeight") or BLOCK_PX), int(about.get("maxImageWidth") or BLOCK_PX))
    layer = Layer(
        {
            "name": "AGS", "ServerUrl": _below(url, "exportImage", wanted), "SRS": crs.partition(":")[2],
            "ImageFormat": "png32" if is_rgb else "tiff",
        },
        crs=crs, bounds=bounds, shape=shape, block=(block, block), overviews=_overviews(shape, block),
        bands=RGBA if is_rgb else bands, dtype=dtype, nodata=None if is_rgb or nodata is None else float(nodata),
    )  # fmt: skip
    return (layer.xml() if is_rgb else layer.xml_without_alpha(), "Image Service")


def map_server(url: str, role: str) -> tuple[str, str]:
    """What GDAL opens for a ``.../MapServer``, and what it is for people: a picture, from its tiles where it has some.

    Raises RasterNotFoundError or RasterInputError.
    """
    about = _about(url, role)
    try:
        if about.get("singleFusedMapCache") and about.get("tileInfo"):
            return _tiled(url, about)
        return _exported(url, about)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        raise _not_understood(url, "a Map Server", role, error) from error


def _tiled(url: str, about: dict[str, Any]) -> tuple[str, str]:
    info, extent = about["tileInfo"], about["fullExtent"]
    lods = sorted(info["lods"], key=lambda each: float(each["resolution"]))
    size, side = float(lods[0]["resolution"]), (int(info["rows"]), int(info["cols"]))
    levels = min(consecutive_halves(float(each["resolution"]) for each in lods), LEVELS_OF_CACHE + 1)
    step = 1 << (levels - 1)
    left, top = float(info["origin"]["x"]), float(info["origin"]["y"])
    first = tuple(
        max(0, math.floor(span / (length * size) / step + 1e-9) * step)
        for span, length in zip((top - extent["ymax"], extent["xmin"] - left), side, strict=True)
    )
    last = tuple(
        math.ceil(span / (length * size) / step - 1e-9) * step
        for span, length in zip((top - extent["ymin"], extent["xmax"] - left), side, strict=True)
    )
    (row, col), (rows, cols) = first, (max(step, end - start) for start, end in zip(first, last, strict=True))
    x, y = left + col * side[1] * size, top - row * side[0] * size
    layer = Layer(
        {"name": "TMS", "ServerUrl": _below(url, "tile/${z}/${y}/${x}", {})},
        crs=_crs(info["spatialReference"]),
        bounds=(x, y - rows * side[0] * size, x + cols * side[1] * size, y),
        shape=(rows * side[0], cols * side[1]), block=side, overviews=levels - 1,
        first_tile=(row, col), level=int(lods[0]["level"]),
    )  # fmt: skip
    return layer.xml(), f"Map Server, cached tiles of level {lods[0]['level']}"


def _exported(url: str, about: dict[str, Any]) -> tuple[str, str]:
    extent, finest = about["fullExtent"], float(about.get("maxScale") or 0) or 1000.0
    crs = _crs(extent["spatialReference"])
    unit_m = 111_319.49 if abs(extent["xmax"]) <= 360 and abs(extent["ymax"]) <= 90 else 1.0
    size = finest * 0.0254 / 96 / unit_m  # of a pixel of a screen with 96 dots an inch
    bounds, shape = _grid(extent, (size, size))
    service = {"name": "AGS", "ServerUrl": _below(url, "export", {}), "SRS": crs.partition(":")[2],
               "ImageFormat": "png32", "Transparent": "TRUE"}  # fmt: skip
    layer = Layer(
        service, crs=crs, bounds=bounds, shape=shape, block=(BLOCK_PX, BLOCK_PX), overviews=_overviews(shape, BLOCK_PX)
    )
    return layer.xml(), f"Map Server, drawn at scale 1:{finest:.0f}"


def _about(url: str, role: str) -> dict[str, Any]:
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, "f=json")))
    about = fetch_json(urlunsplit(parts._replace(query=query)), role)
    if "error" in about:  # with status 200
        error = about["error"] if isinstance(about["error"], dict) else {}
        raise RasterInputError(
            f"{role} {url}: the service answered {error.get('code')} {error.get('message')}. If it wants a token, "
            "write it into the address: ...?token=..."
        )
    return about


def _below(url: str, operation: str, query: dict[str, str]) -> str:
    """Address of an operation; what the user wrote as query, such as a token, stays."""
    parts = urlsplit(url)
    asked = "&".join(filter(None, (parts.query, urlencode(query, quote_via=quote))))
    path = f"{parts.path.rstrip('/')}/{operation}"
    return f"{parts.scheme}://{parts.netloc}{path}{'?' if asked or 'export' in operation else ''}{asked}"


def _grid(
    extent: dict[str, Any], size: tuple[float, float]
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Bounds of whole pixels from the upper left corner on, and the shape."""
    left, top = float(extent["xmin"]), float(extent["ymax"])
    cols = max(1, round((float(extent["xmax"]) - left) / size[0]))
    rows = max(1, round((top - float(extent["ymin"])) / size[1]))
    return (left, top - rows * size[1], left + cols * size[0], top), (rows, cols)


def _overviews(shape: tuple[int, int], block: int) -> int:
    return max(0, math.ceil(math.log2(max(shape) / block)))


def _crs(reference: dict[str, Any]) -> str:
    number = int(reference.get("latestWkid") or reference["wkid"])
    return f"EPSG:{number}" if number < 32768 or number > 200_000 else f"ESRI:{number}"


def _not_understood(url: str, what: str, role: str, error: Exception) -> RasterInputError:
    return RasterInputError(
        f"{role} {url} does not describe itself as {what} that can be read (?f=json: {type(error).__name__} {error}). "
        "Is the address the service's own, and has its CRS a number (wkid)?"
    )
