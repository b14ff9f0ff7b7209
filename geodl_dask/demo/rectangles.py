"""Rectangles at any angle on a map: the footprints of buildings, drives and cars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Array, Shape


@dataclass(frozen=True)
class Rectangle:
    """A footprint, in pixels and radians."""

    y: float
    x: float
    angle: float
    half_length: float
    """Half the extent along ``angle``."""
    half_width: float


def locate_in(rectangle: Rectangle, y: Array, x: Array) -> tuple[Array, Array]:
    """Give pixels' coordinates along and across a rectangle, from its centre."""
    dy, dx = y - np.float32(rectangle.y), x - np.float32(rectangle.x)
    sin, cos = np.float32(np.sin(rectangle.angle)), np.float32(np.cos(rectangle.angle))
    return dy * sin + dx * cos, dy * cos - dx * sin


def walk(y: float, x: float, angle: float, along: Any, across: Any) -> tuple[Any, Any]:
    """Walk from a point along and across a direction. Returns y and x."""
    sin, cos = float(np.sin(angle)), float(np.cos(angle))
    return y + along * sin + across * cos, x + along * cos - across * sin


def fill(image: Array, rectangle: Rectangle, value: float, grow_px: float = 0.0) -> None:
    """Write a value wherever a pixel's centre lies in the (grown) rectangle."""
    reach = rectangle.half_length + rectangle.half_width + grow_px * 1.5
    window, y, x = window_around(image.shape, rectangle.y, rectangle.x, reach)
    along, across = locate_in(rectangle, y, x)
    inside = np.abs(along) <= rectangle.half_length + grow_px
    image[window][inside & (np.abs(across) <= rectangle.half_width + grow_px)] = value


def window_around(shape: Shape, y: float, x: float, reach_px: float) -> tuple[tuple[slice, slice], Array, Array]:
    """Give the square around a point, cut at the edges: its slices, its rows' y, its columns' x."""
    ends = [
        (max(0, int(at - reach_px)), max(0, min(length, int(at + reach_px) + 2)))
        for at, length in zip((y, x), shape, strict=True)
    ]
    rows, cols = (np.arange(*end, dtype=np.float32) for end in ends)
    return (slice(*ends[0]), slice(*ends[1])), rows[:, None], cols[None, :]
