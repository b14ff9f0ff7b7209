"""Workers are killed at random all the time: the same bytes, and nobody's memory grows."""

from __future__ import annotations

from .conftest import IS_LONG, SEED, budget
from .soak import Soak, save_picture, soak


def test_run_whose_workers_are_killed_all_the_time_ends_with_the_same_bytes(counted):
    seen = soak(seconds=budget(25, 1800), seed=SEED)
    lost = len(seen.differing)
    counted("soak: workers killed", seen.blocks, len(seen.kills), len(seen.kills) if not lost else 0, seen.told())
    assert len(seen.kills) >= budget(1, 100)
    assert seen.differing == []
    if IS_LONG:  # in seconds each worker is killed before it holds all that it needs
        assert seen.grown() == {}


def test_growth_is_seen(tmp_path):
    """The measure itself: of a client that keeps 1 MB of each second, and a scheduler that does not."""
    seen = Soak(blocks=1, seconds=400, kills=[3.0])
    seen.memory = {"client": [(at, 200.0 + at) for at in range(400)], "scheduler": [(at, 90.0) for at in range(400)]}
    assert seen.grown() == {"client": 200}
    save_picture(seen, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 1000
