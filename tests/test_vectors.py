"""Polygons of changed areas, against rasterio's `shapes` on the whole array."""

from __future__ import annotations

import sys

import dask.array as da
import geopandas
import numpy as np
import pytest
import shapely
import xarray as xr
from affine import Affine
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.features import shapes

import geodl_dask as gd
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.confidence import Confidence
from geodl_dask.errors import MissingDependencyError, OutputError, OutputExistsError, RasterInputError
from geodl_dask.vectors import change_polygons

TABLE = ClassTable(
    (
        ModelClass(0, "No change", (230, 230, 230)),
        ModelClass(7, "New building", (200, 30, 30)),
        ModelClass(9, "New road", (30, 30, 200)),
    )
)
TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
CONFIDENCE = Confidence(np.dtype("uint8"), 255)
RING = np.array([[7, 7, 7, 7], [7, 0, 0, 7], [7, 0, 7, 7], [7, 7, 7, 0]], np.uint8)


def raster(pixels: np.ndarray, chunks=4, transform: Affine = TRANSFORM, crs: str = "EPSG:32633") -> xr.DataArray:
    grid = GeoBox(pixels.shape, transform, crs)
    return xr.DataArray(
        da.from_array(pixels, chunks), dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")), name="change",
        attrs={"long_name": "change", "_FillValue": TABLE.nodata, **TABLE.to_attrs()},
    )  # fmt: skip


def with_confidence(pixels: np.ndarray, kept: np.ndarray, chunks=4) -> xr.Dataset:
    change = raster(pixels, chunks)
    confidence = xr.DataArray(da.from_array(kept, 3), dims=("y", "x"), attrs=CONFIDENCE.to_attrs())
    return xr.Dataset({"change": change, "confidence": confidence})


def by_gdal(pixels: np.ndarray, connectivity: int, transform: Affine = TRANSFORM) -> set[tuple[int, str]]:
    """Class and outline of the areas in the whole array; rings that touch themselves made valid."""
    found = shapes(pixels, (pixels != 0) & (pixels != 255), connectivity, transform)
    return {(int(value), normal(shapely.make_valid(shapely.geometry.shape(each)))) for each, value in found}


def normal(outline: shapely.Geometry) -> str:
    return shapely.to_wkt(shapely.normalize(outline), rounding_precision=-1)


def found_in(polygons: geopandas.GeoDataFrame) -> set[tuple[int, str]]:
    return set(zip(polygons.value.tolist(), map(normal, polygons.geometry), strict=True))


def small_rasters(values: tuple[int, ...] = (0, 7, 9, 255)) -> st.SearchStrategy[np.ndarray]:
    shape_yx = st.tuples(st.integers(1, 16), st.integers(1, 16))
    return shape_yx.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.sampled_from(values)))


BLOCKS = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=80)
@given(pixels=small_rasters(), blocks=BLOCKS, connectivity=st.sampled_from((4, 8)))
def test_polygons_are_those_of_the_whole_array_whatever_the_blocks(pixels, blocks, connectivity):
    polygons = change_polygons(raster(pixels, blocks), connectivity=connectivity)
    assert found_in(polygons) == by_gdal(pixels, connectivity)
    assert polygons.geometry.is_valid.all()
    np.testing.assert_allclose(polygons.geometry.area, polygons.pixels / 4)
    np.testing.assert_allclose(polygons.hectares, polygons.pixels / 4 / 10_000)


@settings(max_examples=25)
@given(pixels=small_rasters((0, 7)), blocks=BLOCKS, least_px=st.integers(0, 12))
def test_small_areas_are_left_out_after_they_are_joined(pixels, blocks, least_px):
    everything = change_polygons(raster(pixels, 100))
    polygons = change_polygons(raster(pixels, blocks), min_hectares=least_px * 0.25 / 10_000)
    assert polygons.pixels.tolist() == [count for count in everything.pixels if count >= least_px]


@settings(max_examples=25)
@given(pixels=small_rasters(), blocks=BLOCKS, seed=st.integers(0, 99))
def test_rows_are_the_same_whatever_the_blocks(pixels, blocks, seed):
    kept = np.random.default_rng(seed).integers(0, 256, pixels.shape, np.uint8)
    one, other = (change_polygons(with_confidence(pixels, kept, chunks)) for chunks in (100, blocks))
    columns = ["value", "class", "pixels", "hectares"]
    assert one[columns].equals(other[columns])
    np.testing.assert_allclose(one.confidence, other.confidence)
    assert [normal(each) for each in one.geometry] == [normal(each) for each in other.geometry]


def test_rows_go_from_the_upper_left_on():
    pixels = np.array([[0, 0, 9], [7, 0, 9], [0, 0, 0], [7, 0, 9]], np.uint8)
    polygons = change_polygons(raster(pixels, 2))
    assert polygons[["value", "class", "pixels"]].values.tolist() == [
        [9, "New road", 2],
        [7, "New building", 1],
        [7, "New building", 1],
        [9, "New road", 1],
    ]
    assert polygons.crs == "EPSG:32633"
    assert polygons.geometry[0].bounds == (500_001, 5_399_999, 500_001.5, 5_400_000)


def test_polygon_has_no_corner_where_blocks_meet():
    polygons = change_polygons(raster(np.full((9, 11), 7, np.uint8), 4))
    assert shapely.get_num_coordinates(polygons.geometry[0]) == 5


def test_hole_across_blocks_stays_a_hole():
    (ring,) = change_polygons(raster(RING, 2)).geometry
    assert len(ring.interiors) == 1
    assert ring.area == 12 / 4


@pytest.mark.parametrize(("connectivity", "count"), [(4, 4), (8, 1)])
def test_corners_that_meet_where_four_blocks_do_join_only_if_asked(connectivity, count):
    diagonal = np.diag(np.full(4, 7, np.uint8))
    polygons = change_polygons(raster(diagonal, 2), connectivity=connectivity)
    assert len(polygons) == count
    assert polygons.geometry.area.sum() == 1


def test_mean_confidence_is_of_all_pixels_of_the_area_that_have_one():
    pixels = np.array([[7, 7, 7, 7, 0, 9]], np.uint8)
    kept = np.array([[0, 127, 254, 255, 10, 255]], np.uint8)
    polygons = change_polygons(with_confidence(pixels, kept, 2))
    assert polygons.confidence[0] == pytest.approx(0.5)
    assert np.isnan(polygons.confidence[1])


def test_confidence_of_floats_is_averaged_as_it_is():
    both = with_confidence(np.array([[7, 7, 7]], np.uint8), np.zeros((1, 3), np.uint8))
    both["confidence"] = (("y", "x"), np.array([[0.5, 0.75, np.nan]], np.float32), {"_FillValue": np.nan})
    assert change_polygons(both).confidence[0] == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("classes", "values"),
    [(None, [7, 9, 3]), (["New road"], [9]), ("New road", [9]), ([0, "New building"], [0, 7]), ([5], []), ([255], [])],
)
def test_classes_are_chosen_by_value_or_name_and_are_all_but_no_change(classes, values):
    pixels = np.array([[7, 9, 3, 0, 255]], np.uint8)
    polygons = change_polygons(raster(pixels, 2), classes=classes)
    assert sorted(polygons.value) == sorted(values)
    assert set(polygons["class"]) <= {"No change", "New building", "New road", "3 (unlisted)"}


def test_class_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(RasterInputError, match="no class 'Road'; there are: No change, New building, New road"):
        change_polygons(raster(RING), classes=["Road"])


@pytest.mark.parametrize(
    ("transform", "crs"),
    [(Affine(0.01, 0, 10, 0, -0.01, 60), "EPSG:4326"),
     (Affine.translation(5e5, 5.4e6) @ Affine.rotation(30) @ Affine.scale(2, -2), "EPSG:32633")],
)  # fmt: skip
def test_areas_are_those_of_the_table(transform, crs):
    pixels = np.random.default_rng(2).choice(np.array([0, 7, 9, 255], np.uint8), (40, 50))
    lazy = raster(pixels, 16, transform, crs)
    by_class = change_polygons(lazy).groupby("value").hectares.sum()
    expected = gd.change_table(lazy).set_index("value").hectares[[7, 9]]
    np.testing.assert_allclose(by_class, expected, rtol=1e-9)
    assert {value for value, _ in found_in(change_polygons(lazy))} == {7, 9}


def test_polygons_of_a_turned_grid_are_those_of_the_whole_array():
    turned = Affine.translation(5e5, 5.4e6) @ Affine.rotation(30) @ Affine.scale(2, -2)
    (ring,) = change_polygons(raster(RING, 2, turned)).geometry
    (expected,) = (shapely.from_wkt(wkt) for _, wkt in by_gdal(RING, 4, turned))
    assert shapely.hausdorff_distance(ring, expected) < 1e-6
    assert ring.symmetric_difference(expected).area < 1e-6


def test_raster_without_change_gives_an_empty_table(tmp_path):
    for out in (None, tmp_path / "a.parquet", tmp_path / "a.gpkg"):
        polygons = change_polygons(raster(np.zeros((5, 5), np.uint8)), out)
        assert len(polygons) == 0
        assert polygons.crs == "EPSG:32633"


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg"])
def test_polygons_are_written_as_they_are_returned(tmp_path, suffix):
    out = tmp_path / f"areas{suffix}"
    returned = change_polygons(with_confidence(RING, np.full(RING.shape, 200, np.uint8)), out, connectivity=8)
    read = geopandas.read_parquet(out) if suffix == ".parquet" else geopandas.read_file(out)
    assert list(read.columns) == ["value", "class", "pixels", "hectares", "confidence", "geometry"]
    assert read.crs == returned.crs
    assert found_in(read) == found_in(returned)
    assert [each.name for each in tmp_path.iterdir()] == [out.name]


def test_output_is_checked_before_anything_is_computed(tmp_path):
    lazy = raster(RING)
    lazy.data = lazy.data.map_blocks(lambda block: pytest.fail("a block was computed"), meta=lazy.data._meta)
    (tmp_path / "there.gpkg").write_bytes(b"mine")
    for out, error, message in (
        ("there.gpkg", OutputExistsError, "overwrite=True"),
        ("areas.shp", OutputError, r"\.parquet or \.gpkg"),
        ("no/areas.gpkg", OutputError, "does not exist"),
    ):
        with pytest.raises(error, match=message):
            change_polygons(lazy, tmp_path / out)
    assert (tmp_path / "there.gpkg").read_bytes() == b"mine"


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg"])
def test_file_that_comes_to_the_place_meanwhile_stays(tmp_path, suffix):
    out, lazy = tmp_path / f"areas{suffix}", raster(RING)
    lazy.data = lazy.data.map_blocks(lambda block: (out.write_bytes(b"theirs"), block)[1], meta=lazy.data._meta)
    with pytest.raises(OutputExistsError, match=r"has come there .* is .*areas\.2\."):
        change_polygons(lazy, out)
    beside = out.with_stem("areas.2")
    read = geopandas.read_parquet(beside) if suffix == ".parquet" else geopandas.read_file(beside)
    assert (out.read_bytes(), len(read)) == (b"theirs", 1)
    assert len(change_polygons(lazy, out, overwrite=True)) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == [beside.name, out.name]


def test_folder_is_never_replaced(tmp_path):
    (tmp_path / "areas.gpkg").mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        change_polygons(raster(RING), tmp_path / "areas.gpkg", overwrite=True)


def test_overwriting_replaces_what_was_there(tmp_path):
    change_polygons(raster(np.zeros((5, 5), np.uint8)), tmp_path / "areas.gpkg")
    change_polygons(raster(RING), tmp_path / "areas.gpkg", overwrite=True)
    assert len(geopandas.read_file(tmp_path / "areas.gpkg")) == 1


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_written_result_has_the_polygons_of_the_lazy_one(tmp_path, suffix):
    pixels = np.random.default_rng(4).choice(np.array([0, 7, 9], np.uint8), (60, 70))
    (gd.write_cog if suffix == ".tif" else gd.write_zarr)(raster(pixels, 16), tmp_path / f"change{suffix}")
    assert found_in(change_polygons(tmp_path / f"change{suffix}")) == by_gdal(pixels, 4)


def test_blocks_are_outlined_on_worker_processes():
    pixels = np.random.default_rng(4).choice(np.array([0, 7, 9], np.uint8), (60, 70))
    with Client(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None):
        polygons = change_polygons(raster(pixels, 16))
    assert found_in(polygons) == by_gdal(pixels, 4)


@pytest.mark.parametrize(
    ("missing", "out"),
    [("geopandas", None), ("scipy.ndimage", None), ("pyarrow", "a.parquet"), ("pyogrio", "a.gpkg")],
)
def test_missing_library_is_named_with_its_install_line(monkeypatch, tmp_path, missing, out):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=rf'{missing[:5]}.* pip install "geodl_dask\[vectors\]"'):
        change_polygons(raster(RING), out and tmp_path / out)


@pytest.mark.parametrize(
    ("change", "named", "message"),
    [(raster(RING), {"connectivity": 6}, "4 or 8"), (raster(RING) == 7, {}, "holds bool")],
)
def test_what_cannot_be_outlined_is_refused(change, named, message):
    with pytest.raises(RasterInputError, match=message):
        change_polygons(change, **named)
