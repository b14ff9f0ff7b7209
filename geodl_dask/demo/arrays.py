"""Arrays of the scenes, and what is done with whole ones: noise and blur."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int32]
Shape = tuple[int, int]


def make_noise(rng: Generator, shape: Shape, scale_px: float, octaves: int = 1) -> Array:
    """Give smooth noise of unit variance; each further octave is half as wide and as strong."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        spacing = max(scale_px / 2**octave, 1.0)
        knots = rng.standard_normal([int(n / spacing) + 3 for n in shape]).astype(np.float32)
        for axis, length in enumerate(shape):
            at = np.arange(length, dtype=np.float32) / np.float32(spacing)
            low = at.astype(np.int32)
            part = np.expand_dims(at - low, 1 - axis)
            part = part * part * (3 - 2 * part)
            knots = knots.take(low, axis) * (1 - part) + knots.take(low + 1, axis) * part
        total += knots * np.float32(0.5**octave)
    return total / np.float32(total.std() + 1e-6)


def blur(image: Array, sigma_px: float) -> Array:
    """Blur the last two axes with a Gaussian, edges repeated."""
    reach = int(np.ceil(2.5 * sigma_px))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    pad = [(0, 0)] * (image.ndim - 1) + [(reach, reach)]
    for _ in ("y", "x"):
        image = image.swapaxes(-1, -2)
        wide = np.pad(image, pad, mode="edge")
        image = sum(weight * wide[..., k : k + image.shape[-1]] for k, weight in enumerate(weights))
    return image
