"""How GDAL opens a raster, here and on workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rasterio

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


@contextmanager
def opened(dataset: str, **options: Any) -> Iterator[Any]:
    """A rasterio dataset, open while the block lasts. Raises rasterio.errors.RasterioIOError."""
    with rasterio.Env(**SETTINGS), rasterio.open(dataset, **options) as found:
        yield found
