"""Where a raster lies, in the words of GeoZarr's conventions: valid by their library, and what rioxarray reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import zarr
import zarr_cm
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS
from test_zarr_store import change_raster, classes, client, stored  # noqa: F401

from geodl_dask.geozarr import array_attrs, group_attrs, with_levels
from geodl_dask.zarr_store import write_zarr

NORTH_UP, ROTATED = Affine(10, 0, 300, 0, -10, 900), Affine(8, 3, 300, 4, -6, 900)
LAEA = "+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80"
NEARLY_32633 = CRS("EPSG:32633").to_wkt().replace('"False easting",500000', '"False easting",500001')


def document(node: Path) -> dict:
    return json.loads((node / "zarr.json").read_text())


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "ESRI:102003", LAEA])
def test_array_and_group_are_valid_by_the_latest_conventions(tmp_path, crs):
    path = write_zarr(change_raster(classes((20, 30)), crs=crs), tmp_path / "change.zarr").path
    array, group = document(path / "change"), document(path)
    for convention in (zarr_cm.proj, zarr_cm.spatial):
        convention.validate_array_metadata(array)
        convention.validate_group_metadata(group)
        assert convention.detect(array["attributes"]) == convention.detect(group["attributes"]) == convention.LATEST


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED])
@pytest.mark.parametrize("crs", ["EPSG:32633", LAEA])
def test_conventions_say_what_rioxarray_reads(tmp_path, zarr_format, transform, crs):
    change = change_raster(classes((20, 30)), crs=crs, transform=transform)
    path = write_zarr(change, tmp_path / "change.zarr", zarr_format=zarr_format).path
    attrs, array = dict(zarr.open_array(path / "change").attrs), stored(path)
    code, wkt = attrs.get("proj:code"), attrs.get("proj:wkt2")
    assert (code is None) != (wkt is None)
    assert CRS(code or wkt) == CRS(array.rio.crs)
    assert Affine(*attrs["spatial:transform"]).almost_equals(array.rio.transform())
    corners = [transform @ corner for corner in ((0, 0), (30, 0), (0, 20), (30, 20))]
    xs, ys = zip(*corners, strict=True)
    np.testing.assert_allclose(attrs["spatial:bbox"], [min(xs), min(ys), max(xs), max(ys)])
    assert attrs["spatial:shape"] == list(array.shape)
    assert attrs["spatial:dimensions"] == list(array.dims)
    assert attrs["spatial:registration"] == "pixel"
    zarr_cm.validate_many(attrs, ["proj", "spatial"])
    zarr_cm.validate_many(dict(zarr.open_group(path).attrs), ["proj", "spatial"])


@pytest.mark.parametrize(
    ("crs", "code"), [("EPSG:32633", "EPSG:32633"), ("ESRI:102003", "ESRI:102003"), (LAEA, None), (NEARLY_32633, None)]
)
def test_a_crs_is_a_code_only_where_the_code_says_all_of_it(crs, code):
    attrs = array_attrs({}, GeoBox((2, 3), NORTH_UP, crs))
    assert attrs.get("proj:code") == code
    assert ("proj:wkt2" in attrs) == (code is None)
    assert CRS(attrs.get("proj:code", attrs.get("proj:wkt2"))) == CRS(crs)


def test_place_of_another_store_is_replaced_and_other_conventions_stay(tmp_path):
    first = write_zarr(change_raster(classes((20, 30)), crs=LAEA), tmp_path / "first.zarr").path
    whole = stored(first)
    declared = [*whole.attrs["zarr_conventions"], zarr_cm.convention_metadata("license")]
    part = whole[5:15, 3:9].odc.assign_crs("EPSG:32633").assign_attrs(zarr_conventions=declared)
    attrs = stored(write_zarr(part, tmp_path / "part.zarr").path).attrs
    assert (attrs["proj:code"], "proj:wkt2" in attrs) == ("EPSG:32633", False)
    assert attrs["spatial:shape"] == [10, 6]
    assert Affine(*attrs["spatial:transform"]) == part.odc.geobox.transform
    assert sorted(each["name"] for each in attrs["zarr_conventions"]) == ["license", "proj", "spatial"]


def test_levels_are_chained_and_valid():
    grids = [GeoBox(shape, NORTH_UP @ Affine.scale(scale), LAEA) for shape, scale in (((9, 5), 1), ((5, 3), 2))]
    attrs = with_levels(group_attrs(grids[0]), [("a", grids[0]), ("half/a", grids[1])])
    zarr_cm.multiscales.validate_group_metadata({"zarr_format": 3, "node_type": "group", "attributes": attrs})
    first, second = attrs["multiscales"]["layout"]
    assert (first["asset"], second["asset"], second["derived_from"]) == ("a", "half/a", "a")
    assert "derived_from" not in first
    assert (first["transform"]["scale"], second["transform"]["scale"]) == ([1, 1], [2, 2])
    assert (second["spatial:shape"], second["spatial:transform"][0]) == ([5, 3], 20)
    assert attrs["multiscales"]["resampling_method"] == "mode"
