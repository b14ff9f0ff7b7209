"""The state of an opened raster: the same while its pixels are, another once a file of it was written anew."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import boto3
import numpy as np
import pytest
import rasterio.shutil
import rioxarray
from conftest import TRANSFORM, write_raster
from servers import serving, serving_s3

from geodl_dask.rasters import open_raster, open_single
from geodl_dask.rasters.mosaic import mosaic_of_files
from geodl_dask.rasters.network import without_secrets
from geodl_dask.rasters.remote import MOST_ASKED, look_at_all, url_of
from geodl_dask.rasters.states import state_of

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 40, 50)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """One raster in many shapes, of which ``a.tif`` or its copy is a part."""
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "a.tif", PIXELS)
    (tmp_path / "tiles").mkdir()
    shutil.copy2(tmp_path / "a.tif", tmp_path / "tiles" / "a.tif")
    write_raster(tmp_path / "tiles" / "b.tif", PIXELS, transform=TRANSFORM @ rasterio.Affine.translation(50, 0))
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.tif", "a.tif")
    with rioxarray.open_rasterio(tmp_path / "a.tif", chunks=20) as array:
        array.to_dataset(name="v").to_zarr(tmp_path / "a.zarr", zarr_format=2)
        array.to_dataset(name="v").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    return tmp_path


MADE_OF = {
    "a.tif": "a.tif",
    "a.vrt": "a.tif",
    "tiles": "tiles/a.tif",
    "tiles/*.tif": "tiles/b.tif",
    "/vsizip/a.zip/a.tif": "a.zip",
    "a.zarr": "a.zarr/v/0.0.0",
    "a.nc": "a.nc",
    'NETCDF:"a.nc":v': "a.nc",
}


@pytest.mark.parametrize("name", MADE_OF)
def test_it_stays_until_a_file_is_written_anew(folder, name):
    before = state_of(open_raster(name))
    (folder / "a.tif.aux.xml").write_text("<PAMDataset/>")  # as GDAL keeps the statistics that a viewer asks for
    assert state_of(open_raster(name)) == before
    touched = folder / MADE_OF[name]
    at = touched.stat().st_mtime_ns
    os.utime(touched, ns=(at, at + 1))
    assert state_of(open_raster(name)) != before


def test_it_is_another_where_the_size_is(folder):
    before, at = state_of(open_raster("a.tif")), (folder / "a.tif").stat().st_mtime_ns
    with (folder / "a.tif").open("ab") as file:
        file.write(b"\0")
    os.utime("a.tif", ns=(at, at))
    assert state_of(open_raster("a.tif")) != before


def test_size_and_time_can_be_read_off(folder):
    os.utime("a.tif", (0, 1.5))
    size = (folder / "a.tif").stat().st_size
    assert state_of(open_raster("a.tif")) == f"bands 1,2,3 of {size:,} bytes of 1970-01-01 00:00:01.500000000 UTC"


BANDS = (1, 2), (2, 1)


@pytest.mark.parametrize("name", ["a.tif", "a.zarr", "a.nc", "array"])
def test_it_says_which_bands_are_read(folder, name):
    if name == "array":
        with rioxarray.open_rasterio("a.tif", chunks=20) as array:
            rasters = [array, array]
    else:
        rasters = [name, name]
    one, other = (state_of(open_raster(raster, bands=bands)) for raster, bands in zip(rasters, BANDS, strict=True))
    assert one != other


IN_ANOTHER_PROCESS = """
import numpy as np, rioxarray, xarray as xr
from geodl_dask.rasters import open_raster
from geodl_dask.rasters.states import state_of
with rioxarray.open_rasterio("a.tif", chunks=20) as lazy:
    print(state_of(open_raster(lazy)))
    print(state_of(open_raster(lazy.compute())))
"""


def test_array_from_the_same_file_is_the_same_in_another_process(folder):
    told = [subprocess.run([sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS], capture_output=True, text=True,
                           check=True).stdout for _ in range(2)]  # fmt: skip
    assert told[0] == told[1]
    assert len(told[0].split()) == 2


def test_array_of_other_pixels_or_nodata_is_another(folder):
    with rioxarray.open_rasterio("a.tif") as opened:
        array = opened.compute()
    other = array.copy(data=array.values.copy())
    same = other.copy()
    other[0, 0, 0] ^= 1
    states = [state_of(open_raster(each)) for each in (array, same, other, array.assign_attrs(_FillValue=7))]
    assert states[0] == states[1]
    assert len(set(states)) == 3


def test_mask_has_a_state_too(folder):
    pyogrio = pytest.importorskip("pyogrio")
    import shapely

    outline = shapely.to_wkb([shapely.box(500_000, 5_399_990, 500_010, 5_400_000)])
    pyogrio.raw.write("mask.gpkg", np.array(outline, object), [], [], geometry_type="Polygon", crs="EPSG:32633")
    for mask in ("mask.gpkg", "a.tif"):
        before = open_single("tiles/a.tif", mask=mask).states
        os.utime(mask, (0, 1))
        after = open_single("tiles/a.tif", mask=mask).states
        assert len(before) == len(after) == 2
        assert before[0] == after[0]
        assert before[1] != after[1]


@pytest.mark.parametrize("dataset", ["/vsicurl/http://127.0.0.1:9/a.tif", "/vsis3/bucket/a.tif", f"WMS:{'x' * 5000}"])
def test_silent_server_leaves_a_state(folder, monkeypatch, dataset):
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://127.0.0.1:9")
    described = dataclasses.replace(open_raster("a.tif"), dataset=dataset)
    assert state_of(described) == "bands 1,2,3 of a file elsewhere"


# On servers.

BOTH = ["ETag", "Last-Modified"]


@pytest.mark.parametrize("headers", [BOTH, BOTH[:1], BOTH[1:]])
def test_file_on_a_server_stays_until_it_is_written_anew(folder, headers):
    with serving(("described_files", folder, headers)) as site:
        before = state_of(open_raster(f"{site.url}/a.tif"))
        assert state_of(open_raster(f"{site.url}/a.tif")) == before
        write_raster(folder / "a.tif", PIXELS[:, ::-1].copy())
        os.utime("a.tif", (0, 1))
        assert state_of(open_raster(f"{site.url}/a.tif")) != before


@pytest.mark.parametrize(
    ("headers", "said"),
    [(BOTH, "{} of 1970-01-01 00:00:01 UTC, etag {}"), (BOTH[:1], "{}, etag {}"), ([], "{}")],
)
def test_what_a_server_says_of_a_file_can_be_read_off(folder, headers, said):
    os.utime("a.tif", (0, 1))
    content = Path("a.tif").read_bytes()
    with serving(("described_files", folder, headers)) as site:
        raster = open_raster(f"{site.url}/a.tif")
        served = site.bytes_served
        told = state_of(raster)
        assert site.bytes_served == served + 1
    expected = said.format(f"{len(content):,} bytes", hashlib.sha256(content).hexdigest()[:16])
    assert told == f"bands 1,2,3 of {expected}"
    assert state_of(raster) == "bands 1,2,3 of a file elsewhere"  # the server is gone


@pytest.mark.parametrize("code", [403, 500])
def test_refusal_of_a_server_leaves_a_state(folder, code):
    with serving(("status", code)) as site:
        described = dataclasses.replace(open_raster("a.tif"), dataset=f"/vsicurl/{site.url}/a.tif")
        assert state_of(described) == "bands 1,2,3 of a file elsewhere"


def test_virtual_raster_has_the_state_of_its_files_on_a_server(folder):
    with serving(("described_files", folder, BOTH)) as site:
        paths = [f"/vsicurl/{site.url}/tiles/{name}.tif" for name in "ab"]
        xml = mosaic_of_files([Path(path) for path in (folder / "tiles").glob("*.tif")], "raster")[0]
        for name, path in zip("ab", paths, strict=True):
            xml = xml.replace(str(folder / "tiles" / f"{name}.tif"), path)
        assert str(folder) not in xml
        before = state_of(open_raster(xml))
        assert state_of(open_raster(xml)) == before
        assert "2 files elsewhere" in before
        os.utime("tiles/b.tif", (0, 1))
        assert state_of(open_raster(xml)) != before


def test_no_more_than_so_many_files_on_a_server_are_asked_for(folder):
    with serving(("described_files", folder, BOTH)) as site:
        assert len(look_at_all(f"{site.url}/{number}.tif" for number in range(200))) == MOST_ASKED
        assert len(site.log) == MOST_ASKED


def test_store_on_a_server_stays_until_its_description_is_written_anew(folder):
    with serving(("described_files", folder, BOTH)) as site:
        raster = dataclasses.replace(open_raster("a.zarr"), store=f"{site.url}/a.zarr")
        before = state_of(raster)
        assert state_of(raster) == before
        assert "files elsewhere" in before
        os.utime("a.zarr/.zmetadata", (0, 1))
        assert state_of(raster) != before


def test_object_in_a_bucket_stays_until_it_is_written_anew(folder, monkeypatch):
    with serving_s3() as endpoint:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
            "AWS_S3_ENDPOINT": endpoint, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{endpoint}")
        client.create_bucket(Bucket="bucket")
        client.upload_file("a.tif", "bucket", "an image.tif")
        raster = open_raster("s3://bucket/an image.tif")
        before = state_of(raster)
        etag = hashlib.md5(Path("a.tif").read_bytes()).hexdigest()
        assert re.fullmatch(
            rf"bands 1,2,3 of {Path('a.tif').stat().st_size:,} bytes of \d{{4}}-.* UTC, etag {etag}", before
        )
        assert state_of(raster) == before
        write_raster(folder / "a.tif", PIXELS[:, ::-1].copy())
        client.upload_file("a.tif", "bucket", "an image.tif")
        assert state_of(raster) != before
        monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
        assert state_of(raster) == "bands 1,2,3 of a file elsewhere"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("/vsicurl/https://a.org/b.tif?c=d", "https://a.org/b.tif?c=d"),
        ("/vsis3/bucket/a b.tif", "s3://bucket/a b.tif"),
        ("/vsigs/bucket/a.tif", "gs://bucket/a.tif"),
        ("/vsiaz/bucket/a.tif", "az://bucket/a.tif"),
        ("/data/a.tif", "/data/a.tif"),
    ],
)
def test_gdals_names_are_urls(name, url):
    assert url_of(name) == url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a.tif?token=S3CR&band=2", "https://host/a.tif?token=...&band=2"),
        ("https://me:S3CR@host/a.tif", "https://host/a.tif"),
        ("s3://b/a.tif?X-Amz-Signature=S3CR&X-Amz-Expires=60", "s3://b/a.tif?X-Amz-Signature=...&X-Amz-Expires=..."),
        ("https://h/a?sv=2024&sig=S3%2FCR#layer", "https://h/a?sv=...&sig=...#layer"),
        (
            "from_raster https://h/a.tif?key=S3CR: GeoTIFF, 3 band(s)",
            "from_raster https://h/a.tif?key=... GeoTIFF, 3 band(s)",
        ),
        ("https://h/wms?layers=roads&styles=", "https://h/wms?layers=roads&styles="),
        ("a monkey=7 in C:\\maps", "a monkey=7 in C:\\maps"),
    ],
)
def test_what_is_told_of_an_address_opens_no_doors(text, shown):
    assert without_secrets(text) == shown
