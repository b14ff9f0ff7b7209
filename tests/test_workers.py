"""Workers are ready before their first block, whenever they come; one that keeps failing is set aside."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import rioxarray
from distributed import Client, LocalCluster, WorkerPlugin, get_worker
from test_dispatch import FolderOfBlocks

import geodl_dask as gd
from geodl_dask import kernel, workers
from geodl_dask.dispatch import store_blocks
from geodl_dask.errors import BlockFailedError, DeviceError, MissingDependencyError, WorkerSetupError
from geodl_dask.workers import memory_limit, preparations_of, worker_info


@contextmanager
def processes(count: int, **options) -> Iterator[Client]:
    with (
        LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address="127.0.0.1:0", **options) as cluster,
        Client(cluster) as client,
    ):
        yield client


def wait_until(claim: Callable[[], bool]) -> bool:
    """Until it is true, or for two minutes; whether it is."""
    until = time.monotonic() + 120
    while not (is_true := claim()) and time.monotonic() < until:
        time.sleep(0.02)
    return is_true


@dataclass(frozen=True)
class Noted:
    """An argument of blocks, which are the number of the process; each preparation leaves a note in a folder."""

    folder: Path
    takes_s: float = 0.0

    @property
    def files(self) -> dict[str, str]:
        return {}

    def preparation(self) -> Noted:
        return self

    def __dask_tokenize__(self):
        return str(self)

    def prepare(self, fetch) -> None:
        time.sleep(self.takes_s)
        self.note("prepared")

    def note(self, what: str) -> None:
        (self.folder / f"{what}-{os.getpid()}-{time.time()}").touch()

    def notes(self, what: str) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for path in self.folder.glob(f"{what}-*"):
            _, pid, when = path.name.split("-")
            found.setdefault(int(pid), []).append(float(when))
        return found

    def compute(self, takes_s: float = 0.0, block_id=None) -> np.ndarray:
        self.note("begun")
        time.sleep(takes_s)
        return np.zeros((4, 4), np.uint8)


class Together(Noted):
    """Ready only once another worker prepares, too."""

    def prepare(self, fetch) -> None:
        self.note("arrived")
        wait_until(lambda: len(self.notes("arrived")) > 1)
        self.note("prepared")


class Held(Noted):
    """Ready when it is let go."""

    @property
    def go(self) -> Path:
        return self.folder / "go"

    def prepare(self, fetch) -> None:
        wait_until(self.go.exists)
        self.note("prepared")


class Refused(Noted):
    error: Exception = DeviceError("there is no such GPU.")

    def prepare(self, fetch) -> None:
        raise self.error


class Crashes(Refused):
    error = KeyError("layer3")


def compute(noted: Noted, takes_s: float, block_id=None) -> np.ndarray:
    return noted.compute(takes_s)


def blocks_of(noted: Noted, count: int = 6, takes_s: float = 0.0) -> da.Array:
    return da.map_blocks(
        compute, noted, takes_s, chunks=((4,), (4,) * count), dtype=np.uint8, meta=np.empty((0, 0), np.uint8)
    )


def one_more(client: Client) -> Callable[[int, int], None]:
    """A progress at whose first call a second worker comes, before which the run does not go on."""
    asked = []

    def progress(done_px: int, all_px: int) -> None:
        if not asked:
            asked.append(done_px)
            client.cluster.scale(2)
            client.wait_for_workers(2, timeout=180)

    return progress


def plugins(dask_worker) -> list[str]:
    return [name for name in dask_worker.plugins if name.startswith("geodl_dask")]


# Who is asked


def test_graph_says_what_its_blocks_need(pair, models):
    by_files = gd.detect_change(*pair, models["pt"], chunks=24, confidence="uint8")
    opened = [rioxarray.open_rasterio(path, chunks=64) for path in pair]
    by_arrays = gd.detect_change(*opened, models["pt"], chunks=24)
    for array in (by_files["change"].data, by_arrays.data + 0):
        assert [type(each) for each in preparations_of(array)] == [kernel.Preparation]
    assert preparations_of(da.zeros((4, 4), chunks=2)) == []


# Ready before the first block


def test_every_worker_is_ready_before_its_first_block_and_all_at_once(tmp_path):
    noted = Together(tmp_path)
    with processes(2) as client:
        store_blocks(blocks_of(noted), FolderOfBlocks(tmp_path))
        pids = set(client.run(os.getpid).values())
    prepared, first = noted.notes("prepared"), noted.notes("begun")
    assert set(prepared) == pids
    assert all(len(times) == 1 for times in prepared.values())
    ready = [when for times in prepared.values() for when in times]
    assert max(ready) < min(min(times) for times in first.values())
    assert max(when for times in noted.notes("arrived").values() for when in times) < min(ready)


def test_heart_goes_on_beating_meanwhile(tmp_path):
    """A worker that prepares answers all the while."""
    noted = Held(tmp_path)
    with processes(1) as client:
        running = threading.Thread(target=store_blocks, args=(blocks_of(noted), FolderOfBlocks(tmp_path)))
        running.start()
        try:
            assert wait_until(lambda: any(client.run(plugins).values()))
            client.run(os.getpid)
            assert not noted.notes("prepared")
        finally:
            noted.go.touch()
            running.join()
        assert noted.notes("prepared")


def test_worker_that_comes_later_is_ready_before_its_first_block(tmp_path):
    noted = Noted(tmp_path, takes_s=0.5)
    with processes(1) as client:
        store_blocks(blocks_of(noted, 60, takes_s=0.1), FolderOfBlocks(tmp_path), one_more(client))
    prepared, begun = noted.notes("prepared"), noted.notes("begun")
    assert len(begun) == 2
    assert all(prepared[pid][0] < min(times) for pid, times in begun.items())


@pytest.mark.parametrize(
    ("refused", "kind", "says"),
    [
        (Refused, DeviceError, r"Worker \d \(tcp://127.0.0.1:\d+\) on HOST cannot begin: there is no such GPU.$"),
        (
            Crashes,
            WorkerSetupError,
            r"Worker \d \(tcp://127.0.0.1:\d+\) on HOST cannot begin: KeyError: 'layer3'\. Mend that on its machine",
        ),
    ],
)
def test_worker_that_cannot_begin_ends_the_run_and_nothing_else(tmp_path, refused, kind, says):
    with processes(1) as client:
        pids = client.run(os.getpid)
        with pytest.raises(kind, match=says.replace("HOST", socket.gethostname())):
            store_blocks(blocks_of(refused(tmp_path)), FolderOfBlocks(tmp_path))
        assert client.run(os.getpid) == pids
        assert set(map(tuple, client.run(plugins).values())) == {()}
    assert not Noted(tmp_path).notes("begun")


def test_late_worker_that_cannot_begin_is_set_aside_and_said_once(tmp_path, caplog):
    class OnlyTheFirst(Noted):
        def prepare(self, fetch):
            super().prepare(fetch)
            if len(self.notes("prepared")) > 1:
                raise DeviceError("its GPU has a worker.")

    noted = OnlyTheFirst(tmp_path)
    with processes(1) as client:
        tally = store_blocks(blocks_of(noted, 60, takes_s=0.1), FolderOfBlocks(tmp_path), one_more(client))
    assert (tally.computed, tally.failed) == (60, {})
    assert len(noted.notes("begun")) == 1
    assert caplog.text.count("is set aside: DeviceError: Worker 1") == 1


def test_workers_that_all_come_late_and_cannot_begin_end_the_run(tmp_path):
    """As those of a job queue do."""
    with processes(0) as client:
        threading.Timer(1, client.cluster.scale, (2,)).start()
        with pytest.raises(DeviceError, match=r"^Worker \d .* cannot begin: there is no such GPU.$"):
            store_blocks(blocks_of(Refused(tmp_path)), FolderOfBlocks(tmp_path))


def test_nothing_of_a_run_stays_on_the_workers(tmp_path):
    with processes(1) as client:
        for _ in range(3):
            store_blocks(blocks_of(Noted(tmp_path)), FolderOfBlocks(tmp_path))
        assert list(client.run(plugins).values()) == [[]]
        assert client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins)) == [
            name for name in client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
            if not name.startswith("geodl_dask")
        ]  # fmt: skip


def test_workers_in_this_process_are_ready_and_load_nothing_again(tmp_path, pair, models, monkeypatch):
    loaded, registered = [], []
    load, register = kernel.load_runner, Client.register_plugin
    monkeypatch.setattr(kernel, "load_runner", lambda spec: loaded.append(spec) or load(spec))
    monkeypatch.setattr(Client, "register_plugin", lambda *given, **more: registered.append(given) or register(*given))
    change = gd.detect_change(*pair, models["pt"], chunks=24, arguments="padding 3")
    with Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0"):
        gd.write_zarr(change, tmp_path / "change.zarr")
    assert (len(loaded), registered) == (1, [])


def loads(dask_worker) -> int:
    return kernel._load.cache_info().misses


def test_model_is_loaded_once_on_each_worker_before_the_first_block(tmp_path, pair, models):
    change = gd.detect_change(*pair, models["pt"], chunks=24)
    with processes(2) as client:
        seen = []
        gd.write_zarr(
            change, tmp_path / "change.zarr", progress=lambda *_: seen or seen.extend(client.run(loads).values())
        )
        assert seen == [1, 1]
        assert list(client.run(loads).values()) == [1, 1]


def test_compiled_network_is_warmed_up_with_what_it_will_be_given_and_others_are_tried_out_already(
    pair, models, monkeypatch
):
    change = gd.detect_change(*pair, models["pt"], tile_size=40)
    (preparation,) = preparations_of(change.data)
    inference, given = preparation.inference, []
    model = kernel.loaded_model(inference)
    predict = model.runner.predict
    monkeypatch.setattr(
        model.runner, "predict", lambda batch: given.append(batch.images[0].shape[-2:]) or predict(batch)
    )
    kernel._warm_up(inference)
    assert given == []
    monkeypatch.setattr(kernel, "loaded_model", lambda inference: model)  # to compile it takes a minute
    kernel._warm_up(kernel.replace(inference, spec=kernel.replace(inference.spec, compiled=True)))
    assert given == [(40, 40)]


# One worker, one GPU


class FakeGpus(WorkerPlugin):
    """There is no GPU here: torch is made to count those that CUDA_VISIBLE_DEVICES names, as it would."""

    def __init__(self, visible: str) -> None:
        self.visible = visible

    def setup(self, worker) -> None:
        import torch

        os.environ["CUDA_VISIBLE_DEVICES"] = self.visible
        torch.cuda.device_count = lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))


class ClaimsGpu(Noted):
    def prepare(self, fetch) -> None:
        from geodl_dask.devices import claim_gpu

        claim_gpu()


def visible() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The machine's temporary folder, of which others may hold GPUs in theirs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("listed", ["0,1", "GPU-aa,MIG-bb"])
def test_workers_of_a_job_take_a_gpu_each_and_one_that_comes_again_the_free_one(temporary, listed):
    with processes(2) as client:
        client.register_plugin(FakeGpus(listed))
        for _ in range(2):  # a second run changes nothing
            store_blocks(blocks_of(ClaimsGpu(temporary), 8, takes_s=0.1), FolderOfBlocks(temporary))
            seen = client.run(visible)
            assert sorted(seen.values()) == listed.split(",")
        victim, lost = next(iter(seen.items()))
        pid = client.run(os.getpid, workers=[victim])[victim]
        os.kill(pid, signal.SIGKILL)
        while victim in client.nthreads() or len(client.nthreads()) < 2:
            time.sleep(0.1)
        store_blocks(blocks_of(ClaimsGpu(temporary), 8), FolderOfBlocks(temporary))
        again = client.run(visible)
        assert sorted(again.values()) == listed.split(",")
        assert [gpu for worker, gpu in again.items() if worker not in seen] == [lost]


def test_more_workers_than_gpus_are_refused(temporary):
    with processes(2) as client:
        client.register_plugin(FakeGpus("0"))
        says = r"Worker \d .* cannot begin: This worker sees the GPU 0, and another worker has it already. Start one"
        with pytest.raises(DeviceError, match=says):
            store_blocks(blocks_of(ClaimsGpu(temporary)), FolderOfBlocks(temporary))


def test_gpu_that_only_the_workers_can_have_is_planned_for_where_there_is_none(tmp_path, pair, models, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeviceError, match="torch sees none"):
        gd.detect_change(*pair, models["pt"], processor="gpu")
    with processes(1) as client:
        client.run(os.environ.__setitem__, "CUDA_VISIBLE_DEVICES", "")
        change = gd.detect_change(*pair, models["pt"], processor="gpu")
        with pytest.raises(DeviceError, match=r"Worker 0 .* cannot begin: A GPU was asked for, and torch sees none"):
            gd.write_zarr(change, tmp_path / "change.zarr")
    assert not list(tmp_path.glob("change.zarr*"))


def page_faults_of_taking_memory() -> int:
    """Of 100 MB that are taken, used and freed, again and again."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    faults = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        taken = libc.malloc(100 << 20)
        ctypes.memset(taken, 1, 100 << 20)
        libc.free(taken)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return faults[-1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_threads_of_a_users_own_workers_keep_the_memory_that_they_free(tmp_path, pair, models):
    with processes(1) as client:
        assert client.submit(page_faults_of_taking_memory, pure=False).result() > 10_000
        gd.write_zarr(gd.detect_change(*pair, models["pt"]), tmp_path / "change.zarr")
        assert client.submit(page_faults_of_taking_memory, pure=False).result() < 1_000


# Workers that come and go, or fail


def values(block_id) -> np.ndarray:
    return np.full((4, 4), block_id[1] % 200, np.uint8)


def array_of(function, count: int) -> da.Array:
    return da.map_blocks(function, chunks=((4,), (4,) * count), dtype=np.uint8, meta=np.empty((0, 0), np.uint8))


def test_worker_that_fails_at_every_block_is_set_aside_once_and_its_blocks_are_done_by_others(tmp_path, caplog):
    def compute(block_id):
        if get_worker().name == 1:  # at once, so that it is idle again before the others are
            raise OSError("disk failure")
        time.sleep(0.05)
        return values(block_id)

    store = FolderOfBlocks(tmp_path)
    with processes(3) as client:
        client.run(lambda: bool(__import__("test_workers")))  # which takes seconds; they are to begin together
        tally = store_blocks(array_of(compute, 60), store)
        left = {worker["name"] for worker in worker_info(client).values()}
    assert (tally.computed, tally.failed) == (60, {})
    assert set(store.writes().values()) == {1}
    assert left == {0, 2}
    assert caplog.text.count("is set aside") == 1


def test_workers_that_fail_faster_than_others_finish_do_not_end_the_run(tmp_path, caplog):
    """All but one fail at once, and are idle again, long before that one has finished its first block."""

    def compute(block_id):
        if get_worker().name != 0:
            raise OSError("disk failure")
        time.sleep(0.02 if list(tmp_path.glob("*.npy")) else 2)
        return values(block_id)

    # Six threads of this process; else Dask pauses them all, and for ever, where that has a sixth of the memory.
    with processes(6, processes=False, memory_limit=0):
        tally = store_blocks(array_of(compute, 60), FolderOfBlocks(tmp_path))
    assert (tally.computed, tally.failed) == (60, {})
    assert caplog.text.count("is set aside") == 5


class KeepsWhereItCan(FolderOfBlocks):
    def write_block(self, index, values) -> None:
        if get_worker().name == 1:
            raise OSError(28, "No space left on device")
        super().write_block(index, values)


def test_worker_that_cannot_keep_blocks_does_not_end_a_run_that_others_can(tmp_path):
    with processes(2):
        tally = store_blocks(array_of(values, 30), KeepsWhereItCan(tmp_path))
    assert (tally.computed, tally.failed) == (30, {})


def test_block_that_fails_everywhere_is_its_own_fault_and_no_worker_is_set_aside(tmp_path, caplog):
    def compute(block_id):
        if block_id[1] % 4 == 0:
            raise ValueError("not a number")
        return values(block_id)

    with processes(2) as client:
        tally = store_blocks(array_of(compute, 40), FolderOfBlocks(tmp_path), keep_going=True)
        assert len(client.nthreads()) == 2
    assert sorted(tally.failed) == [(0, col) for col in range(0, 40, 4)]
    assert "set aside" not in caplog.text


def test_workers_that_retire_come_and_are_killed_leave_no_gap(tmp_path):
    """What an adaptive cluster on spot nodes does."""

    def compute(block_id):
        time.sleep(0.05)
        return values(block_id)

    with processes(2) as client:
        ended = threading.Event()

        def disturb() -> None:
            for number in range(4):
                if ended.wait(0.7):
                    return
                alive = sorted(client.nthreads())
                if not alive:  # for the moment
                    continue
                victim = alive[0]
                if number % 2:
                    os.kill(client.run(os.getpid, workers=[victim])[victim], signal.SIGKILL)
                else:
                    client.cluster.scale(3)
                    client.retire_workers([victim], close_workers=True)

        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        store = FolderOfBlocks(tmp_path)
        tally = store_blocks(array_of(compute, 120), store)
        ended.set()
        disturbing.join()
    assert (tally.computed + tally.kept, tally.failed) == (120, {})
    assert set(store.writes()) == {(0, col) for col in range(120)}


def test_cluster_that_adapts_begins_with_no_worker_and_does_it_all(tmp_path):
    def compute(block_id):
        time.sleep(0.05)
        return values(block_id)

    with processes(0) as client:
        client.cluster.adapt(minimum=0, maximum=2, interval="200ms")
        assert store_blocks(array_of(compute, 40), FolderOfBlocks(tmp_path)).computed == 40


def grow(noted: Noted, block_id=None) -> np.ndarray:
    """For a moment the process is so large that Dask gives it nothing more to do."""
    worker, pieces = get_worker(), []
    while worker.monitor.get_process_memory() < 0.86 * worker.memory_manager.memory_limit:
        pieces.append(np.ones(10_000_000, np.uint8))
    time.sleep(0.5)
    return np.zeros((4, 4), np.uint8)


@pytest.mark.timeout(120)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only of glibc freed memory is kept")
def test_worker_that_was_large_for_a_moment_goes_on(tmp_path):
    array = da.map_blocks(
        grow, Noted(tmp_path), chunks=((4,), (4,) * 4), dtype=np.uint8, meta=np.empty((0, 0), np.uint8)
    )
    with processes(1, memory_limit="1GB") as client:
        (pid,) = client.run(os.getpid).values()
        assert store_blocks(array, FolderOfBlocks(tmp_path)).computed == 4
        assert list(client.run(os.getpid).values()) == [pid]  # and was not started again


def test_run_without_workers_says_that_it_waits_and_goes_on_when_one_comes(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE_S", 0.5)
    with processes(0) as client:
        threading.Timer(3, client.cluster.scale, (1,)).start()
        assert store_blocks(array_of(values, 20), FolderOfBlocks(tmp_path)).computed == 20
    assert caplog.text.count("There are no workers, and the run waits for some") == 1


def test_what_is_known_of_workers_is_not_what_the_client_asks_for_meanwhile():
    with (
        dask.config.set({"distributed.client.scheduler-info-interval": "1ms"}),
        LocalCluster(n_workers=6, processes=False, memory_limit="1GiB", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        assert [memory_limit(client) for _ in range(300)] == [2**30] * 300
        assert {len(worker_info(client)) for _ in range(300)} == {6}
        assert {len(worker_info(client, 5)) for _ in range(300)} == {5}


def test_workers_that_dask_has_paused_are_told_of_and_the_run_goes_on_when_they_do(tmp_path, caplog, monkeypatch):
    """By what the whole process holds, of which a worker in it has a share."""
    monkeypatch.setattr(workers, "PATIENCE_S", 0.5)
    with (
        dask.config.set({"distributed.worker.memory.pause": 1e-6}),
        LocalCluster(n_workers=6, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        while {worker["status"] for worker in worker_info(client).values()} != {"paused"}:
            time.sleep(0.05)

        def free_memory() -> None:
            for worker in cluster.workers.values():
                worker.memory_manager.memory_pause_fraction = 1e6

        threading.Timer(3, free_memory).start()
        assert store_blocks(array_of(values, 20), FolderOfBlocks(tmp_path)).computed == 20
    assert caplog.text.count("Dask has paused the workers, for their memory is nearly full") == 1
    assert "There are no workers" not in caplog.text


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", ["none", None, 1])
def test_our_own_workers_are_never_paused_by_memory_that_nobody_frees(tmp_path, workers):
    """Of this process it may be what else it holds, of a worker what its allocator keeps."""
    with (
        dask.config.set({"distributed.worker.memory.pause": 1e-6}),
        nullcontext() if workers == "none" else gd.connect("local", workers=workers),
    ):
        assert store_blocks(array_of(values, 20), FolderOfBlocks(tmp_path)).computed == 20


def test_library_that_a_worker_lacks_is_named(tmp_path):
    class Unknown(Noted):
        def __reduce__(self):
            return __import__, ("not_installed_there",)

    with (
        processes(1),
        pytest.raises(
            MissingDependencyError, match=r"Worker 0 .* cannot begin: ModuleNotFoundError: .*not_installed_there"
        ),
    ):
        store_blocks(blocks_of(Unknown(tmp_path)), FolderOfBlocks(tmp_path))


def test_workers_without_this_package_are_told_so(tmp_path):
    start = "import sys; sys.modules['geodl_dask'] = None; from distributed.cli.dask_worker import main; main()"
    with processes(0, protocol="tcp") as client:
        words = [sys.executable, "-c", start, client.scheduler.address, "--no-nanny", "--dashboard-address", ":0"]
        worker = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            client.wait_for_workers(1, timeout=180)
            with pytest.raises(MissingDependencyError, match=r"The workers' Python lacks .* Install geodl_dask there"):
                store_blocks(array_of(values, 4), FolderOfBlocks(tmp_path), folder=tmp_path)
        finally:
            worker.kill()
            worker.wait()


def test_error_of_a_block_names_no_host_where_there_is_one(tmp_path):
    def compute(block_id):
        raise ValueError("never")

    with processes(1), pytest.raises(BlockFailedError, match=r"At row 0, column 0: ValueError: never$"):
        store_blocks(array_of(compute, 1), FolderOfBlocks(tmp_path))
