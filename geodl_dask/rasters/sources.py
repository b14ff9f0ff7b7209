"""What a user writes for a raster -> what opens it.

A text is taken, in this order, for: a virtual raster's XML; a URL; a path that exists; a name with a prefix that GDAL
knows (``NETCDF:...``); a glob. What follows the last ``#`` chooses among several: variables, layers, assets, a zoom.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import escape, unescape

import rasterio.errors

from ..errors import RasterInputError, RasterNotFoundError
from . import netcdf, stac
from .gdal import opened
from .mosaic import files_of_folder, files_of_pattern, mosaic_of_files
from .network import CLOUDS, gdal_name, require_rangeable
from .services import layer_by_address, layer_by_document

ZARR_MARKS = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
"""Of which a Zarr group's folder has one."""


@dataclass(frozen=True)
class Source:
    """A raster, before anybody has opened it."""

    dataset: str
    """What GDAL opens: a path, a URL, a prefixed name or XML text. Or a Zarr store."""
    kind: str
    """What the text was taken for, for people; empty where GDAL's driver says it."""
    is_zarr: bool = False
    """Whether it is a Zarr store, which GDAL does not read here."""
    choice: str = ""
    """Of a Zarr store: the variables, with commas between them."""


def find_source(text: str, role: str) -> Source:
    """What opens the raster that ``text`` names; ``role`` names it in messages.

    Raises RasterNotFoundError or RasterInputError.
    """
    if text.lstrip().startswith("<"):
        return Source(_with_absolute_sources(text.strip()), "")
    if text.startswith("/vsi"):
        return Source(_with_absolute_archive(text), "")
    place, choice = _split(text)
    try:
        scheme = urlsplit(text).scheme.lower()
    except ValueError as error:
        raise RasterInputError(f"{role} {text} is no address: {error}.") from error
    if scheme in ("http", "https", *CLOUDS) and urlsplit(place).path.rstrip("/").endswith(".zarr"):
        return Source(place, "", is_zarr=True, choice=choice)
    if scheme in ("http", "https"):
        return _of_url(place, choice, role)
    if scheme in CLOUDS:
        return _of_cloud(text, role)
    if place and _exists(place):
        return _of_path(Path(place), choice, role)
    if re.match(r"[A-Za-z][A-Za-z0-9_+]+:", text):  # one letter is a drive
        return Source(_with_absolute_archive(text) if "://" in text else _with_absolute_paths(text), "")
    if glob.has_magic(text):
        return Source(*mosaic_of_files(files_of_pattern(text, role), role))
    raise RasterNotFoundError(
        f"{role} {text or repr(text)} does not exist (looked in {Path.cwd()}). Give its path from "
        "there, or the whole one."
    )


def _split(text: str) -> tuple[str, str]:
    """The place, and what was chosen of it, which stands after the last ``#``."""
    place, mark, choice = text.rpartition("#")
    return (place, choice) if mark and not _exists(text) else (text, "")


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name longer than any may be
        return False


def _with_absolute_sources(xml: str) -> str:
    """XML whose files of the working folder have absolute names, for workers may stand in another folder."""

    def absolute(part: re.Match[str]) -> str:
        name = unescape(part[2])
        return f"{part[1]}{escape(str(Path(name).absolute())) if _exists(name) else part[2]}"

    return re.sub(r"(<(?:SourceFilename|SourceDataset|IndexDataset)\b[^>]*>)([^<]+)", absolute, xml)


def _with_absolute_archive(text: str) -> str:
    """The same for a file in an archive: ``zip://a.zip!a.tif`` or ``/vsizip/a.zip/a.tif``."""
    prefix, inside = re.fullmatch(r"(/vsi\w+/|[\w+]+://)?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    archive = Path(inside.partition("!")[0])
    is_here = any(_exists(str(each)) and each.name for each in (archive, *archive.parents))
    return f"{prefix}{Path.cwd() / inside}" if prefix and is_here and not archive.is_absolute() else text


def _with_absolute_paths(text: str) -> str:
    """A name with a prefix, such as ``NETCDF:"f.nc":var``, for workers may stand in another folder."""

    def absolute(part: re.Match[str]) -> str:
        path = Path(part[1])
        return part[0].replace(part[1], str(path.absolute())) if path.suffix and path.exists() else part[0]

    return re.sub(r'(?<=:)"?([^":]+)"?', absolute, text)


def _of_path(path: Path, choice: str, role: str) -> Source:
    if path.is_dir():
        if path.suffix == ".zarr" or any((path / mark).exists() for mark in ZARR_MARKS):
            return Source(str(path.absolute()), "", is_zarr=True, choice=choice)
        return Source(*mosaic_of_files(files_of_folder(path, role), role))
    if path.suffix.lower() in netcdf.SUFFIXES:
        return Source(*netcdf.variables_of_file(path, choice, role))
    found = stac.assets_of_json(str(path), choice, role) if path.suffix.lower() in stac.SUFFIXES else None
    return Source(*found) if found else Source(str(path.absolute()), "")  # workers may stand in another folder


def _of_url(url: str, choice: str, role: str) -> Source:
    found = layer_by_address(url, choice, role)
    if not found:
        content_type = require_rangeable(url, role)
        if "json" in content_type:
            found = stac.assets_of_json(url, choice, role)
        elif "xml" in content_type:
            found = layer_by_document(url, choice, role)
    return Source(*found) if found else Source(gdal_name(url), "")


def _of_cloud(url: str, role: str) -> Source:
    dataset = gdal_name(url)
    try:
        with opened(dataset):
            return Source(dataset, "")
    except rasterio.errors.RasterioIOError as error:
        raise RasterNotFoundError(
            f"{role} {url} cannot be opened: {error}. Check the name, and the storage's settings in the environment "
            "(for S3 the AWS_* variables: keys or AWS_NO_SIGN_REQUEST=YES, AWS_REGION, AWS_S3_ENDPOINT=host:port)."
        ) from error
