"""The largest changed areas of a result: pixels of one class that touch, as far as an overview shows them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import numpy as np
import rasterio.features
import shapely
from shapely.geometry import shape

from ..tiling import Window

CONNECTIVITY = 8
"""Pixels that touch across corners are of one area too."""
SMALLEST_PX = 4
"""Smaller areas of the overview are not looked for where there are this many changed pixels or more."""
MANY_PX = 100_000


@dataclass(frozen=True)
class Area:
    """Pixels of one class that touch."""

    index: int
    """Of the class, from 1, as the overview has it."""
    pixels: float
    """How many pixels of the overview it has; of one that reaches beyond the result the part inside."""
    outline: Any
    """Its polygon, in pixels of the overview, x before y; it ends where the result does."""

    @property
    def window(self) -> Window:
        """The window of the overview around it."""
        left, top, right, bottom = (ceil(each) for each in self.outline.bounds)
        return Window(top, left, bottom - top, right - left)


def largest_areas(
    overview: np.ndarray, unchanged: set[int], most: int, reach: tuple[float, float] = (inf, inf)
) -> list[Area]:
    """The largest areas first.

    overview : (y, x) int32, class index from 1, and 0 where there is no observation. unchanged : indices that are no
    change. most : how many areas are wanted. reach : columns and rows of the overview that the result fills, also in
    part: its last ones may reach beyond.
    """
    changed = ~np.isin(overview, [0, *unchanged])
    if np.count_nonzero(changed) >= MANY_PX:  # where noise would be a million areas
        kept = changed & (rasterio.features.sieve(overview, SMALLEST_PX, connectivity=CONNECTIVITY) == overview)
        changed = kept if kept.any() else changed
    return heapq.nlargest(most, _areas(overview, changed, reach), key=lambda area: area.pixels)


def _areas(overview: np.ndarray, changed: np.ndarray, reach: tuple[float, float]) -> Iterator[Area]:
    for outline, index in rasterio.features.shapes(overview, changed, connectivity=CONNECTIVITY):
        polygon = shapely.transform(shape(outline), lambda corners: np.minimum(corners, reach))
        yield Area(int(index), float(shapely.area(polygon)), polygon)
