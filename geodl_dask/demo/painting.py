"""Paints a place at one date onto a canvas of albedo, height and slope."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .arrays import Array, make_noise
from .buildings import STAYS, Wing
from .colors import (
    ASPHALT,
    CARS,
    CONCRETE,
    CROPS,
    DRY_GRASS,
    EARTH,
    FOREST_FLOOR,
    FRESH_ASPHALT,
    GRASS,
    GRAVEL,
    LEAVES,
    NEEDLES,
    PAINT,
    SHORE,
    WATER,
    linear,
)
from .ground import ARABLE, ESTATE, MEADOW, STREET_SPACING_PX, VILLAGE, WOOD, Ground
from .parcels import ROAD, TRACK, locate_in_parcels
from .place import Place
from .rectangles import locate_in, window_around


@dataclass(frozen=True)
class Canvas:
    """What light falls on; painted in place."""

    albedo: Array
    """(3, y, x), linear."""
    height: Array
    slope: Array
    """(2, y, x) rise per pixel southward and eastward."""


def paint(rng: Generator, place: Place, season: str, date: int) -> Canvas:
    """Paint a place as it is at a date: 0 is the from date, 1 the to date."""
    canvas = _paint_ground(rng, place, season, date)
    grain = make_noise(rng, canvas.height.shape, 2.2)
    for wing in place.wings:
        if wing.stands[date]:
            _paint_wing(canvas, wing, grain)
    _paint_trees(rng, canvas, place.trees, season, date)
    for car in _park(rng, place.ground, date):
        _paint_wing(canvas, car, grain)
    return canvas


def cover(albedo: Array, alpha: Array, color: Array) -> None:
    """Mix a colour into an albedo, in place."""
    albedo += alpha * (color - albedo)


def _coverage(distance: Array, beyond_px: float = 0.0) -> Array:
    """Give the share of each pixel (0 to 1) within an edge that is moved out by some pixels."""
    return np.clip(0.5 + beyond_px - distance, 0, 1)


def _paint_ground(rng: Generator, place: Place, season: str, date: int) -> Canvas:
    """Start a canvas with everything flat that lasts: parcels, water, yards and roads."""
    ground = place.ground
    shape = ground.node.shape
    broad, fine = make_noise(rng, shape, 120, 4), make_noise(rng, shape, 5, 2)
    albedo = _paint_parcels(rng, place, season, date, broad=broad, fine=fine)
    rough = 1 + 0.16 * fine
    grass = linear(GRASS[season]) * 0.85 * rough
    for line, verge_px in zip(ground.lines, (6, 2.5, 2, 1.5), strict=True):
        cover(albedo, _coverage(line, verge_px), grass)
    cover(albedo, _coverage(ground.water, 3), linear(SHORE) * rough)
    cover(albedo, _coverage(ground.water), linear(WATER[date]) * (1 + 0.08 * broad))
    cover(albedo, place.yard * 0.9, linear(CONCRETE) * (0.5 + 0.5 * rough))
    _pave(albedo, ground, date, 1 + 0.05 * broad + 0.35 * (rough - 1), grass)
    slope = np.asarray(np.gradient(ground.relief))
    return Canvas(albedo, np.zeros(shape, np.float32), slope)


def _paint_parcels(rng: Generator, place: Place, season: str, date: int, *, broad: Array, fine: Array) -> Array:
    """Give the albedo of fields, meadows, gardens and forest floor, under two sizes of noise."""
    ground, node = place.ground, place.ground.node
    kind = np.where(ground.kind == ESTATE, (ARABLE, VILLAGE)[date], ground.kind)
    tone, rows = _tint_parcels(rng, kind, season)
    albedo = np.ascontiguousarray(np.moveaxis(tone[node], -1, 0))
    along, across = locate_in_parcels(ground.parcels, node, ground.uv)
    width = rng.uniform(3.2, 7.0, kind.size).astype(np.float32)[node]
    furrow = np.sin(across * (2 * np.pi / width)) * (1 + 0.3 * fine)
    tramline = np.clip(1.3 - np.abs(np.abs(across % 36 - 18) - 2.5), 0, 1)
    texture = 1 + 0.09 * broad + 0.07 * fine + rows[node] * (furrow - 1.6 * tramline)
    # Gardens: neighbouring lots get unrelated entries of a short table.
    lot = (along // 37).astype(int) * 7 + (across // (STREET_SPACING_PX / 2)).astype(int) * 61
    gardens = rng.normal(1, 0.16, 512).astype(np.float32)[lot % 512]
    albedo *= np.clip(np.where(kind[node] == VILLAGE, gardens, 1) * texture, 0.3, 2.0)
    cover(albedo, np.clip(0.3 * broad, 0, 0.5) * (kind[node] == MEADOW), linear(DRY_GRASS))
    if date:
        brash = 0.85 * (1 + 0.16 * fine) * (1 + 0.1 * np.sin(across / 1.6))
        cover(albedo, place.clearing, linear(EARTH) * brash)
    return albedo


def _tint_parcels(rng: Generator, kind: Array, season: str) -> tuple[Array, Array]:
    """Choose this date's crops. Returns (node, 3) linear colours, and how strongly rows show."""
    crop = np.array(CROPS)[rng.integers(len(CROPS), size=kind.size)]
    tone = np.where((kind == ARABLE)[:, None], crop[:, :3], GRASS[season])
    tone = np.where((kind == WOOD)[:, None], FOREST_FLOOR, tone) ** 2.2
    tone *= rng.normal(1, 0.1, (kind.size, 1)) * rng.normal(1, 0.03, (kind.size, 3))
    rows = np.where(kind == ARABLE, crop[:, 3], np.where(kind == MEADOW, 0.02, 0.0))
    return tone.astype(np.float32), rows.astype(np.float32)


def _pave(albedo: Array, ground: Ground, date: int, worn: Array, grass: Array) -> None:
    """Put tracks, roads and streets on top."""
    if date:
        cover(albedo, _coverage(ground.new_road, 2.5), linear(EARTH) * worn)
        cover(albedo, _coverage(ground.new_road), linear(FRESH_ASPHALT) * worn)
    road, track = ground.lines[ROAD], ground.lines[TRACK]
    cover(albedo, _coverage(track), linear(GRAVEL) * worn)
    cover(albedo, 0.6 * _coverage(np.abs(track + 2.4), -0.1), grass)
    cover(albedo, _coverage(np.minimum(ground.street, road)), linear(ASPHALT) * worn)
    cover(albedo, 0.35 * _coverage(np.abs(road + 0.9), -0.1), linear(PAINT))


def _stack(
    canvas: Canvas,
    window: tuple[slice, slice],
    alpha: Array,
    *,
    z: Array,
    slope: tuple[Array, Array],
    albedo: Array,
) -> None:
    """Put a surface on the canvas wherever it is higher than what is there."""
    alpha = alpha * np.clip(z - canvas.height[window] + 0.5, 0, 1)
    layers = (canvas.height, *canvas.slope, *canvas.albedo)
    for layer, surface in zip(layers, (z, *slope, *albedo), strict=True):
        here = layer[window]
        here += alpha * (surface - here)


def _paint_wing(canvas: Canvas, wing: Wing, grain: Array) -> None:
    """Put roof or paving on the canvas."""
    reach = wing.half_length + wing.half_width + 2
    window, y, x = window_around(canvas.height.shape, wing.y, wing.x, reach)
    along, across = locate_in(wing, y, x)
    off_ridge = np.abs(across)
    alpha = _coverage(np.abs(along) - wing.half_length) * _coverage(off_ridge - wing.half_width)
    z = wing.eaves + wing.pitch * np.clip(wing.half_width - off_ridge, 0, None)
    fall = -wing.pitch * np.clip(across, -1, 1)
    seams = 1 + 0.05 * np.sin(along * 2.1) + 0.05 * grain[window]
    albedo = linear(wing.color) * seams
    if wing.half_length > 14 and not wing.is_paving and min(wing.color) < 0.7:
        middle = np.abs(off_ridge - 0.5 * wing.half_width) < 0.22 * wing.half_width
        skylight = (np.abs(along % 13 - 6.5) < 1.6) & middle
        albedo = np.where(skylight, np.float32(0.6), albedo)
    slope = (fall * np.cos(wing.angle), -fall * np.sin(wing.angle))
    _stack(canvas, window, alpha, z=z, slope=slope, albedo=albedo)


def _paint_trees(rng: Generator, canvas: Canvas, trees: Array, season: str, date: int) -> None:
    """Put the crowns on the canvas, domes with ragged rims."""
    leafy = 1 + 0.28 * make_noise(rng, canvas.height.shape, 2.4)
    turned = rng.normal(0.5, 0.22 if season == "autumn" else 0.06, len(trees)).clip(0, 1)
    leaf, summer_leaf = linear(LEAVES[season]), linear(LEAVES["summer"])
    for (y0, x0, radius, tone, conifer, missing), turn in zip(trees, turned, strict=True):
        if missing == date:
            continue
        window, y, x = window_around(canvas.height.shape, y0, x0, radius + 1)
        dy, dx = y - y0, x - x0
        away = np.sqrt(dy * dy + dx * dx)
        rim = radius * (1 + 0.13 * np.sin(3 * np.arctan2(dy, dx) + 40 * tone))
        crown = np.sqrt(np.clip(1 - (away / rim) ** 2, 0, 1))
        tall = 2.2 * radius + 2
        steep = -0.5 * tall / radius / radius / (crown + 0.45)
        color = linear(NEEDLES) if conifer else leaf + np.float32(turn) * (summer_leaf - leaf)
        _stack(
            canvas,
            window,
            _coverage(away - rim),
            z=tall * (0.55 + 0.45 * crown) * np.clip(leafy[window], 0.8, 1.2),
            slope=(steep * dy, steep * dx),
            albedo=color * tone * leafy[window],
        )


def _park(rng: Generator, ground: Ground, date: int) -> list[Wing]:
    """Put a few cars on the roads of this date, in their lanes."""
    roads = np.minimum(ground.lines[ROAD], ground.street)
    roads = np.minimum(roads, ground.new_road) if date else roads
    inner = roads[1:-1, 1:-1]
    spots = 1 + np.argwhere((inner < -1.4) & (inner > -2.6))
    cars = []
    for y, x in spots[rng.integers(len(spots), size=len(spots) // 900)]:
        dy, dx = roads[y + 1, x] - roads[y - 1, x], roads[y, x + 1] - roads[y, x - 1]
        color = CARS[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])]
        angle = float(np.arctan2(dx, -dy))
        cars.append(Wing(float(y), float(x), angle, 2.8, 1.3, 2.0, 0.0, color, STAYS))
    return cars
