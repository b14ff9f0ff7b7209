"""What a report shows of a result: an overview in tiles, each class a layer of its own, and its largest areas close."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, cast

import numpy as np
import rasterio.features
from affine import Affine
from odc.geo.geobox import GeoBox

from ..classes import ClassTable
from ..errors import GridMismatchError, RasterReadError
from ..rasters.coarse import coarsened, zoomed_out
from ..rasters.windows import WindowedRaster
from ..tiling import Window
from .areas import Area
from .images import Stretch, png, pyramid_tiles, read_all, webp
from .sources import Photo, Result

OVERVIEW_PX = 4096
"""Longest side of the overview, at most."""
OWN_LAYERS = 9
"""So many classes, the most frequent ones, can be shown and hidden one by one; the others together."""
CLOSE_PX = 384
"""Longest side of the picture of an area, at most."""
CLOSE_LEAST_PX, CLOSE_MARGIN = 160, 1.6
"""It shows so many rows of the result at least, and so many times the area's own extent."""
CLOSE_ASPECT = 4 / 3
"""Its width by its height."""


@dataclass(frozen=True)
class Overview:
    """A result as a whole."""

    grid: GeoBox
    """Its CRS, transform and shape."""
    factor: int
    """Pixels of the result along a side of one of its pixels, a power of two."""
    classes: np.ndarray
    """(y, x) int32, class index from 1, and 0 where there is no observation."""

    @property
    def level(self) -> int:
        """How often it was halved."""
        return self.factor.bit_length() - 1


@dataclass(frozen=True)
class Layer:
    """Classes that are shown and hidden together."""

    name: str
    """Of its class, or how many there are."""
    color: str
    """Of its class, ``#rrggbb``; of several that of the most frequent one."""
    indices: tuple[int, ...]
    """Of its classes in the overview, from 1."""


@dataclass(frozen=True)
class PhotoTiles:
    """An image, in tiles of the overview's levels."""

    photo: Photo
    """The image; without its raster where that cannot be read."""
    stretch: Stretch | None
    """How its pixels become colours."""
    tiles: dict[str, str]
    """Data URIs by name."""


@dataclass(frozen=True)
class Close:
    """An area with its surroundings."""

    window: Window
    """Where, in pixels of the result."""
    is_detail: bool
    """Whether it shows more than the overview does."""
    photos: list[str | None]
    """A data URI for each image that can be read; None where it cannot be here."""
    layers: dict[int, str]
    """Data URIs of what each layer, by its number, shows there."""
    confidence: float | None
    """Mean of the area's pixels."""


def overview_of(result: Result, table: ClassTable) -> Overview:
    """The result at a size that fits a page, each pixel the most frequent class. Raises RasterReadError."""
    factor = 1
    while max(result.grid.shape) > OVERVIEW_PX * factor:
        factor *= 2
    grid = zoomed_out(result.grid, factor)
    values, valid = read_all(result.classes_on(grid, factor))
    return Overview(grid, factor, index_of(values[0], valid, table))


def index_of(values: np.ndarray, valid: np.ndarray, table: ClassTable) -> np.ndarray:
    """(y, x) int32: place in the table, from 1, of (y, x) class values; 0 where there is no observation."""
    order = np.argsort(table.values)
    known = np.array(table.values, np.int64)[order]
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(valid & (known[at] == values), order[at] + 1, 0).astype(np.int32)


def layers_of_classes(table: ClassTable, pixels: Mapping[int, int], unchanged: Iterable[int]) -> list[Layer]:
    """Layers of the classes that occur, the most frequent first. unchanged : indices of those that are not shown."""
    found = [
        (pixels.get(each.value, 0), number, each)
        for number, each in enumerate(table.classes, 1)
        if pixels.get(each.value) and number not in set(unchanged)
    ]
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    layers = [Layer(each.name, hex_color(each.color), (number,)) for _, number, each in found]
    if len(layers) <= OWN_LAYERS + 1:
        return layers
    rest = layers[OWN_LAYERS:]
    together = Layer(f"{len(rest):,} more classes", rest[0].color, tuple(each.indices[0] for each in rest))
    return [*layers[:OWN_LAYERS], together]


def hex_color(color: tuple[int, int, int]) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def paint(classes: np.ndarray, layer: Layer, table: ClassTable) -> np.ndarray:
    """(4, y, x) uint8: the colours of a layer's classes, of (y, x) class indices; alpha 0 elsewhere."""
    colors = np.zeros((len(table.classes) + 1, 4), np.uint8)
    for index in layer.indices:
        colors[index] = (*table.classes[index - 1].color, 255)
    return np.ascontiguousarray(np.moveaxis(colors[classes], -1, 0))


def strengthened(rgba: np.ndarray) -> np.ndarray:
    """A layer whose pixels that are changed in part can be seen: alpha is the square root of the share."""
    alpha = np.sqrt(rgba[3] / np.float32(255)) * 255
    return np.concatenate([rgba[:3], alpha.astype(np.uint8)[None]])


def layer_tiles(overview: Overview, layer: Layer, table: ClassTable, details: Iterable[Window]) -> dict[str, str]:
    """The tiles of a layer. details : what close pictures show in the overview's place, pixels of the result."""
    classes = overview.classes.copy()
    for window in details:
        rows, cols = (
            slice(start // overview.factor, -(-(start + length) // overview.factor))
            for start, length in ((window.row_off, window.height), (window.col_off, window.width))
        )
        classes[rows, cols] = 0
    rgba = paint(classes, layer, table)
    return dict(pyramid_tiles(rgba, overview.level, lambda tile: png(strengthened(tile))))


def photo_tiles(photo: Photo, overview: Overview) -> PhotoTiles:
    """The tiles of an image, on the overview's grid; none, and why, where it cannot be read."""
    if photo.raster is None:
        return PhotoTiles(photo, None, {})
    try:
        pixels, valid = read_all(coarsened(photo.raster, overview.grid, "average"))
    except (GridMismatchError, RasterReadError) as error:
        return PhotoTiles(replace(photo, raster=None, trouble=f"It cannot be shown: {error}"), None, {})
    stretch = Stretch.of(pixels, valid)
    return PhotoTiles(photo, stretch, dict(pyramid_tiles(stretch.apply(pixels, valid), overview.level, webp)))


def window_around(area: Area, overview: Overview, shape_yx: tuple[int, int]) -> Window:
    """Whole pixels of the overview around an area, in pixels of the result, cut where that is smaller."""
    inside, factor = area.window, overview.factor
    extent = factor * max(inside.height, inside.width / CLOSE_ASPECT)
    rows = max(CLOSE_LEAST_PX, extent * CLOSE_MARGIN)
    row_off, height = _around(inside.row_off + inside.height / 2, rows, shape_yx[0], factor)
    col_off, width = _around(inside.col_off + inside.width / 2, rows * CLOSE_ASPECT, shape_yx[1], factor)
    return Window(row_off, col_off, height, width)


def _around(middle: float, length: float, whole: int, factor: int) -> tuple[int, int]:
    """Offset and length, in pixels of the result, of a range around a place in the overview."""
    count = ceil(length / factor)
    start = max(0, min(round(middle - count / 2), ceil(whole / factor) - count)) * factor
    return start, min(count * factor, whole - start)


def close_view(
    area: Area, result: Result, overview: Overview, table: ClassTable, layers: list[Layer],
    photos: list[PhotoTiles],
) -> Close:  # fmt: skip
    """An area with its surroundings, as sharp as a small picture can be. Raises RasterReadError."""
    window = window_around(area, overview, result.grid.shape.yx)
    factor = 1
    while max(window.height, window.width) > CLOSE_PX * factor:
        factor *= 2
    rows = slice(window.row_off, window.row_off + window.height)
    grid = zoomed_out(result.grid[rows, window.col_off : window.col_off + window.width], factor)
    values, valid = read_all(result.classes_on(grid, factor))
    classes = index_of(values[0], valid, table)
    painted = ((number, paint(classes, layer, table)) for number, layer in enumerate(layers))
    return Close(
        window, factor < overview.factor, [_close_photo(each, grid) for each in photos if each.stretch],
        {number: png(rgba) for number, rgba in painted if rgba[3].any()},
        _mean_confidence(area, result, overview, grid, window, classes),
    )  # fmt: skip


def _close_photo(shown: PhotoTiles, grid: GeoBox) -> str | None:
    raster, stretch = cast("WindowedRaster", shown.photo.raster), cast("Stretch", shown.stretch)
    try:
        return webp(stretch.apply(*read_all(coarsened(raster, grid, "average"))))
    except (GridMismatchError, RasterReadError):  # a file with a hole
        return None


def _mean_confidence(
    area: Area, result: Result, overview: Overview, grid: GeoBox, window: Window, classes: np.ndarray
) -> float | None:
    if result.confidence is None:
        return None
    confidence, valid = read_all(coarsened(result.confidence, grid, "average"))
    step = (window.height / grid.shape.y / overview.factor, window.width / grid.shape.x / overview.factor)
    corner = Affine.translation(window.col_off / overview.factor, window.row_off / overview.factor)
    to_overview = corner @ Affine.scale(step[1], step[0])
    inside = rasterio.features.geometry_mask([area.outline], classes.shape, to_overview, invert=True)
    chosen = confidence[0][inside & valid & (classes == area.index)]
    return float(chosen.mean()) if chosen.size else None


def as_list(window: Window) -> list[Any]:
    """First row, first column, rows, columns."""
    return [window.row_off, window.col_off, window.height, window.width]
