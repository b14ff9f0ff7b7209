"""Parcels: land cut in two again and again by straight lines, some of which carry roads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .arrays import Array, Indices, Shape

ROAD, TRACK, HEDGE, MARGIN = range(4)
FAR_PX = 999.0


@dataclass(frozen=True)
class Parcels:
    """A binary tree of cuts. One entry per node, the root first; leaves are parcels."""

    cut: Array
    """(node, 3): unit normal (v, u) of the cut, and its offset."""
    child: Indices
    """(node, 2); a leaf is its own child."""
    half_px: Array
    """(line kind, node) half width of the line along the cut; -FAR_PX where there is none."""
    center: Array
    """(node, 2) in (v, u)."""
    angle: Array
    """Direction of the longer side."""
    half_across: Array
    """Half the extent across that direction."""


def cut_land(rng: Generator, shape: Shape) -> Parcels:
    """Cut a scene and its surroundings into parcels of a few hectares, all in about the same direction."""
    heading = rng.uniform(0, np.pi)
    far_v, far_u = shape[0] + 120.0, shape[1] + 120.0
    todo = [(np.array([(-120, -120), (-120, far_u), (far_v, far_u), (far_v, -120)]), 0, 0)]
    rows: list[list[float]] = []
    child: list[list[int]] = []
    while todo:
        corners, parent, side = todo.pop()
        me = len(rows)
        child.append([me, me])
        child[parent][side] = me
        angle, center, spans = _frame_polygon(corners, heading)
        area = _measure(corners)
        cut, half_px = np.zeros(3), [-FAR_PX] * 4
        if area > rng.uniform(45_000, 95_000):
            tilt = angle + rng.normal(0, 0.12)
            normal = np.array([np.sin(tilt), np.cos(tilt)])
            reach = corners @ normal
            offset = reach.min() + np.ptp(reach) * rng.uniform(0.38, 0.62)
            todo.append((_clip_polygon(corners, normal, offset), me, 1))
            todo.append((_clip_polygon(corners, -normal, -offset), me, 0))
            cut, half_px = np.array([*normal, offset]), _draw_line(rng, area)
        rows.append([*cut, *half_px, *center, angle, spans[1] / 2])
    table = np.array(rows, np.float32)
    return Parcels(
        cut=table[:, :3],
        child=np.array(child, np.int32),
        half_px=np.ascontiguousarray(table[:, 3:7].T),
        center=table[:, 7:9],
        angle=table[:, 9],
        half_across=table[:, 10],
    )


def _frame_polygon(corners: Array, heading: float) -> tuple[float, Array, tuple[float, float]]:
    """Give the direction of the longer side, the box's centre (v, u), and both extents."""
    axes = np.array([(np.sin(a), np.cos(a)) for a in (heading, heading + np.pi / 2)])
    reach = corners @ axes.T
    spans = np.ptp(reach, axis=0)
    longer = int(spans[1] > spans[0])
    center = (reach.min(0) + spans / 2) @ axes
    return heading + longer * np.pi / 2, center, (spans[longer], spans[1 - longer])


def _measure(corners: Array) -> float:
    """Give a polygon's area."""
    v, u = corners.T
    return 0.5 * abs(float(v @ np.roll(u, 1) - u @ np.roll(v, 1)))


def _clip_polygon(corners: Array, normal: Array, offset: float) -> Array:
    """Keep the part of a convex polygon beyond a line."""
    side = corners @ normal - offset
    kept = []
    for here, before in enumerate(range(-1, len(corners) - 1)):
        if (side[before] < 0) != (side[here] < 0):
            part = side[before] / (side[before] - side[here])
            kept.append(corners[before] + part * (corners[here] - corners[before]))
        if side[here] >= 0:
            kept.append(corners[here])
    return np.array(kept)


def _draw_line(rng: Generator, area: float) -> list[float]:
    """Choose what runs along a cut: the larger the land it divides, the larger the road."""
    kind, half_px = MARGIN, 1.0
    if area > 420_000:
        kind, half_px = ROAD, rng.uniform(4.5, 5.5)
    elif rng.random() < 0.3:
        kind, half_px = ROAD, rng.uniform(3.2, 4.0)
    elif rng.random() < 0.4:
        kind, half_px = TRACK, 2.4
    elif rng.random() < 0.5:
        kind = HEDGE
    return [half_px if line == kind else -FAR_PX for line in range(4)]


def find_parcels(parcels: Parcels, uv: Array) -> tuple[Indices, Array]:
    """Find each pixel's parcel, and its distance from the lines passed on the way down.

    uv : (2, y, x) coordinates (v, u). Returns nodes (y, x), and distances (line kind, y, x).
    """
    node = np.zeros(uv.shape[1:], np.int32)
    lines = np.full((4, *node.shape), FAR_PX, np.float32)
    while True:
        cut = parcels.cut[node]
        away = cut[..., 0] * uv[0] + cut[..., 1] * uv[1] - cut[..., 2]
        for kind, half_px in enumerate(parcels.half_px):
            lines[kind] = np.minimum(lines[kind], np.abs(away) - half_px[node])
        below = parcels.child[node, (away >= 0).astype(np.int8)]
        if (below == node).all():
            return node, lines
        node = below


def locate_in_parcels(parcels: Parcels, node: Array, uv: Array) -> tuple[Array, Array]:
    """Give points' coordinates along and across their parcels, from the centres."""
    center, angle = parcels.center[node], parcels.angle[node]
    dv, du = uv[0] - center[..., 0], uv[1] - center[..., 1]
    sin, cos = np.sin(angle), np.cos(angle)
    return dv * sin + du * cos, dv * cos - du * sin
