"""Rasters on another grid. The oracle is GDAL's warper on the whole raster; the property, that no window matters."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray
from affine import Affine
from conftest import TRANSFORM, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject

from geodl_dask.errors import GridMismatchError
from geodl_dask.rasters import arrays_of, open_pair, open_raster, request_grid
from geodl_dask.rasters.grids import whole_pixel_offset
from geodl_dask.rasters.overlap import shrink_factor
from geodl_dask.rasters.placing import find_move, move_raster
from geodl_dask.tiling import Window

SHAPE_YX = (610, 530)
FROM = GeoBox(SHAPE_YX, TRANSFORM, "EPSG:32633")

# Where the other raster's pixels lie: grids that cover FROM, or a part of it, and the method.
CASES = {
    "another CRS": (GeoBox((900, 700), Affine(7e-6, 0, 14.9995, 0, -4.5e-6, 48.7536), "EPSG:4326"), "bilinear"),
    "another zone": (GeoBox((700, 700), Affine(0.5, 0, 59_040, 0, -0.5, 5_417_400), "EPSG:32634"), "cubic"),
    "a fraction of a pixel": (GeoBox(SHAPE_YX, TRANSFORM @ Affine.translation(0.37, -0.61), "EPSG:32633"), "bilinear"),
    "a part, finer": (
        GeoBox((700, 500), TRANSFORM @ Affine.translation(101.3, 207.9) @ Affine.scale(0.43), "EPSG:32633"), "lanczos",
    ),
    "coarser": (GeoBox((90, 90), TRANSFORM @ Affine.translation(-9, -9) @ Affine.scale(7.3), "EPSG:32633"), "nearest"),
    "far finer": (
        GeoBox((1900, 1700), TRANSFORM @ Affine.translation(3, 5) @ Affine.scale(0.29), "EPSG:32633"), "bilinear",
    ),
    "averaged": (GeoBox((1900, 1700), TRANSFORM @ Affine.scale(0.31), "EPSG:32633"), "average"),
    "rotated": (
        GeoBox((800, 800), TRANSFORM @ Affine.translation(-60, 260) @ Affine.rotation(-33), "EPSG:32633"), "bilinear",
    ),
    "south up": (GeoBox(SHAPE_YX, Affine(0.5, 0, 500_000.1, 0, 0.5, 5_399_695.2), "EPSG:32633"), "bilinear"),
}  # fmt: skip


def picture(grid: GeoBox, dtype: str, bands: int = 2) -> np.ndarray:
    """White noise: the hardest to warp alike."""
    limits = (0, 255) if dtype == "uint8" else (-3000, 3000)
    return np.random.default_rng(5).integers(*limits, (bands, *grid.shape), endpoint=True).astype(dtype)


def with_hole(pixels: np.ndarray, nodata: float) -> np.ndarray:
    pixels = pixels.copy()
    pixels[:, 60:80, 50:90] = nodata
    pixels[:, 10, 10] = nodata
    return pixels


@pytest.fixture(scope="module", params=[*CASES])
def case(request, tmp_path_factory) -> tuple[Path, GeoBox, str]:
    grid, method = CASES[request.param]
    pixels = picture(grid, "uint8").clip(1)
    return write_raster(
        tmp_path_factory.mktemp("other") / "other.tif", with_hole(pixels, 0), crs=str(grid.crs), nodata=0,
        transform=grid.transform,
    ), grid, method  # fmt: skip


def moved(path: Path | str, method: str, grid: GeoBox = FROM):
    raster = open_raster(path)
    return move_raster(raster, find_move(raster.grid, grid, method))


def whole(grid: GeoBox) -> Window:
    return Window(0, 0, *grid.shape)


def warped_whole_by_gdal(path: Path, method: str, grid: GeoBox = FROM, **options) -> tuple[np.ndarray, np.ndarray]:
    """By the warper on the whole raster at once, and its validity."""
    source = open_raster(path).grid
    scale = [1.0 if shrink < 1.05 else 1 / shrink for shrink in shrink_factor(source, grid)]
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset, crs=str(grid.crs), transform=grid.transform, height=grid.shape.y, width=grid.shape.x,
            resampling=Resampling[method], XSCALE=scale[1], YSCALE=scale[0], **{"tolerance": 1e-9, **options},
        ) as warped,
    ):  # fmt: skip
        return warped.read(), warped.read_masks().all(axis=0)


def test_warped_raster_is_gdals_of_the_whole_within_one_count(case):
    path, _, method = case
    pixels, valid = moved(path, method).read(whole(FROM))
    expected, is_there = warped_whole_by_gdal(path, method)
    assert is_there.mean() > 0.05
    # Where an edge of the source falls on a pixel's centre, a thousandth of a pixel decides.
    assert (valid != is_there).mean() < 1e-3
    both = valid & is_there
    difference = np.abs(pixels.astype(int) - expected)[:, both]
    if method == "nearest":  # the pixel whose edge it is may be the next one
        assert (difference > 0).mean() < 1e-3
    else:
        assert (difference > 1).mean() < 1e-5, difference.max()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("nodata", [127, None])
def test_every_type_is_warped_as_gdal_does(tmp_path, dtype, nodata):
    grid, method = CASES["another CRS"]
    pixels = picture(grid, "uint8" if dtype == "uint8" else "int16").clip(0, 120).astype(dtype)
    pixels = pixels if nodata is None else with_hole(pixels, nodata)
    path = write_raster(tmp_path / "other.tif", pixels, crs=str(grid.crs), nodata=nodata, transform=grid.transform)
    made, valid = moved(path, method).read(whole(FROM))
    expected, is_there = warped_whole_by_gdal(path, method, nodata=nodata, add_alpha=nodata is None)
    assert (str(made.dtype), made.dtype) == (dtype, np.dtype(dtype))
    both = valid & (is_there if nodata is not None else expected[-1] > 0)
    difference = np.abs(made.astype(float) - expected[: len(made)].astype(float))[:, both]
    assert both.mean() > 0.9
    assert difference.max() <= (1 if np.dtype(dtype).kind != "f" else 120 * 4e-3)


def test_gdalwarps_own_tolerance_is_within_one_count_on_a_smooth_picture(tmp_path):
    """gdalwarp's default is content with an eighth of a pixel."""
    grid, method = CASES["another CRS"]
    y, x = np.mgrid[: grid.shape.y, : grid.shape.x]
    smooth = (127 + 60 * np.sin(x / 23) + 60 * np.cos(y / 17))[None].round().astype(np.uint8)
    path = write_raster(tmp_path / "smooth.tif", smooth, crs=str(grid.crs), transform=grid.transform)
    made, valid = moved(path, method).read(whole(FROM))
    expected = np.zeros((1, *FROM.shape), np.uint8)
    with rasterio.open(path) as dataset:
        reproject(
            rasterio.band(dataset, [1]), expected, dst_transform=FROM.transform, dst_crs=str(FROM.crs),
            resampling=Resampling[method],
        )  # fmt: skip
    assert np.abs(made.astype(int) - expected)[:, valid].max() <= 1


@lru_cache(maxsize=1)
def read_whole(path: Path, method: str) -> tuple[np.ndarray, np.ndarray]:
    return moved(path, method).read(whole(FROM))


@settings(max_examples=60)
@given(data=st.data())
def test_no_window_matters(case, data):
    path, _, method = case
    raster = moved(path, method)
    pixels, valid = read_whole(path, method)
    top, left = (data.draw(st.integers(0, length - 1)) for length in SHAPE_YX)
    height, width = (data.draw(st.integers(1, length - at)) for length, at in zip(SHAPE_YX, (top, left), strict=True))
    part = raster.read(Window(top, left, height, width))
    np.testing.assert_array_equal(part[0], pixels[:, top : top + height, left : left + width])
    np.testing.assert_array_equal(part[1], valid[top : top + height, left : left + width])


@pytest.mark.parametrize("chunks", [{"y": 100, "x": 170}, {"y": 1000, "x": 1000}, None])
def test_arrays_are_warped_as_files_are(case, chunks):
    path, _, method = case
    array = rioxarray.open_rasterio(path, chunks=chunks)
    by_array, by_file = moved(array, method), moved(path, method)
    blocks = ((200, 200, 210), (530,))
    for ours, theirs in zip(arrays_of(by_array, blocks), arrays_of(by_file, blocks), strict=True):
        assert ours.chunks == theirs.chunks
        np.testing.assert_array_equal(*da.compute(ours, theirs, scheduler="synchronous"))


def test_building_reads_no_pixel(tmp_path):
    grid = CASES["another CRS"][0]

    def explode(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    path = write_raster(tmp_path / "other.tif", picture(grid, "uint8"), crs=str(grid.crs), transform=grid.transform)
    array = rioxarray.open_rasterio(path, chunks=100)
    array = array.copy(data=array.data.map_blocks(explode, meta=array.data._meta))
    assert moved(array, "bilinear").pixels.shape == (2, *SHAPE_YX)


# Whole pixels.


@pytest.mark.parametrize("offset", [(0, 0), (7, -9), (-200, 300), (605, 0), (0, -525)])
@pytest.mark.parametrize("as_array", [False, True])
def test_whole_pixels_are_cut_and_filled_but_never_changed(tmp_path, offset, as_array):
    row, col = offset
    grid = GeoBox(SHAPE_YX, TRANSFORM @ Affine.translation(-col, -row), "EPSG:32633")
    pixels = picture(grid, "int16")
    path = write_raster(tmp_path / "other.tif", pixels, transform=grid.transform)
    raster = moved(rioxarray.open_rasterio(path, chunks=64) if as_array else path, "cubic")
    assert whole_pixel_offset(grid, FROM) == offset
    found, valid = da.compute(*arrays_of(raster, ((300, 310), (530,))), scheduler="synchronous")
    rows, cols = np.arange(SHAPE_YX[0]) + row, np.arange(SHAPE_YX[1]) + col
    is_there = ((rows >= 0) & (rows < SHAPE_YX[0]))[:, None] & ((cols >= 0) & (cols < SHAPE_YX[1]))
    np.testing.assert_array_equal(valid, is_there)
    expected = pixels[:, rows.clip(0, SHAPE_YX[0] - 1)][:, :, cols.clip(0, SHAPE_YX[1] - 1)]
    np.testing.assert_array_equal(found, np.where(is_there, expected, 0))


# Overviews.


def test_far_finer_raster_is_read_from_its_overview(tmp_path):
    grid = GeoBox((4880, 4240), TRANSFORM @ Affine.scale(0.125), "EPSG:32633")
    path = write_raster(tmp_path / "fine.tif", picture(grid, "uint8", 1), transform=grid.transform)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8], Resampling.average)
    coarse = write_raster(tmp_path / "coarse.tif", picture(FROM, "uint8", 1))
    stack = open_pair(coarse, path)
    assert "from overview 2" in stack.accounts[1] or "warped" not in stack.accounts[1]
    pixels, valid = stack.rasters[1].read(whole(FROM))
    with rasterio.open(path, overview_level=2) as dataset:
        np.testing.assert_array_equal(pixels, dataset.read())
    assert valid.all()
    nearest = open_pair(coarse, path, request_grid({"resampling": "nearest"}))
    assert "overview" not in nearest.accounts[1]


# What the pair says.


def test_partial_cover_is_said_with_its_share(tmp_path):
    pixels = picture(FROM, "uint8")
    before = write_raster(tmp_path / "from.tif", pixels)
    after = write_raster(tmp_path / "to.tif", pixels, transform=TRANSFORM @ Affine.translation(0, 61))
    assert "covers 90.0% of the output" in open_pair(before, after).accounts[1]
    assert "covers" not in open_pair(before, before).accounts[1]


def test_rasters_that_do_not_overlap_are_refused_with_both_bounds(tmp_path):
    pixels = picture(FROM, "uint8")
    before = write_raster(tmp_path / "from.tif", pixels)
    after = write_raster(tmp_path / "to.tif", pixels, transform=TRANSFORM @ Affine.translation(530, 0))
    with pytest.raises(GridMismatchError, match="does not overlap") as raised:
        open_pair(before, after)
    assert "500000, 5399695, 500265, 5400000" in str(raised.value)
    assert "500265, 5399695, 500530, 5400000" in str(raised.value)
