"""Coarser levels of a store: the most frequent value of four, wherever blocks end, made again where missing."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
import zarr
import zarr_cm
from affine import Affine
from click.testing import CliRunner
from conftest import TRANSFORM, parts_in
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from test_resume import files_in
from test_zarr_layout import block_files, contents, written_of
from test_zarr_store import TABLE, change_raster, classes, client, stored  # noqa: F401

from geodl_dask import pyramid, zarr_store
from geodl_dask.blocks import stands_alone
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.cli import cli
from geodl_dask.errors import BlockFailedError, MissingDependencyError, OutputExistsError
from geodl_dask.pyramid import halved, levels_of, most_frequent_of_four
from geodl_dask.rasters import open_raster
from geodl_dask.zarr_store import write_zarr

SHAPE = 75, 107
LEVELS = {"ovr_2x": (38, 54), "ovr_4x": (19, 27), "ovr_8x": (10, 14)}
"""Of a raster of that shape, down to 16 pixels."""


@pytest.fixture(autouse=True)
def small_levels(monkeypatch):
    monkeypatch.setattr(pyramid, "COARSEST_PX", 16)


def level(path: Path, name: str) -> xr.DataArray:
    return xr.open_zarr(path, group=name, mask_and_scale=False)["change"]


def coarse_values(values: np.ndarray, factor: int) -> np.ndarray:
    """The level by that factor, of the whole raster at once."""
    return values if factor == 1 else coarse_values(most_frequent_of_four(values), factor // 2)


# The value of a pixel


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
@pytest.mark.parametrize("shape", [(2, 2), (1, 2), (2, 1), (1, 1)])
def test_value_is_one_of_the_most_frequent_of_its_window(dtype, shape):
    """In every window of five values, least and most of the type among them; where it is cut, too."""
    ends = np.iinfo(dtype)
    some = sorted({ends.min, ends.max, ends.max - 1, 0, -1 if ends.min else 1})
    windows = list(product(some, repeat=shape[0] * shape[1]))
    column = np.array(windows, dtype).reshape(-1, *shape)
    if shape[0] == 1:  # of which only the last one in a column is cut
        coarse = np.array([most_frequent_of_four(window)[0, 0] for window in column])
    else:
        coarse = most_frequent_of_four(column.reshape(-1, shape[1]))[:, 0]
    assert coarse.dtype == dtype
    for window, value in zip(windows, coarse.tolist(), strict=True):
        counts = Counter(window)
        assert counts[value] == max(counts.values()), window


@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (10, 7), (31, 31)])
def test_no_row_or_column_is_lost(shape):
    values = classes(shape)
    coarse = most_frequent_of_four(values)
    assert coarse.shape == tuple(-(-length // 2) for length in shape)
    for (row, col), value in np.ndenumerate(coarse):
        counts = Counter(values[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel().tolist())
        assert counts[int(value)] == max(counts.values())


def test_long_rasters_are_reduced_in_strips(monkeypatch):
    values = classes((31, 14))
    whole = most_frequent_of_four(values)
    monkeypatch.setattr(pyramid, "_STRIP_PX", 4)
    np.testing.assert_array_equal(most_frequent_of_four(values), whole)


# The levels


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
def test_levels_halve_until_they_are_small_and_cover_all(shape):
    grid = GeoBox(shape, TRANSFORM, "EPSG:32633")
    levels = levels_of(grid)
    assert bool(levels) == (max(shape) > pyramid.COARSEST_PX)
    for number, each in enumerate(levels, start=1):
        assert each.factor == 2**number
        assert each.grid.shape == tuple(-(-length // 2**number) for length in shape)
        assert each.grid.transform == TRANSFORM @ Affine.scale(each.factor)
        assert max(each.grid.shape) > pyramid.COARSEST_PX or each is levels[-1]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("chunks", [(16, 24), (13, 17), (75, 107), (1, 107)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_level_is_what_the_whole_raster_would_give(tmp_path, zarr_format, chunks, dtype):
    values = classes(SHAPE, dtype)
    change = change_raster(values, chunks=chunks)
    path = write_zarr(change, tmp_path / "change.zarr", zarr_format=zarr_format, pyramid=True).path
    np.testing.assert_array_equal(stored(path).values, values)
    assert {each.name: level(path, each.name).shape for each in path.glob("ovr_*")} == LEVELS
    for name, factor in zip(LEVELS, (2, 4, 8), strict=True):
        array = level(path, name)
        np.testing.assert_array_equal(array.values, coarse_values(values, factor))
        assert (array.dtype, array.rio.nodata) == (dtype, np.iinfo(dtype).max)


def test_level_of_shards_is_made_of_their_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_store, "SHARDED_ABOVE_PX", 16)
    monkeypatch.setattr(zarr_store, "_CHUNK_PX", (2, 8))
    values = classes(SHAPE)
    path = write_zarr(change_raster(values, chunks=32), tmp_path / "change.zarr", pyramid=True).path
    assert [zarr.open_array(path / name / "change").chunks for name in LEVELS] == [(8, 8)] * 3
    np.testing.assert_array_equal(level(path, "ovr_4x").values, coarse_values(values, 4))


def test_level_is_computed_block_by_block_on_its_own(tmp_path):
    """So that blocks go through the rolling window, and no task needs another's result."""
    path = write_zarr(change_raster(classes(SHAPE)), tmp_path / "change.zarr").path
    coarser = halved(str(path / "change"))
    assert stands_alone(coarser)
    assert coarser.chunks == ((16, 16, 6), (24, 24, 6))
    for chunk in block_files(path / "change").values():
        if chunk.parent.name not in ("2", "3") or chunk.name not in ("2", "3"):
            chunk.write_bytes(b"broken")
    np.testing.assert_array_equal(coarser.blocks[1, 1].compute(), most_frequent_of_four(classes(SHAPE)[32:64, 48:96]))


# What the store says of them


def test_levels_lie_on_the_map_where_the_raster_does(tmp_path):
    change = change_raster(classes(SHAPE))
    path = write_zarr(change, tmp_path / "change.zarr", pyramid=True).path
    group = json.loads((path / "zarr.json").read_text())
    zarr_cm.multiscales.validate_group_metadata(group)
    layout = group["attributes"]["multiscales"]["layout"]
    assert [each["asset"] for each in layout] == ["change", *(f"{name}/change" for name in LEVELS)]
    for factor, entry in zip((1, 2, 4, 8), layout, strict=True):
        array = xr.open_zarr(path, group=entry["asset"].rpartition("/")[0] or None, mask_and_scale=False)["change"]
        assert (array.rio.crs, array.rio.transform()) == ("EPSG:32633", TRANSFORM @ Affine.scale(factor))
        assert Affine(*entry["spatial:transform"]) == array.rio.transform()
        assert tuple(entry["spatial:shape"]) == array.shape
        zarr_cm.spatial.validate_array_metadata(json.loads((path / entry["asset"] / "zarr.json").read_text()))
        assert Affine(*array.attrs["spatial:transform"]) == array.rio.transform()


def test_store_itself_is_as_without_a_pyramid(tmp_path):
    change = change_raster(classes(SHAPE))
    plain = write_zarr(change, tmp_path / "plain.zarr")
    towering = write_zarr(change, tmp_path / "towering.zarr", pyramid=True)
    assert (towering.pixels, towering.tiles) == (plain.pixels, plain.tiles)
    xr.testing.assert_identical(stored(towering.path), stored(plain.path))
    assert list(xr.open_zarr(towering.path)) == ["change"]
    assert open_raster(towering.path).kind == "Zarr store, variable change"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_class_tables_and_metadata_are_complete(tmp_path, zarr_format):
    values = classes(SHAPE)
    values[:8, :8] = 9  # which the table does not list
    out = tmp_path / "change.zarr"
    path = write_zarr(change_raster(values), out, pyramid=True, zarr_format=zarr_format).path
    table = TABLE.with_unlisted([9])
    assert table.classes[-1] == ModelClass(9, "9 (unlisted)", (128, 128, 128))
    for name in LEVELS:
        assert ClassTable.from_attrs(level(path, name).attrs) == table
        assert ClassTable.from_attrs(level(path / name, "/").attrs) == table  # opened as a store of its own
    if zarr_format == 3:
        consolidated = json.loads((path / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    else:
        consolidated = {key.rpartition("/")[0] for key in json.loads((path / ".zmetadata").read_text())["metadata"]}
    assert {"change", *LEVELS, *(f"{name}/change" for name in LEVELS)} <= set(consolidated)


def test_small_raster_has_no_levels(tmp_path):
    path = write_zarr(change_raster(classes((16, 9))), tmp_path / "change.zarr", pyramid=True).path
    assert "multiscales" not in zarr.open_group(path).attrs
    assert list(path.glob("ovr_*")) == []


# Runs that end early


def failing_at(level_px: int):
    """A reduction that fails on every block of the level with that many rows, but the first."""

    def fail(below, block_yx, block_id):
        if zarr.open_array(below, mode="r").shape[0] == 2 * level_px and block_id != (0, 0):
            raise OSError("unplugged")
        return halve_block(below, block_yx, block_id)

    halve_block = pyramid._halve_block
    return fail


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_run_that_ended_in_the_pyramid_goes_on_there(tmp_path, monkeypatch, zarr_format):
    values, out = classes((76, 107)), tmp_path / "change.zarr"
    options = {"pyramid": True, "zarr_format": zarr_format}
    with monkeypatch.context() as patch, pytest.raises(BlockFailedError, match="unplugged") as raised:
        patch.setattr(pyramid, "_halve_block", failing_at(19))
        write_zarr(change_raster(values), out, **options)
    assert "--resume" in raised.value.__notes__[0]
    assert not out.exists()
    arrays = ("change", "ovr_2x/change", "ovr_4x/change")
    before = {array: written_of(block_files(parts_in(out) / "store.zarr" / array)) for array in arrays}
    assert [len(each) for each in before.values()] == [25, 9, 1]
    write_zarr(change_raster(values), out, resume=True, **options)
    for array, states in before.items():
        after = written_of(block_files(out / array))
        assert {index: after[index] for index in states} == states
    undisturbed = write_zarr(change_raster(values), tmp_path / "undisturbed.zarr", **options)
    assert contents(out) == contents(undisturbed.path)


def test_whole_result_is_left_as_it_is(tmp_path):
    written = write_zarr(change_raster(classes(SHAPE)), tmp_path / "change.zarr", pyramid=True)
    before = files_in(tmp_path)
    again = write_zarr(change_raster(classes(SHAPE)), tmp_path / "change.zarr", pyramid=True, resume=True)
    assert again == replace(written, computed_blocks=0)
    assert files_in(tmp_path) == before
    with pytest.raises(OutputExistsError, match="pyramid was True, is False"):
        write_zarr(change_raster(classes(SHAPE)), tmp_path / "change.zarr", resume=True)


def test_missing_library_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray_multiscale.reducers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "geodl_dask\[pyramid\]"'):
        write_zarr(change_raster(classes(SHAPE)), tmp_path / "change.zarr", pyramid=True)
    assert list(tmp_path.iterdir()) == []


def test_pyramid_is_asked_for_on_the_command_line(tmp_path, pair, models):
    words = ["detect-change", *map(str, pair), str(tmp_path / "change.zarr"), str(models["pt"]), "--quiet"]
    assert CliRunner().invoke(cli, [*words, "--pyramid"]).exit_code == 0
    assert level(tmp_path / "change.zarr", "ovr_8x").shape == (11, 14)
