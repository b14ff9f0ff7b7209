"""Local workers, or a scheduler that runs already."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
import types
from contextlib import ExitStack, suppress

import dask
import pytest
from dask.system import CPU_COUNT
from dask_processes import dask_processes
from distributed import LocalCluster

import geodl_dask as gd
from geodl_dask.cluster import connect, dashboard_of, local_gpus
from geodl_dask.cluster_config import GPU_WORKER_THREADS, read_cluster_config
from geodl_dask.devices import visible_gpus
from geodl_dask.errors import DeviceError, RequestError

HAS_BOKEH = importlib.util.find_spec("bokeh") is not None


@pytest.fixture(autouse=True)
def heeding_interrupts():
    """Tests that run in the background of a shell are started deaf to interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_is_ignored() -> bool:
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_without_workers_everything_runs_in_threads_of_this_process():
    with gd.connect() as client:
        assert client.submit(os.getpid).result() == os.getpid()
        assert sum(client.nthreads().values()) == CPU_COUNT
        cluster = client.cluster
    assert cluster.status.name == "closed"
    assert not interrupt_is_ignored()


def test_workers_are_processes_that_share_the_cores_and_leave_interrupts_to_the_client():
    with gd.connect("local", workers=2) as client:
        processes = set(client.run(os.getpid).values())
        assert len(processes - {os.getpid()}) == 2
        assert set(client.nthreads().values()) == {max(1, CPU_COUNT // 2)}
        assert all(client.run(interrupt_is_ignored).values())
        cluster = client.cluster
    assert cluster.status.name == "closed"
    assert not interrupt_is_ignored()


def test_address_of_a_running_scheduler_is_used_as_it_is():
    with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster:
        with gd.connect(cluster.scheduler_address) as client:
            assert client.scheduler.address == cluster.scheduler_address
            assert client.submit(sum, [1, 2]).result() == 3
            assert dashboard_of(client) == (cluster.dashboard_link if HAS_BOKEH else None)
        assert cluster.status.name == "running"


@pytest.mark.skipif(not HAS_BOKEH, reason="the dashboard needs bokeh")
def test_dashboard_is_told_and_answers():
    with gd.connect() as client:
        port = int(dashboard_of(client).removeprefix("http://127.0.0.1:").removesuffix("/status"))
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


@pytest.mark.parametrize(
    ("cluster", "workers", "says"),
    [
        ("local", 0, "workers is 0; a number, at least 1"),
        ("local", -3, "workers is -3; a number, at least 1"),
        ("local", (2, 4), "workers is 2 to 4; that is for job queues"),
        (
            "slrum",
            None,
            "cluster is 'slrum', and no such file is there; local, cuda, slurm, .* scheduler file is needed",
        ),
        ("127.0.0.1:8786", None, "cluster is '127.0.0.1:8786', and no such file is there; local, .*"),
        ("tcp://127.0.0.1:8786", 2, "scheduler at tcp://127.0.0.1:8786 has its own workers"),
    ],
)
def test_what_is_no_cluster_is_refused(cluster, workers, says):
    with pytest.raises(RequestError, match=says):
        gd.connect(cluster, workers=workers)


def test_scheduler_file_leads_to_its_scheduler(tmp_path):
    with dask_processes() as (address, _):
        path = tmp_path / "scheduler.json"
        with gd.connect(address) as client:
            client.run_on_scheduler(lambda dask_scheduler: path.write_text(json.dumps(dask_scheduler.identity())))
        for named in (str(path), path):
            with gd.connect(config={"cluster": str(named)}) as client:
                assert client.scheduler.address == address
                assert client.submit(sum, [1, 2]).result() == 3
    with pytest.raises(RequestError, match=f"No Dask scheduler can be reached at {address}, which {path} names"):
        gd.connect(str(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not what dask scheduler --scheduler-file writes: Expecting property name"),
        (b"\xff", "is not what dask scheduler --scheduler-file writes: .*decode"),
        (b"[1]", "is not what dask scheduler --scheduler-file writes: it has no address"),
        (b'{"address": 3}', "is not what dask scheduler --scheduler-file writes: it has no address"),
        (b'{"address": "nowhere"}', "No Dask scheduler can be reached at nowhere, which .*scheduler.json names"),
    ],
)
def test_scheduler_file_that_cannot_be_used_is_named(content, says, tmp_path):
    path = tmp_path / "scheduler.json"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=says):
        gd.connect(str(path))


def test_scheduler_file_that_is_a_folder_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"scheduler file .* cannot be read: Is a directory"):
        gd.connect(str(tmp_path))


def test_scheduler_that_does_not_answer_is_named():
    with socket.socket() as reserved:  # bound and not listening, so nobody answers there
        reserved.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{reserved.getsockname()[1]}"
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
            pytest.raises(RequestError, match=f"No Dask scheduler can be reached at {address}"),
        ):
            gd.connect(address)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (b"", "has said nothing for 1 s. Does it run"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no Dask scheduler; a dashboard has another port"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "is no Dask scheduler"),
    ],
)
def test_listener_that_is_no_scheduler_is_named(words, says):
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as held:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

        def answer():
            with suppress(OSError):  # closed
                while True:
                    held.enter_context(listener.accept()[0]).sendall(words)

        threading.Thread(target=answer, daemon=True).start()
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "30s" if words else "1s"}),
            pytest.raises(RequestError, match=f"No Dask scheduler can be reached at {address}: .*{says}"),
        ):
            gd.connect(address)


@pytest.mark.parametrize("address", ["foo://here:1", "tls://127.0.0.1:1", "tcp://127.0.0.1"])
def test_address_that_is_none_is_named(address):
    with pytest.raises(RequestError, match=f"No Dask scheduler can be reached at {address}"):
        gd.connect(address)


def test_each_gpu_gets_a_worker_that_sees_no_other():
    # No GPU here: what each worker would let torch see is all that can be shown.
    with connect("local", gpus=("3", "GPU-abc")) as client:
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert sorted(seen.values()) == ["3", "GPU-abc"]
        victim = next(iter(seen))
        pid = client.run(os.getpid, workers=[victim])[victim]
        os.kill(pid, signal.SIGKILL)
        while victim in (workers := client.scheduler_info()["workers"]) or len(workers) < 2:
            time.sleep(0.1)
        assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["3", "GPU-abc"]


def test_gpus_and_a_number_of_workers_contradict_each_other():
    with pytest.raises(RequestError, match="2 GPUs have a worker each"):
        connect("local", workers=3, gpus=("0", "1"))
    with connect("local", workers=2, gpus=("0", "1")) as client:
        assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["0", "1"]


def test_gpus_are_of_this_machine():
    with pytest.raises(RequestError, match="gpus are of this machine, and the cluster is slurm"):
        connect("slurm", gpus=("0",))
    with pytest.raises(RequestError, match="gpu_id is of this machine, and the cluster is slurm"):
        local_gpus(read_cluster_config({"cluster": "slurm"}), "auto", 0)
    assert local_gpus(read_cluster_config({"cluster": "slurm"}), "gpu") == ()


@pytest.mark.skipif(bool(visible_gpus()), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(DeviceError, match="cluster is cuda, and torch sees no GPU here"):
        connect("cuda")
    with pytest.raises(DeviceError, match="cluster cuda and the processor type cpu"):
        local_gpus(read_cluster_config({"cluster": "cuda"}), "cpu")


@pytest.mark.skipif(bool(importlib.util.find_spec("dask_cuda")), reason="dask-cuda is installed")
def test_cuda_without_dask_cuda_is_a_local_worker_for_each_gpu():
    # No GPU here: what each worker would let torch see is all that can be shown.
    with connect("cuda", gpus=("5",)) as client:
        assert list(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["5"]
        assert list(client.nthreads().values()) == [GPU_WORKER_THREADS]


def test_cuda_with_dask_cuda_is_called_for_a_worker_for_each_gpu(monkeypatch):
    # A stand-in, for dask-cuda itself needs a GPU; it is told the same, and is a real cluster.
    told = {}

    class LocalCUDACluster(LocalCluster):
        def __init__(self, CUDA_VISIBLE_DEVICES, **options):
            told.update(options, CUDA_VISIBLE_DEVICES=CUDA_VISIBLE_DEVICES)
            super().__init__(n_workers=len(CUDA_VISIBLE_DEVICES), **options)

    module = types.ModuleType("dask_cuda")
    module.LocalCUDACluster = LocalCUDACluster
    module.__spec__ = importlib.machinery.ModuleSpec("dask_cuda", None)
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    with connect("cuda", gpus=("3", "GPU-abc")) as client:
        assert len(client.nthreads()) == 2
        assert all(client.run(interrupt_is_ignored).values())
        cluster = client.cluster
    assert cluster.status.name == "closed"
    assert told == {
        "CUDA_VISIBLE_DEVICES": ["3", "GPU-abc"], "threads_per_worker": GPU_WORKER_THREADS,
        "dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": HAS_BOKEH},
    }  # fmt: skip
