"""What things look like from above at noon, as sRGB from 0 to 1."""

from __future__ import annotations

import numpy as np

from .arrays import Array

Rgb = tuple[float, float, float]

# A crop also says how strongly its rows show.
CROPS = (
    (0.47, 0.38, 0.29, 0.15),  # ploughed
    (0.57, 0.48, 0.37, 0.10),  # harrowed
    (0.33, 0.45, 0.22, 0.10),  # young cereals
    (0.40, 0.52, 0.25, 0.08),  # roots
    (0.73, 0.65, 0.42, 0.06),  # ripe cereals
    (0.68, 0.61, 0.46, 0.10),  # stubble
)
TILES = ((0.60, 0.37, 0.29), (0.53, 0.33, 0.27), (0.43, 0.34, 0.30), (0.37, 0.38, 0.41))
SHEETS = ((0.76, 0.77, 0.78), (0.62, 0.64, 0.66), (0.53, 0.37, 0.32), (0.46, 0.53, 0.57))
CARS = ((0.85, 0.85, 0.86), (0.15, 0.15, 0.17), (0.55, 0.12, 0.10), (0.20, 0.28, 0.45))
GRASS = {"spring": (0.42, 0.52, 0.27), "summer": (0.42, 0.48, 0.29), "autumn": (0.53, 0.51, 0.34)}
LEAVES = {"spring": (0.36, 0.47, 0.21), "summer": (0.26, 0.37, 0.19), "autumn": (0.47, 0.40, 0.19)}
NEEDLES, FOREST_FLOOR, DRY_GRASS = (0.18, 0.28, 0.19), (0.30, 0.32, 0.20), (0.56, 0.52, 0.33)
ASPHALT, FRESH_ASPHALT, PAINT = (0.47, 0.47, 0.48), (0.42, 0.42, 0.42), (0.80, 0.80, 0.80)
GRAVEL, CONCRETE, EARTH, SHORE = (
    (0.66, 0.61, 0.53), (0.60, 0.57, 0.51), (0.55, 0.48, 0.38), (0.46, 0.42, 0.30),
)  # fmt: skip
WATER = ((0.20, 0.30, 0.27), (0.17, 0.26, 0.26))


def linear(color: Rgb) -> Array:
    """Give (3, 1, 1) linear light for an sRGB colour."""
    return (np.asarray(color, np.float32) ** np.float32(2.2))[:, None, None]
