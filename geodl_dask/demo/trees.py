"""The trees of a place, and the woods cleared between the dates."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from .arrays import Array, Mask, blur, make_noise
from .buildings import Wing
from .ground import ESTATE, WOOD, Ground
from .parcels import HEDGE, locate_in_parcels
from .rectangles import fill


def plant(rng: Generator, ground: Ground, wings: list[Wing], yard: Array) -> tuple[Array, Array]:
    """Choose the trees, and which are felled. Returns trees and clearing, as a place has them."""
    shape = ground.node.shape
    built = np.zeros(shape, bool)
    for wing in wings:
        fill(built, wing, True, grow_px=4)
    bare = built | (yard > 0.2) | (np.minimum(ground.street, ground.new_road) < 5)
    at, kinds = _sow(rng, ground, bare)
    wood = kinds == WOOD
    loose = rng.uniform(2.6, 6.0, wood.size)
    radius = np.where(wood, rng.uniform(3.8, 6.2, wood.size), loose)
    conifer = make_noise(rng, shape, 90)[at] + 0.6 * rng.standard_normal(wood.size) > 0.9
    missing = np.where(kinds == ESTATE, 0, -1)
    missing[_fell(rng, ground, at)] = 1
    tone = rng.normal(1, 0.1, wood.size)
    trees = np.stack([*at, radius, tone, conifer & wood, missing], 1).astype(np.float32)
    stumps = np.zeros(shape, np.float32)
    stumps[at[0][missing == 1], at[1][missing == 1]] = 1
    # A dense stand has one tree per 42 square pixels; its edge is where a quarter of that is left.
    clearing = np.clip(blur(stumps, 6) * 42 * 3 - 0.75, 0, 1)
    return trees, clearing


def _sow(rng: Generator, ground: Ground, bare: Mask) -> tuple[tuple[Array, Array], Array]:
    """Choose where trees stand: woods, hedges, banks, gardens. Returns (y, x) and parcel kinds."""
    shape, spacing = bare.shape, 6.5
    grid = np.mgrid[0 : shape[0] / spacing, 0 : shape[1] / spacing].reshape(2, -1) * spacing
    grid = np.clip(grid + rng.uniform(-2.8, 2.8, grid.shape), 0, np.array(shape)[:, None] - 1)
    y, x = grid.astype(int)
    kinds = ground.kind[ground.node[y, x]]
    odds = np.array([0.001, 0.008, 0.97, 0.065, 0.05])[kinds]
    odds[(make_noise(rng, shape, 130, 2)[y, x] < -1.1) & (kinds == WOOD)] = 0.05
    odds[ground.lines[HEDGE, y, x] < 3] = 0.8
    water = ground.water[y, x]
    odds = np.where((water > 2) & (water < 10), np.maximum(odds, 0.3), odds)
    odds[bare[y, x] | (ground.ways[y, x] < 6) | (water < 2)] = 0
    keep = rng.random(y.size) < odds
    return (y[keep], x[keep]), kinds[keep]


def _fell(rng: Generator, ground: Ground, at: tuple[Array, Array]) -> Mask:
    """Choose the trees that go: a side of every other wood, at least of one."""
    node = ground.node[at]
    trees = np.bincount(node, minlength=len(ground.kind)) * (ground.kind == WOOD)
    woods = np.argsort(-trees)[: max(1, np.count_nonzero(trees > 100))]
    woods = woods[trees[woods] > 0]
    felled = np.zeros(node.shape, bool)
    along, across = locate_in_parcels(ground.parcels, node, ground.uv[:, at[0], at[1]])
    for wood in rng.permutation(woods)[: (len(woods) + 1) // 2]:
        turn, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.75)
        here = node == wood
        reach = along * np.cos(turn) + across * np.sin(turn)
        felled |= here & (reach > np.quantile(reach[here], 1 - share))
    return felled
