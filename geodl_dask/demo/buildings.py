"""The buildings of a place, and which of them come and go between the dates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.random import Generator

from .arrays import Array, Mask, blur
from .colors import ASPHALT, CONCRETE, EARTH, GRAVEL, SHEETS, TILES, Rgb
from .ground import ESTATE, MEADOW, STREET_SPACING_PX, VILLAGE, WOOD, Ground, unbend
from .rectangles import Rectangle, fill, walk

STAYS, NEW, REMOVED, NEVER = (True, True), (False, True), (True, False), (False, False)
VILLAGE_ODDS = (0.62, 0.15, 0.15, 0.08)
ESTATE_ODDS = (0.0, 0.85, 0.0, 0.15)
PAVING_HEIGHT = 0.6


@dataclass(frozen=True)
class Wing(Rectangle):
    """A rectangular part of a building under a gable or flat roof; or paving, if it is low."""

    eaves: float
    """Height of the walls."""
    pitch: float
    """Slope of the roof, 0 where flat."""
    color: Rgb
    stands: tuple[bool, bool]
    """Whether it is there at the from and the to date."""

    @property
    def is_paving(self) -> bool:
        """Whether it is flat ground rather than a building."""
        return self.eaves <= PAVING_HEIGHT


def build(rng: Generator, ground: Ground) -> tuple[list[Wing], Array]:
    """Choose the buildings and their fates. Returns wings, and the yards around halls."""
    paved = np.minimum(np.minimum(ground.ways, ground.street), ground.new_road)
    taken = (paved < 2) | (ground.water < 6) | (ground.kind[ground.node] == WOOD)
    halls = _build_halls(rng, ground, taken)
    yard = np.zeros(taken.shape, np.float32)
    for hall in halls:
        fill(yard, hall, 1.0, grow_px=8)
    return halls + _build_houses(rng, ground, taken), blur(yard, 1.5)


def _fits(taken: Mask, site: Rectangle) -> bool:
    """Whether a building and a margin fit on free ground; takes the ground if so."""
    along, across = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 7))
    along, across = along * (site.half_length + 4), across * (site.half_width + 4)
    y, x = (np.round(each).astype(int) for each in walk(site.y, site.x, site.angle, along, across))
    if min(y.min(), x.min()) < 0 or y.max() >= taken.shape[0] or x.max() >= taken.shape[1]:
        return False
    if taken[y, x].any():
        return False
    fill(taken, site, True, grow_px=7)
    return True


def _build_halls(rng: Generator, ground: Ground, taken: Mask) -> list[Wing]:
    """Put farms and works beside roads, in open country."""
    near = ground.ways
    open_land = ground.kind[ground.node] <= MEADOW
    spots = np.argwhere((near > 24) & (near < 46) & open_land & ~taken)
    wings = []
    for _ in range(max(2, round(taken.size / 260_000)) if len(spots) else 0):
        y, x = spots[rng.integers(len(spots))]
        angle = float(ground.parcels.angle[ground.node[y, x]])
        for hall in range(rng.integers(2, 6)):
            wing = Wing(
                *walk(y, x, angle, 56 * (hall % 2), 36 * (hall // 2)),
                angle,
                half_length=rng.uniform(17, 32),
                half_width=rng.uniform(9, 14),
                eaves=rng.uniform(8, 12),
                pitch=rng.choice([0.0, 0.25, 0.4]),
                color=(SHEETS if rng.random() < 0.7 else TILES)[rng.integers(4)],
                stands=(STAYS, NEW, REMOVED)[rng.choice(3, p=[0.45, 0.33, 0.22])],
            )
            if _fits(taken, wing):
                wings += [wing, *_leave_rubble(rng, wing)]
    return wings


def _build_houses(rng: Generator, ground: Ground, taken: Mask) -> list[Wing]:
    """Fill the lots on both sides of each street."""
    wings = []
    streets = np.arange(-5, 6) * STREET_SPACING_PX
    for parcel, street, side in product(np.flatnonzero(ground.kind >= VILLAGE).tolist(), streets, (-1, 1)):
        center, angle = ground.parcels.center[parcel], float(ground.parcels.angle[parcel])
        odds = ESTATE_ODDS if ground.kind[parcel] == ESTATE else VILLAGE_ODDS
        along = -450 + np.cumsum(rng.uniform(30, 44, 25))
        across = street + side * rng.uniform(21, 27, 25)
        for s, t in zip(along, across, strict=True):
            y, x = unbend(ground.uv, *walk(center[0], center[1], angle, s, t))
            fate = (STAYS, NEW, REMOVED, NEVER)[rng.choice(4, p=odds)]
            house = _draw_house(rng, y, x, angle, side, fate)
            site = Rectangle(y, x, angle, 11, 11)
            if _is_lot(ground, parcel, y, x) and _fits(taken, site) and fate != NEVER:
                wings += house
    return wings


def _is_lot(ground: Ground, parcel: int, y: float, x: float) -> bool:
    """Whether a point lies well inside its parcel and on a street that was built."""
    at = int(y), int(x)
    if min(at) < 0 or at[0] >= ground.node.shape[0] or at[1] >= ground.node.shape[1]:
        return False
    street = min(ground.street[at], ground.new_road[at])
    lines = ground.lines[(slice(None), *at)]
    return bool(ground.node[at] == parcel and street < 26 and lines.min() > 12)


def _draw_house(rng: Generator, y: float, x: float, angle: float, side: int, stands: tuple[bool, bool]) -> list[Wing]:
    """Design a house, often L-shaped, with a drive to the street on that side."""
    turn = angle + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.03)
    length, width = rng.uniform(8, 11.5), rng.uniform(5.5, 7)
    tile = np.array(TILES[rng.choice(4, p=[0.36, 0.24, 0.2, 0.2])]) * rng.uniform(0.88, 1.12)
    color: Rgb = tuple(tile.clip(0, 1))
    eaves, pitch = rng.uniform(6, 8), rng.uniform(0.55, 0.95)
    wings = [Wing(y, x, turn, length, width, eaves, pitch, color, stands)]
    if rng.random() < 0.45:
        end, flank = rng.choice([-1, 1], 2)
        at = walk(y, x, turn, end * (length - 0.8 * width), flank * width * 0.95)
        right = turn + np.pi / 2
        wings.append(Wing(*at, right, width, 0.8 * width, eaves, pitch, color, stands))
    drive = walk(y, x, angle, rng.uniform(-5, 5), -side * 11)
    gray = (CONCRETE, GRAVEL, ASPHALT)[rng.integers(3)]
    wings.append(Wing(*drive, angle + np.pi / 2, 9, 1.9, PAVING_HEIGHT, 0, gray, stands))
    return wings + _leave_rubble(rng, wings[0])


def _leave_rubble(rng: Generator, wing: Wing) -> list[Wing]:
    """Leave bare ground where a building was removed, and often around a new one."""
    if wing.stands == STAYS or rng.random() < 0.4:
        return []
    length, width = wing.half_length + rng.uniform(0, 5), wing.half_width + rng.uniform(0, 5)
    ground: Rgb = tuple(np.array(EARTH) * rng.uniform(0.85, 1.15))
    return [Wing(wing.y, wing.x, wing.angle, length, width, PAVING_HEIGHT, 0, ground, NEW)]
