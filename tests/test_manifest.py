"""The record of a run: it comes back as it was written, and tells another run by what differs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodl_dask.errors import OutputExistsError
from geodl_dask.manifest import Manifest, asked_of, require_same

ASKED = {"padding": 4, "tile_size": [16, 16], "arguments": "", "crs": "EPSG:32633"}


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest(ASKED, "toy.emd"),
        Manifest(ASKED, "toy.emd", replaces=True),
        Manifest(
            ASKED, "Änderung.emd", is_complete=True, seconds=1.5, pixels={0: 3, 255: 2**40}, tiles=9, empty_tiles=2
        ),
        Manifest({}, "", is_complete=True, pixels={}),
    ],
)
def test_it_comes_back_as_it_was_written(tmp_path, manifest):
    path = tmp_path / "manifest.json"
    path.write_text("what was there")
    manifest.write(path)
    assert Manifest.read(path) == manifest
    assert [each.name for each in tmp_path.iterdir()] == ["manifest.json"]
    assert json.loads(path.read_text())["asked"] == manifest.asked  # for people and other programs


def test_it_is_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    Manifest(ASKED, "old.emd").write(path)
    monkeypatch.setattr("geodl_dask.manifest.asdict", lambda manifest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Manifest(ASKED, "new.emd").write(path)
    assert Manifest.read(path) == Manifest(ASKED, "old.emd")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"asked": "all"}, {"pixels": [1]}, {"pixels": {"x": 1}}, {"pixels": {"0": float("inf")}},
        {"pixels": {"0": 7, "1": -5}}, {"pixels": {"-1": 2}}, {"pixels": {"99999999999": 0}},
        {"more": 1}, {"parts": "../elsewhere"}, {"parts": 5}, {"replaces": "no"}, {"begun": "yesterday"},
        {"begun": "2026-11-21T10:00:00"}, {"form": []}, {"failed_blocks": [{"row_off": 0}]},
        {"failed_blocks": [{"row_off": "0", "col_off": 0, "height": 1, "width": 1, "cause": ""}]},
    ],
)  # fmt: skip
def test_what_another_version_wrote_is_none(tmp_path, change):
    path = tmp_path / "manifest.json"
    Manifest(ASKED, "toy.emd").write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert Manifest.read(path) is None


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"format": 1}', pytest.param(b"[" * 9999, id="deep")],
)
def test_what_cannot_be_read_is_none(tmp_path, content):
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    assert Manifest.read(path) is None


@given(st.binary(max_size=200))
def test_no_content_makes_it_fail(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    assert Manifest.read(path) is None


def test_half_of_it_is_none(tmp_path):
    path = tmp_path / "manifest.json"
    Manifest(ASKED, "toy.emd", is_complete=True, pixels={0: 1}).write(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert Manifest.read(path) is None


def test_what_was_asked_is_the_same_after_json():
    attrs = {"tile_size": (16, 16), "_FillValue": np.uint8(255), "arguments": "", "model": "a.emd", "long_name": "x"}
    asked = asked_of(attrs, blocks=(24, 24))
    assert asked == json.loads(json.dumps(asked))
    assert asked["tile_size"] == [16, 16]
    assert asked["blocks"] == [24, 24]


def test_where_the_model_lies_does_not_matter_but_which_it_is(tmp_path):
    first, moved, other = (
        asked_of({"model": place, "model_digest": digest}) for place, digest in (("a", "1"), ("b", "1"), ("a", "2"))
    )
    require_same(Manifest(first, "a"), moved, tmp_path)
    with pytest.raises(OutputExistsError, match="model_digest was 1, is 2"):
        require_same(Manifest(first, "a"), other, tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"padding": 8}, "padding was 4, is 8"),
        ({"padding": None}, "padding was 4, is nothing"),
        ({"mask": "fields.gpkg"}, "mask was nothing, is fields.gpkg"),
        ({"tile_size": [32, 16]}, r"tile_size was \[16, 16\], is \[32, 16\]"),
        ({"padding": 8, "crs": "EPSG:4326"}, "padding was 4, is 8; crs was EPSG:32633, is EPSG:4326"),
        (
            {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5},
            r"a was nothing, is 1; b was nothing, is 2; c was nothing, is 3; d, e too\. Ask",
        ),
        ({"arguments": "x" * 1000}, rf"arguments was nothing, is {'x' * 200}\.\.\.\. Ask"),
    ],
)
def test_what_differs_is_named(tmp_path, change, says):
    asked = {key: value for key, value in {**ASKED, **change}.items() if value is not None}
    with pytest.raises(OutputExistsError, match=rf"change\.tif is from another run.*: {says}") as raised:
        require_same(Manifest(ASKED, "toy.emd"), asked, tmp_path / "change.tif")
    assert "--overwrite (overwrite=True)" in str(raised.value)


def test_the_same_is_let_pass_in_any_order(tmp_path):
    require_same(Manifest(ASKED, "toy.emd"), dict(reversed(ASKED.items())), tmp_path)


def test_input_that_differs_is_named_without_the_accounts_of_it(tmp_path):
    found = {"to_raster": "a.tif", "rasters": ["a.tif: GeoTIFF"], "raster_states": ["9 bytes"]}
    asked = {"to_raster": "b.tif", "rasters": ["b.tif: GeoTIFF"], "raster_states": ["8 bytes"]}
    with pytest.raises(OutputExistsError, match=r"to_raster was a\.tif, is b\.tif\. Ask"):
        require_same(Manifest(found, "model.emd"), asked, tmp_path)
    with pytest.raises(OutputExistsError, match="raster_states was"):  # the file itself has changed
        require_same(Manifest(found, "model.emd"), {**found, "raster_states": ["8 bytes"]}, tmp_path)
