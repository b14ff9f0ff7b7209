"""A notebook that is left open: run after run in one process, which keeps nothing of them."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from distributed.core import Server
from test_resume import read

import geodl_dask as gd

from .conftest import budget

WARM_UP = 6
"""Runs after which everything has been imported and every cache of a run is full."""
RUNS = budget(30, 200)
MOST_MB = 60
"""What memory may grow by after the warm-up, whatever the number of runs: an allocator does not give back all."""


def holds(dask_worker=None) -> dict[str, int]:
    """What this process has, that a run could forget to give back. Runs on workers, too."""
    gc.collect()
    process = psutil.Process()
    return {
        "file handles": process.num_fds(),
        "threads": process.num_threads(),
        "child processes": len(process.children(recursive=True)),
        "schedulers and workers": sum(issubclass(type(each), Server) for each in gc.get_objects()),
        "temporary files": sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
        "MB": process.memory_info().rss // 2**20,
    }


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The temporary folder of this process and of those that it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@contextmanager
def two_workers() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def one_run(number: int, pair: tuple[Path, Path], model: Path, folder: Path) -> np.ndarray:
    """As in a notebook: looked at, or written in one of the two formats, over the result before."""
    change = gd.detect_change(*pair, model, chunks=48)
    if number % 3 == 0:
        return change.compute().values
    if number % 3 == 1:
        return read(gd.write_zarr(change, folder / "change.zarr", overwrite=True).path)
    return read(gd.write_cog(change, folder / "change.tif", overwrite=True).path)


@pytest.mark.parametrize("where", [nullcontext, two_workers])
def test_many_runs_in_one_session_leave_nothing_behind(where, pair, models, tmp_path, temporary, counted):
    expected = gd.detect_change(*pair, models["pt"], chunks=48).compute().values
    wrong = 0
    with where() as client:

        def look() -> dict[str, dict[str, int]]:
            return {"session": holds(), **(client.run(holds) if client else {})}

        for number in range(RUNS + WARM_UP):
            if number == WARM_UP:
                before = look()
            wrong += not np.array_equal(one_run(number, pair, models["pt"], tmp_path), expected)
        after = look()
        tasks = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) if client else 0
    grown = {(who, what): after[who][what] - count for who, counts in before.items() for what, count in counts.items()}
    leaks = {key: more for key, more in grown.items() if more > (MOST_MB if key[1] == "MB" else RUNS // 5)}
    most_mb = max(more for (_, what), more in grown.items() if what == "MB")
    most_handles = max(more for (_, what), more in grown.items() if what == "file handles")
    told = f"{RUNS} runs: file handles {most_handles:+d}, memory {most_mb:+d} MB, tasks left {tasks}"
    where_told = "on a LocalCluster" if client else "in this process"
    counted(f"session {where_told}", RUNS, RUNS, RUNS - wrong if not (leaks or tasks) else 0, told)
    assert (wrong, leaks, tasks) == (0, {}, 0)


def test_a_handle_that_each_run_forgot_would_be_seen(temporary):
    """The measure itself, by what it is there for."""
    before, forgotten = holds(), [open(os.devnull) for _ in range(RUNS)]  # noqa: PTH123, SIM115
    assert holds()["file handles"] - before["file handles"] == RUNS > RUNS // 5
    for each in forgotten:
        each.close()
    assert holds()["file handles"] == before["file handles"]
