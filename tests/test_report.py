"""Areas by class, in hectares where the map is in lengths."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.report import class_areas

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


def test_degrees_have_no_area_but_pixels_and_shares():
    areas = class_areas(change("EPSG:4326", pixel=0.1), {7: 1, 0: 3})
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
