"""Zarr stores that xarray opens whole: pixels, place on the map, classes, and one chunk on disk per block."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
import zarr
from affine import Affine
from conftest import TRANSFORM
from distributed import Client, LocalCluster
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geodl_dask import dispatch, reputation
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.errors import BlockFailedError, OutputError, OutputExistsError
from geodl_dask.zarr_store import ZarrBlocks, write_zarr

TABLE = ClassTable((ModelClass(0, "No change", (230, 230, 230)), ModelClass(7, "Änderung", (200, 30, 30))))
BLOCK = (16, 24)
RESULT = ["change.zarr", "change.zarr.manifest.json", "change.zarr.stac.json"]


@pytest.fixture(autouse=True, scope="module")
def client() -> Iterator[Client]:
    """One client for all, in this process, for to start one takes longer than most tests."""
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as client:
        yield client


def classes(shape: tuple[int, int], dtype=np.uint8, seed: int = 4) -> np.ndarray:
    values = np.array([0, 7, np.iinfo(dtype).max], dtype)
    return np.random.default_rng(seed).choice(values, shape)


def change_raster(values, *, chunks=BLOCK, crs="EPSG:32633", transform=TRANSFORM) -> xr.DataArray:
    """As `detect_change` gives it: lazy, blocks that need no other, labelled."""
    grid, lengths = GeoBox(values.shape, transform, crs), da.core.normalize_chunks(chunks, values.shape)

    def compute(block_id):
        at = (sum(each[:number]) for each, number in zip(lengths, block_id, strict=True))
        return values[tuple(slice(o, o + each[n]) for o, each, n in zip(at, lengths, block_id, strict=True))]

    data = da.map_blocks(compute, chunks=lengths, dtype=values.dtype, meta=np.empty((0, 0), values.dtype))
    attrs = {
        "_FillValue": int(np.iinfo(values.dtype).max), **TABLE.to_attrs(), "model": "toy.emd", "tile_size": [16, 16],
        "padding": 4,
    }  # fmt: skip
    return xr.DataArray(data, dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")), name="change", attrs=attrs)


def stored(path: Path) -> xr.DataArray:
    return xr.open_zarr(path, mask_and_scale=False)["change"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def chunk_files(path: Path) -> set[tuple[int, ...]]:
    chunks = path / "change" / "c"
    return {tuple(map(int, file.relative_to(chunks).parts)) for file in chunks.rglob("*") if file.is_file()}


@pytest.mark.parametrize("shape", [(37, 53), (16, 24), (48, 48), (5, 7), (1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_store_gives_back_every_bit_on_the_same_grid(tmp_path, shape, dtype):
    values = classes(shape, dtype)
    change = change_raster(values)
    written = write_zarr(change, tmp_path / "change.zarr")
    array = stored(written.path)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.values, values)
    assert array.odc.geobox == change.odc.geobox
    assert (array.rio.crs, array.rio.transform()) == ("EPSG:32633", TRANSFORM)
    assert written.path == tmp_path / "change.zarr"
    assert written.pixels == {value: count for value, count in _counts(values).items() if count}
    assert names(tmp_path) == RESULT


def _counts(values: np.ndarray) -> dict[int, int]:
    return {int(value): int((values == value).sum()) for value in (0, 7, np.iinfo(values.dtype).max)}


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:2263", "+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80"])
@pytest.mark.parametrize("transform", [Affine(0.01, 0, 10, 0, -0.01, 50), Affine(0.01, 0.002, 10, 0.001, -0.01, 50)])
def test_any_crs_and_rotated_grids_are_kept(tmp_path, crs, transform):
    change = change_raster(classes((20, 30)), crs=crs, transform=transform)
    array = stored(write_zarr(change, tmp_path / "change.zarr").path)
    assert array.odc.crs == change.odc.crs
    assert array.odc.geobox.transform.almost_equals(transform)


def test_store_says_what_its_values_mean(tmp_path):
    path = write_zarr(change_raster(classes((37, 53))), tmp_path / "change.zarr").path
    attrs = stored(path).attrs
    assert ClassTable.from_attrs(attrs) == TABLE
    assert (attrs["_FillValue"], attrs["model"], attrs["padding"], list(attrs["tile_size"])) == (
        255,
        "toy.emd",
        4,
        [16, 16],
    )
    assert zarr.open_array(path / "change", mode="r").fill_value == 255
    assert attrs["_CRS"]["wkt"].startswith("PROJCRS")
    assert zarr.open_array(path / "change", mode="r").attrs["grid_mapping"] == "spatial_ref"


@pytest.mark.parametrize("read", [xr.open_zarr, lambda path: xr.open_dataset(path, engine="zarr")])
def test_decoding_turns_nodata_and_only_nodata_into_nan(tmp_path, read):
    values = classes((37, 53))
    array = read(write_zarr(change_raster(values), tmp_path / "change.zarr").path)["change"]
    np.testing.assert_array_equal(array.values, np.where(values == 255, np.nan, values.astype(np.float32)))
    assert (array.rio.crs, array.rio.encoded_nodata) == ("EPSG:32633", 255)


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("shape", [(37, 53), (16, 72)])
def test_every_block_is_one_chunk_on_disk_even_where_all_is_nodata(tmp_path, value, shape):
    path = write_zarr(change_raster(np.full(shape, value, np.uint8)), tmp_path / "change.zarr").path
    rows, cols = math.ceil(shape[0] / BLOCK[0]), math.ceil(shape[1] / BLOCK[1])
    assert chunk_files(path) == {(row, col) for row in range(rows) for col in range(cols)}
    assert zarr.open_array(path / "change", mode="r").chunks == BLOCK
    blocks = ZarrBlocks(str(path / "change"), BLOCK)
    assert blocks.is_done((rows - 1, cols - 1))
    assert not blocks.is_done((rows, 0))
    assert not blocks.is_done((0, cols))


def test_blocks_of_uneven_chunks_are_made_even(tmp_path):
    values = classes((37, 53))
    path = write_zarr(change_raster(values, chunks=((4, 20, 13), (53,))), tmp_path / "change.zarr").path
    np.testing.assert_array_equal(stored(path).values, values)
    assert chunk_files(path) == {(0, 0), (1, 0)}


@pytest.mark.parametrize("chunks", [(8, 8), (16, 24), (37, 53)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_second_result_of_a_process_under_one_name_is_the_second(tmp_path, chunks, dtype):
    write_zarr(change_raster(classes((37, 53), seed=1)), tmp_path / "change.zarr")
    values = classes((45, 33), dtype, seed=2)
    write_zarr(change_raster(values, chunks=chunks), tmp_path / "change.zarr", overwrite=True)
    np.testing.assert_array_equal(stored(tmp_path / "change.zarr").values, values)


def test_computed_raster_can_be_written(tmp_path):
    values = classes((37, 53))
    change = change_raster(values).compute(scheduler="synchronous")
    np.testing.assert_array_equal(stored(write_zarr(change, tmp_path / "change.zarr").path).values, values)


def test_worker_processes_write_the_same_store(tmp_path):
    values = classes((37, 53))
    write_zarr(change_raster(values), tmp_path / "here.zarr")
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
        write_zarr(change_raster(values), tmp_path / "there.zarr")
    files = [
        {file.relative_to(store): file.read_bytes() for file in store.rglob("*") if file.is_file()}
        for store in (tmp_path / "here.zarr", tmp_path / "there.zarr")
    ]
    assert files[0] == files[1]


def test_metadata_are_consolidated(tmp_path):
    path = write_zarr(change_raster(classes((5, 7))), tmp_path / "change.zarr").path
    consolidated = json.loads((path / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    assert set(consolidated) == {"change", "spatial_ref", "x", "y"}


def fail_at_the_end(block: np.ndarray, block_id: tuple[int, int] = (0, 0)) -> np.ndarray:
    if block_id == (2, 2):
        raise ValueError("out of tune")
    return block


def failing(values: np.ndarray) -> xr.DataArray:
    change = change_raster(values)
    return change.copy(data=change.data.map_blocks(fail_at_the_end, dtype=values.dtype))


def test_failed_run_leaves_the_old_store_and_its_own_parts(tmp_path):
    values = classes((37, 53))
    write_zarr(change_raster(values), tmp_path / "change.zarr")
    with pytest.raises(BlockFailedError, match="At row 32, column 48: ValueError: out of tune"):
        write_zarr(failing(values), tmp_path / "change.zarr", overwrite=True)
    assert names(tmp_path) == sorted([*RESULT, "change.zarr.partial"])
    np.testing.assert_array_equal(stored(tmp_path / "change.zarr").values, values)


def test_block_that_is_late_does_not_bring_a_failed_run_back(tmp_path, monkeypatch):
    monkeypatch.setattr(reputation, "TRIES", 1)
    monkeypatch.setattr(dispatch, "HOPELESS", 1)  # or the others would be finished first
    values, ended = classes((37, 53)), tmp_path / "ended"
    (tmp_path / "results").mkdir()

    def late(block, block_id):
        if block_id == (0, 0):
            time.sleep(0.1)
            raise ValueError("at once")
        until = time.monotonic() + 60
        while not ended.exists() and time.monotonic() < until:
            time.sleep(0.02)
        return block

    change = change_raster(values)
    late_blocks = change.data.map_blocks(late, dtype=values.dtype, meta=np.empty((0, 0), values.dtype))
    change = change.copy(data=late_blocks)
    with Client(processes=False, n_workers=1, threads_per_worker=4, dashboard_address="127.0.0.1:0"):
        with pytest.raises(BlockFailedError, match="at once"):
            write_zarr(change, tmp_path / "results" / "change.zarr")
        ended.touch()
        time.sleep(0.8)
        assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_block_that_is_written_while_its_run_ends_does_not_bring_that_back(zarr_format, tmp_path, monkeypatch):
    """Zarr would make the folders anew."""
    values, opened = classes((5, 7)), zarr.open_array
    whole = write_zarr(change_raster(values), tmp_path / "whole.zarr", zarr_format=zarr_format).path
    partial = tmp_path / "change.zarr.partial"
    shutil.copytree(whole, partial / "parts-1" / "store.zarr")

    def end_once_it_is_open(*given, **options):
        array = opened(*given, **options)
        shutil.rmtree(partial)
        return array

    monkeypatch.setattr(zarr, "open_array", end_once_it_is_open)
    blocks = ZarrBlocks(str(partial / "parts-1" / "store.zarr" / "change"), values.shape, zarr_format)
    with pytest.raises(FileNotFoundError, match="no longer there"):
        blocks.write_block((0, 0), values)
    assert not partial.exists()
    assert tmp_path.exists()


def test_standing_store_is_kept_unless_overwriting(tmp_path):
    first, second = classes((5, 7), seed=1), classes((5, 7), seed=2)
    write_zarr(change_raster(first), tmp_path / "change.zarr")
    with pytest.raises(OutputExistsError):
        write_zarr(change_raster(second), tmp_path / "change.zarr")
    np.testing.assert_array_equal(stored(tmp_path / "change.zarr").values, first)
    write_zarr(change_raster(second), tmp_path / "change.zarr", overwrite=True)
    np.testing.assert_array_equal(stored(tmp_path / "change.zarr").values, second)


@pytest.mark.parametrize("drop", [["spatial_ref"], ["y", "x", "spatial_ref"]])
def test_raster_without_a_place_on_the_map_is_refused_before_any_work(tmp_path, drop):
    change = change_raster(classes((5, 7)))
    for name in ("y", "x"):
        del change[name].attrs["crs"]
    with pytest.raises(OutputError, match="cannot be placed on a map"):
        write_zarr(change.drop_vars(drop), tmp_path / "change.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "turn", [lambda change: change.T, lambda change: change.expand_dims("band"), lambda change: change.rename(y="lat")]
)
def test_other_dimensions_are_refused_before_any_work(tmp_path, turn):
    with pytest.raises(OutputError, match=r"has dimensions .*; \('y', 'x'\) are needed"):
        write_zarr(turn(change_raster(classes((5, 7)))), tmp_path / "change.zarr")
    assert list(tmp_path.iterdir()) == []


def test_input_is_not_overwritten(tmp_path):
    mine = tmp_path / "change.zarr"
    write_zarr(change_raster(classes((5, 7))), mine)
    with pytest.raises(OutputExistsError, match="is one of the inputs"):
        write_zarr(change_raster(classes((5, 7))).assign_attrs(from_raster=str(mine)), mine, overwrite=True)


def test_second_run_to_one_output_is_refused_and_the_first_one_whole(tmp_path):
    out, refused = tmp_path / "change.zarr", []

    def run_again(done_px, all_px):
        with pytest.raises(OutputExistsError, match="Another run") as error:
            write_zarr(change_raster(classes((33, 57), seed=5)), out, overwrite=True)
        refused.append(error)

    write_zarr(change_raster(values := classes((33, 57)), chunks=16), out, overwrite=True, progress=run_again)
    assert len(refused) > 1
    np.testing.assert_array_equal(stored(out), values)
