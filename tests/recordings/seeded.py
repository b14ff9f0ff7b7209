"""Weights and images that can be made again anywhere from names, shapes and a seed: no file of them is kept.

``numpy.random.RandomState`` is frozen by numpy's promise, so that the numbers are the same in every version.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

LAST_NORMALISATION = "netF.module.decoder.last_conv.5"


def seeded_state(shapes: Mapping[str, Sequence[int]], seed: int, contrast: float) -> dict[str, torch.Tensor]:
    """A state dict in which nothing is zero or constant.

    contrast : factor on the features whose distance is taken, so that distances lie on both sides of the threshold.
    """
    state = {}
    for name, shape in shapes.items():
        values = _values(name, tuple(shape), np.random.RandomState(zlib.crc32(f"{seed} {name}".encode())))
        if name in (f"{LAST_NORMALISATION}.weight", f"{LAST_NORMALISATION}.bias"):
            values = values * contrast
        state[name] = torch.from_numpy(np.asarray(values, np.int64 if values.dtype.kind == "i" else np.float32))
    return state


def _values(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.array(100)
    if kind == "gamma":
        return np.full(shape, 0.7)
    if kind == "running_var":
        return random.uniform(0.5, 1.5, shape)
    if kind == "weight" and len(shape) == 1:
        return random.uniform(0.3, 0.9, shape)
    if kind == "weight":
        return random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return random.standard_normal(shape) * 0.1


def seeded_pair(kind: str, seed: int, shape: tuple[int, int, int], pixel_type: str, top: int) -> np.ndarray:
    """Two images (date, band, y, x) as stored, from 0 to below ``top``.

    kind : ``"noise"`` independent dates; ``"changed"`` noise of which the to raster has other rectangles;
        ``"smooth"`` clouds of two wavelengths; ``"texture"`` fields, rows, roofs and a road, of which some change.
    """
    random = np.random.RandomState(seed)
    pair = {"noise": _noise, "changed": _changed, "smooth": _smooth, "texture": _texture}[kind](random, shape)
    return (pair * (top - 1)).astype(pixel_type)


def _noise(random: np.random.RandomState, shape: tuple[int, int, int]) -> np.ndarray:
    return random.uniform(size=(2, *shape))


def _changed(random: np.random.RandomState, shape: tuple[int, int, int]) -> np.ndarray:
    before = random.uniform(0.2, 0.8, shape)
    after = before + random.uniform(-0.1, 0.1, shape)
    for _ in range(6):
        top, left, height, width = (int(random.randint(4, side // 2)) for side in (*shape[1:], *shape[1:]))
        after[:, top : top + height, left : left + width] = random.uniform(size=(shape[0], 1, 1))
    return np.stack([before, after])


def _smooth(random: np.random.RandomState, shape: tuple[int, int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[1], : shape[2]]
    waves = np.zeros((2, *shape))
    for wave in waves.reshape(-1, *shape[1:]):
        for period in (11.0, 37.0):
            angle, phase = random.uniform(0, 6.28, 2)
            wave += 0.25 * np.sin((np.cos(angle) * x + np.sin(angle) * y) * 6.28 / period + phase)
    return waves + 0.5


def _texture(random: np.random.RandomState, shape: tuple[int, int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[1], : shape[2]]
    rows = 0.5 + 0.2 * np.sin((x + 0.4 * y) * 1.3)
    ground = rows * random.uniform(0.4, 0.9, (shape[0], 1, 1)) + random.normal(0, 0.02, shape)
    ground[:, np.abs(x - y // 2 - shape[2] // 4) < 4] = random.uniform(0.5, 0.6)
    pair = np.stack([ground, ground + random.normal(0, 0.02, shape)])
    for roof in range(14):
        top, left = random.randint(0, shape[1] - 12), random.randint(0, shape[2] - 12)
        dates = slice(None) if roof % 2 else slice(roof % 4 // 2, roof % 4 // 2 + 1)
        pair[dates, :, top : top + 10, left : left + 8] = random.uniform(0.2, 1, (shape[0], 1, 1))
    return pair.clip(0, 1)
