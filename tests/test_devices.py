"""Which GPU, or the CPU, is this process's. No GPU here: torch's count of them is the one thing that is made up."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from geodl_dask import devices
from geodl_dask.devices import bind_gpu, choose_device, claim_gpu, visible_gpus, worker_gpus
from geodl_dask.errors import DeviceError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "unset later")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(devices, "_bound", None)


@without_gpu
def test_without_a_gpu_the_cpu_is_taken_unless_a_gpu_is_asked_for():
    assert choose_device("auto") == "cpu"
    assert choose_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match="torch sees none"):
        choose_device("gpu")


def test_an_unknown_processor_type_is_refused():
    with pytest.raises(DeviceError, match="auto, cpu or gpu"):
        choose_device("tpu")


@without_gpu
def test_a_gpu_that_is_not_there_is_refused():
    assert visible_gpus() == ()
    with pytest.raises(DeviceError, match="GPU 0 was asked for; none is visible"):
        bind_gpu(0)


@pytest.mark.usefixtures("four_gpus")
def test_one_of_several_gpus_becomes_the_only_one_seen(monkeypatch):
    assert visible_gpus() == ("0", "1", "2", "3")
    bind_gpu(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert visible_gpus() == ("2",)


@pytest.mark.usefixtures("four_gpus")
def test_gpus_are_counted_among_those_that_the_job_was_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, GPU-abc,5,1")
    bind_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-abc"


@pytest.mark.usefixtures("four_gpus")
def test_a_number_beyond_the_last_gpu_is_refused():
    for number in (4, -1):
        with pytest.raises(DeviceError, match=f"GPU {number} was asked for; those from 0 to 3 are"):
            bind_gpu(number)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("listed", [None, "7,GPU-abc,5,1"])
def test_binding_is_repeated_changed_and_taken_back_while_torch_has_no_gpu(monkeypatch, listed):
    if listed:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    names = (listed or "0,1,2,3").split(",")
    for gpu_id in (1, 1, 3, 0):
        bind_gpu(gpu_id)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == names[gpu_id]
    bind_gpu(None)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == listed
    bind_gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7,8")  # by somebody else
    bind_gpu(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_is_not_changed_once_torch_has_one(monkeypatch):
    bind_gpu(2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    bind_gpu(2)
    for gpu_id, words in ((1, "GPU 1 was"), (None, "All GPUs were")):
        with pytest.raises(DeviceError, match=f"{words} asked for, and torch has taken GPU 2"):
            bind_gpu(gpu_id)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_is_not_chosen_once_torch_has_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    bind_gpu(None)
    with pytest.raises(DeviceError, match="has taken a GPU"):
        bind_gpu(1)


@pytest.fixture
def slow_listing(tmp_path, monkeypatch):
    """An nvidia-smi that takes its time, and a temporary folder in which nobody else holds a GPU."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nsleep 0.5\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_claimed", None)
    devices._identities.cache_clear()
    yield tmp_path
    devices._identities.cache_clear()


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("listed", ["0,1,2,3", "2"])
def test_worker_that_two_runs_get_ready_at_once_takes_one_gpu(slow_listing, listed, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(claim_gpu) for _ in range(2)]:
            done.result()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == listed[0]
    assert [lock.stem for lock in slow_listing.glob("*/*.lock")] == [listed[0]]


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("processor", "gpu_id", "workers", "gpus"),
    [
        ("auto", None, None, ("0", "1", "2", "3")),
        ("gpu", None, None, ("0", "1", "2", "3")),
        ("auto", None, 3, ("0", "1", "2")),
        ("gpu", None, 1, ("0",)),
        ("auto", 2, None, ()),
        ("auto", 2, 1, ("2",)),
        ("cpu", None, None, ()),
        ("cpu", None, 8, ()),
    ],
)
def test_gpus_are_dealt_to_the_workers(processor, gpu_id, workers, gpus):
    assert worker_gpus(processor, gpu_id=gpu_id, workers=workers) == gpus


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("gpu_id", "workers", "count"), [(None, 5, 4), (1, 2, 1)])
def test_more_workers_than_gpus_are_refused(gpu_id, workers, count):
    with pytest.raises(DeviceError, match=f"{workers} workers were asked for, .* there is {count} to use"):
        worker_gpus("auto", gpu_id=gpu_id, workers=workers)


@without_gpu
def test_without_gpus_any_number_of_workers_will_do():
    assert worker_gpus("auto", workers=8) == ()
    with pytest.raises(DeviceError, match="GPU 1 and the processor type cpu"):
        worker_gpus("cpu", gpu_id=1)
