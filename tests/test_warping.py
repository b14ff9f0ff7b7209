"""What comes to another grid by warping: overviews, methods, types, and how the work is planned."""

from __future__ import annotations

import time

import dask
import dask.array as da
import numpy as np
import odc.geo.xr
import pytest
import rasterio
from affine import Affine
from conftest import TRANSFORM, write_raster
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geodl_dask.errors import GridMismatchError
from geodl_dask.rasters import RasterFile, arrays_of, open_pair, open_raster, request_grid, warping
from geodl_dask.rasters.placing import find_move, move_raster
from geodl_dask.rasters.warping import OVERVIEW_METHODS, SOURCE_BLOCK_PX, Warp
from geodl_dask.tiling import Window

GRID = GeoBox((120, 100), TRANSFORM, "EPSG:32633")
FINER = GeoBox((960, 800), TRANSFORM @ Affine.scale(0.125), "EPSG:32633")


def noise(grid: GeoBox, dtype="uint8", bands: int = 1) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (bands, *grid.shape), endpoint=True).astype(dtype)


def read(raster) -> np.ndarray:
    return raster.read(Window(0, 0, *raster.grid.shape))[0]


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    return write_raster(tmp_path_factory.mktemp("coarse") / "coarse.tif", noise(GRID), transform=GRID.transform)


@pytest.fixture(scope="module")
def fine(tmp_path_factory):
    """Eight times as fine, with overviews of which the last has the pixels of ``coarse``."""
    path = write_raster(tmp_path_factory.mktemp("fine") / "fine.tif", noise(FINER), transform=FINER.transform)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8], Resampling.average)
    return path


# Overviews.


def test_strict_refuses_a_finer_raster_whatever_its_overviews(coarse, fine):
    with pytest.raises(GridMismatchError, match="align is strict"):
        open_pair(coarse, fine, request_grid({"align": "strict"}))


def test_account_says_the_overview_that_is_read(coarse, fine):
    same_pixels = open_pair(coarse, fine)
    assert "read from overview 2" in same_pixels.accounts[1]
    assert "warped" not in same_pixels.accounts[1]
    assert "overview" not in same_pixels.accounts[0]
    warped = open_pair(coarse, fine, request_grid({"cell_size": 2.3})).accounts[1]
    assert "read from overview 2, warped to the output's grid, bilinear" in warped


@pytest.mark.parametrize("method", sorted({each.name for each in Resampling} - {"gauss", "sum"}))
def test_overviews_are_read_for_means_only(coarse, fine, method):
    account = open_pair(coarse, fine, request_grid({"resampling": method})).accounts[1]
    assert ("overview" in account) == (method in OVERVIEW_METHODS)


def test_sum_of_integers_is_refused_and_of_real_numbers_is_right(coarse, tmp_path):
    request = request_grid({"resampling": "sum"})
    pixels = np.ones((1, *FINER.shape), "float32")
    floats = write_raster(tmp_path / "floats.tif", pixels, transform=FINER.transform)
    assert np.median(read(open_pair(coarse, floats, request).rasters[1])) == 64
    integers = write_raster(tmp_path / "integers.tif", pixels.astype("uint8"), transform=FINER.transform)
    with pytest.raises(GridMismatchError, match="uint8, and resampling is sum"):
        open_pair(coarse, integers, request)


def test_shrinking_too_far_without_overviews_is_refused_before_a_pixel_is_read(coarse):
    shrink = 0.5 / 0.002
    grid = GeoBox((int(120 * shrink), int(100 * shrink)), TRANSFORM @ Affine.scale(1 / shrink), "EPSG:32633")
    huge = odc.geo.xr.wrap_xr(da.zeros(grid.shape.yx, chunks=4096, dtype="uint8"), grid)
    with pytest.raises(GridMismatchError, match=r"250 x 250 pixels \(rows x columns\) in one of the output's"):
        open_pair(coarse, huge)


# Methods.


@pytest.mark.parametrize("method", ["nearest", "bilinear", "cubic", "lanczos", "average"])
def test_raster_turned_by_a_right_angle_is_warped_as_the_one_that_is_not(tmp_path, method):
    """Its rows run south and lie 5 m apart, its columns 2 m. GDAL's scales are along the source's axes."""
    target = GeoBox((300, 280), Affine(10, 0, 500_000, 0, -10, 5_400_000), "EPSG:32633")
    upright = GeoBox((1500, 560), Affine(5, 0, 500_001, 0, -2, 5_400_001), "EPSG:32633")
    source = GeoBox((560, 1500), upright.transform @ Affine(0, 1, 0, 1, 0, 0), "EPSG:32633")
    pixels = noise(upright).clip(1)
    path = write_raster(tmp_path / "turned.tif", np.swapaxes(pixels, 1, 2), transform=source.transform, nodata=0)
    upright_path = write_raster(tmp_path / "upright.tif", pixels, transform=upright.transform, nodata=0)
    with (
        rasterio.open(upright_path) as dataset,
        WarpedVRT(
            dataset, crs=str(target.crs), transform=target.transform, height=300, width=280, tolerance=1e-9,
            resampling=Resampling[method], XSCALE=1 / 2, YSCALE=1 / 5,
        ) as warped,
    ):  # fmt: skip
        expected, is_there = warped.read(), warped.read_masks()[0] > 0
    made, valid = Warp(target, method, (2.0, 5.0)).read(open_raster(path), Window(0, 0, 300, 280))
    both = valid & is_there
    assert both.mean() > 0.95
    assert (valid != is_there).mean() < 1e-2
    assert (np.abs(made.astype(int) - expected)[:, both] > 1).mean() < 1e-3
    assert find_move(source, target, method).shrink_yx == pytest.approx((2.0, 5.0), rel=0.01)


# Types.


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_nearest_keeps_integers_of_64_bits(coarse, tmp_path, dtype):
    limits = np.iinfo(dtype)
    values = np.array([limits.min, limits.max, 2**53 + 1, limits.max - 1], dtype)
    pixels = values[noise(GRID, bands=2) % 4]
    shifted = TRANSFORM @ Affine.translation(0.3, 0.3)
    path = write_raster(tmp_path / "wide.tif", pixels, transform=shifted)
    stack = open_pair(coarse, path, request_grid({"resampling": "nearest"}), to_bands=(1,))
    made, valid = stack.rasters[1].read(Window(0, 0, *GRID.shape))
    assert made.dtype == dtype
    assert valid[2:, 2:].all()
    np.testing.assert_array_equal(made[0, 2:-2, 2:-2], pixels[0, 2:-2, 2:-2])


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_other_methods_do_not_wrap_integers_of_64_bits_round(coarse, tmp_path, dtype):
    limits = np.iinfo(dtype)
    pixels = np.where(noise(GRID) > 127, limits.max, limits.min).astype(dtype)
    path = write_raster(tmp_path / "wide.tif", pixels, transform=TRANSFORM @ Affine.translation(0.01, 0.01))
    made = read(open_pair(coarse, path, request_grid({"resampling": "cubic"})).rasters[1])
    inside = (..., slice(3, -3), slice(3, -3))
    middle = limits.max // 2 + limits.min // 2
    np.testing.assert_array_equal((made > middle)[inside], (pixels > middle)[inside])
    assert (made[inside] == limits.max).any()


# Plans.


class Counted(RasterFile):
    """Counts its reads."""

    reads = 0

    def read(self, window):
        type(self).reads += 1
        return super().read(window)


def test_a_window_is_read_once_for_pixels_and_validity(coarse, monkeypatch):
    raster = open_raster(coarse)
    counted = Counted(**vars(raster))
    monkeypatch.setattr(Counted, "reads", 0)
    pixels, valid = da.compute(*arrays_of(counted, ((60, 60), (100,))), scheduler="synchronous")
    assert Counted.reads == 2
    np.testing.assert_array_equal(pixels, read(raster))
    assert valid.all() and valid.dtype == bool


def test_arrays_of_long_blocks_are_cut_before_they_are_warped(monkeypatch):
    sides, make = set(), warping._make_stacked
    monkeypatch.setattr(warping, "_make_stacked", lambda *given: sides.update(given[4][0][0].shape[1:]) or make(*given))
    length = 2 * SOURCE_BLOCK_PX + 100
    grid = GeoBox((length, length), TRANSFORM, "EPSG:32633")
    pixels = da.from_array(noise(grid), chunks=-1)
    raster = open_raster(odc.geo.xr.wrap_xr(pixels[0], grid))
    target = GeoBox(grid.shape, TRANSFORM @ Affine.translation(0.3, 0.7), "EPSG:32633")
    moved = move_raster(raster, find_move(grid, target, "bilinear"))
    in_small = move_raster(
        open_raster(odc.geo.xr.wrap_xr(pixels[0].rechunk(300), grid)), find_move(grid, target, "bilinear")
    )
    with dask.config.set(scheduler="synchronous"):
        ours, theirs = (da.compute(each.pixels[:, :700, :], each.valid[:700]) for each in (moved, in_small))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert ours[1][:, 1:-1].all()
    assert max(sides) == SOURCE_BLOCK_PX


def test_planning_is_linear_in_the_tiles():
    """269 s where the source's graph is optimised for each of 4,096 tiles."""
    grid = GeoBox((16_384, 16_384), TRANSFORM, "EPSG:32633")
    raster = open_raster(odc.geo.xr.wrap_xr(da.zeros(grid.shape.yx, chunks=1024, dtype="uint8"), grid))
    target = GeoBox(grid.shape, TRANSFORM @ Affine.translation(0.3, 0.7), "EPSG:32633")
    begin = time.process_time()
    moved = move_raster(raster, find_move(grid, target, "bilinear"))
    assert time.process_time() - begin < 30
    assert len(moved.pixels.__dask_graph__()) < 4 * 4096 + 8 * 256
