"""How grids lie on each other all over the Earth. The oracle is GDAL's warper on the whole raster."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import write_raster
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geodl_dask.errors import GridMismatchError
from geodl_dask.rasters import open_pair, open_raster, request_grid
from geodl_dask.rasters.overlap import nearest_turn, share_covered, shrink_factor
from geodl_dask.rasters.placing import find_move, move_raster
from geodl_dask.tiling import Window


def box(crs: str, left: float, top: float, cell: float, shape: tuple[int, int]) -> GeoBox:
    return GeoBox(shape, Affine(cell, 0, left, 0, -cell, top), crs)


WORLD = box("EPSG:4326", -180, 90, 0.5, (360, 720))
UTM_33 = box("EPSG:32633", 500_000, 5_000_000, 10, (100, 100))
DEGREES_THERE = box("EPSG:4326", 14.99, 45.16, 0.0001, (200, 300))


def write(folder, grid: GeoBox, name: str = "raster.tif", dtype=np.uint8):
    pixels = np.random.default_rng(1).integers(1, 250, (1, *grid.shape)).astype(dtype)
    return write_raster(folder / name, pixels, crs=str(grid.crs), transform=grid.transform, nodata=0)


def warped_by_gdal(path, grid: GeoBox, method: str = "nearest") -> tuple[np.ndarray, np.ndarray]:
    shrink = shrink_factor(open_raster(path).grid, grid)
    scale = {axis: min(1.0, 1 / each) if each > 1.05 else 1.0 for axis, each in zip("YX", shrink, strict=True)}
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset, crs=str(grid.crs), transform=grid.transform, height=grid.shape.y, width=grid.shape.x,
            resampling=Resampling[method], tolerance=1e-9, XSCALE=scale["X"], YSCALE=scale["Y"],
        ) as warped,
    ):  # fmt: skip
        return warped.read(), warped.read_masks().all(axis=0)


FINE_WORLD = box("EPSG:4326", -180, 90, 0.1, (1800, 3600))
ROUND = {
    "north pole": (FINE_WORLD, box("EPSG:3413", -4e6, 4e6, 20_000, (400, 400))),
    "south pole": (FINE_WORLD, box("EPSG:3031", -5e5, 5e5, 4_000, (260, 260))),
    "across 180 degrees": (FINE_WORLD, box("EPSG:32660", 166_000, 600_000, 3_000, (300, 300))),
    "Mercator across 180 degrees": (FINE_WORLD, box("EPSG:3832", 2e6, 2e6, 10_000, (300, 400))),
    "limb": (FINE_WORLD, box("+proj=ortho +lat_0=20 +lon_0=10 +ellps=WGS84", -7e6, 7e6, 40_000, (350, 350))),
    "polar to world": (box("EPSG:3413", -4e6, 4e6, 20_000, (400, 400)), WORLD),
}


@pytest.mark.parametrize("case", ROUND)
def test_no_pixel_is_lost_round_the_earth(tmp_path, case):
    source, target = ROUND[case]
    path = write(tmp_path, source)
    raster = open_raster(path)
    pixels, valid = move_raster(raster, find_move(raster.grid, target, "nearest")).read(Window(0, 0, *target.shape))
    expected, is_there = warped_by_gdal(path, target)
    assert is_there.mean() > 0.1
    assert (is_there & ~valid).mean() < 2e-4
    assert (valid & ~is_there).mean() < 2e-3  # GDAL leaves out some of its own at 180 degrees
    assert (pixels != expected)[:, valid & is_there].mean() < 1e-3
    assert share_covered(source, target) == pytest.approx(is_there.mean(), abs=0.01)


@pytest.mark.parametrize("crs", ["EPSG:4269", "EPSG:4258", "EPSG:4283", "EPSG:4267", "EPSG:4979"])
@pytest.mark.parametrize("other", [UTM_33, DEGREES_THERE], ids=["metres", "degrees"])
def test_any_geographic_crs_is_compared_with_any_other(tmp_path, crs, other):
    there = write(tmp_path, box(crs, 14.99, 45.16, 0.0001, (200, 300)), "there.tif")
    ours = write(tmp_path, other, "other.tif")
    for pair in ((there, ours), (ours, there)):
        assert len(open_pair(*pair).accounts) == 2


@pytest.mark.parametrize("swap", [False, True])
def test_degrees_to_360_and_to_180_are_the_same_degrees(tmp_path, swap):
    west = box("EPSG:4326", -100, 40, 0.01, (300, 400)), box("EPSG:4326", 260, 40, 0.01, (300, 400))
    ours, theirs = (write(tmp_path, grid, f"{number}.tif") for number, grid in enumerate(west[:: -1 if swap else 1]))
    stack = open_pair(ours, theirs)
    assert "covers" not in stack.accounts[1] and "warped" not in stack.accounts[1]
    found = [raster.read(Window(0, 0, 300, 400))[0] for raster in stack.rasters]
    np.testing.assert_array_equal(*found)


def test_small_raster_across_180_degrees_lies_in_the_world(tmp_path):
    fiji = box("EPSG:32760", 790_000, 8_100_000, 500, (200, 300))
    world = write(tmp_path, WORLD, "world.tif")
    assert 0 < share_covered(fiji, WORLD) < 0.001
    assert share_covered(WORLD, fiji) == pytest.approx(1, abs=0.01)
    open_pair(write(tmp_path, fiji, "fiji.tif"), world)


def test_full_disk_of_a_satellite_has_a_share(tmp_path):
    disk = box("+proj=geos +h=35786023 +lon_0=0 +ellps=GRS80", -5.5e6, 5.5e6, 50_000, (220, 220))
    path = write(tmp_path, disk)
    _, is_there = warped_by_gdal(path, WORLD)
    assert share_covered(disk, WORLD) == pytest.approx(is_there.mean(), abs=0.02)


@pytest.mark.parametrize("latitude", [0, 60])
def test_shrink_of_a_small_raster_is_measured_where_it_is(latitude):
    small = box("EPSG:4326", 10, latitude, 0.0009, (100, 100))
    metres_x = 0.0009 * 111_320 * np.cos(np.radians(latitude - 0.045))
    wide = box("EPSG:3035" if latitude else "EPSG:3857", -1e6 if not latitude else 2e6, 5e6, 2_000, (3_000, 3_000))
    shrink = shrink_factor(small, wide)
    assert shrink[1] == pytest.approx(2_000 / metres_x, rel=0.08)


def test_raster_that_was_warped_and_comes_back_covers_all(tmp_path):
    ours, degrees = write(tmp_path, UTM_33, "ours.tif"), UTM_33.to_crs("EPSG:4326")
    assert share_covered(degrees, UTM_33) == 1
    assert "covers" not in open_pair(ours, write(tmp_path, degrees, "degrees.tif")).accounts[1]


def test_shrink_is_along_the_rows_and_columns_of_the_source():
    turned = GeoBox((400, 100), Affine(0, 10, 500_000, 40, 0, 4_996_000), "EPSG:32633")  # rows run east
    assert shrink_factor(turned, box("EPSG:32633", 500_000, 5_000_000, 40, (100, 100))) == pytest.approx((4, 1))


def test_raster_beside_the_other_counts_by_its_turn_only():
    grid = box("EPSG:4326", 200, 40, 0.1, (100, 100))
    assert nearest_turn(grid, box("EPSG:4326", -160, 40, 0.1, (100, 100))).boundingbox.left == -160
    assert nearest_turn(UTM_33, WORLD) == UTM_33


# The grid that is asked for.


def test_extent_of_a_raster_in_another_crs_is_its_ground(tmp_path):
    ours, theirs = write(tmp_path, UTM_33, "utm.tif"), write(tmp_path, DEGREES_THERE, "degrees.tif")
    grid = open_pair(ours, ours, request_grid({"extent": theirs})).grid
    assert grid.crs == "EPSG:32633"
    assert abs(grid.boundingbox.left - 499_213) < 20
    assert grid.resolution.x == 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cell_size": 1e-5}, "is taken for a mistake"),
        ({"extent": (0, 0, 1e12, 1e12)}, "is taken for a mistake"),
        ({"cell_size": "degrees"}, "cell size is taken from a raster in EPSG:4326"),
        ({"cell_size": True}, "cell_size is True"),
        ({"output_crs": "LOCAL_CS[\"here\",UNIT[\"m\",1]]"}, "not one that PROJ knows|neither projected nor"),
    ],
)  # fmt: skip
def test_grid_that_cannot_be_meant_is_refused(tmp_path, options, says):
    ours = write(tmp_path, UTM_33, "utm.tif")
    if options.get("cell_size") == "degrees":
        options = {"cell_size": write(tmp_path, DEGREES_THERE, "degrees.tif")}
    with pytest.raises(GridMismatchError, match=says):
        open_pair(ours, ours, request_grid(options))


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:3031"])
def test_world_in_a_polar_crs_needs_an_extent(tmp_path, crs):
    world = write(tmp_path, WORLD)
    with pytest.raises(GridMismatchError, match="extent"):
        open_pair(world, world, request_grid({"output_crs": crs}))


def test_numpy_numbers_are_numbers(tmp_path):
    ours = write(tmp_path, UTM_33)
    assert open_pair(ours, ours, request_grid({"cell_size": np.int64(20)})).grid.resolution.x == 20


def test_pair_without_common_ground_is_refused_whatever_the_extent(tmp_path):
    ours = write(tmp_path, UTM_33, "ours.tif")
    theirs = write(tmp_path, box("EPSG:32633", 502_000, 5_000_000, 10, (100, 100)), "theirs.tif")
    with pytest.raises(GridMismatchError, match="does not overlap from_raster"):
        open_pair(ours, theirs, request_grid({"extent": (499_000, 4_998_000, 504_000, 5_001_000)}))


def test_cells_larger_than_the_raster_still_hold_it(tmp_path):
    ours = write(tmp_path, DEGREES_THERE)
    grid = open_pair(ours, ours, request_grid({"cell_size": 10})).grid
    assert grid.shape == (1, 1)
    assert share_covered(grid, DEGREES_THERE) == pytest.approx(1)
