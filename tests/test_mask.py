"""Where the result is wanted: mask rasters and polygons, and what is skipped for it."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import odc.geo.geom
import pyogrio
import pyproj
import pytest
import rasterio
import rasterio.warp
import rioxarray
import shapely
from affine import Affine
from conftest import TRANSFORM, write_raster
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

import geodl_dask as gd
from geodl_dask.errors import GridMismatchError, RasterInputError
from geodl_dask.rasters import arrays_of, open_pair
from geodl_dask.rasters.mask import open_polygons
from geodl_dask.tiling import Window

GRID = GeoBox((520, 610), TRANSFORM, "EPSG:32633")


def polygon() -> shapely.Geometry:
    """Two rings with a hole, across several canonical tiles, and never through a pixel's centre."""
    x, y = GRID.pix2wld(300.3, 250.7)
    ring = shapely.Point(x, y).buffer(110, quad_segs=40).difference(shapely.Point(x, y).buffer(31.1))
    return shapely.union(ring, shapely.box(x - 140.13, y - 120.13, x - 120.07, y - 90.07))


def write_layer(path, geometries, crs="EPSG:32633"):
    pyogrio.raw.write(
        path, np.array(shapely.to_wkb(geometries), object), [], [], crs=crs, geometry_type="Unknown",
    )  # fmt: skip
    return path


@pytest.fixture(scope="module", params=["layer.gpkg", "layer.geojson", "layer.shp"])
def layer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("layer") / request.param
    if path.suffix == ".geojson":
        to_degrees = rasterio.warp.transform_geom("EPSG:32633", "OGC:CRS84", shapely.geometry.mapping(polygon()))
        path.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": to_degrees}))
        return path
    return write_layer(path, [polygon()])


def test_polygons_are_drawn_as_gdal_draws_them_on_the_whole_grid(layer):
    drawn, valid = open_polygons(layer, GRID).read(Window(0, 0, *GRID.shape))
    expected = rasterize([polygon()], GRID.shape.yx, transform=GRID.transform)
    assert 0.2 < expected.mean() < 0.8
    np.testing.assert_array_equal(drawn[0], expected)
    assert valid.all()


def test_no_window_matters_to_polygons(layer):
    mask = open_polygons(layer, GRID)
    whole = mask.read(Window(0, 0, *GRID.shape))[0]
    random = np.random.default_rng(2)
    for _ in range(20):
        top, left = random.integers(0, (519, 609))
        height, width = random.integers(1, (520 - top + 1, 610 - left + 1))
        part = mask.read(Window(int(top), int(left), int(height), int(width)))[0]
        np.testing.assert_array_equal(part, whole[:, top : top + height, left : left + width])


@pytest.mark.parametrize("crs", ["EPSG:3347", "EPSG:3408"])
def test_long_edge_of_a_layer_follows_its_own_crs(tmp_path, crs):
    """The 49th parallel bends on a cone, and on a plane at the pole; a pixel's centre is north or south of it."""
    grid = GeoBox.from_geopolygon(odc.geo.geom.box(-120, 47, -100, 51, "EPSG:4326").to_crs(crs), 5000, crs)
    path = write_layer(tmp_path / "south.gpkg", [shapely.box(-150, 20, -60, 49)], "EPSG:4326")
    drawn = open_polygons(path, grid).read(Window(0, 0, *grid.shape))[0][0]
    rows, cols = np.indices(grid.shape.yx) + 0.5
    x, y = grid.transform * (cols, rows)
    lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    clear = np.abs(lat - 49) > 1e-4
    np.testing.assert_array_equal(drawn[clear], (lat < 49)[clear])
    assert 0.2 < drawn.mean() < 0.8 and (lon > -150).all()


@pytest.mark.parametrize(
    "grid",
    [
        GRID,
        GeoBox((200, 300), Affine(500, 0, 150_000, 0, -500, 8_000_000), "EPSG:32701"),  # across the antimeridian
        GeoBox((200, 200), Affine(30_000, 0, -3e6, 0, -30_000, 3e6), "EPSG:3031"),
        GeoBox((170, 340), Affine(100_000, 0, -17e6, 0, -100_000, 8.5e6), "ESRI:54030"),
    ],
    ids=["utm", "fiji", "pole", "world"],
)
def test_layer_of_the_whole_world_covers_every_grid(tmp_path, grid):
    path = write_layer(tmp_path / "world.gpkg", [shapely.box(-180, -90, 180, 90)], "EPSG:4326")
    drawn = open_polygons(path, grid).read(Window(0, 0, *grid.shape))[0][0]
    rows, cols = np.indices(grid.shape.yx) + 0.5
    onto = pyproj.Transformer.from_crs(str(grid.crs), "EPSG:4326", always_xy=True)
    there = np.isfinite(onto.transform(*(grid.transform * (cols, rows)))[0])
    assert (drawn.astype(bool) == there).mean() > 0.999, (drawn.mean(), there.mean())


def test_crossed_rings_are_drawn_as_gdal_draws_them(tmp_path):
    x, y = GRID.pix2wld(300, 250)
    bow = shapely.Polygon([(x - 60.1, y - 50.3), (x + 60.2, y + 50.1), (x + 60.3, y - 50.2), (x - 60.4, y + 50.4)])
    assert not bow.is_valid
    drawn = open_polygons(write_layer(tmp_path / "bow.gpkg", [bow]), GRID).read(Window(0, 0, *GRID.shape))[0][0]
    np.testing.assert_array_equal(drawn, rasterize([bow], GRID.shape.yx, transform=GRID.transform))


def test_layer_that_was_edited_is_read_anew(tmp_path):
    x, y = GRID.pix2wld(300, 250)
    mask = open_polygons(write_layer(tmp_path / "layer.geojson", [shapely.box(x, y, x + 50, y + 50)]), GRID)
    before = mask.read(Window(0, 0, *GRID.shape))[0]
    write_layer(tmp_path / "layer.geojson", [shapely.box(x, y, x + 20, y + 50)])
    after = mask.read(Window(0, 0, *GRID.shape))[0]
    assert before.sum() > 2 * after.sum() > 0


def test_layer_that_cannot_be_a_mask_is_refused(tmp_path):
    with pytest.raises(GridMismatchError, match="does not touch the output"):
        open_polygons(write_layer(tmp_path / "far.gpkg", [shapely.box(0, 0, 9, 9)]), GRID)
    with pytest.raises(RasterInputError, match="has no polygons"):
        open_polygons(write_layer(tmp_path / "points.gpkg", [shapely.Point(500_000, 5_400_000)]), GRID)
    (tmp_path / "text.gpkg").write_text("no layer")
    with pytest.raises(RasterInputError, match="neither as a raster nor as a polygon layer"):
        open_polygons(tmp_path / "text.gpkg", GRID)


# In the result.


def read(change) -> np.ndarray:
    return np.asarray(change.compute(scheduler="synchronous"))


@pytest.fixture(scope="module")
def small_mask(tmp_path_factory, pair):
    """Polygons within the pair of conftest, and the same as a raster: GDAL's drawing."""
    with rasterio.open(pair[0]) as dataset:
        grid = GeoBox(dataset.shape, dataset.transform, "EPSG:32633")
    shape = shapely.Point(grid.pix2wld(47.3, 60.2)).buffer(19)
    folder = tmp_path_factory.mktemp("mask")
    inside = rasterize([shape], grid.shape.yx, transform=grid.transform)
    raster = write_raster(folder / "mask.tif", inside[None] * 200, transform=grid.transform)
    return write_layer(folder / "mask.gpkg", [shape]), raster, inside.astype(bool)


def test_result_is_nodata_outside_the_mask_and_unchanged_inside(pair, models, small_mask):
    polygons, raster, inside = small_mask
    unmasked = read(gd.detect_change(*pair, models["pt2"]))
    expected = np.where(inside, unmasked, 255)
    assert (unmasked[inside] != 255).any() and (unmasked[~inside] != 255).any()
    arrays = [rioxarray.open_rasterio(each, chunks=40) for each in pair]
    for mask in (polygons, raster, rioxarray.open_rasterio(raster, chunks=30)):
        for dates in (pair, arrays, (pair[0], arrays[1])):
            np.testing.assert_array_equal(read(gd.detect_change(*dates, models["pt2"], mask=mask, chunks=24)), expected)


@pytest.mark.parametrize("door", ["file", "array", "dataset"])
def test_mask_is_what_is_stored_whatever_its_scale(pair, small_mask, tmp_path, door):
    inside = small_mask[2]
    path = write_raster(tmp_path / "scaled.tif", inside[None].astype(np.uint8), transform=TRANSFORM)
    with rasterio.open(path, "r+") as dataset:
        dataset.offsets = (5.0,)
    array = rioxarray.open_rasterio(path)
    assert array.attrs["add_offset"] == 5
    mask = {"file": path, "array": array, "dataset": array.to_dataset(name="mask")}[door]
    pixels, valid = da.compute(*arrays_of(open_pair(*pair, mask=mask).mask, tuple((each,) for each in inside.shape)))
    np.testing.assert_array_equal((pixels[0] != 0) & valid, inside)
    assert array.attrs["add_offset"] == 5


def test_mask_that_covers_a_part_is_nodata_beyond(pair, models, tmp_path):
    corner = write_raster(tmp_path / "corner.tif", np.ones((1, 30, 20), np.uint8), transform=TRANSFORM)
    found = read(gd.detect_change(*pair, models["pt2"], mask=corner))
    unmasked = read(gd.detect_change(*pair, models["pt2"]))
    np.testing.assert_array_equal(found[:30, :20], unmasked[:30, :20])
    assert (found[30:] == 255).all() and (found[:, 20:] == 255).all()


def test_tiles_without_a_wanted_pixel_are_not_run_and_counted(pair, models, small_mask, tmp_path, monkeypatch):
    from geodl_dask import kernel

    ran = []
    predict = kernel.decide
    monkeypatch.setattr(kernel, "decide", lambda *given: ran.append(len(given[0])) or predict(*given))
    change = gd.detect_change(*pair, models["pt2"], mask=small_mask[1], tile_size="model")
    written = gd.write_zarr(change, tmp_path / "o.zarr")
    stride = change.attrs["tile_size"][0] - 2 * change.attrs["padding"]
    rows, cols = (-(-length // stride) for length in change.shape)
    inside = np.pad(small_mask[2], [(0, rows * stride - change.shape[0]), (0, cols * stride - change.shape[1])])
    with_work = inside.reshape(rows, stride, cols, stride).any(axis=(1, 3)).sum()
    assert 0 < with_work < rows * cols
    assert sum(ran) == with_work
    assert (written.tiles, written.empty_tiles) == (rows * cols, rows * cols - with_work)


# Two doors.


def test_files_and_arrays_give_the_same_bytes_on_any_grid(pair, models, tmp_path):
    with rasterio.open(pair[1]) as dataset:
        pixels = dataset.read()
    moved = write_raster(
        tmp_path / "moved.tif", pixels, transform=TRANSFORM @ Affine.translation(3.3, -2.7) @ Affine.rotation(2)
    )
    arrays = [rioxarray.open_rasterio(each, chunks={"y": 31, "x": 47}) for each in (pair[0], moved)]
    options = {"extent": (499_995, 5_399_960, 500_050, 5_400_003), "cell_size": 0.7}
    results = [
        read(gd.detect_change(*dates, models["pt2"], chunks=chunks, **options))
        for dates in ((pair[0], moved), arrays, (arrays[0], moved))
        for chunks in (8, 40, 200)
    ]
    assert 0.1 < (results[0] == 255).mean() < 0.9
    for each in results[1:]:
        np.testing.assert_array_equal(each, results[0])


def test_pixel_is_nodata_where_either_date_has_no_observation(tmp_path, models, pixels):
    holes = np.ones((2, *pixels[0].shape[1:]), bool)
    holes[0, 10:30, 20:50] = holes[1, 25:45, 5:30] = False
    paths = []
    for date, (image, there) in enumerate(zip(pixels, holes, strict=True)):
        nodata = 200 + date  # each its own, and each band
        paths.append(write_raster(tmp_path / f"{date}.tif", np.where(there, image.clip(0, 199), nodata), nodata=nodata))
    found = read(gd.detect_change(*paths, models["pt2"]))
    np.testing.assert_array_equal(found == 255, ~holes.all(axis=0))


def test_stack_reads_masks_lazily_in_chunks(layer):
    mask = open_polygons(layer, GRID)
    pixels, _ = arrays_of(mask, ((300, 220), (400, 210)))
    np.testing.assert_array_equal(
        da.compute(pixels, scheduler="synchronous")[0], mask.read(Window(0, 0, *GRID.shape))[0]
    )
