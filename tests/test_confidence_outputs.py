"""Classes and their confidence in one file or store: what readers find, and a run that goes on."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from click.testing import CliRunner
from conftest import TRANSFORM, ToyNetwork, save_network, write_definition
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.enums import ColorInterp
from rio_cogeo.cogeo import cog_validate
from test_cli import settings_of_the_command_end_with_it  # noqa: F401
from test_resume import BLOCKS, computed, part, parts_of, stop_after, write  # noqa: F401

import geodl_dask as gd
from geodl_dask import tools
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.cli import cli
from geodl_dask.confidence import plan_confidence
from geodl_dask.errors import OutputError, OutputExistsError
from geodl_dask.report import class_areas
from geodl_dask.tiff import clear_alpha

OUTPUTS = ("change.tif", "change.zarr")
HIGHEST = {"uint8": 201, "uint16": 300, "uint32": 70_000}


def table_of(dtype: str) -> ClassTable:
    return ClassTable(
        (ModelClass(0, "No change", (230, 231, 232)), ModelClass(HIGHEST[dtype], "Change", (200, 30, 31)))
    )


def result_of(shape, dtype="uint8", asked="uint8", chunks=(100, 170), seed=4) -> tuple[xr.Dataset, np.ndarray]:
    """As `detect_change` gives it, and the confidence that was encoded: NaN where there is no class."""
    rng, table = np.random.default_rng(seed), table_of(dtype)
    values = rng.choice(np.array([*table.values, table.nodata], dtype), shape)
    sure = np.where(values == table.nodata, np.nan, rng.random(shape))
    confidence = plan_confidence(asked, "scores", "logits", table, "toy.emd")
    stored = np.where(np.isnan(sure), confidence.nodata, confidence.encode(np.nan_to_num(sure))).astype(
        confidence.dtype
    )
    attrs = {"_FillValue": table.nodata, **table.to_attrs(), "model": "toy.emd", "tile_size": [16, 16], "padding": 4}
    layers = {
        "change": (("y", "x"), values, attrs),
        "confidence": (("y", "x"), stored, confidence.to_attrs()),
    }
    coords = xr_coords(GeoBox(shape, TRANSFORM, "EPSG:32633"), dims=("y", "x"))
    return xr.Dataset(layers, coords).chunk(dict(zip(("y", "x"), chunks, strict=True))), sure


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# GeoTIFF

PAIRS = [("uint8", "uint8"), ("uint8", "uint16"), ("uint16", "uint8"), ("uint32", "uint8")]


@pytest.mark.parametrize(("dtype", "asked"), PAIRS)
def test_file_is_a_valid_cog_of_two_bands_of_one_type(tmp_path, dtype, asked):
    both, sure = result_of((700, 1100), dtype, asked)
    written = gd.write_cog(both, tmp_path / "change.tif")
    assert cog_validate(written.path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(written.path) as dataset:
        assert set(dataset.dtypes) == {max(dtype, asked, key=lambda name: np.dtype(name).itemsize)}
        assert (dataset.nodata, dataset.descriptions) == (table_of(dtype).nodata, ("change", "confidence"))
        np.testing.assert_array_equal(dataset.read(1), both.change)
        stored = np.ma.filled(dataset.read(2, masked=True).astype(float), np.nan)
        scale, offset = dataset.scales[1], dataset.offsets[1]
        assert (dataset.scales[0], dataset.offsets[0]) == (1, 0)
        assert ClassTable.from_attrs(dataset.tags()) == table_of(dtype)
        assert dataset.overviews(1) == dataset.overviews(2) != []
    np.testing.assert_allclose(stored * scale + offset, sure, atol=scale / 2 + 1e-12)
    assert written.pixels == Counter(both.change.values.ravel().tolist())


@pytest.mark.parametrize(("dtype", "asked"), PAIRS)
def test_confidence_is_no_transparency_in_any_resolution_and_classes_keep_their_colours(tmp_path, dtype, asked):
    path = gd.write_cog(result_of((700, 1100), dtype, asked)[0], tmp_path / "change.tif").path
    for level in ({}, {"overview_level": 0}):
        with rasterio.open(path, **level) as dataset:
            first = ColorInterp.gray if dtype == "uint32" else ColorInterp.palette
            assert dataset.colorinterp == (first, ColorInterp.undefined)
            if first is ColorInterp.palette:
                palette = dataset.colormap(1)
                assert palette[HIGHEST[dtype]][:3] == (200, 30, 31)
                assert palette.get(table_of(dtype).nodata, (0, 0, 0))[:3] == (0, 0, 0)


@pytest.mark.parametrize("options", [{}, {"bigtiff": "yes"}, {"endianness": "big"}])
def test_only_the_word_for_transparency_changes_in_a_tiff_of_any_kind(tmp_path, options):
    path = tmp_path / "two.tif"
    profile = {
        "driver": "GTiff",
        "count": 2,
        "height": 300,
        "width": 300,
        "dtype": "uint8",
        "photometric": "minisblack",
    }
    with rasterio.open(path, "w", **profile, alpha="yes", transform=TRANSFORM, crs="EPSG:32633", **options) as dataset:
        dataset.write(pixels := np.random.default_rng(0).integers(0, 256, (2, 300, 300), np.uint8))
        dataset.build_overviews([2])
    before = path.read_bytes()
    clear_alpha(path)
    after = path.read_bytes()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 2  # a byte in each resolution
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[1] is ColorInterp.undefined
        np.testing.assert_array_equal(dataset.read(), pixels)


def test_a_float_in_a_geotiff_is_refused_before_any_work(tmp_path):
    with pytest.raises(OutputError, match=r"confidence is float32, and a GeoTIFF has one pixel type.*\.zarr or"):
        gd.write_cog(result_of((20, 30), asked="float32")[0], tmp_path / "change.tif")
    with pytest.raises(OutputError, match="classes have nodata 255 and their confidence 7"):
        both, _ = result_of((20, 30))
        both.confidence.attrs["_FillValue"] = 7
        gd.write_cog(both, tmp_path / "change.tif")
    assert names(tmp_path) == []


# Zarr


@pytest.mark.parametrize(("dtype", "asked"), [*PAIRS, ("uint8", "float32")])
def test_store_has_both_and_xarray_decodes_them(tmp_path, dtype, asked):
    both, sure = result_of((37, 53), dtype, asked, chunks=(16, 24))
    written = gd.write_zarr(both, tmp_path / "change.zarr")
    stored = xr.open_zarr(written.path, mask_and_scale=False)
    for name in ("change", "confidence"):
        assert stored[name].dtype == both[name].dtype
        np.testing.assert_array_equal(stored[name], both[name])
        assert stored[name].odc.geobox == both.odc.geobox
        assert stored[name].chunks == both[name].chunks
        assert stored[name].attrs["_CRS"]["wkt"].startswith("PROJCRS")
    decoded = xr.open_zarr(written.path).confidence
    np.testing.assert_allclose(decoded, sure, atol=0.5 * both.confidence.attrs.get("scale_factor", 0) + 1e-6)
    assert written.pixels == Counter(both.change.values.ravel().tolist())


def test_computed_result_and_one_that_was_read_can_be_written(tmp_path):
    both, _ = result_of((37, 53), asked="uint16", chunks=(16, 24))
    path = gd.write_zarr(both.compute(), tmp_path / "first.zarr").path
    again = gd.write_cog(xr.open_zarr(path, mask_and_scale=False), tmp_path / "again.tif").path
    with rasterio.open(again) as dataset:
        np.testing.assert_array_equal(dataset.read(), np.stack([both.change, both.confidence]))


# A run that ended early


def by_files(place, models, **options) -> xr.Dataset:
    return gd.detect_change(*place, models["pt"], chunks=24, **{"confidence": "uint16", **options})


def by_arrays(place, models) -> xr.Dataset:
    arrays = [xr.open_dataarray(path, engine="rasterio", chunks={}, mask_and_scale=False) for path in place]
    return by_files(arrays, models)


def read(out: Path) -> np.ndarray:
    if out.suffix == ".zarr":
        with xr.open_zarr(out, mask_and_scale=False) as store:
            return np.stack([store.change, store.confidence])
    with rasterio.open(out) as dataset:
        return dataset.read()


@pytest.fixture
def place(tmp_path, pair) -> tuple[str, str]:
    """The small pair as files of this test alone."""
    (tmp_path / "in").mkdir()
    return tuple(shutil.copy2(path, tmp_path / "in") for path in pair)


@pytest.mark.parametrize("door", [by_files, by_arrays])
@pytest.mark.parametrize("output", OUTPUTS)
def test_each_missing_block_is_computed_once_and_no_other(door, output, place, models, tmp_path, computed):  # noqa: F811
    undisturbed = write(door(place, models), tmp_path / f"undisturbed{output[6:]}")
    assert computed == dict.fromkeys(BLOCKS, 1)
    out = tmp_path / output
    with pytest.raises(KeyboardInterrupt):
        write(door(place, models), out, progress=stop_after(5))
    kept = set(parts_of(out))
    computed.clear()
    written = write(door(place, models), out, resume=True)
    assert 5 <= len(kept) < len(BLOCKS)
    assert computed == dict.fromkeys(BLOCKS - kept, 1)
    np.testing.assert_array_equal(read(out), read(undisturbed.path))
    assert (written.pixels, written.tiles) == (undisturbed.pixels, undisturbed.tiles)


@pytest.mark.parametrize("layer", ["change", "confidence"])
def test_block_of_which_one_layer_is_missing_or_broken_is_computed_again(layer, place, models, tmp_path, computed):  # noqa: F811
    undisturbed, out = write(by_files(place, models), tmp_path / "undisturbed.zarr"), tmp_path / "change.zarr"
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, progress=stop_after(5))
    kept = set(parts_of(out))
    missing, broken, *_ = sorted(kept)
    chunks = {index: Path(str(part(out, *index)).replace("/change/c/", f"/{layer}/c/")) for index in kept}
    chunks[missing].unlink()
    chunks[broken].write_bytes(b"?")
    computed.clear()
    write(by_files(place, models), out, resume=True)
    assert computed == dict.fromkeys(BLOCKS - kept | {missing, broken}, 1)
    np.testing.assert_array_equal(read(out), read(undisturbed.path))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("other", ["uint8", None])
def test_run_of_another_confidence_is_not_gone_on_with(output, other, place, models, tmp_path):
    out = tmp_path / output
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, progress=stop_after(5))
    with pytest.raises(OutputExistsError, match=f"confidence was uint16, is {other or 'nothing'}"):
        write(by_files(place, models, confidence=other), out, resume=True)
    write(by_files(place, models), out, resume=True)
    with pytest.raises(OutputExistsError, match=f"confidence was uint16, is {other or 'nothing'}"):
        write(by_files(place, models, confidence=other), out, resume=True)


# The command, the tools, the report


@pytest.mark.parametrize("verb", ["detect-change", "classify"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_command_writes_both_and_sums_up_the_classes(verb, output, place, models, tmp_path):
    asked = [*place] if verb == "detect-change" else [place[0]]
    options = ["--confidence", "uint8", "--chunks", "24"]
    out = tmp_path / output
    model = models["pt"] if verb == "detect-change" else single_model(tmp_path)
    done = CliRunner().invoke(cli, [verb, *asked, str(out), str(model), *options])
    assert done.exit_code == 0, done.output
    assert "Change" in done.stdout
    assert "109 x 83 pixels" in done.stdout
    if output.endswith(".tif"):
        assert read(out).shape == (2, 83, 109)
    else:
        assert {"change" if verb == "detect-change" else "class", "confidence"} == set(xr.open_zarr(out).data_vars)


def single_model(folder: Path) -> Path:
    save_network(ToyNetwork(bands=3), folder / "single.pt", bands=3)
    return write_definition(folder / "single.emd", ModelFile="single.pt", ExtractBands=[0, 1, 2])


def test_command_refuses_what_the_output_cannot_hold(place, models, tmp_path):
    words = ["detect-change", *place, str(tmp_path / "change.tif"), str(models["pt"]), "--confidence", "float32"]
    done = CliRunner().invoke(cli, words)
    assert (done.exit_code, names(tmp_path)) == (2, ["in"])
    assert "Write to .zarr" in done.stderr


def test_tool_keeps_it_where_esris_argument_says_so(place, models, tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "env", tools.Environment())
    out = tools.DetectChangeUsingDeepLearning(
        *place, tmp_path / "change.tif", models["pt"], "return_probability_raster True;batch_size 2"
    )
    with rasterio.open(out) as dataset:
        assert (dataset.count, dataset.descriptions[1]) == (2, "confidence")
        assert set(np.unique(dataset.read(1))) == {0, 7}
        assert dataset.read(2).min() >= 127  # of two classes the one that wins has half or more


def test_areas_are_those_of_the_classes(tmp_path):
    both, _ = result_of((37, 53))
    pixels = Counter(both.change.values.ravel().tolist())
    assert class_areas(both, pixels) == class_areas(both.change, pixels)
