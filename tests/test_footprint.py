"""Where a grid lies on the globe: what is in its outline is what is on the grid, and GeoJSON's rules are kept."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from geodl_dask.footprint import footprint_of


def square(crs: str, left: float, top: float, size: float, count: int = 100) -> GeoBox:
    return GeoBox((count, count), Affine(size, 0, left, 0, -size, top), crs)


GRIDS = {
    "small": square("EPSG:32633", 500_000, 5_400_000, 10),
    "tiny": square("EPSG:32633", 500_000, 5_400_000, 2e-3, 5),
    "large": square("EPSG:32633", 0, 6_400_000, 10_000),
    "rotated": GeoBox((80, 120), Affine(900, 300, 500_000, 400, -900, 5_400_000), "EPSG:32633"),
    "south up": GeoBox((80, 120), Affine(900, 0, 500_000, 0, 900, 5_400_000), "EPSG:32633"),
    "north first": square("EPSG:2193", 1_500_000, 5_200_000, 1_000),
    "degrees": square("EPSG:4326", 10, 50, 0.1),
    "degrees to 360": square("EPSG:4326", 200, 50, 0.1),
    "degrees beyond 180": square("EPSG:4326", 175, 50, 0.1),
    "degrees across 0": square("EPSG:4326", 355, 5, 0.1),
    "zone across 180": square("EPSG:32601", 200_000, 5_400_000, 3_000),
    "Mercator across 180": square("EPSG:3857", 20_037_508 - 50_000, 1_000_000, 1_000),
    "north pole": square("EPSG:3413", -500_000, 500_000, 10_000),
    "south pole": square("EPSG:3031", -500_000, 300_000, 10_000),
    "beside the pole": square("EPSG:3413", 100_000, -100_000, 10_000),
}


@pytest.mark.parametrize("name", GRIDS)
def test_outline_holds_what_is_on_the_grid_and_nothing_else(name):
    grid = GRIDS[name]
    geometry = shapely.geometry.shape(footprint_of(grid)[0])
    rng = np.random.default_rng(1)
    turn = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True)
    row, col = rng.uniform(-0.4, 1.4, (2, 3000)) * np.array(grid.shape)[:, None]
    inside = (row > 0) & (row < grid.shape[0]) & (col > 0) & (col < grid.shape[1])
    near = np.minimum.reduce([abs(row), abs(row - grid.shape[0]), abs(col), abs(col - grid.shape[1])])
    clear = near > 0.02 * max(grid.shape)
    lon, lat = turn.transform(*(grid.transform @ (col, row)))
    found = shapely.contains_xy(geometry, (lon + 180) % 360 - 180, lat)
    assert inside[clear].any()
    assert not inside[clear].all()
    np.testing.assert_array_equal(found[clear], inside[clear])


@pytest.mark.parametrize("name", GRIDS)
def test_outline_follows_the_rules_of_geojson(name):
    geometry, bounds = footprint_of(GRIDS[name])
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    assert geometry["type"] == ("MultiPolygon" if "180" in name else "Polygon")
    polygons = geometry["coordinates"] if "180" in name else [geometry["coordinates"]]
    for outer, *_ in polygons:
        assert outer[0] == outer[-1]
        assert shapely.LinearRing(outer).is_ccw
    west, south, east, north = shape.bounds
    assert -180 <= west < east <= 180
    assert bounds[1::2] == [south, north]
    assert (bounds[0] > bounds[2]) == ("180" in name)
    assert (bounds[0], bounds[2]) == (west, east) or "180" in name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("degrees", [10, 40, 20, 50]),
        ("degrees to 360", [-160, 40, -150, 50]),
        ("degrees beyond 180", [175, 40, -175, 50]),
        ("degrees across 0", [-5, -5, 5, 5]),
    ],
)
def test_bounds_are_those_of_the_grid(name, expected):
    assert footprint_of(GRIDS[name])[1] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["north pole", "south pole"])
def test_grid_with_a_pole_reaches_it_all_around(name):
    bounds = footprint_of(GRIDS[name])[1]
    assert (bounds[0], bounds[2]) == (-180, 180)
    assert bounds[3 if name == "north pole" else 1] == (90 if name == "north pole" else -90)


@pytest.mark.parametrize(("left", "top", "rows"), [(-180, 90, 180), (0, 90, 180), (-180.5, 90.5, 181)])
def test_grid_of_the_world_is_one_piece(left, top, rows):
    geometry, bounds = footprint_of(GeoBox((rows, 360), Affine(1, 0, left, 0, -1, top), "EPSG:4326"))
    assert geometry["type"] == "Polygon"
    assert shapely.geometry.shape(geometry).area == pytest.approx(360 * 180)
    assert bounds == [-180, -90, 180, 90]


@pytest.mark.parametrize(
    "crs",
    [
        "IAU_2015:30100",  # the Moon
        'ENGCRS["plan",EDATUM["corner"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]',
        "+proj=ortho +lat_0=0 +lon_0=0",  # whose corners are beyond the horizon
    ],
)
def test_grid_that_leads_to_no_degrees_has_no_place(crs):
    assert footprint_of(square(crs, -10_000_000, 10_000_000, 200_000)) == (None, None)
