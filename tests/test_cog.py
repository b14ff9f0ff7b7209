"""Cloud-Optimized GeoTIFFs that other tools read: pixels, place on the map, palette, nodata, overviews, tags."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from conftest import TRANSFORM, parts_in
from distributed import Client, LocalCluster
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.enums import ColorInterp
from rio_cogeo.cogeo import cog_validate

from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.cog import GeoTiffParts, write_cog
from geodl_dask.errors import BlockFailedError, OutputError, OutputExistsError, RunError
from geodl_dask.zarr_store import write_zarr

BLOCK = (100, 170)
RESULT = ["change.tif", "change.tif.aux.xml", "change.tif.manifest.json", "change.tif.stac.json"]
HIGHEST = {np.uint8: 201, np.uint16: 300, np.uint32: 70_000}


@pytest.fixture(autouse=True, scope="module")
def client() -> Iterator[Client]:
    """One client for all, in this process, for to start one takes longer than most tests."""
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as client:
        yield client


def table_of(dtype) -> ClassTable:
    return ClassTable(
        (ModelClass(0, "No change", (230, 231, 232)), ModelClass(HIGHEST[dtype], 'Änderung <&> "x"', (200, 30, 31)))
    )


def classes(shape: tuple[int, int], dtype=np.uint8, seed: int = 4) -> np.ndarray:
    table = table_of(dtype)
    return np.random.default_rng(seed).choice(np.array([*table.values, table.nodata], dtype), shape)


def change_raster(values, *, chunks=BLOCK, crs="EPSG:32633", transform=TRANSFORM) -> xr.DataArray:
    """As `detect_change` gives it: lazy, blocks that need no other, labelled."""
    grid, lengths = GeoBox(values.shape, transform, crs), da.core.normalize_chunks(chunks, values.shape)

    def compute(block_id):
        at = (sum(each[:number]) for each, number in zip(lengths, block_id, strict=True))
        return values[tuple(slice(o, o + each[n]) for o, each, n in zip(at, lengths, block_id, strict=True))]

    data = da.map_blocks(compute, chunks=lengths, dtype=values.dtype, meta=np.empty((0, 0), values.dtype))
    table = table_of(values.dtype.type)
    attrs = {"_FillValue": table.nodata, **table.to_attrs(), "model": "toy.emd", "tile_size": [16, 16], "padding": 4}
    return xr.DataArray(data, dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")), name="change", attrs=attrs)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def file_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1), np.uint8),
        ((1, 7), np.uint32),
        ((7, 1), np.uint8),
        ((33, 57), np.uint16),
        ((513, 511), np.uint8),
        ((700, 1100), np.uint32),
        ((700, 1100), np.uint8),
    ],
)
def test_file_is_a_valid_cog_with_every_bit_on_the_same_grid(tmp_path, shape, dtype):
    values = classes(shape, dtype)
    written = write_cog(change_raster(values), tmp_path / "change.tif")
    is_valid, errors, warnings = cog_validate(written.path, strict=True, quiet=True)
    assert (is_valid, errors, warnings) == (True, [], [])
    with rasterio.open(written.path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), values)
        assert dataset.dtypes == (np.dtype(dtype).name,)
        assert (dataset.crs, dataset.transform) == ("EPSG:32633", TRANSFORM)
        assert dataset.nodata == table_of(dtype).nodata
        assert dataset.block_shapes == [(512, 512)]
    assert sum(written.pixels.values()) == values.size
    assert written.pixels.get(HIGHEST[dtype], 0) == (values == HIGHEST[dtype]).sum()
    assert names(tmp_path) == RESULT


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:2263", "+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80 +units=m"])
@pytest.mark.parametrize("transform", [Affine(0.01, 0, 10, 0, -0.01, 50), Affine(0.01, 0.002, 10, 0.001, -0.01, 50)])
def test_any_crs_and_rotated_grids_are_kept(tmp_path, crs, transform):
    path = write_cog(change_raster(classes((20, 30)), crs=crs, transform=transform), tmp_path / "change.tif").path
    with rasterio.open(path) as dataset:
        assert dataset.crs == rasterio.crs.CRS.from_string(crs)
        assert dataset.transform.almost_equals(transform, 1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_palette_has_the_class_colours(tmp_path, dtype):
    with rasterio.open(write_cog(change_raster(classes((20, 30), dtype)), tmp_path / "change.tif").path) as dataset:
        assert dataset.colorinterp == (ColorInterp.palette,)
        palette = dataset.colormap(1)
    colors = {each.value: each.color for each in table_of(dtype).classes}
    assert {value: palette[value][:3] for value in palette if value in colors} == colors
    assert {palette[value][:3] for value in palette if value not in colors} == {(0, 0, 0)}


def test_values_of_32_bits_go_without_palette(tmp_path):
    path = write_cog(change_raster(classes((20, 30), np.uint32)), tmp_path / "change.tif").path
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp == (ColorInterp.gray,)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_overviews_have_the_most_frequent_class_and_no_other_value(tmp_path, dtype):
    """Three pixels of four make an overview's pixel; the nearest would be the fourth at times, a mean none of them."""
    of_overview = np.random.default_rng(6).choice(np.array([0, HIGHEST[dtype]], dtype), (300, 400))
    values = of_overview.repeat(4, axis=0).repeat(4, axis=1)
    rows, cols = np.mgrid[0 : values.shape[0] : 2, 0 : values.shape[1] : 2]
    rows, cols = rows + (cols // 2) % 2, cols + (cols // 4) % 2  # each of the four places in turn
    values[rows, cols] = np.where(values[rows, cols] == 0, HIGHEST[dtype], 0)
    path = write_cog(change_raster(values, chunks=700), tmp_path / "change.tif").path
    with rasterio.open(path) as dataset:
        assert dataset.overviews(1) == [2, 4]
        np.testing.assert_array_equal(dataset.read(1), values)
    with rasterio.open(path, overview_level=0) as overview:
        np.testing.assert_array_equal(overview.read(1), of_overview.repeat(2, axis=0).repeat(2, axis=1))
    with rasterio.open(path, overview_level=1) as overview:
        np.testing.assert_array_equal(overview.read(1), of_overview)


def test_tags_say_what_the_values_mean_and_where_they_come_from(tmp_path):
    change = change_raster(classes((20, 30)))
    with rasterio.open(write_cog(change, tmp_path / "change.tif").path) as dataset:
        tags, description = dataset.tags(), dataset.descriptions
    assert description == ("change",)
    assert {key: tags[key] for key in ("model", "padding", "flag_meanings")} == {
        "model": "toy.emd",
        "padding": "4",
        "flag_meanings": 'No_change Änderung_<&>_"x"',
    }
    lists = {key: json.loads(tags[key]) for key in ("flag_values", "class_names", "tile_size")}
    assert ClassTable.from_attrs({**tags, **lists}) == table_of(np.uint8)
    assert lists["tile_size"] == [16, 16]


def test_rioxarray_gives_the_class_table_back(tmp_path):
    write_cog(change_raster(classes((33, 57))), tmp_path / "change.tif")
    with rioxarray.open_rasterio(tmp_path / "change.tif") as opened:
        assert ClassTable.from_attrs(opened.attrs) == table_of(np.uint8)


@pytest.mark.parametrize("chunks", [(1, 33), (8, 8), (33, 57), ((4, 20, 9), (57,))])
def test_result_does_not_depend_on_block_size(tmp_path, chunks):
    values = classes((33, 57))
    path = write_cog(change_raster(values, chunks=chunks), tmp_path / "change.tif").path
    np.testing.assert_array_equal(read(path), values)


def test_second_result_of_a_process_under_one_name_is_the_second(tmp_path):
    write_cog(change_raster(classes((37, 53), seed=1)), tmp_path / "change.tif")
    values = classes((45, 33), np.uint16, seed=2)
    write_cog(change_raster(values, chunks=20), tmp_path / "change.tif", overwrite=True)
    np.testing.assert_array_equal(read(tmp_path / "change.tif"), values)


def test_computed_raster_can_be_written(tmp_path):
    values = classes((33, 57))
    change = change_raster(values).compute(scheduler="synchronous")
    np.testing.assert_array_equal(read(write_cog(change, tmp_path / "change.tiff").path), values)


def test_worker_processes_write_the_same_file(tmp_path):
    values = classes((33, 57))
    write_cog(change_raster(values, chunks=16), tmp_path / "here.tif")
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
        write_cog(change_raster(values, chunks=16), tmp_path / "there.tif")
    assert (tmp_path / "here.tif").read_bytes() == (tmp_path / "there.tif").read_bytes()


def fail_at_the_end(block: np.ndarray, block_id: tuple[int, int] = (0, 0)) -> np.ndarray:
    if block_id == (2, 3):
        raise ValueError("out of tune")
    return block


def test_failed_run_leaves_the_old_file_and_its_own_parts(tmp_path):
    values = classes((33, 57))
    write_cog(change_raster(values), tmp_path / "change.tif")
    change = change_raster(values, chunks=16)
    change = change.copy(data=change.data.map_blocks(fail_at_the_end, dtype=np.uint8))
    before = file_contents(tmp_path)
    with pytest.raises(BlockFailedError, match="At row 32, column 48: ValueError: out of tune"):
        write_cog(change, tmp_path / "change.tif", overwrite=True)
    assert names(tmp_path) == sorted([*RESULT, "change.tif.partial"])
    assert file_contents(tmp_path) == before
    np.testing.assert_array_equal(read(tmp_path / "change.tif"), values)


def test_failed_last_pass_leaves_the_old_file_and_its_own_parts(tmp_path):
    values = classes((33, 57))
    write_cog(change_raster(values), tmp_path / "change.tif")

    def lose_a_part(done_px, all_px):
        if done_px == all_px:
            (parts_in(tmp_path / "change.tif") / "0_0.tif").unlink()

    before = file_contents(tmp_path)
    again = change_raster(values, chunks=16)
    with pytest.raises(RunError, match=r"put together from its blocks: .*0_0\.tif"):
        write_cog(again, tmp_path / "change.tif", overwrite=True, progress=lose_a_part)
    assert names(tmp_path) == sorted([*RESULT, "change.tif.partial"])
    assert file_contents(tmp_path) == before
    write_cog(again, tmp_path / "change.tif", resume=True)  # in the old one's place, as was said
    assert names(tmp_path) == RESULT
    np.testing.assert_array_equal(read(tmp_path / "change.tif"), values)


def test_run_without_a_finished_block_leaves_nothing(tmp_path):
    def fail(block):
        raise ValueError("out of tune")

    change = change_raster(classes((33, 57)))
    change = change.copy(data=change.data.map_blocks(fail, dtype=np.uint8, meta=np.empty((0, 0), np.uint8)))
    with pytest.raises(BlockFailedError, match="out of tune") as raised:
        write_cog(change, tmp_path / "change.tif")
    assert names(tmp_path) == []
    assert not hasattr(raised.value, "__notes__")


def test_part_lies_where_its_block_lies(tmp_path):
    parts = GeoTiffParts(str(tmp_path), TRANSFORM, (20, 30))
    assert not parts.is_done((1, 2))
    parts.write_block((1, 2), classes((20, 10)))
    assert parts.is_done((1, 2))
    with rasterio.open(parts.path((1, 2))) as dataset:
        assert dataset.transform == TRANSFORM @ Affine.translation(60, 20)
        np.testing.assert_array_equal(dataset.read(1), classes((20, 10)))


def test_standing_file_is_kept_unless_overwriting(tmp_path):
    first, second = classes((5, 7), seed=1), classes((5, 7), seed=2)
    write_cog(change_raster(first), tmp_path / "change.tif")
    with pytest.raises(OutputExistsError):
        write_cog(change_raster(second), tmp_path / "change.tif")
    np.testing.assert_array_equal(read(tmp_path / "change.tif"), first)
    write_cog(change_raster(second), tmp_path / "change.tif", overwrite=True)
    np.testing.assert_array_equal(read(tmp_path / "change.tif"), second)


@pytest.mark.parametrize("drop", [["spatial_ref"], ["y", "x", "spatial_ref"]])
def test_raster_without_a_place_on_the_map_is_refused_before_any_work(tmp_path, drop):
    change = change_raster(classes((5, 7)))
    for name in ("y", "x"):
        del change[name].attrs["crs"]
    with pytest.raises(OutputError, match="cannot be placed on a map"):
        write_cog(change.drop_vars(drop), tmp_path / "change.tif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "turn", [lambda change: change.T, lambda change: change.expand_dims("band"), lambda change: change.rename(y="lat")]
)
def test_other_dimensions_are_refused_before_any_work(tmp_path, turn):
    with pytest.raises(OutputError, match=r"has dimensions .*; \('y', 'x'\) are needed"):
        write_cog(turn(change_raster(classes((5, 7)))), tmp_path / "change.tif")
    assert list(tmp_path.iterdir()) == []


def test_input_is_not_overwritten(tmp_path):
    mine = tmp_path / "change.tif"
    write_cog(change_raster(classes((5, 7))), mine)
    with pytest.raises(OutputExistsError, match="is one of the inputs"):
        write_cog(change_raster(classes((5, 7))).assign_attrs(from_raster=str(mine)), mine, overwrite=True)


def test_second_run_to_one_output_is_refused_and_the_first_one_whole(tmp_path):
    out, refused = tmp_path / "change.tif", []

    def run_again(done_px, all_px):
        with pytest.raises(OutputExistsError, match="Another run") as error:
            write_cog(change_raster(classes((33, 57), seed=5)), out, overwrite=True)
        refused.append(error)

    write_cog(change_raster(values := classes((33, 57)), chunks=16), out, overwrite=True, progress=run_again)
    assert len(refused) > 1
    np.testing.assert_array_equal(read(out), values)


ODD_ATTRS = {
    "number": np.float32(1.5), "numbers": np.arange(3), "when": np.datetime64("2026-11-21"), "raster": np.arange(2),
    "path": "a\udcffb", "nothing": None, "nested": {"a": np.uint8(1)}, "nan": float("nan"), 7: "seven",
}  # fmt: skip


@pytest.mark.parametrize("write", [write_cog, write_zarr])
def test_attributes_of_any_kind_are_no_reason_to_fail_after_the_work(tmp_path, write):
    change = change_raster(classes((33, 57))).assign_attrs(ODD_ATTRS)
    change.attrs |= {"_FillValue": np.uint8(255), "long_name": np.str_("change")}
    out = tmp_path / ("change.tif" if write is write_cog else "change.zarr")
    assert write(change, out).computed_blocks
    assert write(change, out, resume=True).computed_blocks == 0  # NaN is what it was


@pytest.mark.parametrize("nodata", [float("nan"), 1.5, True, "none", None])
def test_nodata_that_is_no_whole_number_is_refused_before_any_work(tmp_path, nodata):
    change = change_raster(classes((33, 57))).assign_attrs(_FillValue=nodata)
    with pytest.raises(OutputError, match="_FillValue is"):
        write_cog(change, tmp_path / "change.tif")
    assert names(tmp_path) == []


def test_class_table_that_is_none_is_refused_before_any_work(tmp_path):
    change = change_raster(classes((33, 57)))
    change.attrs["flag_values"] = [-1, *change.attrs["flag_values"][1:]]
    with pytest.raises(OutputError, match=r"make no class table: .* has Value -1"):
        write_cog(change, tmp_path / "change.tif")
    assert names(tmp_path) == []
