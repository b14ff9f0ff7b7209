"""The lazy change raster: built without computing, the same by every door, on any workers."""

import dask
import numpy as np
import pytest
import rioxarray
import torch
import xarray as xr
from affine import Affine
from conftest import TRANSFORM, write_definition, write_raster
from distributed import Client
from raster_functions.hosting import write_model

import geodl_dask as gd
from geodl_dask import kernel
from geodl_dask.change import _merge_thin
from geodl_dask.errors import (
    BandCountError,
    GridMismatchError,
    ModelArgumentError,
    ModelDefinitionError,
    UntrustedCodeError,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def whole_image_classes(network, pixels) -> np.ndarray:
    """One forward pass over the pair, zeros around it."""
    stack = torch.from_numpy(np.concatenate(pixels).astype(np.float32))[None]
    with torch.inference_mode():
        return np.array([0, 7])[network(stack)[0].argmax(0).numpy()]


def open_lazily(paths, chunks=20):
    return [rioxarray.open_rasterio(path, chunks={"y": chunks, "x": chunks + 7}) for path in paths]


def test_nothing_is_computed_and_no_pixel_is_read_while_building(models, pair, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("something was computed")

    monkeypatch.setattr("geodl_dask.rasters.RasterFile.read", fail)
    with dask.config.set(scheduler=fail):
        for rasters in (pair, open_lazily(pair), (pair[0], open_lazily(pair)[1])):
            tile_size = "model" if rasters is pair else "auto"  # of files, four tiles are looked at
            change = gd.detect_change(*rasters, models["pt2"], chunks=16, tile_size=tile_size)
            assert isinstance(change, xr.DataArray)
            assert dask.is_dask_collection(change)
        with pytest.raises(AssertionError, match="something was computed"):
            change.compute()


@pytest.mark.parametrize("kind", ["pt", "pt2", "onnx"])
def test_tiled_result_equals_one_forward_pass_away_from_the_border(kind, models, pair, pixels, toy_network):
    change = gd.detect_change(*pair, models[kind], chunks=24).compute()
    expected = whole_image_classes(toy_network, pixels)
    agree = (change.values == expected)[2:-2, 2:-2]
    assert agree.mean() > 0.9999  # a score may tie to the last bit
    assert set(np.unique(change)) == {0, 7}


@pytest.mark.parametrize("chunks", [8, 40, "auto"])
def test_files_arrays_and_a_mixture_give_the_same_bits(chunks, models, pair):
    by_file = gd.detect_change(*pair, models["pt2"], chunks=chunks)
    arrays = open_lazily(pair)
    in_memory = [each.compute() for each in arrays]
    for rasters in (arrays, in_memory, (pair[0], arrays[1]), (in_memory[0], pair[1])):
        xr.testing.assert_equal(gd.detect_change(*rasters, models["pt2"], chunks=chunks), by_file)


@pytest.mark.parametrize(("workers", "threads"), [(1, 4), (3, 1)])
def test_any_number_of_worker_processes_gives_the_same_bits(workers, threads, models, pair, pixels, tmp_path):
    turned = TRANSFORM @ Affine.translation(3.3, -2.7) @ Affine.rotation(2)
    moved = write_raster(tmp_path / "moved.tif", pixels[1], transform=turned)
    with Client(n_workers=workers, threads_per_worker=threads, processes=True, dashboard_address=None):
        for suffix in ("pt2", "onnx", "pt"):
            spread = gd.detect_change(*pair, models[suffix], chunks=16).compute()
            alone = gd.detect_change(*pair, models[suffix], chunks=24).compute(scheduler="synchronous")
            xr.testing.assert_equal(spread, alone)
        warped = {"resampling": "cubic", "cell_size": 0.4}
        spread = gd.detect_change(pair[0], moved, models["pt2"], chunks=16, **warped).compute()
        alone = gd.detect_change(pair[0], moved, models["pt2"], chunks=48, **warped).compute(scheduler="synchronous")
        xr.testing.assert_equal(spread, alone)


def test_batch_size_does_not_change_the_result(models, pair):
    results = [
        gd.detect_change(*pair, models["pt2"], arguments={"batch_size": size}, chunks=40).compute().values
        for size in (1, 3, 16)
    ]
    assert all(np.array_equal(results[0], each) for each in results)


def test_the_result_lies_on_the_grid_of_the_from_raster(models, pair):
    change = gd.detect_change(*pair, models["pt2"])
    expected = rioxarray.open_rasterio(pair[0])
    assert change.dims == ("y", "x")
    assert change.odc.geobox == expected.odc.geobox
    assert change.rio.crs == expected.rio.crs
    np.testing.assert_array_equal(change.x, expected.x)


def test_blocks_are_whole_strides(models, pair):
    change = gd.detect_change(*pair, models["pt2"], chunks=30)
    assert change.chunks == ((24, 24, 24, 11), (24, 24, 24, 24, 13))


def test_attributes_hold_the_class_table_and_where_the_result_is_from(models, pair):
    attrs = gd.detect_change(*pair, models["pt2"], arguments="padding 5; batch_size 2").attrs
    assert attrs["flag_values"] == [0, 7]
    assert attrs["flag_meanings"] == "No_change Change"
    assert attrs["class_names"] == ["No change", "Change"]
    assert attrs["flag_colors"] == "#e6e6e6 #c81e1e"
    assert attrs["_FillValue"] == 255
    assert (attrs["padding"], attrs["tile_size"], attrs["arguments"]) == (5, [16, 16], "padding 5;batch_size 2")
    assert attrs["from_raster"] == str(pair[0])
    assert len(attrs["model_digest"]) == 64
    assert attrs["output"] == "logits"


def test_attributes_name_what_else_is_read(models, pair):
    attrs = gd.detect_change(*pair, models["pt"], mask=pair[1], like=str(pair[0])).attrs
    assert (attrs["mask"], attrs["like"], "snap_raster" in attrs) == (str(pair[1]), str(pair[0]), False)


def test_nodata_of_either_date_is_nodata_of_the_result(models, pair, pixels, tmp_path):
    holes = np.random.default_rng(0).random((2, 1, 83, 109)) < 0.1
    rasters = [
        write_raster(tmp_path / f"{at}.tif", np.where(holes[at], 9, np.where(pixels[at] == 9, 8, pixels[at])), nodata=9)
        for at in (0, 1)
    ]
    change = gd.detect_change(*rasters, models["pt2"]).compute()
    np.testing.assert_array_equal(change == 255, holes.any(axis=(0, 1)))


def test_a_raster_smaller_than_a_tile_is_one_tile(models, pixels, tmp_path, toy_network):
    small = [image[:, :5, :3] for image in pixels]
    rasters = [write_raster(tmp_path / f"{at}.tif", small[at], tiled=False) for at in (0, 1)]
    change = gd.detect_change(*rasters, models["pt2"]).compute()
    assert change.shape == (5, 3)
    np.testing.assert_array_equal(change == 255, False)


def test_xarray_goes_on_with_the_result_and_computes_only_what_it_needs(models, pair, monkeypatch):
    from geodl_dask.rasters import RasterFile

    windows, read = [], RasterFile.read
    monkeypatch.setattr(RasterFile, "read", lambda raster, window: windows.append(window) or read(raster, window))
    change = gd.detect_change(*pair, models["pt2"], chunks=16)
    corner = (change[:10, :10] == 7).sum().compute(scheduler="synchronous")
    assert 0 <= int(corner) <= 100
    assert len(windows) == 2  # one block, two dates
    assert all((window.height, window.width) == (20, 20) for window in windows)


def test_rasters_that_do_not_fit_are_refused(models, pair, pixels, tmp_path):
    half_a_pixel = TRANSFORM @ Affine.translation(0.5, 0)
    shifted = write_raster(tmp_path / "shifted.tif", pixels[1], transform=half_a_pixel)
    with pytest.raises(GridMismatchError, match="align is strict"):
        gd.detect_change(pair[0], shifted, models["pt2"], align="strict")
    with pytest.raises(TypeError, match="no keyword 'chunk'"):
        gd.detect_change(*pair, models["pt2"], chunk=4)
    one_band = write_raster(tmp_path / "one.tif", pixels[1][:1])
    with pytest.raises(BandCountError, match=r"from_raster has 3 band\(s\) .*to_raster 1"):
        gd.detect_change(pair[0], one_band, models["pt2"])


def test_model_code_waits_for_trust_and_is_not_touched_before(pair, tmp_path):
    witness = tmp_path / "ran"
    (tmp_path / "Function.py").write_text(f"open({str(witness)!r}, 'w')\nclass Function: pass\n")
    model = write_definition(tmp_path / "model.emd", InferenceFunction="Function.py", ModelFile="none.pt")
    with pytest.raises(UntrustedCodeError, match="trust_code=True"):
        gd.detect_change(*pair, model)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"arguments": "nonsense 1"}, ModelArgumentError),
        ({"runner": "raster-function"}, ModelDefinitionError),
        ({"runner": "other"}, ModelDefinitionError),
    ],
)
def test_bad_requests_are_refused_while_building(models, pair, keywords, error):
    with pytest.raises(error):
        gd.detect_change(*pair, models["pt2"], **keywords)


@pytest.mark.parametrize(
    ("lengths", "least", "expected"),
    [
        ((8, 8, 3), 4, (8, 11)),
        ((8, 8, 4), 4, (8, 8, 4)),
        ((1, 1, 1, 1, 1), 2, (2, 3)),
        ((3,), 4, (3,)),
        ((8, 8), 0, (8, 8)),
    ],
)
def test_blocks_thinner_than_the_halo_are_merged(lengths, least, expected):
    assert _merge_thin(lengths, least) == expected


@pytest.mark.parametrize("is_native", [True, False])
def test_a_run_in_one_process_loads_the_model_once(is_native, models, pair, tmp_path, monkeypatch):
    loaded, load = [], kernel.load_runner
    monkeypatch.setattr(kernel, "load_runner", lambda spec: loaded.append(spec) or load(spec))
    kernel._load.cache_clear()
    model = models["pt2"] if is_native else write_model(tmp_path, "Recorder")
    gd.detect_change(*pair, model, trust_code=True, chunks=40).compute()
    assert len(loaded) == 1
    kernel._load.cache_clear()
