"""Photographs a place from the air: sun, shadows, haze, optics and sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .arrays import Array, blur, make_noise
from .painting import Canvas, cover, paint
from .place import Place


@dataclass(frozen=True)
class Flight:
    """What differs from one date to the next over unchanged ground."""

    sun_azimuth: float
    """Clockwise from north; the sun stands in the south at both dates."""
    sun_slope: float
    """Tangent of the sun's elevation."""
    season: str
    gain: Array
    """(3,) exposure and colour cast."""
    haze: float
    """0 to 1, the share of the light that never reached the ground."""
    blur_px: float
    shift_px: tuple[float, float]
    """Misregistration (y, x)."""


def schedule_flights(rng: Generator) -> list[Flight]:
    """Plan two flights, one before and one after noon, in different seasons."""
    seasons = rng.permutation(["spring", "summer", "autumn"])[:2]
    azimuths = rng.permutation([rng.uniform(115, 160), rng.uniform(190, 245)])
    return [
        Flight(
            sun_azimuth=float(np.radians(azimuth)),
            sun_slope=float(np.tan(np.radians(rng.uniform(36, 56)))),
            season=str(season),
            gain=(rng.uniform(1.0, 1.5) * (1 + rng.normal(0, 0.05, 3))).astype(np.float32),
            haze=float(rng.uniform(0.0, 0.13)),
            blur_px=float(rng.uniform(0.45, 0.7)),
            shift_px=(float(rng.uniform(-0.4, 0.4)), float(rng.uniform(-0.4, 0.4))),
        )
        for season, azimuth in zip(seasons, azimuths, strict=True)
    ]


def photograph(rng: Generator, place: Place, flight: Flight, date: int) -> NDArray[np.uint8]:
    """Give (3, y, x) RGB of a place at a date: 0 is the from date, 1 the to date."""
    canvas = paint(rng, place, flight.season, date)
    return _expose(rng, _light(canvas, flight), flight)


def _light(canvas: Canvas, flight: Flight) -> Array:
    """Give (3, y, x) radiance: the sun with its shadows, and the blue sky everywhere."""
    south, east = -np.cos(flight.sun_azimuth), np.sin(flight.sun_azimuth)
    height = canvas.height
    reach = int(height.max() / flight.sun_slope) + 1
    wide = np.pad(height, reach + 1, mode="edge")
    rows, cols = height.shape
    # Walk towards the sun; whatever rises above the ray to it blocks it.
    blocking = np.zeros_like(height)
    for walked in range(1, reach + 1):
        dy, dx = (round(reach + 1 + walked * part) for part in (south, east))
        ray = np.float32(walked * flight.sun_slope)
        np.maximum(blocking, wide[dy : dy + rows, dx : dx + cols] - ray, out=blocking)
    shadow = blur(np.clip(blocking - height - 0.4, 0, 1), 0.5)
    rise = canvas.slope[0] * np.float32(south) + canvas.slope[1] * np.float32(east)
    facing = (1 - rise / np.float32(flight.sun_slope)) / np.sqrt(1 + (canvas.slope**2).sum(0))
    sky = np.array([0.17, 0.20, 0.26], np.float32)[:, None, None]
    sun = np.clip(facing, 0.05, 2.2) * (1 - shadow)
    return np.asarray(canvas.albedo * (sky + (1 - sky) * sun), np.float32)


def _expose(rng: Generator, radiance: Array, flight: Flight) -> NDArray[np.uint8]:
    """Give (3, y, x) counts: haze, optics, misregistration, gamma and sensor noise."""
    veil = flight.haze * np.clip(1 + 0.35 * make_noise(rng, radiance.shape[1:], 350), 0, 2)
    image = radiance * flight.gain[:, None, None]
    cover(image, veil, np.array([0.50, 0.56, 0.64], np.float32)[:, None, None])
    image = blur(image, flight.blur_px)
    for axis, part in zip((1, 2), flight.shift_px, strict=True):
        image += np.float32(abs(part)) * (np.roll(image, 1 if part > 0 else -1, axis) - image)
    image = np.clip(image, 0, 1) ** np.float32(1 / 2.2)
    image += rng.standard_normal(image.shape, np.float32) * np.float32(0.011)
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)
