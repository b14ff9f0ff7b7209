"""Blocks reach their store once each, on any client, and a block that fails ends the run with its place and cause."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster, default_client

from geodl_dask import blocks as blocks_module
from geodl_dask.blocks import Index, regular_blocks, stands_alone, store_blocks
from geodl_dask.errors import BlockFailedError

SHAPE, BLOCK = (23, 31), (8, 12)
INDICES = [(row, col) for row in range(3) for col in range(3)]


@dataclass(frozen=True)
class FolderOfBlocks:
    """A block store that keeps every write as a file of its own, named with the process that wrote it."""

    folder: Path
    done: tuple[Index, ...] = ()
    unreadable: tuple[Index, ...] = ()

    def is_done(self, index: Index) -> bool:
        return index in self.done

    def read_block(self, index: Index) -> np.ndarray:
        """Sevens, unlike any block that is written."""
        if index in self.unreadable:
            raise ValueError("truncated")
        lengths = (min(length, all_px - at * length) for at, length, all_px in zip(index, BLOCK, SHAPE, strict=True))
        return np.full(tuple(lengths), 7, np.uint8)

    def write_block(self, index: Index, values: np.ndarray) -> None:
        np.save(self.folder / f"{index[0]}_{index[1]}_{os.getpid()}_{uuid4()}.npy", values)

    def writes(self) -> Counter[Index]:
        return Counter(tuple(map(int, path.name.split("_")[:2])) for path in self.folder.glob("*.npy"))

    def pids(self) -> set[int]:
        return {int(path.name.split("_")[2]) for path in self.folder.glob("*.npy")}

    def block(self, index: Index) -> np.ndarray:
        (path,) = self.folder.glob(f"{index[0]}_{index[1]}_*.npy")
        return np.load(path)


@pytest.fixture
def store(tmp_path) -> FolderOfBlocks:
    return FolderOfBlocks(tmp_path)


@pytest.fixture(scope="module")
def process_client() -> Iterator[Client]:
    """Two worker processes, not the default client."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def thread_client() -> Iterator[Client]:
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as client:
        yield client


@pytest.fixture(params=["no client", "threads", "processes"])
def on_client(request) -> Iterator[str]:
    """Runs the test without a client, with one of threads, and with one of processes."""
    active = {
        "no client": nullcontext,
        "threads": thread_client,
        "processes": lambda: request.getfixturevalue("process_client").as_current(),
    }
    with active[request.param]():
        yield request.param


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(1).choice(np.array([0, 7, 200, 255], np.uint8), SHAPE)


def alone(values: np.ndarray, change: Callable = lambda block, index: block) -> da.Array:
    """Blocks that each come of themselves; ``change`` gets a block and its index."""

    def compute(block_id):
        row, col = (number * length for number, length in zip(block_id, BLOCK, strict=True))
        return change(values[row : row + BLOCK[0], col : col + BLOCK[1]], block_id)

    chunks = da.core.normalize_chunks(BLOCK, SHAPE)
    return da.map_blocks(compute, chunks=chunks, dtype=values.dtype, meta=np.empty((0, 0), values.dtype))


def joined(values: np.ndarray, change: Callable = lambda block, index: block) -> da.Array:
    """The same blocks, but they hang on one another by a rechunk."""
    return alone(values, change).rechunk((5, 31)).rechunk(BLOCK)


@pytest.fixture(params=[alone, joined])
def build(request) -> Callable[..., da.Array]:
    return request.param


def calls(folder: Path) -> Counter[Index]:
    return Counter(tuple(map(int, path.name.split("_")[:2])) for path in folder.glob("*.called"))


def test_blocks_that_need_no_other_are_told_from_those_that_do(values):
    assert stands_alone(alone(values))
    assert stands_alone(alone(values) + 1)
    assert not stands_alone(joined(values))
    assert not stands_alone(da.from_array(values, chunks=BLOCK))


def test_every_block_is_written_once_with_its_pixels(on_client, build, store, values):
    pixels = store_blocks(build(values), store).pixels
    assert store.writes() == dict.fromkeys(INDICES, 1)
    written = np.block([[store.block((row, col)) for col in range(3)] for row in range(3)])
    np.testing.assert_array_equal(written, values)
    assert pixels == dict(zip(*(each.tolist() for each in np.unique(values, return_counts=True)), strict=True))


def test_blocks_go_to_the_active_client(on_client, build, store, values):
    store_blocks(build(values), store)
    assert (os.getpid() in store.pids()) == (on_client != "processes")
    assert len(store.pids()) <= 2


def test_no_client_is_left_behind(store, values):
    store_blocks(alone(values), store)
    with pytest.raises(ValueError, match="No clients found"):
        default_client()


@pytest.mark.parametrize("done", [(), ((0, 0), (2, 2)), tuple(INDICES)])
def test_finished_blocks_are_not_computed_again(build, store, values, done):
    folder = store.folder

    def note(block, index):
        (folder / "{}_{}_{}.called".format(*index, uuid4())).touch()
        return block

    array = build(values, note)
    store = FolderOfBlocks(folder, done)
    pixels = store_blocks(array, store).pixels
    missing = set(INDICES) - set(done)
    assert store.writes() == dict.fromkeys(missing, 1)
    for row, col in done:  # what is kept counts as it is
        values[row * 8 :, col * 12 :][:8, :12] = 7
    assert pixels == dict(zip(*(each.tolist() for each in np.unique(values, return_counts=True)), strict=True))
    if build is alone:
        assert calls(folder) == dict.fromkeys(missing, 1)


@pytest.mark.parametrize("most_tasks", [1, 100])
def test_kept_block_that_cannot_be_read_is_computed_again(monkeypatch, build, store, values, caplog, most_tasks):
    monkeypatch.setattr(blocks_module, "MOST_TASKS", most_tasks)
    store = FolderOfBlocks(store.folder, done=((0, 0), (1, 2), (2, 2)), unreadable=((1, 2),))
    pixels = store_blocks(build(values), store).pixels
    assert store.writes() == dict.fromkeys(set(INDICES) - {(0, 0), (2, 2)}, 1)
    np.testing.assert_array_equal(store.block((1, 2)), values[8:16, 24:])
    assert sum(pixels.values()) == values.size
    assert "Block (1, 2) is kept but unreadable, and computed again: ValueError: truncated" in caplog.text


@pytest.mark.parametrize("done", [(), ((0, 0), (2, 2))])
def test_progress_rises_to_all_pixels(build, store, values, done):
    seen = []
    store_blocks(
        build(values), FolderOfBlocks(store.folder, done), lambda done_px, all_px: seen.append((done_px, all_px))
    )
    pixels_done = [done_px for done_px, _ in seen]
    assert pixels_done == sorted(set(pixels_done))
    assert len(seen) == len(INDICES)
    assert seen[-1] == (values.size, values.size)


@pytest.mark.parametrize("most_tasks", [1, 2, 4])
def test_many_blocks_are_put_together_into_few_tasks(monkeypatch, store, values, most_tasks):
    monkeypatch.setattr(blocks_module, "MOST_TASKS", most_tasks)
    seen = []
    store_blocks(alone(values), store, lambda *pixels: seen.append(pixels))
    assert store.writes() == dict.fromkeys(INDICES, 1)
    assert len(seen) <= most_tasks


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.uint8, [0, 255]),
        (np.uint16, [0, 65535]),
        (np.uint32, [0, 2**32 - 1]),
        (np.int16, [-5, 32767]),
        (np.int64, [-(2**40), 7]),
        (bool, [0, 1]),
    ],
)
def test_pixels_are_counted_by_value(store, dtype, values):
    array = np.random.default_rng(2).choice(np.array(values, dtype), SHAPE)
    counted = store_blocks(alone(array), store).pixels
    assert counted == dict(zip(*(each.tolist() for each in np.unique(array, return_counts=True)), strict=True))
    assert {type(key) for key in counted} <= {int, bool}


class UnpicklableError(Exception):
    """Cannot come back from a worker as it is: made with two arguments, as a model's own errors may be."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def fail_at_1_2(block: np.ndarray, index: Index) -> np.ndarray:
    if index == (1, 2):
        raise UnpicklableError("layer 3", "does not fit")
    return block


def test_failing_block_ends_the_run_with_its_place_and_cause(on_client, store, values):
    with pytest.raises(BlockFailedError, match="row 8, column 24 failed: UnpicklableError: layer 3: does not fit"):
        store_blocks(alone(values, fail_at_1_2), store)
    assert store.writes()[1, 2] == 0


def test_failing_block_is_named_among_those_of_its_task(monkeypatch, store, values):
    monkeypatch.setattr(blocks_module, "MOST_TASKS", 1)
    with pytest.raises(BlockFailedError, match="row 8, column 24 failed"):
        store_blocks(alone(values, fail_at_1_2), store)


def test_failing_block_that_hangs_on_others_ends_the_run_too(on_client, store, values):
    """Which block is named depends on the order: all that the broken one feeds fail."""
    with pytest.raises(BlockFailedError, match=r"row (0|8|16), column (0|12|24) failed: \w+"):
        store_blocks(joined(values, fail_at_1_2), store)


class NoSpace(FolderOfBlocks):
    def write_block(self, index: Index, values: np.ndarray) -> None:
        raise OSError(28, "No space left on device")


def test_store_that_cannot_keep_a_block_ends_the_run(build, store, values):
    with pytest.raises(BlockFailedError, match="No space left on device"):
        store_blocks(build(values), NoSpace(store.folder))


def test_block_that_fails_once_or_twice_is_tried_again(on_client, build, store, values):
    folder = store.folder

    def stumble(block, index):
        marks = folder / "{}_{}.failed".format(*index)
        with marks.open("a") as file:
            file.write("x")
        if marks.stat().st_size <= sum(index) % 3:
            raise ConnectionError("try again")
        return block

    store_blocks(build(values, stumble), store)
    assert store.writes() == dict.fromkeys(INDICES, 1)


def test_block_is_tried_three_times_at_the_most(store, values):
    folder = store.folder

    def fail(block, index):
        (folder / "{}_{}_{}.called".format(*index, uuid4())).touch()
        raise ValueError("never")

    with pytest.raises(BlockFailedError, match="never"):
        store_blocks(alone(values, fail), store)
    assert max(calls(folder).values()) == 3


def test_worker_that_dies_ends_the_run_with_the_block(process_client, store, values):
    def die(block, index):
        os._exit(1)

    with (
        process_client.as_current(),
        pytest.raises(BlockFailedError, match=r"row \d+, column \d+ failed: KilledWorker"),
    ):
        store_blocks(alone(values, die), store)


def test_blocks_that_wait_are_given_up_when_one_fails(build, store, values):
    def fail_or_sleep(block, index):
        if index == (0, 0):
            raise ValueError("at once")
        time.sleep(0.3)
        return block

    with thread_client() as client, client.as_current():
        with pytest.raises(BlockFailedError, match="at once"):
            store_blocks(build(values, fail_or_sleep), store)
        time.sleep(0.5)
        kept = store.writes()
        time.sleep(0.7)
        assert store.writes() == kept
    assert len(kept) < len(INDICES) - 1


@pytest.mark.parametrize(
    ("chunks", "regular"),
    [
        (((8, 8, 7), (12, 12, 7)), ((8, 8, 7), (12, 12, 7))),
        (((3, 8, 12), (31,)), ((12, 11), (31,))),
        (((23,), (1, 30)), ((23,), (30, 1))),
    ],
)
def test_blocks_become_of_one_size_but_for_the_last(values, chunks, regular):
    array = regular_blocks(xr.DataArray(da.from_array(values, chunks=chunks), dims=("y", "x")))
    assert array.chunks == regular
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), values)


def test_computed_raster_has_blocks_too(store, values):
    array = regular_blocks(xr.DataArray(values, dims=("y", "x")))
    assert sum(store_blocks(array, store).pixels.values()) == values.size
