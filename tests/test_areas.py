"""Square metres of pixels, against polygons on the ellipsoid by pyproj."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer

from geodl_dask.areas import PixelAreas, add_up, choose_area
from geodl_dask.errors import RasterInputError
from geodl_dask.tiling import Window

SHAPE_YX = (60, 100)
WHOLE = Window(0, 0, *SHAPE_YX)
PLACES = {
    "EPSG:32633": Affine(50, 0, 300_000, 0, -50, 5_400_000),
    "EPSG:3857": Affine(500, 0, 1.5e6, 0, -500, 6.5e6),
    "EPSG:3031": Affine(2000, 0, 1e6, 0, -2000, 1e6),
    "EPSG:2263": Affine(150, 0, 980_000, 0, -150, 200_000),
    "EPSG:7415": Affine(50, 0, 120_000, 0, -50, 480_000),
    "EPSG:4326": Affine(0.01, 0, 10, 0, -0.01, 60),
    "EPSG:4269": Affine(0.25, 0, 175, 0, 0.25, 70),  # upside down, and beyond 180 degrees
    "EPSG:4807": Affine(0.01, 0, 2, 0, -0.01, 50),  # in grads
}
TURNED = Affine.translation(10, 60) @ Affine.rotation(30) @ Affine.scale(0.01, -0.01)


def outline_area(grid: GeoBox) -> float:
    """Square metres within the outline of a grid, whose sides go through many points."""
    rows, cols = grid.shape.yx
    along = np.linspace(0, 1, 2000, endpoint=False)
    zero, one = np.zeros_like(along), np.ones_like(along)
    col = np.concatenate([along, one, 1 - along, zero]) * cols
    row = np.concatenate([zero, along, one, 1 - along]) * rows
    x, y = grid.transform * (col, row)
    crs = grid.crs.proj
    flat = crs.sub_crs_list[0] if crs.is_compound else crs
    degrees = flat.geodetic_crs
    if not flat.is_geographic:
        x, y = Transformer.from_crs(flat, degrees, always_xy=True).transform(x, y)
    unit = np.degrees(degrees.axis_info[0].unit_conversion_factor)
    geod = Geod(a=degrees.ellipsoid.semi_major_metre, b=degrees.ellipsoid.semi_minor_metre)
    return abs(geod.polygon_area_perimeter(np.multiply(x, unit), np.multiply(y, unit))[0])


def total(areas: np.ndarray) -> float:
    return float(np.broadcast_to(areas, SHAPE_YX).sum())


@pytest.mark.parametrize(("crs", "transform"), [*PLACES.items(), ("EPSG:4326", TURNED)])
def test_pixels_on_the_ellipsoid_add_up_to_the_area_of_their_outline(crs, transform):
    grid = GeoBox(SHAPE_YX, transform, crs)
    assert total(PixelAreas(grid, "ellipsoid").of(WHOLE)) == pytest.approx(outline_area(grid), rel=1e-5)


@pytest.mark.parametrize("on", ["auto", "ellipsoid"])
@pytest.mark.parametrize("crs", PLACES)
def test_sides_of_a_pixel_enclose_its_area(crs, on):
    grid = GeoBox(SHAPE_YX, PLACES[crs], crs)
    areas = PixelAreas(grid, choose_area(grid, on))
    across, down = areas.sides(20, 70)
    assert across * down == pytest.approx(areas.of(Window(20, 70, 1, 1)).item(), rel=1e-3)


def test_sides_of_a_turned_pixel_are_those_of_its_square():
    grid = GeoBox(SHAPE_YX, PLACES["EPSG:32633"] @ Affine.rotation(30), "EPSG:32633")
    assert PixelAreas(grid, "map").sides(0, 0) == pytest.approx((50, 50))
    assert PixelAreas(grid, "ellipsoid").sides(0, 0) == pytest.approx((50, 50), rel=1e-3)


def test_globe_in_degrees_has_the_area_of_the_earth():
    grid = GeoBox((181, 360), Affine(1, 0, 0, 0, -1, 90.5), "EPSG:4326")  # half a pixel beyond each pole
    areas = np.broadcast_to(PixelAreas(grid, "ellipsoid").of(Window(0, 0, 181, 360)), (181, 360))
    assert areas.sum() == pytest.approx(5.10065621724e14, rel=1e-9)  # WGS 84, Moritz: 510 065 621.724 square km


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:3857", "EPSG:4326"])
def test_pixel_has_the_same_area_in_any_window(crs):
    areas = PixelAreas(GeoBox(SHAPE_YX, PLACES[crs], crs), "ellipsoid")
    whole = np.broadcast_to(areas.of(WHOLE), SHAPE_YX)
    np.testing.assert_allclose(
        np.broadcast_to(areas.of(Window(7, 33, 20, 41)), (20, 41)), whole[7:27, 33:74], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("crs", "on"),
    [("EPSG:32633", "map"), ("EPSG:2263", "map"), ("EPSG:3857", "ellipsoid"), ("EPSG:3031", "ellipsoid"),
     ("EPSG:4326", "ellipsoid")],
)  # fmt: skip
def test_map_is_measured_on_where_it_keeps_areas(crs, on):
    assert choose_area(GeoBox(SHAPE_YX, PLACES[crs], crs), "auto") == on


@pytest.mark.parametrize(
    ("crs", "on", "message"),
    [(None, "auto", "no CRS"), ("EPSG:4326", "map", "ellipsoid"), ("EPSG:32633", "globe", "auto, map, ellipsoid")],
)
def test_area_that_is_not_known_is_refused(crs, on, message):
    with pytest.raises(RasterInputError, match=message):
        choose_area(GeoBox(SHAPE_YX, PLACES["EPSG:4326"], crs), on)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16"])
def test_pixels_and_areas_are_added_up_by_value(dtype):
    values = np.array([[3, 3, 200], [200, 3, 0]], dtype)
    assert add_up(values, np.array([[1.0], [10.0]])) == {0: (1, 10.0), 3: (3, 12.0), 200: (2, 11.0)}
    assert add_up(values, np.array([[2.5]])) == {0: (1, 2.5), 3: (3, 7.5), 200: (2, 5.0)}
