"""What an opened raster was when it was opened, so that a later run can tell whether it still is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rasterio.errors

from .arrays import RasterArray
from .files import RasterFile
from .gdal import opened
from .mask import PolygonMask
from .windows import WindowedRaster
from .zarr_raster import ZarrRaster

ELSEWHERE = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz")
"""How GDAL's names of what lies on a server begin; there each look costs a request."""

NOT_PIXELS = ".aux.xml"
"""Where GDAL keeps statistics that anybody may have asked for meanwhile."""


def state_of(raster: WindowedRaster | RasterArray) -> str:
    """The state of a raster that was opened, in words that differ where its pixels may, and what is read of it.

    Of local files it is size and time of change, of a mosaic also those of its files; of an array its name in Dask.
    What lies elsewhere shows nothing but its name.
    """
    if isinstance(raster, RasterArray):
        return raster.valid.name  # which comes of the pixels' name and the nodata value
    if isinstance(raster, RasterFile):
        return f"bands {','.join(map(str, raster.bands))} of {_dataset_state(raster.dataset)}"
    if isinstance(raster, ZarrRaster):
        bands = ",".join(map(str, raster.positions))
        return f"bands {bands} of {','.join(raster.variables)} of {_files_state(_below(raster.store))}"
    if isinstance(raster, PolygonMask):
        return _files_state(_below(raster.path))
    return raster.name


def _dataset_state(dataset: str) -> str:
    """Of what GDAL opens: its text, if it is one, and its local files."""
    text = [f"text {_digest(dataset)}"] if dataset.startswith("<") else []
    if dataset.startswith(ELSEWHERE):
        return "a file elsewhere"
    try:
        with opened(dataset) as found:
            names = found.files
    except rasterio.errors.RasterioError:
        names = []
    files = {path for name in (dataset, *names) if not name.startswith("<") and (path := _local(name))}
    return ", ".join([*text, _files_state(sorted(files))])


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
