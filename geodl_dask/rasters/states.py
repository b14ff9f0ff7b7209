"""What an opened raster was when it was opened, so that a later run can tell whether it still is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import rasterio.errors

from .arrays import RasterArray
from .files import RasterFile
from .gdal import opened
from .mask import PolygonMask
from .remote import look_at_all
from .windows import WindowedRaster
from .zarr_raster import METADATA, ZarrRaster

ELSEWHERE = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz")
"""How GDAL's names of what lies on a server begin."""

NOT_PIXELS = ".aux.xml"
"""Where GDAL keeps statistics that anybody may have asked for meanwhile."""


def state_of(raster: WindowedRaster | RasterArray) -> str:
    """The state of a raster that was opened, in words that differ where its pixels may, and what is read of it.

    Of local files it is size and time of change, of a mosaic also those of its files; of an array its name in Dask.
    Of what lies on a server it is size, time of change and etag, as far as that says them; a layer of tiles has none.
    """
    if isinstance(raster, RasterArray):
        return raster.valid.name  # which comes of the pixels' name and the nodata value
    if isinstance(raster, RasterFile):
        return f"bands {','.join(map(str, raster.bands))} of {_dataset_state(raster.dataset)}"
    if isinstance(raster, ZarrRaster):
        bands = ",".join(map(str, raster.positions))
        is_elsewhere = "://" in raster.store
        state = _store_state(raster.store) if is_elsewhere else _files_state(_below(raster.store))
        return f"bands {bands} of {','.join(raster.variables)} of {state}"
    if isinstance(raster, PolygonMask):
        return _files_state(_below(raster.path))
    return raster.name


def _dataset_state(dataset: str) -> str:
    """Of what GDAL opens: its text, if it is one, its local files, and those on servers."""
    text = [f"text {_digest(dataset)}"] if dataset.startswith("<") else []
    if dataset.startswith(ELSEWHERE):
        return _remote_state([dataset])
    try:
        with opened(dataset) as found:
            names = found.files
    except rasterio.errors.RasterioError:
        names = []
    files = {path for name in (dataset, *names) if not name.startswith("<") and (path := _local(name))}
    remote = sorted({name for name in names if name.startswith(ELSEWHERE) and not name.endswith(NOT_PIXELS)})
    local = [_files_state(sorted(files))] if files or not remote else []
    return ", ".join([*text, *local, *([_remote_state(remote)] if remote else [])])


def _remote_state(names: list[str]) -> str:
    """Of files on servers, by URL or by what GDAL calls them."""
    known = [(name, str(each)) for name, each in zip(names, look_at_all(names), strict=False) if str(each)]
    if not known:
        return "a file elsewhere"
    return known[0][1] if len(known) == 1 else f"{len(known):,} files elsewhere ({_digest(known)})"


def _store_state(store: str) -> str:
    """Of a Zarr store on a server: of the files that describe it, for its chunks may be millions."""
    parts = urlsplit(store)
    return _remote_state([urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{mark}")) for mark in METADATA])


def _local(name: str) -> Path | None:
    """The file that holds what GDAL calls so; archives in its names stand before what they hold."""
    if name.endswith(NOT_PIXELS) or name.startswith(ELSEWHERE):
        return None
    path = Path(name.split("/", 2)[-1] if name.startswith("/vsi") else name)
    # pathlib's raises where a name is too long for a file, as an address may be.
    return next((each for each in (path, *path.parents) if os.path.isfile(each)), None)  # noqa: PTH113


def _below(place: str) -> Iterator[Path]:
    path = Path(place)
    if path.is_dir():
        yield from sorted(each for each in path.rglob("*") if each.is_file())
    elif path.is_file():
        yield path


def _files_state(files: Iterable[Path]) -> str:
    states = [(str(path), status.st_size, status.st_mtime_ns) for path in files for status in (path.stat(),)]
    if not states:
        return "a file elsewhere"
    size, changed = sum(size for _, size, _ in states), max(changed for *_, changed in states)
    second, ns = divmod(changed, 10**9)
    said = f"{size:,} bytes of {datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:%M:%S}.{ns:09} UTC"
    return said if len(states) == 1 else f"{len(states):,} files, {said} ({_digest(states)})"


def _digest(what: Any) -> str:
    return hashlib.sha256(str(what).encode(errors="surrogateescape")).hexdigest()[:16]
