"""Layers of square tiles by their plain URL: XYZ templates and Tile Map Services."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from urllib.parse import urljoin
from xml.etree import ElementTree as Xml

import rasterio
import rasterio.errors

from ..errors import RasterInputError
from .layer_xml import RGBA, Layer
from .network import fetch_if_there

DEFAULT_ZOOM = 18
"""The finest level of an XYZ layer unless the user says another: 0.6 m at the equator, which most layers reach."""

FINEST_ZOOM = 22
"""Beyond which GDAL cannot count the pixels of a world (2^31)."""

MERCATOR = 20037508.342789244
"""Half the width of the world in EPSG:3857."""


def xyz_layer(template: str, choice: str, role: str) -> tuple[str, str]:
    """What GDAL opens for a URL with {z}, {x} and {y}, and what it is for people.

    ``{-y}`` counts from below. choice : ``zoom=18``. Raises RasterNotFoundError or RasterInputError.
    """
    zoom = _zoom(choice, template, role)
    url = _without_variants(template, role)
    sample = re.sub(r"\{-?[xyz]\}", "0", url)
    side, bands, dtype = tile_format(sample, role)
    pixels = side << zoom
    layer = Layer(
        {"name": "TMS", "ServerUrl": re.sub(r"\{-?([xyz])\}", r"${\1}", url)},
        crs="EPSG:3857",
        bounds=(-MERCATOR, -MERCATOR, MERCATOR, MERCATOR),
        shape=(pixels, pixels),
        block=(side, side),
        overviews=zoom,
        bands=bands,
        dtype=dtype,
        first_tile=(0, 0),
        level=zoom,
        is_bottom_up="{-y}" in url,
    )
    return layer.xml(), f"XYZ layer, zoom {zoom}"


def tms_layer(url: str, tile_map: Xml.Element, role: str) -> tuple[str, str]:
    """What GDAL opens for the resource document of a Tile Map Service, and what it is for people.

    Tile Map Service 1.0.0: tiles are counted from the origin, which is below and left. Raises RasterInputError.
    """
    try:
        crs = _text(tile_map, "SRS").replace("OSGEO:41001", "EPSG:3857").replace("EPSG:900913", "EPSG:3857")
        left, bottom = (float(tile_map.find("Origin").attrib[axis]) for axis in "xy")  # type: ignore[union-attr]
        form = tile_map.find("TileFormat").attrib  # type: ignore[union-attr]
        side = int(form["width"])
        sets = sorted(tile_map.iter("TileSet"), key=lambda each: int(each.attrib["order"]))
        sizes = [float(each.attrib["units-per-pixel"]) for each in sets]
        orders = [int(each.attrib["order"]) for each in sets]
        finest, box = sets[-1].attrib["href"], tile_map.find("BoundingBox").attrib  # type: ignore[union-attr]
        right, top = max(float(box["maxx"]), float(box["minx"])), max(float(box["maxy"]), float(box["miny"]))
    except (AttributeError, KeyError, ValueError, IndexError) as error:
        raise RasterInputError(f"{role} {url} is no TileMap of the Tile Map Service 1.0.0: {error!r}.") from error
    levels = consecutive_halves(sizes[::-1])
    coarsest = sizes[-levels] * side
    if abs(left + MERCATOR) < 1:  # the square world; some writers give its box in degrees, or with swapped axes
        right, top = MERCATOR, MERCATOR
    across, up = (max(1, math.ceil((end - start) / coarsest - 1e-6)) for start, end in ((left, right), (bottom, top)))
    whole = 1 << (levels - 1)
    base = urljoin(url if url.endswith(".xml") else f"{url}/", finest).rstrip("/").rpartition("/")[0]
    layer = Layer(
        {"name": "TMS", "ServerUrl": f"{base}/${{z}}/${{x}}/${{y}}.{form['extension']}"},
        crs=crs,
        bounds=(left, bottom, left + across * coarsest, bottom + up * coarsest),
        shape=(up * whole * side, across * whole * side),
        block=(side, side),
        overviews=levels - 1,
        first_tile=(0, 0),
        level=orders[-1],
        is_bottom_up=True,
    )
    return layer.xml(), f"TMS layer, level {orders[-1]}"


def consecutive_halves(sizes: Iterable[float]) -> int:
    """How many levels, from the finest on, each have pixels twice as long as the one before."""
    count, before = 0, None
    for size in sizes:
        if before is not None and abs(size / before - 2) > 1e-6:
            break
        count, before = count + 1, size
    return count


def tile_format(url: str, role: str) -> tuple[int, int, str]:
    """Side, bands and GDAL type of a layer's tiles, by one of them; if that is missing, what tiles usually are.

    Raises RasterNotFoundError or RasterInputError.
    """
    content = fetch_if_there(url, role)
    if not content:
        return 256, RGBA, "Byte"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # a tile says not where it lies
            with rasterio.MemoryFile(content) as file, file.open() as tile:
                bands = RGBA if tile.count in (3, 4) or tile.colorinterp[0].name == "palette" else tile.count
                tile_type, size = tile.dtypes[0], tile.shape
    except rasterio.errors.RasterioIOError as error:
        start = content[:40].decode(errors="replace").strip()
        raise RasterInputError(f"{role}: {url} is no image tile; it begins with {start!r}.") from error
    dtype = {"uint8": "Byte", "uint16": "UInt16"}.get(tile_type, "")
    if bands not in (1, RGBA) or not dtype or size[0] != size[1]:
        raise RasterInputError(
            f"{role}: {url} is a tile of {size[0]} x {size[1]} pixels, {bands} band(s) of {tile_type}; "
            "square tiles of 8 or 16 bits that are grey, RGB or RGBA are needed."
        )
    return size[0], bands, dtype


def _zoom(choice: str, template: str, role: str) -> int:
    found = re.fullmatch(r"(?:zoom=)?(\d+)", choice or f"zoom={DEFAULT_ZOOM}")
    if not found or int(found[1]) > FINEST_ZOOM:
        raise RasterInputError(
            f"{role} {template}: #{choice} is no zoom; write the finest level that is wanted, 0 to {FINEST_ZOOM}, for "
            f"instance as #zoom={DEFAULT_ZOOM}."
        )
    return int(found[1])


def _without_variants(template: str, role: str) -> str:
    """One of the servers and sizes that a template offers."""
    url = re.sub(r"\{switch:([^,}]*)[^}]*\}", r"\1", template).replace("{s}", "a").replace("{r}", "")
    unknown = [each for each in re.findall(r"\{[^}]*\}", url) if each not in ("{x}", "{y}", "{-y}", "{z}")]
    if unknown:
        raise RasterInputError(
            f"{role} {template} has the placeholder {unknown[0]}; {{z}}, {{x}}, {{y}} or {{-y}}, and {{s}} are known. "
            "Write its value in the place of any other."
        )
    return url


def _text(element: Xml.Element, name: str) -> str:
    found = element.findtext(name)
    if not found:
        raise KeyError(name)
    return found.strip()
