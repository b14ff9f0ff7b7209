"""A result from a stranger, and what is made of it: its record, its tags, its report."""

from __future__ import annotations

import json

import pytest
import rasterio
from click.testing import CliRunner
from conftest import CLASSES
from servers import serving

import geodl_dask as gd
from geodl_dask.cli import cli
from geodl_dask.outputs import manifest_of

from .test_rasters import raw_band

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture
def result(pair, models, tmp_path):
    """A whole result."""
    gd.write_cog(gd.detect_change(*pair, models["pt"]), tmp_path / "change.tif")
    return tmp_path / "change.tif"


def report_of(result) -> str:
    done = CliRunner().invoke(cli, ["report", str(result), str(result.with_name("report.html")), "--overwrite"])
    assert done.exit_code == 0, done.output
    return result.with_name("report.html").read_text()


@pytest.mark.attack(
    "report of a result", "markup in names, inputs on a server, inputs that are virtual rasters of secrets"
)
def test_report_calls_no_server_that_a_result_names(attack, result):
    with rasterio.open(result, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(from_raster=f"{attack.canary.url}/a.tif", to_raster=f"/vsicurl/{attack.canary.url}/a.tif")
    attack.harmless(report_of(result).encode())


@pytest.mark.attack(
    "report of a result", "markup in names, inputs on a server, inputs that are virtual rasters of secrets"
)
@pytest.mark.parametrize("name", ["evil.vrt", "evil.tif"])
def test_report_opens_no_virtual_raster_that_a_result_names(attack, result, name):
    evil = result.with_name(name)
    evil.write_text(raw_band(attack.canary.secret_file))
    with rasterio.open(result, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(from_raster=str(evil), to_raster=str(evil))
    shown = report_of(result)
    assert "data:image" in shown
    attack.harmless(shown.encode())
    assert shown.count("data:image") == report_of(without_inputs(result)).count("data:image")


def without_inputs(result):
    with rasterio.open(result, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(from_raster="nowhere.tif", to_raster="nowhere.tif")
    return result


@pytest.mark.attack(
    "report of a result", "markup in names, inputs on a server, inputs that are virtual rasters of secrets"
)
def test_markup_of_a_model_stays_text_in_the_report(attack, pair, models, tmp_path):
    definition = json.loads(models["pt"].read_text())
    definition["ModelFile"] = str(models["pt"].parent / "toy.pt")
    definition |= {"ModelName": EVIL, "Classes": [{**each, "Name": EVIL} for each in CLASSES]}
    gd.write_cog(gd.detect_change(*pair, json.dumps(definition)), tmp_path / "change.tif")
    shown = report_of(tmp_path / "change.tif")
    assert "<script>alert" not in shown
    attack.harmless(shown.encode())


@pytest.mark.attack("result that is a VRT", "the bytes of a secret as classes, under the name change.tif")
def test_result_that_is_a_virtual_raster_is_refused(attack, tmp_path):
    (tmp_path / "change.tif").write_text(raw_band(attack.canary.secret_file))
    with attack.refused("virtual raster under the name of a picture"):
        gd.open_change(tmp_path / "change.tif")
    attack.refused_by_command("under the name of a picture", "report", str(tmp_path / "change.tif"))


@pytest.mark.attack("result that is a VRT", "the bytes of a secret as classes, under the name change.tif")
@pytest.mark.parametrize("read", [gd.open_change, gd.change_table, gd.plot_change, gd.describe_change])
def test_result_of_a_server_that_is_a_virtual_raster_is_refused(attack, tmp_path, read):
    (tmp_path / "change.tif").write_text(raw_band(attack.canary.secret_file))
    with serving(("files", str(tmp_path))) as server, attack.refused("no format that holds its pixels"):
        read(f"{server.url}/change.tif")


RECORDS = {"deep": "[" * 200_000, "deep object": '{"a":' * 200_000, "no record": "{}", "numbers": '{"format": 1e999}'}


@pytest.mark.attack("manifest of a result", "nesting and nonsense, beside a result and in what a run has left")
@pytest.mark.parametrize("record", RECORDS)
def test_record_of_a_stranger_is_no_record(attack, result, record):
    manifest_of(result).write_text(RECORDS[record])
    attack.harmless(report_of(result).encode())
    left = result.with_name("left.tif.partial")
    left.mkdir()
    (left / "manifest.json").write_text(RECORDS[record])
    done = CliRunner().invoke(cli, ["finalize", str(result.with_name("left.tif"))])
    assert done.exit_code in (1, 2) and "Error:" in done.output


def tagged(result, **tags):
    """The result, of whose tags a stranger has replaced some."""
    with rasterio.open(result, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(**tags)
    return result


LIBRARY = (gd.change_table, gd.plot_change, gd.describe_change, gd.change_polygons)
DEEP_OR_LONG = ["[" * 50_000, '{"a":' * 50_000, "x" * 50_000]


@pytest.mark.attack("tags of a result", "class tables of great length and depth")
@pytest.mark.parametrize("value", DEEP_OR_LONG, ids=lambda each: each[:5])
@pytest.mark.parametrize("tag", ["flag_values", "class_names", "flag_colors"])
def test_class_table_of_great_length_or_depth_is_refused(attack, result, tag, value):
    tagged(result, **{tag: value})
    attack.refused_by_command(r"make\s+no\s+class\s+table", "report", str(result))
    for ask in LIBRARY:
        with attack.refused("make no class table|cannot be opened as a result"):
            ask(result)


@pytest.mark.attack("tags of a result", "class tables of great length and depth")
@pytest.mark.parametrize("value", DEEP_OR_LONG, ids=lambda each: each[:5])
@pytest.mark.parametrize("tag", ["flag_meanings", "model_name", "rasters", "padding"])
def test_other_tags_of_a_stranger_leave_the_classes_as_they_are(attack, result, tag, value):
    before = gd.change_table(result)
    shown = report_of(tagged(result, **{tag: value}))
    assert [each["Name"] for each in CLASSES if each["Name"] not in shown] == []
    attack.harmless(shown.encode())
    assert gd.change_table(result).equals(before)


@pytest.mark.attack("tags of a result", "class tables of great length and depth")
@pytest.mark.parametrize(
    ("tag", "value"),
    [("flag_colors", "#00 #ff #aa"), ("flag_colors", "zz"), ("flag_values", '["x"]'), ("class_names", '["a"]')],
)
@pytest.mark.parametrize("ask", LIBRARY, ids=lambda each: each.__name__)
def test_class_table_that_is_none_is_refused(attack, result, ask, tag, value):
    ask(result)
    with attack.refused("make no class table: .* mend its attributes"):
        ask(tagged(result, **{tag: value}))
