"""Pictures inside a page: images and classes as data URIs, whole ones and tiles of a pyramid.

A pyramid's level has half as many pixels a side as the one before; its tiles are named ``level/column/row``, and those
without anything to see are left out.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.io import MemoryFile

from ..rasters.windows import WindowedRaster
from ..tiling import Window
from .sources import windows_of

TILE_PX = 512
WEBP_QUALITY = 75
STRETCH_PERCENT = (2, 98)
SAMPLE_PX = 2**20
"""So many pixels of a band say how it is stretched."""
STRIP_PX = 256
"""Rows that are halved at a time."""
READERS = 4
"""Windows that are read at a time."""


@dataclass(frozen=True)
class Stretch:
    """How pixels of any type become 0 to 255."""

    low: tuple[float, ...]
    """By band: what becomes 0."""
    high: tuple[float, ...]
    """By band: what becomes 255."""

    @classmethod
    def of(cls, pixels: np.ndarray, valid: np.ndarray) -> Stretch:
        """Bytes as they are; of others, by band, the 2nd percentile to the 98th.

        pixels : (band, y, x). valid : (y, x), True where there is an observation.
        """
        count = len(pixels)
        if pixels.dtype == np.uint8:
            return cls((0.0,) * count, (255.0,) * count)
        step = max(1, int(np.sqrt(valid.size / SAMPLE_PX)))
        sample = pixels[:, ::step, ::step][:, valid[::step, ::step]]
        if not sample.size:
            return cls((0.0,) * count, (1.0,) * count)
        low, high = np.percentile(sample.astype(np.float64), STRETCH_PERCENT, axis=1)
        return cls(tuple(low.tolist()), tuple(high.tolist()))

    def apply(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(4, y, x) uint8: red, green, blue, and alpha 0 where there is no observation."""
        rgba = np.zeros((4, *valid.shape), np.uint8)
        for number in range(3):
            band = number if len(pixels) == 3 else 0
            low, high = self.low[band], self.high[band]
            shown = pixels[band].astype(np.float32)
            shown[~valid] = low
            shown -= low
            shown *= 255 / ((high - low) if high > low else 1)
            rgba[number] = shown.clip(0, 255, out=shown)
        rgba[:3, ~valid] = 0
        rgba[3, valid] = 255
        return rgba


def read_all(raster: WindowedRaster) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (band, y, x), real ones as float32, and validity (y, x) of a raster that fits into memory."""
    dtype = np.dtype(np.float32) if np.dtype(raster.dtype).kind == "f" else np.dtype(raster.dtype)
    pixels = np.zeros((len(raster.band_names), *raster.grid.shape.yx), dtype)
    valid = np.zeros(raster.grid.shape.yx, bool)

    def read(window: Window) -> None:
        at = (
            slice(window.row_off, window.row_off + window.height),
            slice(window.col_off, window.col_off + window.width),
        )
        pixels[:, *at], valid[at] = raster.read(window)

    with ThreadPoolExecutor(READERS) as threads:
        for _ in threads.map(read, windows_of(valid.shape)):
            pass
    return pixels, valid


def halved(rgba: np.ndarray) -> np.ndarray:
    """(4, y, x) at half the size: colours are means of what there is to see, alpha of how much."""
    strips = (rgba[:, start : start + STRIP_PX] for start in range(0, rgba.shape[1], STRIP_PX))
    return np.concatenate([_halved_strip(strip) for strip in strips], axis=1)


def _halved_strip(rgba: np.ndarray) -> np.ndarray:
    height, width = rgba.shape[1:]
    even = np.pad(rgba, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge").astype(np.uint32)
    four = np.stack([even[:, row::2, col::2] for row in (0, 1) for col in (0, 1)])
    total = four[:, 3].sum(axis=0)
    colors = (four[:, :3] * four[:, 3:]).sum(axis=0) // np.maximum(total, 1)
    return np.concatenate([colors, (total[None] + 2) // 4]).astype(np.uint8)


def pyramid_tiles(rgba: np.ndarray, level: int, encode: Any) -> Iterator[tuple[str, str]]:
    """Names and data URIs of the tiles of a picture, (4, y, x), and of its coarser levels, to where one tile holds all.

    level : of the picture itself. encode : `webp` or `png`.
    """
    with ThreadPoolExecutor(READERS) as threads:
        while True:
            places = [
                (row, col)
                for row in range(-(-rgba.shape[1] // TILE_PX))
                for col in range(-(-rgba.shape[2] // TILE_PX))
                if _tile(rgba, row, col)[3].any()
            ]
            tiles = threads.map(lambda place, of=rgba: encode(_padded(_tile(of, *place))), places)
            yield from ((f"{level}/{col}/{row}", uri) for (row, col), uri in zip(places, tiles, strict=True))
            if max(rgba.shape) <= TILE_PX:
                return
            rgba, level = halved(rgba), level + 1


def _tile(rgba: np.ndarray, row: int, col: int) -> np.ndarray:
    return rgba[:, row * TILE_PX : (row + 1) * TILE_PX, col * TILE_PX : (col + 1) * TILE_PX]


def _padded(tile: np.ndarray) -> np.ndarray:
    """A whole tile, with nothing to see beyond the raster."""
    below, right = TILE_PX - tile.shape[1], TILE_PX - tile.shape[2]
    return np.pad(tile, ((0, 0), (0, below), (0, right)))


def webp(rgba: np.ndarray) -> str:
    """A photograph, (4, y, x), as data URI."""
    bands = rgba[:3] if (rgba[3] == 255).all() else rgba
    return _data_uri("webp", _encoded(bands, driver="WEBP", quality=WEBP_QUALITY))


def png(rgba: np.ndarray) -> str:
    """A drawing, (4, y, x), as data URI."""
    return _data_uri("png", _encoded(rgba, driver="PNG"))


def _encoded(bands: np.ndarray, **profile: Any) -> bytes:
    count, height, width = bands.shape
    with MemoryFile() as memory:
        with memory.open(count=count, height=height, width=width, dtype="uint8", **profile) as dataset:
            dataset.write(bands)
        return bytes(memory.read())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
