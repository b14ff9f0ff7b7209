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

from ..errors import RasterNotFoundError
from .mosaic import files_of_folder, files_of_pattern, mosaic_of_files
from .network import CLOUDS, gdal_name, require_rangeable


@dataclass(frozen=True)
class Source:
    """A raster, before anybody has opened it."""

    dataset: str
    """What GDAL opens: a path, a URL, a prefixed name or XML text."""
    kind: str
    """What the text was taken for, for people; empty where GDAL's driver says it."""


def find_source(text: str, role: str) -> Source:
    """What opens the raster that ``text`` names; ``role`` names it in messages.

    Raises RasterNotFoundError or RasterInputError.
    """
    if text.lstrip().startswith("<") or text.startswith("/vsi"):
        return Source(text.strip(), "")
    scheme = urlsplit(text).scheme.lower()
    if scheme in ("http", "https"):
        return _of_url(text, role)
    if scheme in CLOUDS:
        return Source(gdal_name(text), "")
    if text and Path(text).exists():
        return _of_path(Path(text), role)
    if re.match(r"[A-Za-z][A-Za-z0-9_+]+:", text):  # one letter is a drive
        return Source(text, "")
    if glob.has_magic(text):
        return Source(*mosaic_of_files(files_of_pattern(text, role), role))
    raise RasterNotFoundError(f"{role} {text or repr(text)} does not exist (looked in {Path.cwd()}).")


def _of_path(path: Path, role: str) -> Source:
    if path.is_dir():
        return Source(*mosaic_of_files(files_of_folder(path, role), role))
    return Source(str(path.absolute()), "")  # workers may stand in another folder


def _of_url(url: str, role: str) -> Source:
    require_rangeable(url, role)
    return Source(gdal_name(url), "")
