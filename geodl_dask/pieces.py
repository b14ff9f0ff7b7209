"""What belongs together inside one block: pieces of one class, with outline, size and confidence. Runs on workers.

A piece may go on in the next block. So each says which pixels of the block's edges are its own, and `vectors` joins
what meets there.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes

from .areas import SQUARE_METRES_PER_HECTARE, PixelAreas
from .errors import MissingDependencyError
from .tiling import Window

Connectivity = Literal[4, 8]
_EDGES = (np.s_[0, :], np.s_[-1, :], np.s_[:, 0], np.s_[:, -1])
"""Top, bottom, left, right."""
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class PieceRequest:
    """Which pieces are wanted, and how they are measured."""

    values: tuple[int, ...] | None
    """Class values; None: all but those that are not wanted."""
    unwanted: tuple[int, ...]
    """Class values that are no piece."""
    connectivity: Connectivity
    """Of how many neighbours a pixel is one of the same piece: 4, or 8 with those across corners."""
    areas: PixelAreas
    """Of the pixels."""
    min_hectares: float
    """Pieces that are smaller, and end inside the block, are left out."""
    scaling: tuple[float, float]
    """Scale and offset of confidence as it is kept."""
    no_confidence: float | None
    """What is kept where there is none; NaN is none anyway."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of a block; all fields but the last have one entry for each."""

    values: np.ndarray
    """Class values."""
    pixels: np.ndarray
    """How many."""
    square_metres: np.ndarray
    """How large."""
    sureness: np.ndarray
    """Sum of the confidence, 0 to 1, of the pixels that have one."""
    sure_pixels: np.ndarray
    """How many have."""
    first: np.ndarray
    """The raster's number of the first pixel, row by row."""
    outlines: list[list[Any]]
    """Polygons, x column and y row of the raster; across corners they are several."""
    edges: tuple[np.ndarray, ...]
    """Top, bottom, left, right: (run, 3) integers: its first column (row) of the raster, the one after its last,
    and the number of the piece, from 1."""


def find_pieces(
    request: PieceRequest, width: int, window: Window, classes: np.ndarray, confidence: np.ndarray | None
) -> Pieces:
    """The pieces of a block. width : of the raster, pixels. classes, confidence : (y, x) as they are kept.

    Raises MissingDependencyError.
    """
    labels, values = _label(classes, request)
    count = len(values)
    flat = labels.ravel()
    pixels, areas = np.bincount(flat, minlength=count), request.areas.of(window)
    weights = None if areas.size == 1 else np.broadcast_to(areas, labels.shape).ravel()
    square_metres = pixels * float(areas.item()) if weights is None else np.bincount(flat, weights, count)
    touches_edge = np.zeros(count, bool)
    for edge in _EDGES:
        touches_edge[labels[edge]] = True
    kept = touches_edge | (square_metres >= request.min_hectares * SQUARE_METRES_PER_HECTARE)
    kept[0] = False  # what is no piece
    numbers = np.cumsum(kept) * kept
    labels = numbers[labels].astype(np.int32)
    sureness, sure_pixels = _sum_confidence(request, flat, count, confidence)
    first = np.empty(count, np.int64)
    first[flat[::-1]] = np.arange(flat.size)[::-1]  # the last that is written counts, which is the first pixel
    rows, cols = np.divmod(first[kept], window.width)
    return Pieces(
        values[kept], pixels[kept], square_metres[kept], sureness[kept], sure_pixels[kept],
        (window.row_off + rows) * width + window.col_off + cols,
        _outline(labels, int(kept.sum()), window),
        tuple(
            _runs(labels[edge], offset)
            for edge, offset in zip(_EDGES, (window.col_off,) * 2 + (window.row_off,) * 2, strict=True)
        ),
    )  # fmt: skip


def _label(classes: np.ndarray, request: PieceRequest) -> tuple[np.ndarray, np.ndarray]:
    """The number of each pixel's piece, from 1, and 0 for none, (y, x); and class values by number."""
    label = _labeller()
    neighbours = np.ones((3, 3), int) if request.connectivity == 8 else None
    labels, values = np.zeros(classes.shape, np.int32), [np.zeros(1, classes.dtype)]
    found = np.unique(classes) if classes.dtype.itemsize > 1 else np.flatnonzero(np.bincount(classes.ravel()))
    wanted = set(found.tolist() if request.values is None else request.values) - set(request.unwanted)
    for value in sorted(wanted & set(found.tolist())):
        of_class, count = label(classes == value, neighbours)
        labels += np.where(of_class, of_class + sum(map(len, values)) - 1, 0).astype(np.int32)
        values.append(np.full(count, value, classes.dtype))
    return labels, np.concatenate(values)


def _labeller() -> Any:
    try:
        from scipy.ndimage import label
    except ImportError as error:
        raise MissingDependencyError(
            'Polygons need scipy, which is not installed. Install it with: pip install "geodl_dask[vectors]"'
        ) from error
    return label


def _sum_confidence(
    request: PieceRequest, labels: np.ndarray, count: int, confidence: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    if confidence is None:
        return np.zeros(count), np.zeros(count, int)
    kept = confidence.ravel()
    is_there = ~np.isnan(kept) if kept.dtype.kind == "f" else np.ones(kept.shape, bool)
    if request.no_confidence is not None:
        is_there &= kept != request.no_confidence
    labels, (scale, offset) = labels[is_there], request.scaling
    pixels = np.bincount(labels, minlength=count)
    return np.bincount(labels, kept[is_there], count) * scale + offset * pixels, pixels


def _outline(labels: np.ndarray, count: int, window: Window) -> list[list[Any]]:
    """Polygons of each piece, of which those that only touch across corners are several."""
    outlines: list[list[Any]] = [[] for _ in range(count)]
    for found, number in _shapes(labels):
        rings = [np.add(ring, (window.col_off, window.row_off)) for ring in found["coordinates"]]
        outlines[int(number) - 1].append(shapely.Polygon(rings[0], rings[1:]))
    return outlines


def _shapes(labels: np.ndarray) -> list[tuple[Any, float]]:
    """What rasterio makes of the pixels, in pixels of the block."""
    # Of rasters in memory that several threads make at once, rasterio 1.4.4 warns now and then that they lie nowhere.
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return list(shapes(labels, mask=labels > 0, connectivity=4))


def _runs(line: np.ndarray, offset: int) -> np.ndarray:
    """Where along an edge, which begins at ``offset``, which piece is: (run, 3)."""
    starts = np.flatnonzero(np.diff(line, prepend=-1))
    runs = np.column_stack([starts + offset, np.append(starts[1:], len(line)) + offset, line[starts]])
    return runs[runs[:, 2] > 0]
