"""How GDAL opens a raster, here and on workers."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import rasterio
import rasterio.errors
from rasterio.env import ensure_env_with_credentials, getenv, hasenv

from ..errors import RasterInputError
from .network import TIMEOUT_S

SETTINGS = {
    "GDAL_HTTP_CONNECTTIMEOUT": str(TIMEOUT_S),
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",  # bytes a second
    "GDAL_HTTP_LOW_SPEED_TIME": str(6 * TIMEOUT_S),
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
}
"""With which GDAL gives up in time on a server that is silent, and tries again where it is only busy (429, 50x)."""

DRIVERS = {
    "GTiff": "GeoTIFF", "GTI": "tile index", "VRT": "virtual raster", "JP2OpenJPEG": "JPEG 2000",
}  # fmt: skip
"""What GDAL's names of formats mean, where they do not say it."""

NETWORK = re.compile(r"/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)|(https?|ftp|s3|gs|az|oss)://", re.IGNORECASE)
"""What in GDAL's name of a raster says that its bytes come over the network."""

DESCRIBED_HERE = ("<", "WMS:", "WMTS:")
"""How the user's own description of a layer begins, or ours; a description that a server hands out has a name."""

SELF_CONTAINED = {
    "AAIGrid", "AVIF", "BIGGIF", "BMP", "COG", "DTED", "ECW", "EXR", "GIF", "GPKG", "GRIB", "GTiff", "HEIF", "JP2ECW",
    "JP2KAK", "JP2MrSID", "JP2OpenJPEG", "JPEG", "JPEGXL", "LIBERTIFF", "MBTiles", "MrSID", "PNG", "SRTMHGT", "USGSDEM",
    "WEBP",
}  # fmt: skip
"""Formats that hold their pixels. Others (VRT, GTI, STACIT, WMS, PDS, MRF, ...) name files, which may be this
machine's; so may HDF and netCDF, whose pixels may be the bytes of any other file ("external storage")."""

SIDECARS = (".ovr", ".msk")
"""Rasters that GDAL opens beside another, in any format."""

PICTURES = re.compile(r"\.(tiff?|jpe?g|jp2|png|gif|bmp|webp)$", re.IGNORECASE)
"""Names that promise a format that holds its pixels."""


@contextmanager
def opened(dataset: str, **options: Any) -> Iterator[Any]:
    """A rasterio dataset, open while the block lasts.

    Raises rasterio.errors.RasterioIOError, or RasterInputError for a file of the network that is none that holds its
    pixels.
    """
    own = getenv() if hasenv() else {}
    settings = {name: value for name, value in SETTINGS.items() if name not in os.environ and name not in own}
    if not NETWORK.search(dataset):
        with rasterio.Env(**settings), rasterio.open(dataset, **options) as found:
            if found.driver in SELF_CONTAINED:
                _require_own_pixels(found, dataset)
            elif PICTURES.search(dataset):
                raise RasterInputError(
                    f"{dataset} is a {DRIVERS.get(found.driver, found.driver)} under the name of a picture: its pixels "
                    "are those of other files, which may be any of this machine. Look at the names in it, and give it "
                    "the ending of what it is (.vrt)."
                )
            yield found
        return
    with rasterio.Env(**settings, GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE="NO"):
        if dataset.startswith(DESCRIBED_HERE):
            with rasterio.open(dataset, **options) as found:
                yield found
            return
        with _open_self_contained(dataset, **options) as found:
            _require_own_pixels(found, dataset)
            yield found


@ensure_env_with_credentials  # type: ignore[untyped-decorator]  # as rasterio.open, which takes no list of drivers (1.4)
def _open_self_contained(dataset: str, **options: Any) -> Any:
    try:
        return rasterio.DatasetReader(dataset, driver=_self_contained(), **options)
    except rasterio.errors.RasterioIOError as error:
        if "not recognized as being in a supported" not in str(error):
            raise
        raise RasterInputError(
            f"{dataset} lies on the network, or beside another raster, and is in no format that holds its pixels, such "
            "as GeoTIFF. No virtual raster, tile index, description of a layer, HDF or netCDF is taken there, for "
            "these may name files of this machine: download it, look at the names in it, and hand over your copy."
        ) from error


def holds_its_pixels(dataset: str) -> bool:
    """Whether a file is in a format that holds its pixels, so that whoever made it cannot let this machine call others.

    A virtual raster does not, whatever its name ends in, nor does a raster with one beside it as its overviews or mask.
    """
    try:
        with _open_self_contained(dataset) as found:
            _require_own_pixels(found, dataset)
    except (rasterio.errors.RasterioError, RasterInputError):
        return False
    return True


def _require_own_pixels(found: Any, dataset: str) -> None:
    """Refuse a raster in a self-contained format whose overviews or mask are other files' pixels.

    Overviews may be anywhere: a tag of the file, or the .aux.xml beside it, may name what GDAL is to open for them.
    """
    if elsewhere := found.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
        raise RasterInputError(
            f"{dataset} says that its overviews are in {elsewhere[:200]}, which may be any file. Remove that: "
            "gdal_translate -nomd IN OUT"
        )
    for beside in found.files[1:]:
        if beside.lower().endswith(SIDECARS):
            _require_self_contained(beside)


def _require_self_contained(sidecar: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # it is nowhere
        _open_self_contained(sidecar).close()


@cache
def _self_contained() -> list[str]:
    with rasterio.Env() as env:
        return sorted(SELF_CONTAINED & set(env.drivers()))
