"""Areas by class."""

from __future__ import annotations

from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from distributed import Client
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Geod
from rasterio.windows import Window

import geodl_dask as gd
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.errors import RasterInputError
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import manifest_of
from geodl_dask.report import change_table, class_areas

TABLE = ClassTable((ModelClass(7, "Change", (200, 30, 30)), ModelClass(0, "No change", (230, 230, 230))))
US_SURVEY_FOOT = 1200 / 3937
IN_KILOMETRES = "+proj=utm +zone=33 +units=km"


def change(crs: str, pixel: float = 20, rotation_deg: float = 0) -> xr.DataArray:
    transform = Affine.translation(50, 60) @ Affine.rotation(rotation_deg) @ Affine.scale(pixel, -pixel)
    return xr.DataArray(
        np.zeros((4, 5), np.uint8), dims=("y", "x"), coords=xr_coords(GeoBox((4, 5), transform, crs), dims=("y", "x")),
        attrs={"_FillValue": TABLE.nodata, **TABLE.to_attrs()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("crs", "metres"),
    [("EPSG:32633", 1), ("EPSG:7415", 1), ("EPSG:2263", US_SURVEY_FOOT), ("EPSG:2222", 0.3048), (IN_KILOMETRES, 1000)],
)
@pytest.mark.parametrize("rotation_deg", [0, 30])
def test_area_is_pixels_times_pixel_size_in_metres(crs, metres, rotation_deg):
    areas = class_areas(change(crs, rotation_deg=rotation_deg), {7: 25, 0: 3})
    expected = [25 * (20 * metres) ** 2 / 10_000, 3 * (20 * metres) ** 2 / 10_000]
    assert [each.hectares for each in areas] == pytest.approx(expected)


@pytest.mark.parametrize(("crs", "pixel"), [("EPSG:4326", 0.1), ("EPSG:3857", 1e6)])
def test_counts_alone_give_no_area_in_degrees_and_where_the_map_is_off(crs, pixel):
    areas = class_areas(change(crs, pixel=pixel), {7: 1, 0: 3})
    assert [(each.hectares, each.pixels, each.share) for each in areas] == [(None, 1, 0.25), (None, 3, 0.75)]


def test_shares_are_of_the_pixels_with_an_observation():
    areas = class_areas(change("EPSG:32633"), {0: 6, 7: 2, TABLE.nodata: 92})
    assert [each.share for each in areas] == [0.25, 0.75]


def test_every_class_of_the_table_has_a_row_in_its_order():
    areas = class_areas(change("EPSG:32633"), {TABLE.nodata: 20})
    assert [(each.model_class.name, each.pixels, each.share, each.hectares) for each in areas] == [
        ("Change", 0, 0.0, 0.0),
        ("No change", 0, 0.0, 0.0),
    ]


def test_raster_without_class_table_is_refused():
    raster = change("EPSG:32633")
    raster.attrs = {}
    with pytest.raises(ValueError, match="no class table"):
        class_areas(raster, {0: 20})


GRIDS = {
    "EPSG:4326": Affine(0.01, 0, 10, 0, -0.01, 60),
    "EPSG:32633": Affine(20, 0, 400_000, 0, -20, 5_400_000),
    "EPSG:2263": Affine(20, 0, 980_000, 0, -20, 200_000),
    "EPSG:3857": Affine(20, 0, 1_500_000, 0, -20, 6_500_000),
}
SHAPE_YX = (90, 130)


def raster(crs: str, chunks: int = 32, pixels: np.ndarray | None = None) -> xr.DataArray:
    """Classes 0, 7, nodata and 9, which is not listed, in blocks."""
    if pixels is None:
        pixels = np.random.default_rng(3).choice(np.array([0, 7, 9, 255], np.uint8), SHAPE_YX, p=[0.6, 0.25, 0.1, 0.05])
    grid = GeoBox(pixels.shape, GRIDS[crs], crs)
    return xr.DataArray(
        da.from_array(pixels, chunks), dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")), name="change",
        attrs={"long_name": "change", "_FillValue": TABLE.nodata, **TABLE.to_attrs()},
    )  # fmt: skip


def hectares_on_ellipsoid(change: xr.DataArray, value: int) -> float:
    """Pixel by pixel as polygons on the ellipsoid, by pyproj."""
    a, _, c, _, e, f = tuple(change.odc.geobox.transform)[:6]
    geod, total = Geod(ellps="WGS84"), 0.0
    for row, col in zip(*np.nonzero(change.to_numpy() == value), strict=True):
        west, north = c + col * a, f + row * e
        box = shapely.segmentize(shapely.box(west, north + e, west + a, north), abs(e) / 20)  # sides along parallels
        total += abs(geod.geometry_area_perimeter(box)[0])
    return total / 10_000


@pytest.mark.parametrize("value", [0, 7, 9])
def test_table_in_degrees_has_the_area_of_the_pixels_on_the_ellipsoid(value):
    lazy = raster("EPSG:4326")
    found = change_table(lazy).set_index("value").hectares[value]
    assert found == pytest.approx(hectares_on_ellipsoid(lazy, value), rel=1e-3)
    assert found == pytest.approx(hectares_on_ellipsoid(lazy, value), rel=1e-7)  # more than was promised


@pytest.mark.parametrize(("crs", "metres"), [("EPSG:32633", 1), ("EPSG:2263", US_SURVEY_FOOT)])
def test_table_on_the_map_is_pixels_times_pixel_size(crs, metres):
    lazy = raster(crs)
    table = change_table(lazy)
    assert table.attrs["area"] == "on the map"
    assert list(table.columns) == ["value", "class", "pixels", "hectares", "share"]
    assert list(table["class"]) == ["Change", "No change", "9 (unlisted)"]
    assert list(table.pixels) == [int((lazy == value).sum()) for value in (7, 0, 9)]
    assert list(table.hectares) == pytest.approx(table.pixels * (20 * metres) ** 2 / 10_000)
    assert table.share.sum() == pytest.approx(1)


def test_map_that_enlarges_is_not_measured_on_unless_asked():
    lazy = raster("EPSG:3857")
    table, on_map = change_table(lazy), change_table(lazy, area="map")
    assert table.attrs["area"] == "on the ellipsoid"
    assert list(on_map.hectares / table.hectares) == pytest.approx([2.45] * 3, rel=0.01)  # at 50.3 degrees north


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633", "EPSG:3857"])
@pytest.mark.parametrize("chunks", [17, 90, 1000])
def test_table_does_not_depend_on_blocks(crs, chunks):
    for area in ("auto", "ellipsoid"):
        one, other = change_table(raster(crs), area=area), change_table(raster(crs, chunks), area=area)
        assert one.drop(columns=["hectares", "share"]).equals(other.drop(columns=["hectares", "share"]))
        np.testing.assert_allclose(one.hectares, other.hectares, rtol=1e-6)


def test_shares_in_degrees_are_of_the_area():
    pixels = np.zeros((90, 130), np.uint8)
    pixels[45:] = 7  # nearer to the equator, so that its pixels are larger
    table = change_table(raster("EPSG:4326", pixels=pixels)).set_index("value")
    assert table.share[7] > 0.5 > table.share[0]
    assert table.pixels[7] == table.pixels[0]


@pytest.mark.parametrize("write", [gd.write_cog, gd.write_zarr], ids=["cog", "zarr"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633"])
def test_written_result_has_the_table_of_the_lazy_one(tmp_path, crs, write):
    lazy, out = raster(crs), tmp_path / ("change.tif" if write is gd.write_cog else "change.zarr")
    write(lazy, out)
    for given in (out, str(out), gd.open_change(out)):
        np.testing.assert_allclose(change_table(given).hectares, change_table(lazy).hectares, rtol=1e-9)
        assert list(change_table(given)["class"]) == ["Change", "No change", "9 (unlisted)"]


def test_manifest_suffices_where_pixels_are_alike(tmp_path, monkeypatch):
    lazy, out = raster("EPSG:32633"), tmp_path / "change.tif"
    gd.write_cog(lazy, out)
    monkeypatch.setattr("geodl_dask.report.ask_blocks", None)  # whoever counts, fails
    assert list(change_table(out).pixels) == [int((lazy == value).sum()) for value in (7, 0, 9)]
    with pytest.raises(TypeError):
        change_table(out, area="ellipsoid")


def test_manifest_of_another_raster_is_not_believed(tmp_path):
    lazy, out = raster("EPSG:32633"), tmp_path / "change.tif"
    gd.write_cog(lazy, out)
    manifest = Manifest.read(manifest_of(out))
    replace(manifest, pixels={0: 5}).write(manifest_of(out))
    assert list(change_table(out).pixels) == [int((lazy == value).sum()) for value in (7, 0, 9)]


@pytest.mark.parametrize("how", ["edited", "another in its place"])
def test_result_that_is_not_as_it_was_written_is_counted(tmp_path, how):
    lazy, out = raster("EPSG:32633"), tmp_path / "change.tif"
    gd.write_cog(lazy, out)
    if how == "edited":
        with rasterio.open(out, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
            dataset.write(np.zeros((1, 10, 10), np.uint8), window=Window(0, 0, 10, 10))
    else:
        gd.write_cog(lazy * 0, tmp_path / "other.tif")
        (tmp_path / "other.tif").replace(out)
        assert out.stat().st_mtime_ns > manifest_of(out).stat().st_mtime_ns
    pixels = gd.open_change(out).values
    assert list(change_table(out).pixels) == [int((pixels == value).sum()) for value in change_table(out).value]
    assert not np.array_equal(pixels, lazy.values)


def test_blocks_are_counted_on_the_active_client():
    with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        table = change_table(raster("EPSG:4326"))
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter) > 10
    assert table.equals(change_table(raster("EPSG:4326")))


def test_table_without_classes_is_refused():
    lazy = raster("EPSG:4326")
    lazy.attrs = {}
    with pytest.raises(RasterInputError, match="no class table"):
        change_table(lazy)
