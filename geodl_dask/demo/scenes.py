"""Synthetic aerial image pairs with a known truth, drawn with numpy alone.

A place is laid out once (parcels, roads, buildings, trees, and what becomes of them) and
photographed twice: each flight has its own sun, season, crops, haze and camera.

    parcels ─► ground ─► buildings ─► trees ──► place ──┬─ painting ─ camera ──► from_pixels
                                                        ├─ painting ─ camera ──► to_pixels
                                                        └─ label ──────────────► truth

In all of these modules a pixel is about 0.7 m, lengths and heights are in pixels, angles in radians,
and north is up. A map is a (y, x) array, mostly float32; a distance map is negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from .arrays import Shape
from .buildings import NEW, STAYS
from .camera import photograph, schedule_flights
from .place import Place, lay_out
from .rectangles import fill

CLASS_NAMES = ("No change", "New building", "Building removed", "New road", "Woods cleared")
NO_CHANGE, NEW_BUILDING, BUILDING_REMOVED, NEW_ROAD, WOODS_CLEARED = range(5)
SHORTEST_SIDE_PX = 64


@dataclass(frozen=True)
class ScenePair:
    """Two dates of one place."""

    from_pixels: NDArray[np.uint8]
    """(3, y, x) RGB, the earlier date."""
    to_pixels: NDArray[np.uint8]
    """(3, y, x) RGB, the later date."""
    truth: NDArray[np.uint8]
    """(y, x) class values: positions in ``CLASS_NAMES``."""


def render_pair(seed: int, shape_yx: Shape) -> ScenePair:
    """Draw two dates of one place, and what changed between them.

    The same seed and shape give the same pair; another shape gives another place. A scene of
    1000 x 1000 pixels has nearly always every class. Raises ValueError for sides under 64 pixels.
    """
    if min(shape_yx) < SHORTEST_SIDE_PX:
        raise ValueError(f"shape_yx is {shape_yx}; sides of at least {SHORTEST_SIDE_PX} pixels are needed.")
    place = lay_out(_generator(seed, 0), shape_yx)
    from_flight, to_flight = schedule_flights(_generator(seed, 1))
    return ScenePair(
        photograph(_generator(seed, 2), place, from_flight, 0),
        photograph(_generator(seed, 3), place, to_flight, 1),
        _label(place),
    )


def _generator(seed: int, part: int) -> Generator:
    return Generator(PCG64([seed, part]))


def _label(place: Place) -> NDArray[np.uint8]:
    """Give class values (y, x); clearings give way to roads, and both to buildings."""
    ground = place.ground
    old = np.minimum(ground.ways, ground.street) < 0
    truth = np.full(old.shape, NO_CHANGE, np.uint8)
    truth[(place.clearing > 0.5) & (ground.water > 0) & ~old] = WOODS_CLEARED
    truth[(ground.new_road < 0) & ~old] = NEW_ROAD
    for wing in place.wings:
        if not wing.is_paving and wing.stands != STAYS:
            fill(truth, wing, NEW_BUILDING if wing.stands == NEW else BUILDING_REMOVED)
    return truth
