"""How one grid lies on another, by points: what it covers, how much it shrinks, which pixels it needs.

Points, and not outlines, for an outline breaks where it runs round a pole, over the edge of the world, or over the end
of a projection.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

SAMPLES = 17
"""Points along each side of a window by which its place on another grid is found."""
FINE_SAMPLES = 129
"""The same where it takes a closer look."""
TORN_STEPS = 20
"""Points further apart than so many usual steps are not neighbours on the other grid."""
FULL_TURN_DEGREES = 360
LEAST_SHARE = 1e-6


def same_crs(ours: CRS | None, theirs: CRS | None) -> bool:
    """Whether two CRS place a coordinate alike, whatever their texts."""
    if ours is None or theirs is None:
        return ours is theirs
    return bool(ours == theirs or _same_by_proj(ours, theirs))


@lru_cache(maxsize=64)
def _same_by_proj(ours: CRS, theirs: CRS) -> bool:
    return bool(ours.proj.equals(theirs.proj, ignore_axis_order=True))


def share_covered(source: GeoBox, target: GeoBox) -> float:
    """How much of ``target`` lies inside ``source``, 0 to 1."""
    if same_crs(source.crs, target.crs):
        ours, theirs = target.extent, source.extent.assign_crs(target.crs)
        return min(float((ours & theirs).area / ours.area), 1.0)
    window = _common_window(source, target)
    if window is None:
        return 0.0
    top, bottom, left, right = window
    half_y, half_x = (bottom - top) / FINE_SAMPLES / 2, (right - left) / FINE_SAMPLES / 2
    middles = top + half_y, bottom - half_y, left + half_x, right - half_x  # each stands for its own ground
    inside = _inside(source, *_pixels_of(source, target, middles, FINE_SAMPLES))
    share = float(inside.mean()) * (bottom - top) * (right - left) / (target.shape.y * target.shape.x)
    return max(share, LEAST_SHARE)  # there is some, if so little that no point has met it


def shrink_factor(source: GeoBox, target: GeoBox) -> tuple[float, float]:
    """Rows and columns of ``source`` in the length of one pixel of ``target``, where both are; else 1, 1."""
    window = _common_window(source, target)
    if window is None:
        return 1.0, 1.0
    rows, cols = _pixels_of(source, target, window, FINE_SAMPLES)
    inside = _inside(source, rows, cols)
    near = inside[1:, 1:] & inside[:-1, :-1]
    spans = (window[1] - window[0]) / (FINE_SAMPLES - 1), (window[3] - window[2]) / (FINE_SAMPLES - 1)
    shrink_y, shrink_x = (_median_step(places, spans, near) for places in (rows, cols))
    return shrink_y, shrink_x


def bounds_on(source: GeoBox, target: GeoBox) -> tuple[float, float, float, float] | None:
    """First and last row and column of ``source``, as real numbers, under ``target``; None where it lies nowhere.

    Nearly all columns where the target lies across the edge of the source's world, or round a pole.
    """
    whole = (0.0, float(target.shape.y), 0.0, float(target.shape.x))
    rows, cols = _pixels_of(source, target, whole, SAMPLES)
    margin = 0.0
    if not np.isfinite(rows).all() or _is_torn(rows) or _is_torn(cols):
        rows, cols = _pixels_of(source, target, whole, min(2 * max(target.shape) + 1, 4 * FINE_SAMPLES))
        margin = 1.0
    known = np.isfinite(rows) & np.isfinite(cols)
    if not known.any():
        return None
    ranges = []
    for places in (rows, cols):
        found, step = places[known], margin * _typical_step(places)
        ranges += [float(found.min()) - step, float(found.max()) + step]
    return ranges[0], ranges[1], ranges[2], ranges[3]


def nearest_turn(source: GeoBox, target: GeoBox) -> GeoBox:
    """A geographic grid moved by whole turns round the Earth to where it covers most of ``target``."""
    if source.crs is None or not source.crs.geographic or share_covered(source, target) > 0.999:
        return source
    turned = [
        GeoBox(source.shape, Affine.translation(turn * FULL_TURN_DEGREES, 0) @ source.transform, source.crs)
        for turn in (0, -1, 1)
    ]
    return max(turned, key=lambda grid: share_covered(grid, target))


def _common_window(source: GeoBox, target: GeoBox) -> tuple[float, float, float, float] | None:
    """First and last row and column of ``target`` around the ground that both cover; None where there is none."""
    whole = (0.0, float(target.shape.y), 0.0, float(target.shape.x))
    inside = _inside(source, *_pixels_of(source, target, whole, FINE_SAMPLES))
    if inside.mean() > 0.05:
        return whole
    rows, cols = _pixels_of(target, source, (0.0, float(source.shape.y), 0.0, float(source.shape.x)), FINE_SAMPLES)
    found = _inside(target, rows, cols)
    if not found.any():
        return whole if inside.any() else None
    window = []
    for places, length in ((rows, target.shape.y), (cols, target.shape.x)):
        step = _typical_step(places) + 1
        window += [max(0.0, float(places[found].min()) - step), min(float(length), float(places[found].max()) + step)]
    return window[0], window[1], window[2], window[3]


def _pixels_of(
    source: GeoBox, target: GeoBox, window: tuple[float, float, float, float], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of ``source`` of points spread evenly over a window of ``target``.

    (samples, samples) real numbers, infinite where a point lies outside the other CRS.
    """
    top, bottom, left, right = window
    rows, cols = np.meshgrid(np.linspace(top, bottom, samples), np.linspace(left, right, samples), indexing="ij")
    x, y = _apply(target.transform, cols, rows)
    if source.crs is not None and target.crs is not None and not same_crs(source.crs, target.crs):
        x, y = target.crs.transformer_to_crs(source.crs)(x, y)
    cols, rows = _apply(~source.transform, x, y)
    return rows, cols


def _inside(grid: GeoBox, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return (rows > 0) & (rows < grid.shape.y) & (cols > 0) & (cols < grid.shape.x)


def _median_step(places: np.ndarray, spans: tuple[float, float], near: np.ndarray) -> float:
    """The usual change of a coordinate from pixel to pixel. spans : pixels between points. near : where it counts."""
    with np.errstate(invalid="ignore"):
        steps = np.hypot(np.diff(places, axis=0)[:, 1:] / spans[0], np.diff(places, axis=1)[1:] / spans[1])
    counted = steps[near & np.isfinite(steps)]
    return float(np.median(counted)) if len(counted) else 1.0


def _steps(places: np.ndarray) -> np.ndarray:
    """Distances of neighbouring points, where both are known."""
    with np.errstate(invalid="ignore"):
        steps = np.concatenate([np.abs(np.diff(places, axis=axis)).ravel() for axis in (0, 1)])
    return steps[np.isfinite(steps) & (steps > 0)]


def _is_torn(places: np.ndarray) -> bool:
    """Whether neighbouring points lie far apart, as on the two sides of the edge of a world."""
    steps = _steps(places)
    return bool(len(steps)) and float(steps.max()) > max(TORN_STEPS * float(np.median(steps)), 1.0)


def _typical_step(places: np.ndarray) -> float:
    """A large step between neighbouring points, but no tear."""
    steps = _steps(places)
    return float(np.quantile(steps, 0.99)) if len(steps) else 0.0


def _apply(transform: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore"):  # of points that are nowhere
        return (
            transform.a * x + transform.b * y + transform.c,
            transform.d * x + transform.e * y + transform.f,
        )
