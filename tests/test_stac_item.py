"""The STAC Item beside a result: valid, read back by others as what was written, and without secrets."""

from __future__ import annotations

import json
import logging
import os
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pystac
import pytest
import rioxarray
import xarray as xr
from affine import Affine
from conftest import TRANSFORM, write_raster
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from test_zarr_store import TABLE, change_raster

from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.manifest import Manifest
from geodl_dask.rasters import open_raster
from geodl_dask.stac_item import describe_result, item_of, reference, write_item

ENDED = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=2)))
PIXELS = {0: 600, 7: 200, 255: 200}
VALUES = np.zeros((20, 50), np.uint8)


def result(folder: Path, **attrs) -> xr.DataArray:
    """As `detect_change` gives it."""
    for name in ("a", "b"):
        write_raster(folder / f"{name}.tif", np.zeros((1, 4, 5), np.uint8))
    (folder / "2nd model.dlpk").touch()
    return change_raster(VALUES).assign_attrs(
        {
            "long_name": "change", "from_raster": str(folder / "a.tif"), "to_raster": str(folder / "b.tif"),
            "model": str(folder / "2nd model.dlpk"), "model_digest": "cafe", "runner": "native",
            "arguments": "padding 4;batch_size 16", "geodl_dask_version": "1.2.3",
            "rasters": ["from_raster a.tif: GeoTIFF, 4 band(s) of uint16, EPSG",
                        "to_raster b, 9 band(s) of x.tif: GeoTIFF, 3 band(s) of uint8"],
        } | attrs
    )  # fmt: skip


def record(pixels=PIXELS) -> Manifest:
    """Of a run that has ended."""
    return Manifest({}, "", ended=ENDED.isoformat(), pixels=pixels, software={"geodl_dask": "1.2.3"})


def described(change, path: Path, pixels=PIXELS) -> dict:
    size = path.stat().st_size if path.is_file() else 0
    item = describe_result(change, path, manifest=record(pixels), size=size)
    return json.loads(json.dumps(item.to_dict(include_self_link=False, transform_hrefs=False), allow_nan=False))


def read_back(change, path: Path, pixels=PIXELS) -> pystac.Item:
    return pystac.Item.from_file(str(write_item(change, path, finished=path, manifest=record(pixels))))


def require_valid(item: dict) -> None:
    """By the schema of STAC itself, which pystac brings; those of extensions lie on the network."""
    JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, "1.1.0")


ODD = {
    "a CRS without a place": {"crs": "IAU_2015:30100"},
    "a CRS without a code": {"crs": "+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80"},
    "across 180": {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 178, 0, -0.1, 50)},
    "rotated": {"transform": Affine(10, 2, 500_000, 2, -10, 5_400_000)},
}


@pytest.mark.parametrize("name", ["change.tif", "change.zarr"])
@pytest.mark.parametrize("grid", [{}, *ODD.values()], ids=["plain", *ODD])
def test_item_is_valid(tmp_path, name, grid):
    plain = result(tmp_path)
    item = described(change_raster(VALUES, **grid).assign_attrs(plain.attrs), tmp_path / name)
    require_valid(item)
    assert (item["geometry"] is None) == ("bbox" not in item) == ("IAU" in grid.get("crs", ""))
    broken = item | {"properties": {}}
    with pytest.raises(pystac.errors.STACValidationError):
        require_valid(broken)


def test_every_extension_that_is_declared_has_what_it_requires(tmp_path):
    (tmp_path / "change.tif").write_bytes(b"II*")
    item = described(result(tmp_path), tmp_path / "change.tif")
    declared = {re.search(r"io/(\w+)/v([\d.]+)/", uri).groups() for uri in item["stac_extensions"]}
    assert declared == {
        ("projection", "2.0.0"), ("processing", "1.2.0"), ("classification", "2.0.0"), ("file", "2.1.0"),
        ("mlm", "1.4.0"),
    }  # fmt: skip
    properties, assets = item["properties"], item["assets"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= properties.keys()
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    assert [(name, each["mlm:artifact_type"]) for name, each in assets.items() if "mlm:model" in each["roles"]] == [
        ("model", "dlpk")
    ]
    assert {"processing:software", "processing:lineage", "processing:level"} <= properties.keys()
    for each in assets["data"]["classification:classes"]:
        assert {"value", "name"} <= each.keys()
        assert re.fullmatch("[0-9A-Za-z-_]+", each["name"])


def test_what_the_item_says_of_the_grid_is_the_grid(tmp_path):
    item = read_back(result(tmp_path), tmp_path / "change.tif")
    said = ProjectionExtension.ext(item)
    assert (said.code, said.shape, said.transform) == ("EPSG:32633", [20, 50], list(TRANSFORM)[:6])
    left, top = TRANSFORM @ (0, 0)
    right, bottom = TRANSFORM @ (50, 20)
    assert said.bbox == [left, bottom, right, top]


def test_crs_with_another_name_has_the_code_of_its_equal(tmp_path):
    change = change_raster(VALUES, crs="+proj=utm +zone=33 +datum=WGS84")
    assert ProjectionExtension.ext(read_back(change, tmp_path / "change.tif")).code == "EPSG:32633"


def test_crs_without_a_code_is_written_out(tmp_path):
    change = change_raster(VALUES, crs=ODD["a CRS without a code"]["crs"])
    said = ProjectionExtension.ext(read_back(change, tmp_path / "change.tif"))
    assert said.code is None
    assert said.wkt2 == change.odc.crs.to_wkt()


def test_values_are_explained_and_counted(tmp_path):
    data = read_back(result(tmp_path), tmp_path / "change.tif").assets["data"]
    said = [each.to_dict() for each in ClassificationExtension.ext(data).classes]
    assert said == [
        {"value": 0, "name": "No_change", "title": "No change", "color_hint": "E6E6E6", "percentage": 75.0,
         "count": 600},
        {"value": 7, "name": "Anderung", "title": "Änderung", "color_hint": "C81E1E", "percentage": 25.0, "count": 200},
        {"value": 255, "name": "nodata", "nodata": True, "count": 200},
    ]  # fmt: skip
    assert data.extra_fields["bands"] == [
        {"name": "change", "data_type": "uint8", "nodata": 255, "statistics": {"valid_percent": 80.0}}
    ]


def test_names_of_classes_are_told_apart(tmp_path):
    names = ["Änderung", "Anderung", "変化", "nodata", "a/b", "a b"]
    table = ClassTable(tuple(ModelClass(value, name, (1, 2, 3)) for value, name in enumerate(names)))
    item = described(result(tmp_path, **table.to_attrs()), tmp_path / "change.tif", {0: 1, 6: 1})
    said = item["assets"]["data"]["classification:classes"]
    assert [each["name"] for each in said] == [
        "Anderung", "Anderung_1", "class_2", "nodata", "a_b", "a_b_5", "6_unlisted", "nodata_255"
    ]  # fmt: skip
    assert [each.get("title") for each in said] == [*names, "6 (unlisted)", None]


@pytest.mark.parametrize("pixels", [{}, {255: 1000}])
def test_result_without_a_valid_pixel_has_no_shares(tmp_path, pixels):
    said = described(result(tmp_path), tmp_path / "change.tif", pixels)["assets"]["data"]
    assert not any("percentage" in each for each in said["classification:classes"])
    assert said["bands"][0].get("statistics", {"valid_percent": 0}) == {"valid_percent": 0}


def test_further_variables_are_bands_without_classes(tmp_path):
    change = result(tmp_path)
    confidence = (change.astype(np.float32) / 255).rename("confidence").assign_attrs({"_FillValue": np.float32(np.nan)})
    for name in TABLE.to_attrs():
        confidence.attrs.pop(name, None)
    item = described(xr.Dataset({"confidence": confidence, "change": change}), tmp_path / "change.zarr")
    require_valid(item)
    first, second = item["assets"]["data"]["bands"]
    assert first == {"name": "confidence", "data_type": "float32", "nodata": "nan"}
    assert second["name"] == "change"
    assert [each["value"] for each in second["classification:classes"]] == [0, 7, 255]


def test_data_is_said_to_be_what_it_is(tmp_path):
    (tmp_path / "change.tif").write_bytes(b"12345")
    (tmp_path / "change.zarr").mkdir()
    cog = read_back(result(tmp_path), tmp_path / "change.tif").assets["data"]
    store = read_back(result(tmp_path), tmp_path / "change.zarr").assets["data"]
    assert cog.media_type == "image/tiff; application=geotiff; profile=cloud-optimized"
    assert store.media_type == "application/vnd.zarr; version=3"
    assert (cog.href, store.href) == ("./change.tif", "./change.zarr")
    assert FileExtension.ext(cog).size == 5
    assert "file:size" not in store.extra_fields


def test_times_are_those_of_the_run(tmp_path):
    item = read_back(result(tmp_path), tmp_path / "change.tif")
    assert item.datetime == item.common_metadata.created == ENDED
    assert item.properties["processing:datetime"] == item.properties["datetime"] == "2026-03-04T03:06:07Z"
    assert "dates of the imagery are not known" in item.properties["description"]


def test_model_is_described_as_far_as_it_is_known(tmp_path):
    item = read_back(result(tmp_path), tmp_path / "change.tif")
    model = MLMExtension.ext(item)
    assert (model.mlm_name, model.architecture) == ("nd-model", "unknown")
    assert [(each.name, each.input.shape, str(each.input.data_type)) for each in model.input] == [
        ("from_raster", [-1, 4, 16, 16], "uint16"),
        ("to_raster", [-1, 3, 16, 16], "uint8"),
    ]
    assert model.output[0].result.shape == [-1, 8, 8]
    assert model.hyperparameters.to_dict() == {"padding": "4", "batch_size": "16"}
    assert "mlm:pretrained_source" not in item.properties
    assert "digest cafe" in item.properties["processing:lineage"]
    assert item.properties["processing:software"] == {"geodl_dask": "1.2.3"}


def test_model_given_as_text_is_no_asset(tmp_path):
    item = described(result(tmp_path, model='{"Framework": "secret"}'), tmp_path / "change.tif")
    require_valid(item)
    assert set(item["assets"]) == {"data", "manifest"}
    assert "mlm" not in json.dumps(item)
    assert "secret" not in json.dumps(item)


def test_links_lead_from_the_folder_of_the_result_to_what_it_was_made_of(tmp_path):
    (tmp_path / "out").mkdir()
    change = result(tmp_path, to_raster=f"{tmp_path}/b.tif#1")
    item = described(change, tmp_path / "out" / "change.tif")
    assert [(each["rel"], each["href"]) for each in item["links"]] == [
        ("derived_from", "../a.tif"), ("derived_from", "../b.tif#1"[:-2]), ("derived_from", "../2nd model.dlpk"),
    ]  # fmt: skip
    for each in item["links"]:
        assert (tmp_path / "out" / each["href"]).exists()
    assert item["assets"]["manifest"]["href"] == "./change.tif.manifest.json"


SECRET = [
    "https://user:secret@a.org/x/b.tif", "https://a.org/x/b.tif?token=secret", "https://a.org/x/b.tif#secret",
    "/vsicurl/https://user:secret@a.org/x/b.tif?sig=secret", "s3://key:secret@a.org/x/b.tif?secret",
    "HTTPS://user:secret@a.org/x/b.tif;v=1?x#secret",
]  # fmt: skip


@pytest.mark.parametrize("url", SECRET)
def test_nothing_secret_of_a_url_is_told(tmp_path, url):
    item = described(result(tmp_path, from_raster=url, model=url, runner="x"), tmp_path / "change.tif")
    require_valid(item)
    assert "secret" not in json.dumps(item)
    assert "user" not in json.dumps(item["links"] + [item["assets"]])
    assert item["links"][0]["href"].lower().partition("://")[2].startswith("a.org/x/b.tif")


@pytest.mark.parametrize(
    "text",
    [
        "", "<VRTDataset>https://a.org/secret</VRTDataset>", '{"a": 1}', "xarray array 'x'", "/nowhere/a.tif",
        "a" * 5000, "/vsicurl?url=https%3A%2F%2Fa.org%3Fsig%3Dsecret", "WMS:https://a.org?key=secret",
        "/vsizip//vsicurl/https://user:secret@a.org", "zip+https://a.org/a.zip?sig=secret!b.tif",
        "http://[::1/a.tif", "https:///a.tif", "a\0b", "/vsizip/a.zip/b.tif", 'NETCDF:"a.nc":v',
    ],
)  # fmt: skip
def test_what_is_no_place_is_no_reference(tmp_path, text):
    assert reference(text, tmp_path) is None
    change = result(tmp_path, from_raster=text, model=text)
    item = described(change, tmp_path / "change.tif")
    require_valid(item)
    assert len(item["links"]) == 1
    assert "secret" not in json.dumps(item)


def test_name_that_is_no_utf_8_does_not_stand_in_the_way(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.dlpk")
    Path(name).touch()
    out = tmp_path / "c.tif"
    path = write_item(result(tmp_path, model=name), out, finished=out, manifest=record())
    item = json.loads(path.read_text(encoding="utf-8"))
    assert "m?.dlpk" in item["properties"]["processing:lineage"]
    assert "model" not in item["assets"]


def test_result_in_object_storage_names_what_lies_there_and_nothing_of_this_machine(tmp_path):
    change = result(tmp_path, to_raster="https://user:secret@host/b.tif?key=secret")
    item = describe_result(change, "s3://bucket/results/change.tif", manifest=record(), size=77).to_dict()
    assert item["assets"]["data"]["href"] == "./change.tif"
    assert item["assets"]["data"]["file:size"] == 77
    assert [link["href"] for link in item["links"] if link["rel"] == "derived_from"] == ["https://host/b.tif"]
    assert str(tmp_path) not in json.dumps(item)


def test_result_stays_whole_where_it_cannot_be_described(tmp_path, caplog):
    (tmp_path / "change.tif.stac.json").write_text("of an earlier result")
    with caplog.at_level(logging.WARNING):
        path = tmp_path / "change.tif"
        nowhere = result(tmp_path).drop_vars(["y", "x", "spatial_ref"])
        assert write_item(nowhere, path, finished=path, manifest=record()) is None
    assert "change.tif is whole, but has no STAC Item" in caplog.text
    assert not item_of(path).exists()
    assert not [each for each in tmp_path.iterdir() if ".stac.json" in each.name]


def test_item_of_a_result_is_itself_a_raster(tmp_path):
    change = result(tmp_path)
    path = tmp_path / "change.tif"
    change.compute(scheduler="synchronous").rio.write_crs("EPSG:32633").rio.to_raster(path)
    raster = open_raster(write_item(change, path, finished=path, manifest=record()))
    assert raster.grid == change.odc.geobox
    assert raster.kind == "STAC Item, asset data"
    assert rioxarray.open_rasterio(path).shape == (1, 20, 50)
