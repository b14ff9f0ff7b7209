"""netCDF files, Zarr stores, STAC Items and object storage: what is read is what rasterio reads of the file beneath."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import boto3
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from conftest import TRANSFORM, write_raster
from servers import serving, serving_s3

from geodl_dask.errors import RasterInputError, RasterNotFoundError, RasterReadError
from geodl_dask.rasters import open_raster
from geodl_dask.tiling import Window

WINDOW = Window(5, 9, 40, 50)
SHAPE = (83, 109)
NODATA = 7


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (3, *SHAPE)).astype(np.int16)


@pytest.fixture
def file(tmp_path, image) -> Path:
    return write_raster(tmp_path / "image.tif", image, nodata=NODATA)


def assert_read_as(raster, path: Path, bands=None) -> None:
    """The same pixels, validity and place as rasterio reads from a file for the same window."""
    pixels, valid = pickle.loads(pickle.dumps(raster)).read(WINDOW)
    where = rasterio.windows.Window(WINDOW.col_off, WINDOW.row_off, WINDOW.width, WINDOW.height)
    with rasterio.open(path) as dataset:
        seen = (dataset.read_masks(bands, window=where) != 0).all(axis=0)
        np.testing.assert_array_equal(valid, seen)
        np.testing.assert_array_equal(pixels[:, seen], dataset.read(bands, window=where)[:, seen])
        assert raster.grid.transform.almost_equals(dataset.transform)
        assert (raster.grid.shape, raster.grid.crs.to_epsg()) == (dataset.shape, dataset.crs.to_epsg())
        assert str(pixels.dtype) == raster.dtype == dataset.dtypes[0]


def dataset_of(file: Path, names: tuple[str, ...] = ()) -> xr.Dataset:
    """A file as one variable `image`, or as one variable for each band."""
    array = rioxarray.open_rasterio(file)
    array.attrs = {"_FillValue": np.int16(NODATA)}
    bands = {name: array[at].drop_vars("band") for at, name in enumerate(names)} or {"image": array}
    for each in bands.values():
        each.encoding = {"grid_mapping": "spatial_ref"}
    return xr.Dataset(bands)


# netCDF.


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3035"])
def test_netcdf_of_one_variable_is_the_file_beneath(tmp_path, image, crs):
    transform = Affine(0.25, 0, 10, 0, -0.25, 50) if crs == "EPSG:4326" else TRANSFORM
    file = write_raster(tmp_path / "image.tif", image, nodata=NODATA, crs=crs, transform=transform)
    dataset_of(file).to_netcdf(tmp_path / "image.nc", engine="h5netcdf")
    assert_read_as(open_raster(tmp_path / "image.nc"), file)


def test_variables_of_a_netcdf_are_bands_by_name(tmp_path, file, monkeypatch):
    dataset_of(file, ("red", "green", "nir")).to_netcdf(tmp_path / "scene.nc", engine="h5netcdf")
    monkeypatch.chdir(tmp_path)
    one, several = open_raster("scene.nc#green"), open_raster("scene.nc#nir,red")
    monkeypatch.chdir("/")
    assert_read_as(one, file, [2])
    assert_read_as(several, file, [3, 1])
    assert several.band_names == ("nir", "red")
    assert (one.kind, several.kind) == ("netCDF file, variable green", "netCDF file, variables nir, red")
    assert_read_as(open_raster(f'NETCDF:"{tmp_path}/scene.nc":green'), file, [2])


@pytest.mark.parametrize(
    ("choice", "message"),
    [("", r"has the variables red, green\. Choose one"), ("#blue", r"red, green, not blue\. .*scene\.nc#red,green")],
)
def test_netcdf_of_several_variables_lists_them(tmp_path, file, choice, message):
    dataset_of(file, ("red", "green")).to_netcdf(tmp_path / "scene.nc", engine="h5netcdf")
    with pytest.raises(RasterInputError, match=f"to_raster .*{message}"):
        open_raster(f"{tmp_path}/scene.nc{choice}", "to_raster")


def test_file_that_is_no_netcdf_is_refused(tmp_path):
    (tmp_path / "no.nc").write_text("no")
    with pytest.raises(RasterInputError, match="cannot be opened as a netCDF"):
        open_raster(tmp_path / "no.nc")


@pytest.mark.parametrize("options", [{}, {"decode_coords": "all"}, {"mask_and_scale": False}, {"chunks": {}}])
def test_dataset_of_a_netcdf_is_the_file_beneath(tmp_path, file, options):
    dataset_of(file).to_netcdf(tmp_path / "image.nc", engine="h5netcdf")
    pixels, valid = open_raster(tmp_path / "image.nc").read(Window(0, 0, *SHAPE))
    with xr.open_dataset(tmp_path / "image.nc", engine="h5netcdf", **options) as dataset:
        raster = open_raster(dataset)
        theirs, seen = raster.pixels.compute(), raster.valid.compute()
    np.testing.assert_array_equal(seen, valid)
    np.testing.assert_array_equal(theirs[:, seen], pixels[:, seen])
    assert raster.grid.crs.to_epsg() == 32633


# Zarr.


@pytest.fixture(params=[2, 3])
def zarr_format(request) -> int:
    return request.param


def write_zarr(dataset: xr.Dataset, path: Path, zarr_format: int, **encoding) -> Path:
    for name, more in encoding.items():
        dataset[name].encoding |= more
    dataset.to_zarr(path, zarr_format=zarr_format, consolidated=False)
    return path


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_zarr_of_one_variable_is_the_file_beneath(tmp_path, image, zarr_format, crs):
    transform = Affine(0.25, 0, 10, 0, -0.25, 50) if crs == "EPSG:4326" else TRANSFORM
    file = write_raster(tmp_path / "image.tif", image, nodata=NODATA, crs=crs, transform=transform)
    store = write_zarr(dataset_of(file), tmp_path / "image.zarr", zarr_format, image={"chunks": (3, 16, 16)})
    raster = open_raster(store)
    assert_read_as(raster, file)
    assert raster.kind == "Zarr store, variable image"
    assert_read_as(open_raster(store, bands=[3, 1]), file, [3, 1])


def test_folder_of_a_store_needs_no_suffix(tmp_path, file, zarr_format, monkeypatch):
    write_zarr(dataset_of(file), tmp_path / "store", zarr_format)
    monkeypatch.chdir(tmp_path)
    raster = open_raster("store")
    monkeypatch.chdir("/")
    assert_read_as(raster, file)


def test_variables_of_a_store_are_bands_by_name(tmp_path, file, zarr_format):
    store = write_zarr(dataset_of(file, ("red", "green", "nir")), tmp_path / "scene.zarr", zarr_format)
    raster = open_raster(f"{store}#nir,red")
    assert_read_as(raster, file, [3, 1])
    assert_read_as(open_raster(f"{store}#nir,red", bands=["red"]), file, [1])
    assert_read_as(open_raster(f"{store}#green"), file, [2])
    assert (raster.band_names, raster.kind) == (("nir", "red"), "Zarr store, variables nir, red")


@pytest.mark.parametrize(("choice", "message"), [("", r"green, red\. Choose one"), ("#blue", "green, red, not blue")])
def test_store_of_several_variables_lists_them(tmp_path, file, choice, message):
    store = write_zarr(dataset_of(file, ("red", "green")), tmp_path / "scene.zarr", 3)
    with pytest.raises(RasterInputError, match=f"to_raster .*has the variables {message}"):
        open_raster(f"{store}{choice}", "to_raster")


def test_scale_and_offset_of_a_store_are_applied(tmp_path, file, zarr_format):
    dataset = dataset_of(file)
    dataset["image"].attrs |= {"scale_factor": 0.5, "add_offset": 3.0}
    raster = open_raster(write_zarr(dataset, tmp_path / "image.zarr", zarr_format))
    with rasterio.open(file, "r+") as tiff:
        tiff.scales, tiff.offsets = (0.5,) * 3, (3.0,) * 3
    expected = open_raster(file)
    assert raster.dtype == expected.dtype
    for ours, theirs in zip(raster.read(WINDOW), expected.read(WINDOW), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_the_chunks_of_the_window_are_read(tmp_path, file, zarr_format):
    store = write_zarr(dataset_of(file), tmp_path / "image.zarr", zarr_format, image={"chunks": (3, 16, 16)})
    raster = open_raster(store)
    for chunk in (store / "image").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith(".z") and chunk.name != "zarr.json":
            row = int(chunk.name.split(".")[1]) if zarr_format == 2 else int(chunk.parent.name)
            if row > 0:
                chunk.write_bytes(b"broken")
    raster.read(Window(0, 0, 16, 109))
    with pytest.raises(RasterReadError, match="cannot be read at row 10, column 0, 16 x 20"):
        raster.read(Window(10, 0, 16, 20))


def test_only_the_bands_that_are_asked_for_are_read(tmp_path, file, image, zarr_format):
    store = write_zarr(dataset_of(file), tmp_path / "image.zarr", zarr_format, image={"chunks": (1, 83, 109)})
    (store / "image" / ("1.0.0" if zarr_format == 2 else "c/1/0/0")).write_bytes(b"broken")
    pixels, _ = open_raster(store, bands=[3, 1, 3]).read(Window(0, 0, *SHAPE))
    np.testing.assert_array_equal(pixels, image[[2, 0, 2]])
    with pytest.raises(RasterReadError):
        open_raster(store).read(WINDOW)


def test_store_that_is_written_anew_is_read_anew(tmp_path, file, image, zarr_format):
    store = write_zarr(dataset_of(file), tmp_path / "image.zarr", zarr_format)
    open_raster(store).read(WINDOW)
    shutil.rmtree(store)
    other = write_raster(tmp_path / "other.tif", image[:2, 5:80] + 1, nodata=NODATA, crs="EPSG:32634")
    write_zarr(dataset_of(other), store, zarr_format)
    assert_read_as(open_raster(store), other)


def test_truth_values_of_a_store_are_0_and_1(tmp_path, file, image, zarr_format):
    dataset = dataset_of(file)
    dataset["image"] = (dataset["image"] > 99).drop_attrs()
    dataset["image"].encoding = {"grid_mapping": "spatial_ref"}
    raster = open_raster(write_zarr(dataset, tmp_path / "image.zarr", zarr_format))
    np.testing.assert_array_equal(raster.read(Window(0, 0, *SHAPE))[0], (image > 99).astype(np.uint8))
    assert raster.dtype == "uint8"


def test_variables_with_a_time_of_length_1_are_bands(tmp_path, file, zarr_format):
    dataset = dataset_of(file, ("red", "green")).expand_dims(time=[3])
    store = write_zarr(dataset, tmp_path / "scene.zarr", zarr_format)
    assert_read_as(open_raster(f"{store}#green,red"), file, [2, 1])


def test_store_without_a_crs_is_refused(tmp_path, file):
    dataset = dataset_of(file).drop_vars("spatial_ref")
    dataset["image"].encoding = {}
    with pytest.raises(RasterInputError, match="has no CRS"):
        open_raster(write_zarr(dataset, tmp_path / "image.zarr", 3))


def test_variables_on_several_grids_are_no_bands(tmp_path, file):
    dataset = dataset_of(file, ("red",))
    dataset["coarse"] = dataset["red"][:40, :40].rename(x="x2", y="y2")
    with pytest.raises(RasterInputError, match=r"coarse"):
        open_raster(f"{write_zarr(dataset, tmp_path / 'scene.zarr', 3)}#red,coarse")


def test_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "no.zarr").mkdir()
    with pytest.raises(RasterInputError, match="cannot be opened as a Zarr group"):
        open_raster(tmp_path / "no.zarr")


# STAC.


def write_item(path: Path, assets: dict[str, dict], **more) -> Path:
    item = {"type": "Feature", "stac_version": "1.0.0", "id": path.stem, "assets": assets, **more}
    path.write_text(json.dumps(item))
    return path


def asset(href: str, *roles: str, kind: str = "image/tiff; application=geotiff") -> dict:
    return {"href": href, "roles": list(roles), "type": kind}


@pytest.fixture
def scene(tmp_path, image) -> Path:
    """An Item with an image of three bands, its bands as files, one of other pixels, and what is no raster."""
    folder = tmp_path / "scene"
    folder.mkdir()
    write_raster(folder / "image.tif", image, nodata=NODATA)
    for at, name in enumerate(("red", "green", "nir")):
        write_raster(folder / f"{name}.tif", image[at : at + 1], nodata=NODATA)
    write_raster(folder / "swir.tif", image[:1, ::2, ::2], transform=TRANSFORM @ Affine.scale(2))
    return write_item(
        folder / "item.json",
        {
            "thumbnail": asset("thumbnail.png", "thumbnail", kind="image/png"),
            "red": asset("./red.tif", "data"), "green": asset("green.tif", "data"),
            "nir": asset((folder / "nir.tif").as_uri(), "data"), "visual": asset("image.tif", "visual"),
            "metadata": asset("metadata.xml", "metadata", kind="application/xml"),
        },
    )  # fmt: skip


def test_one_asset_of_an_item_is_its_file(scene):
    raster = open_raster(f"{scene}#visual")
    assert_read_as(raster, scene.parent / "image.tif")
    assert raster.kind == "STAC Item, asset visual"


def test_chosen_assets_of_an_item_are_bands_by_name(scene, monkeypatch):
    monkeypatch.chdir(scene.parent)
    raster = open_raster("item.json#nir,red")
    monkeypatch.chdir("/")
    assert_read_as(raster, scene.parent / "image.tif", [3, 1])
    assert (raster.band_names, raster.kind) == (("nir", "red"), "STAC Item, assets nir, red")


def test_data_assets_of_an_item_are_all_taken(scene):
    raster = open_raster(scene)
    assert_read_as(raster, scene.parent / "image.tif")
    assert raster.band_names == ("red", "green", "nir")


def test_item_of_several_resolutions_says_how_to_choose(scene):
    item = json.loads(scene.read_text())
    item["assets"]["swir"] = asset("swir.tif", "data")
    scene.write_text(json.dumps(item))
    with pytest.raises(RasterInputError, match=r"of 0\.5 x -0\.5, asset swir of 1 x -1.*item\.json#red,green,nir"):
        open_raster(scene)


def test_asset_that_is_not_there_lists_those_that_are(scene):
    with pytest.raises(RasterInputError, match=r"no asset blue.*thumbnail, red, green, nir, visual, metadata"):
        open_raster(f"{scene}#red,blue")


def test_items_of_a_collection_are_a_mosaic_later_over_earlier(tmp_path, image):
    """Two Items share 20 columns, where the second has nodata in its upper half."""
    first, second = image.copy(), image.copy()[:, :, ::-1].copy()
    second[:, :40, :20] = NODATA
    write_raster(tmp_path / "a.tif", first, nodata=NODATA)
    write_raster(tmp_path / "b.tif", second, nodata=NODATA, transform=TRANSFORM @ Affine.translation(89, 0))
    items = [{"type": "Feature", "assets": {"visual": asset(f"{name}.tif", "visual")}} for name in "ab"]
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    raster = open_raster(path)
    expected = np.concatenate([first, second[:, :, 20:]], axis=2)
    expected[:, :, 89:109] = np.where(second[:, :, :20] == NODATA, first[:, :, 89:], second[:, :, :20])
    pixels, valid = raster.read(Window(0, 0, 83, 198))
    np.testing.assert_array_equal(valid, (expected != NODATA).all(axis=0))
    np.testing.assert_array_equal(pixels[:, valid], expected[:, valid])
    assert raster.kind == "mosaic of 2 STAC Items, later over earlier, asset visual"
    assert raster.band_names[0] == "visual_1"


@pytest.mark.parametrize("choice", ["#visual", "#red,green,nir"])
def test_item_over_http_has_its_assets_beside_it(scene, choice):
    item = json.loads(scene.read_text())
    item["assets"]["nir"]["href"] = "nir.tif"
    scene.write_text(json.dumps(item))
    with serving(("files", scene.parent)) as site:
        assert_read_as(open_raster(f"{site.url}/item.json{choice}"), scene.parent / "image.tif")


def test_item_of_the_network_may_not_name_files_of_this_machine(scene):
    with (
        serving(("files", scene.parent)) as site,
        pytest.raises(RasterInputError, match="no document of the network"),
    ):
        open_raster(f"{site.url}/item.json#nir")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "Collection"}', "is a STAC Collection; one Item"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": null}]}', "cannot be opened"),
        ("<html>", "is not JSON .* begins with '<html>'"),
        ('{"type": "Feature", "assets": {}}', "no asset that says it is a raster"),
    ],
)
def test_other_json_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RasterInputError, match=message):
        open_raster(tmp_path / "x.json")


# Object storage.


@pytest.fixture(scope="module")
def bucket():
    """A bucket of an S3 server, and how GDAL is told of it."""
    with serving_s3() as endpoint, pytest.MonkeyPatch.context() as patch:
        settings = {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
            "AWS_S3_ENDPOINT": endpoint, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        }  # fmt: skip
        for name, value in settings.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield client


def test_file_of_a_bucket_is_the_file_beneath(bucket, file):
    bucket.upload_file(str(file), "bucket", "folder/an image.tif")
    assert_read_as(open_raster("s3://bucket/folder/an image.tif"), file)


def test_assets_of_an_item_may_lie_in_a_bucket(bucket, scene):
    item = json.loads(scene.read_text())
    for name in ("red", "green", "nir"):
        bucket.upload_file(str(scene.parent / f"{name}.tif"), "bucket", f"{name}.tif")
        item["assets"][name]["href"] = f"s3://bucket/{name}.tif"
    scene.write_text(json.dumps(item))
    assert_read_as(open_raster(scene), scene.parent / "image.tif")


def test_what_is_not_in_a_bucket_is_not_found(bucket):
    with pytest.raises(RasterNotFoundError, match=r"to_raster s3://bucket/none\.tif cannot be opened: .*AWS_REGION"):
        open_raster("s3://bucket/none.tif", "to_raster")
