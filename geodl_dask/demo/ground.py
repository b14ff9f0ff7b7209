"""The ground of a place: what parcels are used for, roads old and new, water and hills."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from .arrays import Array, Indices, Shape, make_noise
from .parcels import FAR_PX, ROAD, TRACK, Parcels, cut_land, find_parcels, locate_in_parcels
from .rectangles import window_around

ARABLE, MEADOW, WOOD, VILLAGE, ESTATE = range(5)
STREET_SPACING_PX = 96.0


@dataclass(frozen=True)
class Ground:
    """Land, roads and water."""

    uv: Array
    """(2, y, x) bent coordinates (v, u), in which parcels are straight."""
    parcels: Parcels
    kind: Indices
    """Per node, ARABLE to ESTATE (arable at the from date, village at the to date)."""
    node: Indices
    """(y, x) parcel of each pixel."""
    lines: Array
    """(line kind, y, x) distance from ROAD to MARGIN."""
    street: Array
    """Distance from village streets."""
    new_road: Array
    """Distance from streets and roads built between the dates."""
    water: Array
    """Distance from a river or pond."""
    relief: Array
    """Height of the hills."""

    @property
    def ways(self) -> Array:
        """Distance from roads and tracks."""
        return self.lines[[ROAD, TRACK]].min(0)


def lay_ground(rng: Generator, shape: Shape) -> Ground:
    """Lay parcels, roads and water."""
    yx = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    uv = yx + 16 * np.stack([make_noise(rng, shape, 330), make_noise(rng, shape, 330)])
    parcels = cut_land(rng, shape)
    node, lines = find_parcels(parcels, uv)
    kind = _choose_kinds(rng, parcels, shape)
    kinds, ways = kind[node], lines[[ROAD, TRACK]].min(0)
    water = _lay_water(rng, yx, ways)
    street = _lay_streets(parcels, node, uv, water)
    new_road = np.where(kinds == ESTATE, street, FAR_PX)
    cost = 3.0 * (kinds >= WOOD) + 3.0 * (water < 14) + 0.6 * (ways < 8)
    for _ in range(max(1, round(node.size / 800_000))):
        path = _choose_path(rng, cost, lines[ROAD])
        new_road = np.minimum(new_road, _distance_from(path, shape) - rng.uniform(3.6, 4.6))
    return Ground(
        uv=uv,
        parcels=parcels,
        kind=kind,
        node=node,
        lines=lines,
        street=np.where(kinds == VILLAGE, street, FAR_PX),
        new_road=new_road,
        water=water,
        relief=9 * make_noise(rng, shape, 260, 2),
    )


def _choose_kinds(rng: Generator, parcels: Parcels, shape: Shape) -> Indices:
    """Put a village around a heart, estates at its rim, and at least one wood not too far out."""
    kind = np.full(len(parcels.child), -1, np.int32)
    leaves = np.flatnonzero(parcels.child[:, 0] == np.arange(len(kind)))
    kind[leaves] = rng.choice([ARABLE, MEADOW, WOOD], leaves.size, p=[0.62, 0.22, 0.16])
    heart = rng.uniform(0.3, 0.7, 2) * shape
    leaves = leaves[np.argsort(np.linalg.norm(parcels.center[leaves] - heart, axis=1))]
    village = max(1, round(0.14 * leaves.size))
    estate = village + max(1, round(0.07 * leaves.size))
    kind[leaves[:village]] = VILLAGE
    kind[leaves[village:estate]] = ESTATE
    outer = estate + int(rng.integers(max(1, (leaves.size - estate) // 2)))
    kind[leaves[min(outer, leaves.size - 1)]] = WOOD
    return kind


def _lay_water(rng: Generator, yx: Array, ways: Array) -> Array:
    """Lay a river across the scene, or a pond away from roads and tracks. Returns the distance from it."""
    shape = ways.shape
    if rng.random() < 0.6:
        turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 6, 2)
        y, x = (a - rng.uniform(0.1, 0.9) * n for a, n in zip(yx, shape, strict=True))
        along, across = y * np.sin(turn) + x * np.cos(turn), y * np.cos(turn) - x * np.sin(turn)
        bend = 38 * np.sin(along / 95 + phase[0]) + 60 * np.sin(along / 270 + phase[1])
        lean = 0.4 * np.cos(along / 95 + phase[0]) + 0.22 * np.cos(along / 270 + phase[1])
        half_px = rng.uniform(9, 14) + 2 * np.sin(along / 60)
        return np.asarray(np.abs(across - bend) / np.sqrt(1 + lean**2) - half_px, np.float32)
    spots = (rng.uniform(0.1, 0.9, (60, 2)) * shape).astype(int)
    y, x = spots[np.argmax(ways[spots[:, 0], spots[:, 1]])]
    rim = min(rng.uniform(30, 60), ways[y, x] * 0.6) + 5 * make_noise(rng, shape, 40)
    return np.asarray(np.hypot(yx[0] - y, 0.8 * (yx[1] - x)) - rim, np.float32)


def _lay_streets(parcels: Parcels, node: Indices, uv: Array, water: Array) -> Array:
    """Give the distance from streets that run along each parcel, evenly spaced."""
    _, across = locate_in_parcels(parcels, node, uv)
    nearest = np.round(across / STREET_SPACING_PX) * STREET_SPACING_PX
    street = np.abs(across - nearest) - 3.4
    # A street at a parcel's very edge would run into the road there.
    street[(np.abs(nearest) > parcels.half_across[node] - 36) | (water < 4)] = FAR_PX
    return street


def _choose_path(rng: Generator, cost: Array, road: Array) -> Array:
    """Lead a curve from one road to another over the cheapest ground. Returns (point, 2) y, x."""
    shape = np.array(cost.shape)
    t = np.linspace(0, 1, 48)[:, None]
    best = shape * (0.2 + 0.4 * t)
    price = np.inf
    ends = np.argwhere(road < 0)
    for _ in range(150 if len(ends) else 0):
        a, d = ends[rng.integers(len(ends), size=2)]
        length = np.linalg.norm(d - a)
        if not 0.3 * shape.min() < length < 0.7 * shape.min():
            continue
        b, c = a + (d - a) * np.array([[1], [2]]) / 3 + rng.normal(0, 0.16 * length, (2, 2))
        path = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
        if (path < 0).any() or (path >= shape).any():
            continue
        y, x = path.astype(int).T
        if cost[y, x].mean() < price:
            best, price = path, cost[y, x].mean()
    return best


def _distance_from(path: Array, shape: Shape) -> Array:
    """Give the distance from a polyline, exact to 30 pixels away."""
    distance = np.full(shape, FAR_PX, np.float32)
    for a, b in pairwise(path):
        stretch, (mid_y, mid_x) = b - a, (a + b) / 2
        window, y, x = window_around(shape, mid_y, mid_x, float(np.linalg.norm(stretch)) + 30)
        part = ((y - a[0]) * stretch[0] + (x - a[1]) * stretch[1]) / (stretch @ stretch)
        part = np.clip(part, 0, 1)
        away = np.hypot(y - a[0] - part * stretch[0], x - a[1] - part * stretch[1])
        distance[window] = np.minimum(distance[window], away)
    return distance


def unbend(uv: Array, v: float, u: float) -> tuple[float, float]:
    """Find the pixel position (y, x) of a bent coordinate."""
    y, x = v, u
    for _ in range(3):
        row, col = (int(np.clip(a, 0, n - 1)) for a, n in zip((y, x), uv.shape[1:], strict=True))
        y, x = v - float(uv[0, row, col] - row), u - float(uv[1, row, col] - col)
    return y, x
