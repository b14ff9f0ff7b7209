"""What the tests of this folder count, and how long they take."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from summary_tables import Row, hand_in

IS_LONG = os.environ.get("GEODL_LONG") == "1"
SEED = int(os.environ.get("GEODL_FUZZ_SEED", "0"))
"""Of all that is random here; with the same seed each case is the same, and is found again by its number."""


def budget(short: int, long: int) -> int:
    """A number of cases: the second where there is time."""
    return long if IS_LONG else short


def chance(name: str, case: int) -> random.Random:
    """The random numbers of one case."""
    return random.Random(f"{SEED}:{name}:{case}")


@pytest.fixture
def counted(request) -> Callable[..., None]:
    """Hands a row to the table of this folder; see `summary_tables.Row`."""

    def count(what: str, cases: int, faults: int, survived: int, seen: str = "") -> None:
        hand_in(request.node, Row("reliability", what, cases, faults, survived, seen))

    return count
