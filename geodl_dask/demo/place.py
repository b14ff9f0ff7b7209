"""A place: everything that does not depend on who photographs it and when."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from .arrays import Array, Shape
from .buildings import Wing, build
from .ground import Ground, lay_ground
from .trees import plant


@dataclass(frozen=True)
class Place:
    """Everything that does not depend on the flight."""

    ground: Ground
    wings: list[Wing]
    yard: Array
    """0 to 1, concrete around halls."""
    trees: Array
    """(tree, 6): y, x, radius, tone, conifer, and the date at which it is missing, or -1."""
    clearing: Array
    """0 to 1, where woods are gone at the later date."""


def lay_out(rng: Generator, shape: Shape) -> Place:
    """Make up a place."""
    ground = lay_ground(rng, shape)
    wings, yard = build(rng, ground)
    trees, clearing = plant(rng, ground, wings, yard)
    return Place(ground, wings, yard, trees, clearing)
