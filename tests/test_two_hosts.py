"""Workers on another machine, which has neither the model nor the folder of the output. Each host is a namespace."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import write_definition, write_raster
from distributed import Client, LocalCluster
from hosts import FAR, NEAR, other_host, two_hosts, wait_until
from test_resume import OUTPUTS, parts_of, result_of, write

import geodl_dask as gd
from geodl_dask import sending
from geodl_dask.errors import BlockFailedError, ModelFileError
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import manifest_of

JOB = """
import geodl_dask as gd
with gd.connect("tcp://{near}:8786"):
    pair = "{place}/in/from.tif", "{place}/in/to.tif"
    gd.write_zarr(gd.detect_change(*pair, "{place}/model/toy_pt.emd", chunks=24), "{out}")
"""
FUNCTION = """
import json
from pathlib import Path
import numpy as np
from beside import VALUE

class Function:
    def __init__(self):
        self.limit = json.loads((Path(__file__).parent / "limit.json").read_text())

    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [{"name": name, "dataType": "raster", "required": True, "displayName": name, "description": ""}
                for name in ("raster",)]

    def getConfiguration(self, **scalars):
        return {"extractBands": (0, 1, 2, 3, 4, 5), "padding": 0, "tx": 16, "ty": 16, "inputMask": False}

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"].update(bandCount=1, pixelType="u1")
        return kwargs

    def updatePixels(self, tlc, shape, props, **blocks):
        pixels = blocks["raster_pixels"].astype(int)
        is_change = abs(pixels[:3] - pixels[3:]).sum(0) > self.limit
        blocks["output_pixels"] = np.where(is_change, VALUE, 0)[None].astype("u1")
        return blocks
"""


@pytest.fixture
def place(tmp_path, pair, models) -> Path:
    """``in`` has the rasters, ``model`` the model, ``out`` is for the result, ``far-cache`` is the far host's cache."""
    for name in ("in", "model", "out", "far-cache"):
        (tmp_path / name).mkdir()
    for path in pair:
        shutil.copy(path, tmp_path / "in")
    for path in (models["pt"], models["pt"].with_name("toy.pt")):
        shutil.copy(path, tmp_path / "model")
    return tmp_path


def change_of(place: Path, model: str = "toy_pt.emd", **options):
    pair = place / "in" / "from.tif", place / "in" / "to.tif"
    return gd.detect_change(*pair, place / "model" / model, chunks=24, **options)


@pytest.fixture
def scheduler(caplog):
    """Without workers of its own."""
    caplog.set_level("INFO", "geodl_dask")
    with (
        LocalCluster(n_workers=0, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("output", OUTPUTS)
def test_workers_that_have_neither_model_nor_output_do_the_same(output, place, scheduler, caplog):
    """Two worker processes of one node: the model is sent there once."""
    expected = result_of(write_alone(place, output))
    with other_host("far") as far:
        far.hide(place / "model", place / "out")
        address = scheduler.scheduler.address
        with far.worker(address, nannies=2, GEODL_DASK_CACHE=str(place / "far-cache")):
            scheduler.wait_for_workers(2, timeout=180)
            written = write(change_of(place), place / "out" / output)
    assert written.computed_blocks == 20
    assert result_of(place / "out" / output) == expected
    assert caplog.text.count("The workers on far do not see the folder of the output") == 1
    assert caplog.text.count("have no files of the model") == caplog.text.count("1 workers have no files") == 1
    (kept,) = (place / "far-cache" / "models").glob("*/content")
    assert [path.name for path in kept.iterdir()] == ["toy.pt"]
    assert not list((place / "out").glob("*.seen"))


def write_alone(place: Path, output: str) -> Path:
    """The result of this process."""
    (place / "alone").mkdir(exist_ok=True)
    with (
        Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0", set_as_default=False) as client,
        client.as_current(),
    ):
        write(change_of(place), place / "alone" / output)
    return place / "alone" / output


def test_model_that_is_in_the_nodes_cache_is_not_sent_again_and_late_workers_get_it(
    place, scheduler, caplog, monkeypatch
):
    monkeypatch.setattr(sending, "PIECE_BYTES", 1000)  # the model is several
    with other_host("far") as far:
        far.hide(place / "model")
        address, cache = scheduler.scheduler.address, str(place / "far-cache")
        with far.worker(address, GEODL_DASK_CACHE=cache):
            scheduler.wait_for_workers(1, timeout=180)
            write(change_of(place), place / "out" / "first.tif")
            assert caplog.text.count("have no files of the model") == 1
            write(change_of(place), place / "out" / "again.tif")
        assert caplog.text.count("have no files of the model") == 1
        wait_until(lambda: not scheduler.nthreads())
        shutil.rmtree(place / "far-cache")
        late = far.worker(address, GEODL_DASK_CACHE=cache)
        starter = threading.Timer(1, late.__enter__)
        starter.start()
        try:
            assert write(change_of(place), place / "out" / "late.tif").computed_blocks == 20
        finally:
            starter.join()
            late.__exit__(None, None, None)
    assert caplog.text.count("have no files of the model") == 2
    assert result_of(place / "out" / "late.tif")["pixels"] == result_of(place / "out" / "first.tif")["pixels"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_interrupted_run_goes_on_with_workers_that_do_not_see_what_is_kept(output, place, scheduler):
    expected = result_of(write_alone(place, output))

    def stop(done: int, of: int) -> None:
        if done > of // 3:
            raise KeyboardInterrupt

    with other_host("far") as far:
        far.hide(place / "out")
        with far.worker(scheduler.scheduler.address):
            scheduler.wait_for_workers(1, timeout=180)
            with pytest.raises(KeyboardInterrupt):
                write(change_of(place), place / "out" / output, progress=stop)
            kept = len(parts_of(place / "out" / output))
            assert 0 < kept < 20
            written = write(change_of(place), place / "out" / output, resume=True)
    assert written.computed_blocks == 20 - kept
    assert result_of(place / "out" / output) == expected


def test_package_with_code_reaches_workers_where_it_was_trusted(place, scheduler):
    (place / "function").mkdir()
    definition = write_definition(
        place / "function" / "function.emd", InferenceFunction="Function.py", ModelFile="weights.bin", ModelType=None
    )
    (place / "function" / "Function.py").write_text(FUNCTION)
    (place / "function" / "beside.py").write_text("VALUE = 7\n")
    (place / "function" / "limit.json").write_text("200")
    (place / "function" / "weights.bin").write_bytes(b"weights")
    shutil.make_archive(str(place / "packed"), "zip", place / "function")
    (place / "packed.zip").rename(place / "model" / "function.dlpk")
    shutil.rmtree(definition.parent)
    options = {"model": "function.dlpk", "trust_code": True}
    expected = change_of(place, **options).compute(scheduler="synchronous").values
    assert set(np.unique(expected)) == {0, 7}
    with other_host("far") as far:
        far.hide(place / "model", Path(os.environ["GEODL_DASK_CACHE"]))
        with far.worker(scheduler.scheduler.address, GEODL_DASK_CACHE=str(place / "far-cache")):
            scheduler.wait_for_workers(1, timeout=180)
            write(change_of(place, **options), place / "out" / "change.zarr")
    (kept,) = (place / "far-cache" / "models").glob("*/content")
    assert {path.name for path in kept.rglob("*.*")} >= {"Function.py", "beside.py", "limit.json", "weights.bin"}
    with xr.open_zarr(place / "out" / "change.zarr", mask_and_scale=False, chunks=None) as store:
        np.testing.assert_array_equal(store["change"].values, expected)


def test_code_stays_at_home_where_nobody_trusted_it(place):
    """A native model may lie in a folder with Python in it, which the definition names or not."""
    from geodl_dask.definition import load_definition
    from geodl_dask.model_files import copy_model

    folder = place / "model"
    (folder / "Function.py").write_text("1")
    (folder / "beside.py").write_text("1")
    write_definition(
        folder / "both.emd", ModelFile="toy.pt", InferenceFunction="Function.py", ModelFiles=["beside.py", "more.txt"]
    )
    (folder / "more.txt").write_text("1")
    definition = load_definition(folder / "both.emd")
    assert [name for name, _ in copy_model(definition, with_code=False).files] == ["more.txt", "toy.pt"]
    with_code = ["Function.py", "beside.py", "more.txt", "toy.pt"]
    assert [name for name, _ in copy_model(definition, with_code=True).files] == with_code


def test_model_that_goes_meanwhile_is_an_error_that_names_worker_and_cause(place, scheduler):
    change = change_of(place)
    (place / "model" / "toy.pt").write_bytes(b"another model")
    with scheduler.cluster.__class__(n_workers=1, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
        says = r"Worker 0 \(tcp://.*\) on .* cannot begin: The files of .* are not those that the run was planned with"
        with pytest.raises(ModelFileError, match=says):
            write(change, place / "out" / "change.tif")
    assert not list((place / "out").iterdir())


def test_raster_that_a_worker_cannot_read_is_named_with_the_machine(place, scheduler):
    with other_host("far") as far:
        far.hide(place / "in")
        with far.worker(scheduler.scheduler.address):
            scheduler.wait_for_workers(1, timeout=180)
            with pytest.raises(BlockFailedError, match=r"RasterReadError: .*from.tif.*\(on far\)"):
                write(change_of(place), place / "out" / "change.tif")


@pytest.mark.parametrize(
    ("cut_s", "timeout"),
    [
        pytest.param(5, "30s", id="for a while"),
        # Dask takes none shorter. Its workers end when their connection breaks: whoever started them starts others.
        pytest.param(16, "11s", id="until connections break"),
    ],
)
def test_job_runs_on_another_host_and_outlives_a_cut_of_the_link(place, tmp_path, cut_s, timeout):
    """Scheduler and client on one host, workers on the other, which has nothing but the rasters."""
    rng = np.random.default_rng(5)
    for name in ("from.tif", "to.tif"):
        write_raster(place / "in" / name, rng.integers(0, 256, (3, 400, 400), np.uint8))
    expected = result_of(write_alone(place, "change.zarr"))
    out, told = place / "out" / "change.zarr", tmp_path / "scheduler.json"
    scheduler = ("-m", "distributed.cli.dask_scheduler", "--host", NEAR, "--port", "8786", "--dashboard-address", ":0")
    shorter = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": timeout}
    with ExitStack() as stack:
        near, far = stack.enter_context(two_hosts())
        far.hide(place / "model", place / "out")

        def start_worker() -> None:
            cache = str(place / "far-cache")
            words = (f"tcp://{NEAR}:8786", "--host", FAR)
            stack.enter_context(far.worker(*words, GEODL_DASK_CACHE=cache, **shorter))

        stack.enter_context(near.running(*scheduler, "--scheduler-file", str(told), **shorter))
        start_worker()
        wait_until(told.exists)
        job = stack.enter_context(near.running("-c", JOB.format(place=place, out=out, near=NEAR), **shorter))
        wait_until(lambda: job.poll() is not None or len(parts_of(out)) > 3, 180)
        assert job.poll() is None, job.communicate()[0]
        far.run("ip", "link", "set", "wire", "down")
        time.sleep(3)  # what has come before the cut is written
        before = len(parts_of(out))
        time.sleep(cut_s - 3)
        assert job.poll() is None
        assert len(parts_of(out)) == before < 289
        far.run("ip", "link", "set", "wire", "up")
        if timeout == "11s":
            start_worker()
        said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert result_of(out) == expected
    assert Manifest.read(manifest_of(out)).computed_blocks == 289
