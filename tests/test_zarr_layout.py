"""The layouts of a store: format 2, which GDAL of this environment opens too, and blocks that are shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
import zarr
from click.testing import CliRunner
from conftest import TRANSFORM, parts_in
from hypothesis import given
from hypothesis import strategies as st
from test_resume import files_in, stop_after
from test_zarr_store import BLOCK, TABLE, change_raster, classes, client, stored  # noqa: F401

from geodl_dask import zarr_store
from geodl_dask.classes import ClassTable
from geodl_dask.cli import cli
from geodl_dask.errors import OutputError, OutputExistsError
from geodl_dask.rasters import open_raster
from geodl_dask.tiling import Window
from geodl_dask.zarr_store import ZarrBlocks, chunk_of, write_zarr

SHAPE, BLOCKS = (37, 53), 9
"""Of which the last row and column of blocks is cut."""
LAYOUTS = ("format 2", "format 3", "shards")


@pytest.fixture(params=LAYOUTS)
def options(request, monkeypatch) -> dict[str, int]:
    """What to tell the writer; its blocks of 16 x 24 pixels are shards of 8 x 8 chunks in the last layout."""
    if request.param == "shards":
        monkeypatch.setattr(zarr_store, "SHARDED_ABOVE_PX", 16)
        monkeypatch.setattr(zarr_store, "_CHUNK_PX", (2, 8))
    return {"zarr_format": 2 if request.param == "format 2" else 3}


def block_files(array: Path) -> dict[tuple[int, int], Path]:
    """The files of an array's blocks by row and column, in any layout."""
    chunks = array / "c" if (array / "c").exists() else array
    files = [path for path in chunks.rglob("*") if path.is_file() and path.name[-1].isdigit()]
    return {tuple(map(int, str(path.relative_to(chunks)).replace("/", ".").split("."))): path for path in files}


def written_of(files: dict[tuple[int, int], Path]) -> dict[tuple[int, int], tuple[int, int]]:
    """What tells whether a file was written anew."""
    return {index: (path.stat().st_ino, path.stat().st_mtime_ns) for index, path in files.items()}


def contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def interrupted(out: Path, values: np.ndarray, **options) -> dict[tuple[int, int], Path]:
    """The blocks that a run has finished before it was stopped."""
    with pytest.raises(KeyboardInterrupt):
        write_zarr(change_raster(values), out, progress=stop_after(4), **options)
    files = block_files(parts_in(out) / "store.zarr" / "change")
    assert 4 <= len(files) < BLOCKS
    return files


# In every layout


@pytest.mark.parametrize("shape", [SHAPE, (16, 24), (5, 7), (1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_layout_gives_back_every_bit_in_its_place(tmp_path, options, shape, dtype):
    values = classes(shape, dtype)
    path = write_zarr(change_raster(values), tmp_path / "change.zarr", **options).path
    assert zarr.open_group(path).metadata.zarr_format == options["zarr_format"]
    array = stored(path)
    np.testing.assert_array_equal(array.values, values)
    assert (array.dtype, array.rio.crs, array.rio.transform()) == (dtype, "EPSG:32633", TRANSFORM)
    assert array.rio.nodata == np.iinfo(dtype).max
    assert ClassTable.from_attrs(array.attrs) == TABLE
    decoded = xr.open_zarr(path)["change"].values
    np.testing.assert_array_equal(np.isnan(decoded), values == np.iinfo(dtype).max)


def test_attributes_that_are_lists_and_dicts_are_kept(tmp_path, options):
    attrs = {"rasters": ["a.tif: 3 bands", "b.tif"], "raster_states": {"a.tif": [1, 2], "nested": {"Ä": None}}}
    change = change_raster(classes(SHAPE)).assign_attrs(attrs)
    kept = stored(write_zarr(change, tmp_path / "change.zarr", **options).path).attrs
    assert {key: kept[key] for key in attrs} == attrs


@pytest.mark.parametrize("value", [0, 255])
def test_every_block_is_one_file_even_where_all_is_nodata(tmp_path, options, value):
    path = write_zarr(change_raster(np.full(SHAPE, value, np.uint8)), tmp_path / "change.zarr", **options).path
    assert set(block_files(path / "change")) == {(row, col) for row in range(3) for col in range(3)}
    blocks = ZarrBlocks(str(path / "change"), BLOCK, options["zarr_format"])
    assert (blocks.is_done((2, 2)), blocks.is_done((3, 0)), blocks.is_done((0, 3))) == (True, False, False)
    assert blocks.read_block((2, 2)).shape == (5, 5)


def test_run_that_is_gone_on_with_writes_only_what_is_missing(tmp_path, options):
    values, out = classes(SHAPE), tmp_path / "change.zarr"
    before = written_of(interrupted(out, values, **options))
    write_zarr(change_raster(values), out, resume=True, **options)
    after = written_of(block_files(out / "change"))
    assert {index: after[index] for index in before} == before
    undisturbed = write_zarr(change_raster(values), tmp_path / "undisturbed.zarr", **options)
    assert contents(out) == contents(undisturbed.path)


@pytest.mark.parametrize("left", [0, 1, 0.5, 0.9])
@pytest.mark.parametrize("index", [(0, 0), (0, 2), (1, 1)])
def test_broken_block_is_written_again(tmp_path, options, left, index):
    """Also one that the raster's edge cuts, which Zarr does not write as a whole."""
    values, out = classes(SHAPE), tmp_path / "change.zarr"
    files = interrupted(out, values, **options)
    broken = files.get(index) or next(iter(files.values()))
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(len(whole) * left) if left != 1 else 1])
    write_zarr(change_raster(values), out, resume=True, **options)
    np.testing.assert_array_equal(stored(out).values, values)


def test_block_that_is_written_twice_is_whole(tmp_path, options):
    values = classes(SHAPE)
    path = write_zarr(change_raster(values), tmp_path / "change.zarr", **options).path
    before, blocks = contents(path), ZarrBlocks(str(path / "change"), BLOCK, options["zarr_format"])
    for index in np.ndindex(3, 3):
        blocks.write_block(index, blocks.read_block(index))
    assert contents(path) == before


def test_store_can_be_an_input(tmp_path, options):
    values = classes(SHAPE)
    path = write_zarr(change_raster(values), tmp_path / "change.zarr", **options).path
    raster = open_raster(path)
    assert (raster.grid.crs, raster.grid.transform, raster.grid.shape) == ("EPSG:32633", TRANSFORM, SHAPE)
    np.testing.assert_array_equal(raster.read(Window(0, 0, *SHAPE))[0][0], values)


# Format 2


@pytest.mark.parametrize("name", ["{}", 'ZARR:"{}":/change'])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_gdal_opens_format_2(tmp_path, name, dtype):
    values = classes(SHAPE, dtype)
    path = write_zarr(change_raster(values), tmp_path / "change.zarr", zarr_format=2).path
    with rasterio.open(name.format(path)) as dataset:
        assert (dataset.count, dataset.crs, dataset.transform) == (1, "EPSG:32633", TRANSFORM)
        assert dataset.nodata == np.iinfo(dtype).max
        np.testing.assert_array_equal(dataset.read(1), values)


@pytest.mark.parametrize("then", [2, 3])
def test_store_of_the_other_format_is_not_gone_on_with(tmp_path, then):
    values, out = classes(SHAPE), tmp_path / "change.zarr"
    interrupted(out, values, zarr_format=5 - then)
    before = files_in(tmp_path)  # to which a block may be added that was under way
    with pytest.raises(OutputExistsError, match=f"zarr_format was {5 - then}, is {then}"):
        write_zarr(change_raster(values), out, resume=True, zarr_format=then)
    after = files_in(tmp_path)
    assert {path: after[path] for path in before} == before
    assert (parts_in(out) / "store.zarr" / ("zarr.json" if then == 2 else ".zgroup")).exists()
    assert not (parts_in(out) / "store.zarr" / ("zarr.json" if then == 3 else ".zgroup")).exists()
    write_zarr(change_raster(values), out, overwrite=True, zarr_format=then)
    assert zarr.open_array(out / "change").metadata.zarr_format == then


def test_other_formats_are_refused_before_any_work(tmp_path):
    with pytest.raises(OutputError, match="zarr_format is 1; 2 or 3 is needed"):
        write_zarr(change_raster(classes((5, 7))), tmp_path / "change.zarr", zarr_format=1)
    assert list(tmp_path.iterdir()) == []


# Shards


def test_long_block_is_a_shard_of_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_store, "SHARDED_ABOVE_PX", 16)
    monkeypatch.setattr(zarr_store, "_CHUNK_PX", (2, 8))
    path = write_zarr(change_raster(values := classes(SHAPE)), tmp_path / "change.zarr").path
    array = zarr.open_array(path / "change")
    assert (array.shards, array.chunks) == (BLOCK, (8, 8))
    shard = (path / "change/c/0/0").read_bytes()
    (path / "change/c/0/0").write_bytes(bytes(9) + shard[9:])  # its first chunk is broken, and not asked for
    np.testing.assert_array_equal(array[8:16, 16:24], values[8:16, 16:24])


@pytest.mark.parametrize(
    ("block_yx", "chunk_yx"),
    [
        ((2048, 2048), None), ((4096, 4096), (1024, 1024)), ((3000, 4100), (1000, 820)),
        ((100, 8192), (100, 1024)), ((3001, 3001), None), ((4096, 2 * 2053), None),
    ],
)  # fmt: skip
def test_sides_of_chunks(block_yx, chunk_yx):
    assert chunk_of(block_yx) == chunk_yx


@given(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)))
def test_chunks_divide_their_shard(block_yx):
    chunk_yx = chunk_of(block_yx)
    if chunk_yx is None:
        no_divisor = any(side > 1024 and not any(side % each == 0 for each in range(128, 1025)) for side in block_yx)
        assert max(block_yx) <= 2048 or no_divisor
        return
    for side, chunk in zip(block_yx, chunk_yx, strict=True):
        assert side % chunk == 0
        assert min(side, 128) <= chunk <= 1024
        assert not any(side % each == 0 for each in range(chunk + 1, min(side, 1024) + 1))


# From the terminal


def test_format_is_chosen_on_the_command_line(tmp_path, pair, models):
    words = ["detect-change", *map(str, pair), str(tmp_path / "change.zarr"), str(models["pt"]), "--quiet"]
    assert CliRunner().invoke(cli, [*words, "--zarr-format", "2"]).exit_code == 0
    with rasterio.open(tmp_path / "change.zarr") as dataset:
        assert dataset.crs == "EPSG:32633"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--zarr-format", "3"], "--zarr-format is"), (["--pyramid"], "--pyramid is"),
        (["--pyramid", "--zarr-format", "2"], "--zarr-format and --pyramid is"),
    ],
)  # fmt: skip
def test_layout_of_a_store_is_no_option_of_a_geotiff(tmp_path, options, named):
    words = ["detect-change", "no.tif", "no.tif", str(tmp_path / "change.tif"), "no.emd"]
    result = CliRunner().invoke(cli, [*words, *options])
    assert result.exit_code == 2
    assert f"Error: {named} for Zarr stores" in result.stderr.replace("\n", " ")
