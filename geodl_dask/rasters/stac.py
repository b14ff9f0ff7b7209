"""A STAC Item, or a collection of Items as JSON, and which of its assets -> what GDAL opens.

SpatioTemporal Asset Catalog 1.0 and 1.1; of an Item only ``assets`` is read (``href``, ``roles``, ``type``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from ..errors import RasterInputError
from .members import Member, describe_members, require_one_lattice, require_same_bands
from .mosaic import stack_of_members
from .network import CLOUDS, fetch_json, gdal_name, parse_json
from .vrt import Layer, virtual_raster

SUFFIXES = (".json", ".geojson")
PICTURES = {"thumbnail", "overview", "metadata"}
"""Roles of assets that are not the raster, though they may be images."""

Item = dict[str, str]
"""Href of each asset by its name."""


def assets_of_json(place: str, choice: str, role: str) -> tuple[str, str] | None:
    """What GDAL opens for the chosen assets, and what it is for people; None: this is no STAC.

    place : URL, or path, of the JSON. choice : names of assets with commas between them, which become the bands; empty
    for all that are data. Raises RasterNotFoundError or RasterInputError, which lists what there is.
    """
    is_url = urlsplit(place).scheme in ("http", "https")
    document = fetch_json(place, role) if is_url else parse_json(Path(place).read_bytes(), place, role)
    features = document.get("features", []) if document.get("type") == "FeatureCollection" else [document]
    if document.get("type") in ("Catalog", "Collection"):
        raise RasterInputError(f"{role} {place} is a STAC {document['type']}; one Item of it is needed.")
    if not features or not all(isinstance(each, dict) and isinstance(each.get("assets"), dict) for each in features):
        return None
    chosen = [_chosen(each["assets"], choice, place, role) for each in features]
    names = list(chosen[0])
    if any(list(each) != names for each in chosen):
        raise RasterInputError(f"{role} {place}: its Items have different assets. {_how_to_choose(place, features[0])}")
    items = [{name: _locate(href, place, role) for name, href in each.items()} for each in chosen]
    said = f"{'asset' if len(names) == 1 else 'assets'} {', '.join(names)}"
    what = "STAC Item" if len(items) == 1 else f"mosaic of {len(items)} STAC Items, later over earlier"
    try:
        return _laid_together(items, role), f"{what}, {said}"
    except RasterInputError as error:
        if choice:
            raise
        raise RasterInputError(f"{error} {_how_to_choose(place, features[0])}") from error


def _chosen(assets: dict[str, Any], choice: str, place: str, role: str) -> Item:
    """The assets that were chosen, in that order; without a choice all that hold the pixels."""
    names = [name.strip() for name in choice.split(",") if name.strip()] or _data(assets)
    missing = [name for name in names if not isinstance(assets.get(name), dict) or "href" not in assets[name]]
    if missing or not names:
        what = f"no asset {', '.join(missing)}" if missing else "no asset that says it is a raster"
        raise RasterInputError(f"{role} {place} has {what}. {_how_to_choose(place, {'assets': assets})}")
    return {name: str(assets[name]["href"]) for name in names}


def _data(assets: dict[str, Any]) -> list[str]:
    """Those with the role data, or else those whose media type is a raster's, without pictures for people."""
    by_role = [name for name, asset in assets.items() if "data" in (asset.get("roles") or ()) and _is_raster(asset)]
    return by_role or [
        name for name, asset in assets.items()
        if not PICTURES & set(asset.get("roles") or ()) and asset.get("type") and _is_raster(asset)
    ]  # fmt: skip


def _is_raster(asset: dict[str, Any]) -> bool:
    kind = str(asset.get("type") or "image/tiff")
    return kind.startswith("image/") or "hdf" in kind or "netcdf" in kind


def _how_to_choose(place: str, item: dict[str, Any]) -> str:
    names = list(item["assets"])
    return (
        f"The assets are {', '.join(names) or 'none'}; choose one, or several as bands: "
        f"{place.rpartition('/')[2]}#{','.join((_data(item['assets']) or names or ['NAME'])[:3])}"
    )


def _locate(href: str, place: str, role: str) -> str:
    """GDAL's name of an asset. A document from the network may not name files of this machine."""
    if urlsplit(place).scheme in ("http", "https"):
        url = urljoin(place, href)
        if urlsplit(url).scheme not in ("http", "https", *CLOUDS):
            raise RasterInputError(f"{role} {place} names an asset at {href}, which no document of the network may.")
        return gdal_name(url)
    scheme = urlsplit(href).scheme
    if scheme in ("http", "https", *CLOUDS):
        return gdal_name(href)
    path = unquote(urlsplit(href).path) if scheme == "file" else href
    return str((Path(place).absolute().parent / path).resolve())


def _laid_together(items: list[Item], role: str) -> str:
    names, hrefs = list(items[0]), [href for item in items for href in item.values()]
    if len(hrefs) == 1:
        return hrefs[0]
    labels = [f"asset {name}" if len(items) == 1 else f"asset {name} of Item {at}" for at, item in enumerate(items, 1)
              for name in item]  # fmt: skip
    members = describe_members(hrefs, labels, role)
    if len(items) == 1:
        return stack_of_members(members, names, role)
    require_one_lattice(members, role)
    columns = [members[at :: len(names)] for at in range(len(names))]
    return virtual_raster(
        [layer for name, column in zip(names, columns, strict=True) for layer in _layers(name, column, role)]
    )


def _layers(name: str, members: list[Member], role: str) -> list[Layer]:
    """The bands of one asset of all Items."""
    require_same_bands(members, role)
    bands = members[0].bands
    return [
        Layer(
            name if len(bands) == 1 else f"{name}_{band.name or band.number}",
            tuple((member, member.bands[at]) for member in members),
        )
        for at, band in enumerate(bands)
    ]
