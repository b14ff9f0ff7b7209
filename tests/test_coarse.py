"""Rasters much coarser than they are: means and most frequent values as plain loops give them, whatever the window."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import TRANSFORM, write_raster
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from geodl_dask.errors import GridMismatchError
from geodl_dask.rasters import open_raster
from geodl_dask.rasters.coarse import coarsened, zoomed_out
from geodl_dask.tiling import Window

NODATA = 255


@pytest.fixture
def values() -> np.ndarray:
    """(1, 53, 71), which no factor divides, a fifth of it without observation."""
    rng = np.random.default_rng(3)
    return np.where(rng.random((1, 53, 71)) < 0.2, NODATA, rng.integers(0, 5, (1, 53, 71))).astype(np.uint8)


def expected(values: np.ndarray, factor: int, method: str) -> np.ndarray:
    rows, cols = (-(-length // factor) for length in values.shape[1:])
    made = np.full((rows, cols), -1.0)
    for row, col in np.ndindex(rows, cols):
        part = values[0, row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
        found = part[part != NODATA].tolist()
        if found:
            counted = Counter(found)
            most = max(counted.values())
            mode = min(value for value, count in counted.items() if count == most)
            made[row, col] = mode if method == "mode" else np.rint(np.mean(found))
    return made


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
@pytest.mark.parametrize("method", ["mode", "average"])
def test_each_pixel_is_made_of_its_valid_ones(tmp_path, values, factor, method):
    raster = open_raster(write_raster(tmp_path / "a.tif", values, nodata=NODATA))
    coarse = coarsened(raster, zoomed_out(raster.grid, factor), method)
    rows, cols = coarse.grid.shape.yx
    pixels, valid = coarse.read(Window(0, 0, rows, cols))
    np.testing.assert_array_equal(np.where(valid, pixels[0], -1.0), expected(values, factor, method))
    part, part_valid = coarse.read(Window(rows // 2, cols // 2, rows - rows // 2, cols - cols // 2))
    np.testing.assert_array_equal(part[0][part_valid], pixels[0, rows // 2 :, cols // 2 :][part_valid])


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16])
def test_means_keep_the_type_and_do_not_overflow(tmp_path, dtype):
    full = np.full((1, 64, 64), 30_000, dtype)
    raster = open_raster(write_raster(tmp_path / "a.tif", full))
    pixels, valid = coarsened(raster, zoomed_out(raster.grid, 8), "average").read(Window(0, 0, 8, 8))
    assert pixels.dtype == dtype and (pixels == 30_000).all() and valid.all()


def test_any_number_of_pixels_is_taken_in_steps(tmp_path):
    ramp = np.add.outer(np.arange(1024), np.arange(1024))[None].astype(np.float32)
    raster = open_raster(write_raster(tmp_path / "a.tif", ramp))
    pixels, _ = coarsened(raster, zoomed_out(raster.grid, 128), "average").read(Window(0, 0, 8, 8))
    np.testing.assert_allclose(pixels[0], ramp[0].reshape(8, 128, 8, 128).mean((1, 3)), rtol=1e-5)


def test_overview_is_read_where_there_is_one(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.full((1, 512, 512), 7, np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([4], Resampling.average)
    with rasterio.open(path, "r+", OVERVIEW_LEVEL=0) as overview:
        overview.write(np.full((1, 128, 128), 9, np.uint8))  # so that one can tell where pixels come from
    raster = open_raster(path)
    for factor, value in ((2, 7), (4, 9), (8, 9)):
        pixels, _ = coarsened(raster, zoomed_out(raster.grid, factor), "average").read(Window(0, 0, 32, 32))
        assert (pixels == value).all()


def test_grid_that_is_not_the_rasters_own_is_warped_to(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 2560, 10, dtype=np.uint16), (1, 256, 256))
    raster = open_raster(write_raster(tmp_path / "a.tif", np.ascontiguousarray(ramp)))
    grid = GeoBox((20, 20), TRANSFORM @ Affine.translation(13.3, 7.7) @ Affine.scale(10.4), raster.grid.crs)
    pixels, valid = coarsened(raster, grid, "average").read(Window(0, 0, 20, 20))
    centres = 13.3 + 10.4 * (np.arange(20) + 0.5) - 0.5
    assert valid.all() and np.abs(pixels[0] - 10 * centres).max() < 50


def test_degrees_are_turned_to_where_the_grid_lies(tmp_path):
    pixels = np.full((1, 600, 600), 5, np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, crs="EPSG:4326", transform=from_origin(200, 10, 0.01, 0.01))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    grid = GeoBox((60, 60), from_origin(-160, 10, 0.1, 0.1), "EPSG:4326")
    found, valid = coarsened(open_raster(path), grid, "average").read(Window(0, 0, 60, 60))
    assert valid.all() and (found == 5).all()


def test_raster_elsewhere_is_refused(tmp_path, values):
    raster = open_raster(write_raster(tmp_path / "a.tif", values))
    with pytest.raises(GridMismatchError, match="does not overlap"):
        coarsened(raster, GeoBox((5, 5), from_origin(0, 0, 9, 9), raster.grid.crs), "average")
