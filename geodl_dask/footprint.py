"""Where a grid lies on the globe: its outline and its bounds in degrees, as GeoJSON (RFC 7946) wants them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyproj.exceptions
import shapely
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, Polygon, box, mapping
from shapely.geometry.polygon import orient

POINTS_PER_SIDE = 100
"""Of the outline before it is thinned: a side that is straight on the grid is a curve in degrees."""

TOLERANCE = 1e-7
"""Degrees, about a centimetre, by which thinning may move the outline, of a tiny grid less."""

DECIMALS = 9
"""Of a degree; the last is a tenth of a millimetre."""


def footprint_of(grid: GeoBox) -> tuple[dict[str, Any] | None, list[float] | None]:
    """Geometry and bounding box of a grid in longitude and latitude, WGS 84.

    A grid across the antimeridian is cut there, and its box has its west east of its east (RFC 7946, 5.2). One with a
    pole in it reaches up to that, all around. None and None where its CRS leads to no degrees.
    """
    outline = _outline(grid)
    if outline is None:
        return None, None
    lon, lat = outline
    turns = round((lon[-1] - lon[0]) / 360)
    if turns:  # around a pole, to which the outline has to reach
        pole = math.copysign(90, float(lat.mean()))
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    whole = Polygon(np.column_stack([lon, lat])).simplify(min(TOLERANCE, float(np.ptp(lat)) / 1000))
    if not whole.is_valid:
        whole = whole.buffer(0)
    parts = _cut(whole)
    if not parts:
        return None, None
    west, south, east, north = (float(each) for each in whole.bounds)
    bounds = [-180.0, south, 180.0, north] if east - west >= 360 else [_as_west(west), south, _as_east(east), north]
    bounds[1], bounds[3] = max(bounds[1], -90.0), min(bounds[3], 90.0)
    geometry = orient(parts[0]) if len(parts) == 1 else MultiPolygon([orient(part) for part in parts])
    return _rounded(mapping(geometry)), [round(each, DECIMALS) for each in bounds]


def _outline(grid: GeoBox) -> tuple[np.ndarray, np.ndarray] | None:
    """Longitude and latitude along the grid's border; longitudes go on beyond 180 where the border does."""
    rows, cols = grid.shape.yx
    steps = np.linspace(0, 1, POINTS_PER_SIDE, endpoint=False)
    zeros, ones = np.zeros_like(steps), np.ones_like(steps)
    col = np.concatenate([zeros, steps, ones, 1 - steps, [0]]) * cols  # down, right, up, left, and closed
    row = np.concatenate([steps, ones, 1 - steps, zeros, [0]]) * rows
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    try:
        turn = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True)  # type: ignore[union-attr]
        lon, lat = turn.transform(a * col + b * row + c, d * col + e * row + f)
    except pyproj.exceptions.ProjError:  # no place on the Earth, or no way to it
        return None
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return None
    return np.unwrap(lon, period=360), lat


def _cut(whole: shapely.Geometry) -> list[Polygon]:
    """The parts of an outline between -180 and 180 degrees, into which those beyond are turned."""
    world = range(math.floor((whole.bounds[0] + 180) / 360), math.ceil((whole.bounds[2] + 180) / 360))
    found: list[Polygon] = []
    for turn in world:
        piece = whole.intersection(box(360 * turn - 180, -90, 360 * turn + 180, 90))
        found += [translate(each, -360 * turn) for each in shapely.get_parts(piece) if isinstance(each, Polygon)]
    return [part for part in shapely.get_parts(shapely.union_all(found)) if part.area]


def _as_west(lon: float) -> float:
    """The same meridian in -180 (with) to 180 (without)."""
    return (lon + 180) % 360 - 180


def _as_east(lon: float) -> float:
    """The same meridian in -180 (without) to 180 (with)."""
    return 180 - (180 - lon) % 360


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_rounded(each) for each in value]
    return round(value, DECIMALS) if isinstance(value, float) else value
