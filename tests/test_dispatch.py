"""Blocks reach their store once each, on any client; one that fails is named, once all others are done."""

from __future__ import annotations

import os
import threading
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
from dask_processes import dask_processes
from distributed import Client, LocalCluster, default_client

from geodl_dask import attempts, dispatch, reputation
from geodl_dask.blocks import Index, regular_blocks, stands_alone
from geodl_dask.dispatch import store_blocks
from geodl_dask.errors import BlockFailedError, SchedulerLostError

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
    monkeypatch.setattr(dispatch, "MOST_TASKS", most_tasks)
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
    monkeypatch.setattr(dispatch, "MOST_TASKS", most_tasks)
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


def fail_in_the_corner(block: np.ndarray, index: Index) -> np.ndarray:
    if index == (2, 2):
        raise UnpicklableError("layer 3", "does not fit")
    return block


def test_failing_block_ends_the_run_with_its_place_and_cause_once_all_others_are_kept(on_client, store, values):
    says = r"1 of 9 blocks failed; all others are done. At row 16, column 24: UnpicklableError: layer 3: does not fit$"
    with pytest.raises(BlockFailedError, match=says):
        store_blocks(alone(values, fail_in_the_corner), store)
    assert store.writes() == dict.fromkeys(set(INDICES) - {(2, 2)}, 1)


@pytest.mark.parametrize("most_tasks", [1, 2, 100])
def test_failing_block_is_named_among_those_of_its_task(monkeypatch, store, values, most_tasks):
    monkeypatch.setattr(dispatch, "MOST_TASKS", most_tasks)
    with pytest.raises(BlockFailedError, match="At row 16, column 24: "):
        store_blocks(alone(values, fail_in_the_corner), store)
    assert store.writes() == dict.fromkeys(set(INDICES) - {(2, 2)}, 1)


def test_failing_block_that_hangs_on_others_ends_the_run_too(on_client, store, values):
    """All that the broken one feeds fail: the second and third row of blocks."""
    with pytest.raises(BlockFailedError, match=r"6 of 9 blocks failed; all others are done. At row 8, column 0: \w+"):
        store_blocks(joined(values, fail_in_the_corner), store)
    assert store.writes() == {(0, col): 1 for col in range(3)}


def test_failed_blocks_are_told_and_no_error_where_the_others_are_enough(build, store, values):
    tally = store_blocks(build(values, fail_in_the_corner), store, keep_going=True)
    failed = {(2, 2)} if build is alone else {(row, col) for row in (1, 2) for col in range(3)}
    assert set(tally.failed) == failed
    assert store.writes() == dict.fromkeys(set(INDICES) - failed, 1)
    assert (tally.computed, tally.kept) == (len(INDICES) - len(failed), 0)
    assert "does not fit" in tally.failed[2, 2]


def test_error_names_some_of_many_failures(store, values):
    def fail(block, index):
        if index[0]:
            raise ValueError("below {} {}".format(*index))
        return block

    with pytest.raises(BlockFailedError) as raised:
        store_blocks(alone(values, fail), store)
    causes = "At row 8, column 0: ValueError: below 1 0; row 8, column 12: ValueError: below 1 1; row 8, column 24"
    assert str(raised.value).startswith(f"6 of 9 blocks failed; all others are done. {causes}")
    assert str(raised.value).endswith("; and more")


def test_run_ends_early_where_no_block_can_be_computed(monkeypatch, build, store, values):
    monkeypatch.setattr(dispatch, "HOPELESS", 4)
    folder = store.folder

    def fail(block, index):
        (folder / "{}_{}_{}.called".format(*index, uuid4())).touch()
        raise ValueError("never")

    with pytest.raises(
        BlockFailedError, match="4 of 9 blocks failed; none could be computed, so the others were not tried"
    ):
        store_blocks(build(values, fail), store)
    if build is alone:
        assert len(calls(folder)) < len(INDICES)
    with pytest.raises(BlockFailedError, match=r"9 of 9 blocks failed; none could be computed\. At"):
        store_blocks(build(values, fail), store, keep_going=True)  # which tries them all


def test_blocks_that_are_kept_already_show_that_not_all_is_lost(monkeypatch, store, values):
    monkeypatch.setattr(dispatch, "HOPELESS", 2)

    def fail(block, index):
        raise ValueError("never")

    store = FolderOfBlocks(store.folder, done=tuple(INDICES[:5]))
    with pytest.raises(BlockFailedError, match="4 of 9 blocks failed; all others are done"):
        store_blocks(alone(values, fail), store)


def test_code_that_ends_the_process_fails_its_block_alone(store, values):
    def leave(block, index):
        if index == (1, 1):
            raise SystemExit(3)
        return block

    with pytest.raises(BlockFailedError, match=r"1 of 9 .* At row 8, column 12: SystemExit: 3"):
        store_blocks(alone(values, leave), store)


def test_run_ends_early_where_every_block_kills_its_worker(monkeypatch, process_client, store, values):
    monkeypatch.setattr(attempts, "DEADLY", 2)

    def die(block, index):
        os._exit(1)

    says = "2 of 9 blocks failed; none could be computed, so the others were not tried. .* its worker process died"
    with process_client.as_current(), pytest.raises(BlockFailedError, match=says):
        store_blocks(alone(values, die), store)


def test_workers_that_come_later_are_used(store):
    """Of a window that grew with them, four blocks are under way at once."""
    values = np.zeros((8 * 8, 12 * 5), np.uint8)
    folder = store.folder

    def note(block_id):
        (folder / "{}_{}.begun".format(*block_id)).touch()
        until = time.monotonic() + 1
        while len(list(folder.glob("*.begun"))) < 5 and time.monotonic() < until:
            time.sleep(0.02)
        (folder / "at_once_{}_{}_{}".format(*block_id, len(list(folder.glob("*.begun"))))).touch()
        (folder / "{}_{}.begun".format(*block_id)).unlink()
        return np.zeros(BLOCK, np.uint8)

    array = da.map_blocks(note, chunks=((8,) * 8, (12,) * 5), dtype=np.uint8, meta=np.empty((0, 0), np.uint8))
    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
        threading.Timer(0.5, cluster.scale, (6,)).start()
        assert store_blocks(array, store).computed == values.size // (8 * 12)
    assert max(int(path.name.rpartition("_")[2]) for path in folder.glob("at_once_*")) >= 4


class NoSpace(FolderOfBlocks):
    def write_block(self, index: Index, values: np.ndarray) -> None:
        raise OSError(28, "No space left on device")


def test_store_that_cannot_keep_a_block_ends_the_run(build, store, values):
    folder = store.folder

    def note(block, index):
        (folder / "{}_{}_{}.called".format(*index, uuid4())).touch()
        return block

    says = r"The block at row \d+, column \d+ could not be kept: OSError: \[Errno 28\] No space left on device"
    with pytest.raises(BlockFailedError, match=says):
        store_blocks(build(values, note), NoSpace(store.folder), keep_going=True)
    if build is alone:
        assert max(calls(folder).values()) == 3


class KeepsAtTheSecondTime(FolderOfBlocks):
    def write_block(self, index: Index, values: np.ndarray) -> None:
        marks = self.folder / "{}_{}.refused".format(*index)
        if not marks.exists():
            marks.touch()
            raise OSError(116, "Stale file handle")
        super().write_block(index, values)


def test_store_that_stumbles_is_asked_again(build, store, values):
    store_blocks(build(values), KeepsAtTheSecondTime(store.folder))
    assert store.writes() == dict.fromkeys(INDICES, 1)


def test_block_that_fails_once_or_twice_is_tried_again(monkeypatch, on_client, build, store, values):
    # On a busy machine one worker might fail at three blocks that another then does, and be set aside for that; what it
    # has under way is then done by others too, and so written twice, with the same pixels.
    monkeypatch.setattr(reputation, "CHARGES", 100)
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


@pytest.mark.parametrize("most_tasks", [1, 100])
def test_block_that_kills_its_worker_is_named_and_its_neighbours_are_not(
    monkeypatch, process_client, store, values, most_tasks
):
    monkeypatch.setattr(dispatch, "MOST_TASKS", most_tasks)

    def die(block, index):
        if index == (1, 1):
            os._exit(1)
        return block

    says = "1 of 9 blocks failed; all others are done. At row 8, column 12: its worker process died 1 times"
    with process_client.as_current(), pytest.raises(BlockFailedError, match=says):
        store_blocks(alone(values, die), store)
    assert set(store.writes()) == set(INDICES) - {(1, 1)}


def test_worker_out_of_memory_is_named_with_what_it_had(store, values):
    def fill_memory(block, index):
        if index == (0, 1):
            hoard = []
            while True:
                hoard.append(np.ones(10_000_000, np.uint8))
                time.sleep(0.01)
        return block

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="600MB", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
        pytest.raises(BlockFailedError, match=r"At row 0, column 12: .* is memory of 572.20 MiB: take smaller --ch"),
    ):
        store_blocks(alone(values, fill_memory), store)
    assert set(store.writes()) == set(INDICES) - {(0, 1)}


class KeepsThreeAndThenTakesItsTime(FolderOfBlocks):
    """So that the run is not over before it is disturbed."""

    def write_block(self, index: Index, values: np.ndarray) -> None:
        if len(self.writes()) > 2:
            time.sleep(20)
        super().write_block(index, values)


@pytest.mark.parametrize("is_given_up", [False, True])
@pytest.mark.parametrize("stands", [True, False])
def test_scheduler_that_dies_ends_the_run(tmp_path, values, stands, is_given_up):
    """A real scheduler and worker in processes of their own. The client tries to reach it again, for a while."""

    store = KeepsThreeAndThenTakesItsTime(tmp_path)

    def kill_it(done_px: int, all_px: int) -> None:
        scheduler.kill()
        until = time.monotonic() + 60
        while is_given_up and client.status != "closed":
            assert time.monotonic() < until
            time.sleep(0.05)

    with (
        dask_processes() as (address, scheduler),
        dask.config.set({"distributed.comm.timeouts.connect": "2s" if is_given_up else "10s"}),
        Client(address) as client,
    ):
        client.wait_for_workers(1, timeout=180)
        build = alone if stands else joined
        with pytest.raises(SchedulerLostError, match=r"The Dask scheduler( at tcp://\S+)? was lost\. Start it again"):
            store_blocks(build(values), store, kill_it)
    assert 0 < len(store.writes()) < len(INDICES)


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
