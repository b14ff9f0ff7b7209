"""How much a model is given at once: joined tiles, short memory, precision."""

import logging
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from conftest import CLASSES, write_definition, write_raster
from torch import nn

import geodl_dask as gd
from geodl_dask import kernel
from geodl_dask.allocator import is_memory_shortage
from geodl_dask.errors import (
    InferenceError,
    MemoryShortageError,
    ModelArgumentError,
    ModelFileError,
    RasterReadError,
    TileGeometryError,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
TILE_PX, PADDING = 32, 8
SHAPE_YX = (203, 310)


class Counting(nn.Module):
    """Two convolutions of whole numbers, so that no order of addition rounds: scores are equal to the last bit."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 3, 5, padding=2, bias=False)
        generator = torch.Generator().manual_seed(4)
        for weight in self.parameters():
            weight.data = torch.randint(-2, 3, weight.shape, generator=generator).float()

    def forward(self, stack):
        return self.second(torch.relu(self.first(stack)))


class Normalising(nn.Module):
    """Not local: looks at the whole tile."""

    def forward(self, stack):
        return (stack - stack.mean(dim=(2, 3), keepdim=True))[:, :3]


class Thirds(nn.Module):
    """Pools by a step that does not divide the stride, which is not seen where pixels are all alike."""

    def forward(self, stack):
        pooled = nn.functional.max_pool2d(nn.functional.pad(stack, (0, 2, 0, 2)), 3)
        return nn.functional.interpolate(pooled, scale_factor=3)[:, :3, : stack.shape[2], : stack.shape[3]]


@pytest.fixture(scope="module")
def rasters(tmp_path_factory) -> tuple[Path, Path]:
    """Two images with a hole."""
    folder, rng = tmp_path_factory.mktemp("rasters"), np.random.default_rng(2)
    paths = []
    for name in ("from", "to"):
        image = rng.integers(1, 256, (3, *SHAPE_YX), dtype=np.uint8)
        image[:, 40:90, 50:140] = 0
        paths.append(write_raster(folder / f"{name}.tif", image, nodata=0))
    return paths[0], paths[1]


@pytest.fixture
def model(tmp_path):
    """model(network) -> path of its definition."""

    def write(network, suffix="pt", **keys):
        example = torch.rand(1, 6, TILE_PX, TILE_PX)
        path = tmp_path / f"network.{suffix}"
        if suffix == "pt":
            torch.jit.trace(network.eval(), example).save(path)
        else:
            dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
            program = torch.export.export(
                network.eval(), (torch.rand(2, 6, 2 * TILE_PX, TILE_PX),), dynamic_shapes=(dims,)
            )
            torch.export.save(program, path)
        classes = [*CLASSES, {"Value": 9, "Name": "Other", "Color": [0, 0, 255]}]
        size = {"ImageHeight": TILE_PX, "ImageWidth": TILE_PX, "Padding": PADDING, "ModelFile": path.name}
        return write_definition(
            tmp_path / "model.emd", **{**size, "Classes": classes, "GeodlDask": {"output": "logits"}, **keys}
        )

    yield write
    kernel._load.cache_clear()


@pytest.fixture
def sizes(monkeypatch):
    """Shapes (tile, y, x) of all that runners are given."""
    seen, load = [], kernel.load_runner

    def load_watched(spec):
        runner = load(spec)
        predict = runner.predict
        runner.predict = lambda batch: seen.append(batch.valid.shape) or predict(batch)
        return runner

    monkeypatch.setattr(kernel, "load_runner", load_watched)
    kernel._load.cache_clear()
    return seen


@pytest.mark.parametrize("chunks", ["auto", 40, 16])
@pytest.mark.parametrize("masked", [False, True])
def test_joined_tiles_give_the_same_pixels(chunks, masked, rasters, model, sizes, tmp_path):
    mask = None
    if masked:
        wanted = np.zeros((1, *SHAPE_YX), np.uint8)
        wanted[:, 5:100, 100:290] = wanted[:, 180:182, 3:5] = 1
        mask = write_raster(tmp_path / "mask.tif", wanted)
    path = model(Counting())
    alone = gd.detect_change(*rasters, path, mask=mask, tile_size="model").compute(scheduler="synchronous")
    assert {each[1:] for each in sizes} == {(TILE_PX, TILE_PX)}
    sizes.clear()
    joined = gd.detect_change(*rasters, path, mask=mask, chunks=chunks).compute(scheduler="synchronous")
    assert "as one of" in joined.attrs["prediction"]
    assert (max(height for _, height, _ in sizes) > TILE_PX) == (chunks != 16)
    assert len(np.unique(alone)) == 4
    np.testing.assert_array_equal(joined, alone)


def test_joined_tiles_compute_less(rasters, model, sizes):
    path = model(Counting())
    gd.detect_change(*rasters, path, tile_size="model").compute(scheduler="synchronous")
    alone = sum(map(math.prod, sizes))
    sizes.clear()
    gd.detect_change(*rasters, path).compute(scheduler="synchronous")
    assert sum(map(math.prod, sizes)) < alone / 2.5  # of 4, less the outer halo and the hole


def test_tiles_are_joined_up_to_the_size_that_was_asked_for(rasters, model, sizes):
    gd.detect_change(*rasters, model(Counting()), tile_size=100).compute(scheduler="synchronous")
    assert max(height for _, height, _ in sizes) == 96  # 5 strides of 16 and twice the padding


def test_tiles_of_other_networks_stay_as_they_are_and_it_is_said_why(rasters, model, sizes):
    change = gd.detect_change(*rasters, model(Normalising()))
    assert change.attrs["prediction"] == (
        "tiles of 32 x 32 pixels, one by one: its scores hang on pixels more than the padding of 8 away"
    )
    change.compute(scheduler="synchronous")
    assert {each[1:] for each in sizes} == {(TILE_PX, TILE_PX)}
    with pytest.raises(
        TileGeometryError, match=r"tile_size 100 would join tiles .* change the answer of .*model.emd: its"
    ):
        gd.detect_change(*rasters, model(Normalising()), tile_size=100)


@pytest.mark.parametrize("tile_size", [31, 0, "large", True, 64.0])
def test_a_tile_size_that_is_none_is_refused(tile_size, rasters, model):
    with pytest.raises(TileGeometryError, match=r"auto, model, or a number of pixels no less than .* 32 x 32"):
        gd.detect_change(*rasters, model(Counting()), tile_size=tile_size)


def test_few_tiles_are_not_worth_a_probe(rasters, model, monkeypatch):
    monkeypatch.setattr("geodl_dask.prediction._probe", None)
    extent = gd.detect_change(*rasters, model(Counting()), tile_size="model").odc.geobox[:80, :80].extent.boundingbox
    change = gd.detect_change(*rasters, model(Counting()), extent=tuple(extent))
    account = "tiles of 32 x 32 pixels, one by one: with fewer than 128 a probe does not pay"
    assert change.attrs["prediction"] == account


def test_an_unreadable_centre_is_no_reason_to_refuse_the_run(rasters, model, tmp_path):
    with rasterio.open(rasters[0]) as dataset:
        broken = write_raster(tmp_path / "broken.tif", dataset.read(), nodata=0, compress="deflate")
    content = bytearray(broken.read_bytes())
    content[len(content) // 4 : len(content) // 4 * 3] = b"\xff" * (len(content) // 2)
    broken.write_bytes(content)
    change = gd.detect_change(broken, rasters[1], model(Counting()))
    assert "as one of" in change.attrs["prediction"]
    with pytest.raises(RasterReadError):
        change[90:110, 140:160].compute(scheduler="synchronous")


# Memory.


class Hungry:
    """A runner that has memory for some pixels at once: a fake, as nobody can lend this test a GPU that is full."""

    def __init__(self, runner, room_px):
        self._runner, self._room_px = runner, room_px
        self.refused = 0

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def predict(self, batch):
        if batch.valid.size > self._room_px:
            self.refused += 1
            raise MemoryShortageError("There is not memory enough.")
        return self._runner.predict(batch)


@pytest.mark.parametrize("tile_size", ["auto", "model"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_where_memory_is_short_less_is_asked_for_and_that_is_remembered(
    tile_size, batch_size, rasters, model, monkeypatch, caplog
):
    path, load = model(Counting()), kernel.load_runner
    expected = gd.detect_change(*rasters, path, tile_size="model").compute(scheduler="synchronous")
    hungry = []

    def load_hungry(spec):
        hungry.append(Hungry(load(spec), 3 * TILE_PX**2))
        hungry[0].batch_size = batch_size
        return hungry[0]

    monkeypatch.setattr(kernel, "load_runner", load_hungry)
    kernel._load.cache_clear()
    change = gd.detect_change(*rasters, path, tile_size=tile_size)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(change.compute(scheduler="synchronous"), expected)
    refused = hungry[0].refused
    assert refused == len(caplog.records)
    if (tile_size, batch_size) == ("model", 1):
        assert not refused
        return
    assert 1 <= refused <= 8  # halved until it fits, once for the process
    assert "It goes on with" in caplog.text
    np.testing.assert_array_equal(change.compute(scheduler="synchronous"), expected)
    assert hungry[0].refused == refused


def test_what_not_even_one_tile_has_memory_for_fails(rasters, model, monkeypatch):
    load = kernel.load_runner
    monkeypatch.setattr(kernel, "load_runner", lambda spec: Hungry(load(spec), 10))
    kernel._load.cache_clear()
    with pytest.raises(InferenceError, match="not memory enough"):
        gd.detect_change(*rasters, model(Counting())).compute(scheduler="synchronous")


def test_no_more_is_asked_for_than_a_cores_share_of_the_memory(rasters, model, sizes, monkeypatch):
    path = model(Counting())
    change = gd.detect_change(*rasters, path)
    share = kernel.Prediction(run=64, bytes_per_px=100.0)
    monkeypatch.setattr(kernel, "memory_share", lambda device: 100 * 60 * 60)
    monkeypatch.setattr("geodl_dask.change.plan_prediction", lambda *_: share)
    kernel._load.cache_clear()
    limited = gd.detect_change(*rasters, path)
    sizes.clear()
    np.testing.assert_array_equal(limited.compute(scheduler="synchronous"), change.compute(scheduler="synchronous"))
    assert TILE_PX**2 < max(map(math.prod, sizes[: len(sizes) // 2])) <= 60 * 60


LIMITED = """
import ctypes, logging, resource, sys
import numpy as np, psutil, torch
import geodl_dask as gd
torch.set_num_threads(1)
change = gd.detect_change(*sys.argv[1:4], chunks=1024)
expected = gd.detect_change(*sys.argv[1:4], chunks=1024, tile_size="model").compute(scheduler="synchronous")
ctypes.CDLL(None).malloc_trim(0)  # what the probe took and is kept
taken = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (taken + 300_000_000, resource.RLIM_INFINITY))
logging.basicConfig(level=logging.WARNING, format="%(message)s")
found = change.compute(scheduler="synchronous")
print(int((found != expected).sum()), change.attrs["prediction"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux refuses memory by RLIMIT_AS")
def test_a_real_process_without_memory_finishes_with_smaller_pieces(tmp_path, model):
    """128 bands of float32 of 1,024 x 1,024 pixels are 537 MB; the process may take 300 MB."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(6, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 3, 1))
    image = np.random.default_rng(0).integers(1, 256, (3, 1000, 900), dtype=np.uint8)
    pair = [write_raster(tmp_path / f"{name}.tif", image) for name in ("from", "to")]
    path = model(wide, ImageHeight=128, ImageWidth=128, Padding=32)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, *map(str, pair), str(path)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "There is not memory enough" in run.stderr
    assert "It goes on with" in run.stderr
    differing, account = run.stdout.split(maxsplit=1)
    assert "as one of" in account
    assert int(differing) <= 10  # of 900,000, where rounding decides


# Precision and compilation.


def test_half_precision_says_how_many_pixels_it_changes(rasters, model, caplog):
    path = model(Counting(), ImageHeight=128, ImageWidth=128)
    exact = gd.detect_change(*rasters, path).compute(scheduler="synchronous")
    with caplog.at_level(logging.WARNING):
        half = gd.detect_change(*rasters, path, precision="bfloat16")
    assert "bfloat16 gives" in caplog.text
    assert "another class than float32" in caplog.text
    said = float(caplog.text.split("gives ")[1].split("%")[0])
    differing = float((half.compute(scheduler="synchronous") != exact).mean()) * 100
    assert 0 < differing < 5
    assert 0 < said < 5  # of one tile
    assert half.attrs["precision"] == "bfloat16"
    assert "precision" not in exact.attrs


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("pt", {"precision": "int8"}, ModelArgumentError, "float32, bfloat16, float16 are possible"),
        ("onnx", {"precision": "bfloat16"}, ModelArgumentError, "for networks that torch runs natively"),
        ("onnx", {"compiled": True}, ModelArgumentError, "for networks that torch runs natively"),
        ("pt", {"compiled": True}, ModelFileError, "TorchScript, which torch cannot compile"),
    ],
)
def test_options_that_a_model_cannot_follow_are_refused(kind, options, error, message, pair, models):
    with pytest.raises(error, match=message):
        gd.detect_change(*pair, models[kind], **options)


def test_a_compiled_network_gives_the_same_classes(rasters, model, monkeypatch):
    """With torch's own tracer, but not its C++, which takes minutes: that code is another back end of torch."""
    compiled, whole = [], nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(whole(module, backend="eager")))
    path = model(Counting(), suffix="pt2")
    fast = gd.detect_change(*rasters, path, compiled=True).compute(scheduler="synchronous")
    assert len(compiled) == 1
    xr.testing.assert_equal(fast, gd.detect_change(*rasters, path).compute(scheduler="synchronous"))


def test_dull_pixels_in_the_centre_do_not_hide_what_noise_shows(model, tmp_path):
    image = np.random.default_rng(0).integers(1, 256, (3, *SHAPE_YX), dtype=np.uint8)
    image[:, 60:150, 100:220] = 120
    pair = [write_raster(tmp_path / f"{name}.tif", image) for name in ("from", "to")]
    change = gd.detect_change(*pair, model(Thirds()))
    assert "its scores hang on" in change.attrs["prediction"]


def test_real_pixels_are_probed_too(rasters, model, monkeypatch):
    seen = []
    from geodl_dask.runners import locality

    probe = locality.probe_locality
    monkeypatch.setattr(locality, "probe_locality", lambda *given: seen.extend(given[1]) or probe(*given))
    gd.detect_change(*rasters, model(Counting()))
    with rasterio.open(rasters[1]) as dataset:
        whole = dataset.read()
    noise, real = seen
    row, col = ((length - 48) // 2 for length in SHAPE_YX)
    np.testing.assert_array_equal(real[1], whole[:, row : row + 48, col : col + 48])
    assert not np.array_equal(noise[1], real[1])


def test_a_call_that_waited_while_a_neighbour_ran_out_of_memory_keeps_its_tiles(rasters, model, monkeypatch):
    path, load = model(Counting()), kernel.load_runner
    expected = gd.detect_change(*rasters, path, tile_size="model").compute(scheduler="synchronous")
    spoilt = []

    def load_wide(spec):
        runner = load(spec)
        runner.batch_size = 8
        return runner

    monkeypatch.setattr(kernel, "load_runner", load_wide)
    kernel._load.cache_clear()
    change = gd.detect_change(*rasters, path, tile_size="model")
    get = kernel.loaded_model

    def get_with_neighbour(inference):
        loaded = get(inference)

        @contextmanager
        def lane():
            loaded.room_px = TILE_PX**2  # as a neighbour leaves it, after this call was cut
            spoilt.append(True)
            yield

        loaded.runner.lane = lane
        return loaded

    monkeypatch.setattr(kernel, "loaded_model", get_with_neighbour)
    np.testing.assert_array_equal(change.compute(scheduler="synchronous"), expected)
    assert spoilt


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "std::bad_alloc", "CUDNN_STATUS_ALLOC_FAILED"])
def test_memory_is_short_in_the_words_of_every_library(words):
    assert is_memory_shortage(RuntimeError(words))
    assert is_memory_shortage(MemoryError())
    assert not is_memory_shortage(RuntimeError("The size of tensor a (4) must match"))


def test_a_network_of_fixed_batch_is_not_given_less_and_works_again_afterwards(rasters, model, monkeypatch):
    fixed = torch.export.export(Counting().eval(), (torch.rand(4, 6, TILE_PX, TILE_PX),))
    path = model(Counting())
    torch.export.save(fixed, path.with_name("network.pt2"))
    path.write_text(path.read_text().replace('network.pt"', 'network.pt2"'))
    change = gd.detect_change(*rasters, path)
    expected = change.compute(scheduler="synchronous")
    with monkeypatch.context() as short:

        def fail(*inputs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        short.setattr("geodl_dask.runners.pytorch.TorchNetwork._answer", fail)
        with pytest.raises(InferenceError, match="its batch axis is fixed"):
            change.compute(scheduler="synchronous")
    np.testing.assert_array_equal(change.compute(scheduler="synchronous"), expected)


def test_memory_that_the_decision_lacks_is_short_too(rasters, model, monkeypatch, caplog):
    change = gd.detect_change(*rasters, model(Counting()))
    expected, decide = change.compute(scheduler="synchronous"), kernel.decide

    def narrow(prediction, counts, *rest):
        if counts.size > 3000:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return decide(prediction, counts, *rest)

    monkeypatch.setattr(kernel, "decide", narrow)
    np.testing.assert_array_equal(change.compute(scheduler="synchronous"), expected)
    assert "It goes on with" in caplog.text


def test_holes_of_a_raster_of_real_numbers_are_no_reason_against_joining(model, tmp_path):
    image = np.random.default_rng(0).random((3, *SHAPE_YX), dtype=np.float32)
    image[:, 90:110, 150:160] = np.nan
    pair = [write_raster(tmp_path / f"{name}.tif", image) for name in ("from", "to")]
    assert "as one of" in gd.detect_change(*pair, model(Counting())).attrs["prediction"]


class Table(nn.Module):
    """Looks pixel values up, and takes no others."""

    def __init__(self):
        super().__init__()
        self.values = nn.Embedding(256, 3)

    def forward(self, stack):
        return self.values(stack[:, 0].long()).movedim(-1, 1)


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_a_network_that_the_probe_cannot_run_keeps_its_tiles(suffix, rasters, model):
    change = gd.detect_change(*rasters, model(Table(), suffix=suffix))
    assert "could not be probed" in change.attrs["prediction"]
    change.compute(scheduler="synchronous")


def test_blocks_do_not_depend_on_what_the_probe_finds(rasters, model, monkeypatch):
    monkeypatch.setattr("geodl_dask.prediction.JOINED_PX", 64)
    blocks = {gd.detect_change(*rasters, model(network()), chunks=100).chunks for network in (Counting, Normalising)}
    assert len(blocks) == 1
