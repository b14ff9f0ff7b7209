"""Which GPU, or the CPU, is this process's. No GPU here: torch's count of them is the one thing that is made up."""

import os

import pytest
import torch

from geodl_dask.devices import bind_gpu, choose_device, visible_gpus
from geodl_dask.errors import DeviceError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "unset later")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


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
def test_a_gpu_is_not_changed_once_torch_has_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(DeviceError, match="has taken a GPU"):
        bind_gpu(1)
