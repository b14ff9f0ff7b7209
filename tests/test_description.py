"""Results in a few lines, and in a notebook."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

import geodl_dask as gd


@pytest.fixture
def change(pair, models):
    return gd.detect_change(*pair, models["pt2"], processor="cpu", confidence="uint8")


def test_description_names_classes_grid_and_origin(change, pair):
    text = repr(gd.describe_change(change))
    assert "109" in text
    assert "EPSG:32633" in text
    assert "nodata: 255" in text
    assert "confidence: probability of the class, uint8" in text
    assert f"from raster: {pair[0]}" in text
    assert re.search(r"^ +7  #c81e1e  Change$", text, re.MULTILINE)


def test_notebooks_show_the_colours_and_escape_names(change):
    change.change.attrs["class_names"] = ["<b>No</b> & change", "Change"]
    page = gd.describe_change(change)._repr_html_()
    text = "".join(ET.fromstring(page).itertext())  # which also has to be well-formed
    assert "<b>No</b> & change" in text
    assert "EPSG:32633" in text
    assert "background:#c81e1e" in page


def test_description_of_a_cut_has_the_grid_of_the_cut(change):
    assert "10 x 20 pixels" in repr(gd.describe_change(change.change[30:40, 20:40]))


def test_written_result_is_described_as_the_lazy_one(change, tmp_path):
    gd.write_zarr(change, tmp_path / "change.zarr")
    assert gd.describe_change(tmp_path / "change.zarr") == gd.describe_change(change)


def test_describing_computes_nothing(change, monkeypatch):
    monkeypatch.setattr("dask.base.compute", lambda *args, **named: pytest.fail("something was computed"))
    assert repr(gd.describe_change(change))
