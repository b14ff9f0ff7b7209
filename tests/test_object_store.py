"""Object storage is reached by the same settings in the environment by which GDAL reads there."""

from __future__ import annotations

import os
import sys
import time

import boto3
import numpy as np
import obstore
import pytest
import rasterio
from conftest import write_raster
from servers import serving_s3

from geodl_dask.errors import MissingDependencyError, RequestError
from geodl_dask.object_store import open_store, settings

STARTS = ("AWS_", "GS_", "AZURE_", "GOOGLE_", "CPL_")
PIXELS = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No setting of whoever runs the tests."""
    for name in [each for each in os.environ if each.startswith(STARTS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def endpoint():
    """host:port of an S3 server with a bucket."""
    with serving_s3() as endpoint:
        client = boto3.client(
            "s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1", aws_access_key_id="key",
            aws_secret_access_key="secret",
        )  # fmt: skip
        client.create_bucket(Bucket="bucket")
        yield endpoint


def set_for_gdal(monkeypatch, endpoint: str) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_S3_ENDPOINT": endpoint, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("key", ["a.tif", "folder/an image.tif", "ä%20b+c,d.tif"])
def test_what_is_put_there_is_what_gdal_reads_there(tmp_path, endpoint, monkeypatch, key):
    set_for_gdal(monkeypatch, endpoint)
    store, path = open_store(f"s3://bucket/{key}")
    assert path == key
    obstore.put(store, path, write_raster(tmp_path / "a.tif", PIXELS))
    with rasterio.open(f"/vsis3/bucket/{key}") as there, rasterio.open(tmp_path / "a.tif") as here:
        assert (there.read() == here.read()).all()
    assert obstore.head(store, path)["size"] == (tmp_path / "a.tif").stat().st_size


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_endpoint_may_be_a_url_of_http(endpoint, monkeypatch, name):
    for each in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(each, "key")
    monkeypatch.setenv(name, f"http://{endpoint}")
    store, path = open_store("s3://bucket/b.tif")
    obstore.put(store, path, b"12")
    assert obstore.head(store, path)["size"] == 2


def test_keys_may_stand_in_a_profile_of_the_user(tmp_path, endpoint, monkeypatch):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[mine]\naws_access_key_id = k\naws_secret_access_key = s%/\n")
    (tmp_path / ".aws" / "config").write_text("[profile mine]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_S3_ENDPOINT", f"http://{endpoint}")
    found = {"access_key_id": "k", "secret_access_key": "s%/", "region": "eu-north-1"}
    assert settings("s3") == {**found, "endpoint": f"http://{endpoint}"}
    store, path = open_store("s3://bucket/c.tif")
    obstore.put(store, path, b"123")
    assert obstore.head(store, path)["size"] == 3
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert "region" not in settings("s3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the environment")
    assert settings("s3") == {"endpoint": f"http://{endpoint}"}


@pytest.mark.parametrize("text", ["[default", "aws_access_key_id = k", "[other]\naws_access_key_id = k\n", "\udcff"])
def test_profile_that_cannot_be_read_is_none(tmp_path, monkeypatch, text):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_bytes(text.encode(errors="surrogateescape"))
    assert settings("s3") == {}


@pytest.mark.parametrize(
    ("scheme", "environment", "expected"),
    [
        ("s3", {}, {}),
        ("s3", {"AWS_S3_ENDPOINT": "store.org"}, {"endpoint": "https://store.org"}),
        ("s3", {"AWS_S3_ENDPOINT": "a:90", "AWS_HTTPS": "false"}, {"endpoint": "http://a:90"}),
        ("s3", {"AWS_NO_SIGN_REQUEST": "YES"}, {"skip_signature": True}),
        ("s3", {"AWS_NO_SIGN_REQUEST": "NO"}, {}),
        ("gs", {"GS_NO_SIGN_REQUEST": "yes"}, {"skip_signature": True}),
        ("az", {"AZURE_STORAGE_ACCOUNT": "me"}, {"account_name": "me"}),
        ("az", {"AZURE_STORAGE_ACCOUNT": "me", "AZURE_NO_SIGN_REQUEST": "YES"}, {"account_name": "me",
                                                                               "skip_signature": True}),
        (
            "az",
            {"AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=a2V5=="},
            {"account_name": "me", "account_key": "a2V5=="},
        ),
    ],
)  # fmt: skip
def test_what_gdal_alone_knows_is_translated(monkeypatch, scheme, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings(scheme) == expected


@pytest.mark.parametrize("url", ["gs://bucket/a/b.tif", "az://bucket/a/b.tif"])
def test_google_and_azure_are_known(monkeypatch, url):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "me")
    monkeypatch.setenv("AZURE_NO_SIGN_REQUEST", "YES")
    assert open_store(url)[1] == "a/b.tif"


@pytest.mark.parametrize("url", ["a.tif", "oss://bucket/a.tif", "https://a.org/a.tif", "s3:///a.tif"])
def test_other_places_are_refused(url):
    with pytest.raises(RequestError, match="names no place in object storage"):
        open_store(url)


def test_settings_that_lead_nowhere_are_refused():
    with pytest.raises(RequestError, match=r"az://bucket/a\.tif cannot be reached .*Account must be specified"):
        open_store("az://bucket/a.tif")


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'geodl_dask\[cloud\]'"):
        open_store("s3://bucket/a.tif")


def test_silent_server_is_given_up_in_time(monkeypatch):
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store, path = open_store("s3://bucket/a.tif", timeout_s=1, retries=1)
    before = time.perf_counter()
    with pytest.raises(Exception, match="after 1 retries"):
        obstore.head(store, path)
    assert time.perf_counter() - before < 3
