"""What stands in a report: everything that is known, nothing that anybody could use against its reader."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from click.testing import CliRunner
from conftest import write_raster
from odc.geo.geobox import GeoBox
from pyproj import Geod
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from reports import TABLE, TRANSFORM, change_of, photograph, write_pair, write_result
from shapely.geometry import box

import geodl_dask as gd
from geodl_dask import html_report
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.cli import cli
from geodl_dask.errors import OutputError, OutputExistsError, RasterInputError, RasterNotFoundError, RequestError
from geodl_dask.html_report import areas as areas_module
from geodl_dask.html_report import facts, page, sources, views
from geodl_dask.html_report.areas import largest_areas
from geodl_dask.html_report.facts import area_text
from geodl_dask.html_report.images import Stretch, halved, pyramid_tiles
from geodl_dask.html_report.sources import open_result
from geodl_dask.manifest import FailedBlock, Manifest
from geodl_dask.outputs import manifest_of

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} &amp; \"'"


class Page(HTMLParser):
    """A report's text, tags and data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.inline: list[tuple[str, dict[str, Any], str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())
        self.data = json.loads(next(text for tag, attrs, text in self.inline if attrs.get("id") == "data"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inline.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        tag, _ = self.tags[-1] if self.tags else ("", {})
        if tag in ("script", "style") and self.inline[-1][2] == "" and data.strip():
            kind, attrs, _ = self.inline[-1]
            self.inline[-1] = (kind, attrs, data)
        else:
            self.texts.append(data)

    def warned(self) -> str:
        """The warnings, if there are some."""
        found = re.search(r'<section class="notes".*?</section>', self.source, re.DOTALL)
        return re.sub(r"<[^>]+>", " ", found[0]) if found else ""


def decoded(uri: str) -> np.ndarray:
    """(band, y, x) of a data URI."""
    with MemoryFile(base64.b64decode(uri.partition(",")[2])) as memory, memory.open() as dataset:
        return dataset.read()


def report_of(result: Path, **options: Any) -> Page:
    return Page(gd.write_report(result, overwrite=True, **options))


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module", params=[".tif", ".zarr"])
def pair(request, tmp_path_factory) -> Path:
    """A result of each format, with its images."""
    folder = tmp_path_factory.mktemp("pair")
    return write_pair(folder, folder / f"change{request.param}")


@pytest.fixture(scope="module")
def page_of_pair(pair) -> Page:
    return report_of(pair)


def test_report_lies_beside_the_result_unless_said(pair, tmp_path):
    assert gd.write_report(pair, overwrite=True) == pair.with_name(f"{pair.name}.html")
    assert gd.write_report(pair, tmp_path / "r.html") == tmp_path / "r.html"
    with pytest.raises(OutputExistsError, match="overwrite"):
        gd.write_report(pair, tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_file_that_comes_to_the_place_meanwhile_stays(pair, tmp_path, monkeypatch):
    out, study = tmp_path / "r.html", html_report.study_result
    monkeypatch.setattr(html_report, "study_result", lambda *given: (out.write_text("theirs"), study(*given))[1])
    with pytest.raises(OutputExistsError, match=r"r\.html has come there .* is .*r\.2\.html"):
        gd.write_report(pair, out)
    assert out.read_text() == "theirs" and "Woods cleared" in (tmp_path / "r.2.html").read_text(encoding="utf-8")
    assert "Woods cleared" in gd.write_report(pair, out, overwrite=True).read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.2.html", "r.html"]


def test_nothing_is_fetched_and_nothing_else_may_run(page_of_pair):
    policy = next(attrs["content"] for tag, attrs in page_of_pair.tags if attrs.get("http-equiv"))
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for tag, attrs, text in page_of_pair.inline:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert attrs.get("type") == "application/json" or f"'sha256-{digest}'" in rules[f"{tag}-src"]
    for tag, attrs in page_of_pair.tags:
        assert tag not in ("link", "iframe", "object", "embed", "a", "form", "base")
        assert attrs.get("src", "data:").startswith("data:") and not attrs.get("href")
        assert "style" not in attrs and not any(name.startswith("on") for name in attrs)


def test_areas_of_classes_are_those_of_the_result(page_of_pair):
    assert "Woods cleared 4 600 m² 3.1%" in page_of_pair.text
    assert "New building 1 150 m² 0.78%" in page_of_pair.text
    assert "No change 0 1.84 ha 96.1%" in page_of_pair.text
    assert "Changed 750 m² 3.9% of the observed area" in page_of_pair.text


def test_largest_areas_lead_to_their_place(page_of_pair):
    assert [area["window"] for area in page_of_pair.data["areas"]] == [[20, 30, 60, 40], [150, 200, 30, 20]]
    assert [area["text"] for area in page_of_pair.data["areas"]] == ["Woods cleared", "New building"]


def test_overlay_has_the_class_colours_where_the_classes_are(page_of_pair):
    for tiles, (value, color) in zip(
        page_of_pair.data["layers"], [(4, (123, 79, 163)), (1, (230, 85, 45))], strict=True
    ):
        rgba = decoded(tiles["0/0/0"])[:, :240, :320]
        np.testing.assert_array_equal(rgba[3] == 255, change_of() == value)
        assert set(rgba[3].ravel()) == {0, 255}
        assert (color == rgba[:3, rgba[3] > 0].T).all()


def test_images_are_those_of_the_run(pair, page_of_pair):
    for tiles, name in zip(page_of_pair.data["photos"], ("before.tif", "after.tif"), strict=True):
        with rasterio.open(pair.with_name(name)) as dataset:
            expected = dataset.read().astype(int)
        shown = decoded(tiles["0/0/0"])[:3, :240, :320].astype(int)
        assert np.abs(shown - expected).mean() < 3


def test_provenance_is_told(page_of_pair):
    for text in ("Toy (model.emd)", "sha256:0", "padding 4", "320 x 240 pixels of 0.5 x 0.5, EPSG:32633", "rasterio"):
        assert text in page_of_pair.text
    assert "before.tif" in page_of_pair.text and "after.tif" in page_of_pair.text
    assert not page_of_pair.warned()


def test_markup_in_what_others_wrote_stays_text(tmp_path):
    table = ClassTable((TABLE.classes[0], ModelClass(4, EVIL, (1, 2, 3))))
    photos = {"from_raster": tmp_path / "before.tif"}
    photograph(tmp_path, "before.tif", change_of())
    result = write_result(
        tmp_path / "change.tif", change_of(), table=table, photos=photos, model=EVIL, arguments=EVIL, mask=EVIL,
        **{EVIL: EVIL},
    )  # fmt: skip
    record = Manifest.read(manifest_of(result))
    failed = (FailedBlock(0, 0, 9, 9, EVIL),)
    replace(record, failed_blocks=failed, software={EVIL: EVIL}, begun=EVIL).write(manifest_of(result))
    shown = report_of(result)
    assert "<script>alert(1)" not in shown.source and "<img src=x" not in shown.source
    assert "{{ 7*7 }}" in shown.text and "49" not in re.findall(r"\b\d+\b", shown.warned())
    assert [tag for tag, _ in shown.tags].count("script") == 1 + len(page.SCRIPTS)
    assert shown.data["areas"][0]["text"] == EVIL


@pytest.mark.parametrize("key", ["tiles", "computed_blocks", "failed_blocks", "software"])
def test_record_of_nonsense_is_no_record(tmp_path, key):
    result = write_result(tmp_path / "change.tif", change_of())
    record = json.loads(manifest_of(result).read_text())
    nonsense = {"failed_blocks": [{"row_off": "<b>", "col_off": 0, "height": 1, "width": 1, "cause": ""}]}
    manifest_of(result).write_text(json.dumps({**record, key: nonsense.get(key, "<b>")}))
    assert "There is no record of the run" in report_of(result).warned()


@pytest.mark.parametrize(("shape_yx", "east"), [((60, 60), 500_000), ((240, 320), 500_001)], ids=["smaller", "moved"])
def test_record_of_another_raster_is_not_believed(tmp_path, shape_yx, east):
    result = write_result(tmp_path / "change.tif", change_of())
    elsewhere = from_origin(east, 5_400_000, 0.5, 0.5)
    other = write_result(tmp_path / "other.tif", np.zeros(shape_yx, np.uint8), transform=elsewhere)
    manifest_of(result).write_bytes(manifest_of(other).read_bytes())
    shown = report_of(result)
    assert "There is no record of the run" in shown.warned()
    assert "Woods cleared 4 600 m² 3.1%" in shown.text


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_without_manifest_every_pixel_is_counted(tmp_path, suffix):
    change = change_of()
    change[:, :20] = TABLE.nodata
    result = write_pair(tmp_path, tmp_path / f"change{suffix}", change)
    with_record = report_of(result)
    manifest_of(result).unlink()
    without = report_of(result)
    assert "There is no record of the run" in without.warned()
    for text in ("Woods cleared 4 600 m² 3.3%", "Observed 1.80 ha 93.8% of the raster"):
        assert text in with_record.text and text in without.text


def test_images_that_are_gone_are_said_to_be_gone(tmp_path):
    result = write_pair(tmp_path, tmp_path / "change.tif")
    (tmp_path / "before.tif").unlink()
    shown = report_of(result)
    assert "Before: " in shown.warned() and "is not opened unasked. Name it by --from-raster" in shown.warned()
    assert len(shown.data["photos"]) == 1 and len(shown.data["layers"]) == 2
    (tmp_path / "after.tif").unlink()
    shown = report_of(result)
    assert shown.data["photos"] == [] and "swipe" not in [attrs.get("id") for _, attrs in shown.tags]


def test_images_that_were_moved_with_the_result_are_found_and_others_can_be_named(tmp_path):
    (tmp_path / "old").mkdir()
    write_pair(tmp_path / "old", tmp_path / "old" / "change.tif")
    (tmp_path / "old").rename(tmp_path / "new")
    shown = report_of(tmp_path / "new" / "change.tif")
    assert len(shown.data["photos"]) == 2 and not shown.warned()
    other = photograph(tmp_path, "copy.tif", change_of(), seed=9)
    named = report_of(tmp_path / "new" / "change.tif", from_raster=other, to_raster=other)
    assert "changed since" not in named.warned()
    assert named.data["photos"][0] == named.data["photos"][1]


def test_image_that_has_changed_since_is_told(tmp_path):
    result = write_pair(tmp_path, tmp_path / "change.tif")
    photograph(tmp_path, "after.tif", change_of(), seed=5, compress="deflate")
    assert "After: " in report_of(result).warned() and "has changed since the run" in report_of(result).warned()


@pytest.mark.parametrize("place", ["https://127.0.0.1:9/a.tif", "s3://nobody/a.tif", "/vsicurl/http://127.0.0.1:9/a"])
def test_record_cannot_make_this_machine_call_another(tmp_path, place, monkeypatch):
    asked = []
    opened = sources.open_raster
    monkeypatch.setattr(sources, "open_raster", lambda text, *rest: (asked.append(str(text)), opened(text, *rest))[1])
    result = write_result(tmp_path / "change.tif", change_of(), from_raster=place, to_raster=f"<VRTDataset>{place}")
    warned = report_of(result).warned()
    assert place in warned
    assert set(asked) == {str(result)}


@pytest.mark.parametrize("name", ["../up.tif", "sub#b.tif", "x" * 5000, "\u202e.tif", "pipe.tif", "folder"])
def test_names_that_lead_to_no_file_are_no_harm(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "folder").mkdir()
    result = write_result(tmp_path / "change.tif", change_of(), from_raster=name)
    assert "It is no file on this disk" in report_of(result).warned()


@pytest.mark.parametrize("name", ["before.vrt", "before.tif"])
def test_virtual_raster_of_the_record_is_not_opened_unasked(tmp_path, name):
    photo = photograph(tmp_path, "photo.tif", change_of())
    with rasterio.open(photo) as dataset, WarpedVRT(dataset) as warped:
        rasterio.shutil.copy(warped, tmp_path / name, driver="VRT")
    result = write_result(tmp_path / "change.tif", change_of(), from_raster=name)
    assert "It is no file on this disk that holds its own pixels" in report_of(result).warned()
    if name == "before.vrt":
        asked = report_of(result, from_raster=tmp_path / name)
        assert not asked.warned() and len(asked.data["photos"]) == 1
    else:  # asked for or not, it is not what it is called
        with pytest.raises(RasterInputError, match="under the name of a picture"):
            report_of(result, from_raster=tmp_path / name)


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ({"from_raster": "typo.tif"}, RasterNotFoundError),
        ({"from_raster": ""}, RasterNotFoundError),
        ({"from_bands": (0,)}, RequestError),
        ({"from_bands": (9,)}, RequestError),
        ({"from_bands": ("nir",)}, RequestError),
        ({"to_bands": (1,)}, RasterNotFoundError),
    ],
)
def test_image_that_the_user_named_must_be_there_and_one_of_the_record_need_not(tmp_path, named, error):
    result = write_pair(tmp_path, tmp_path / "change.tif")
    (tmp_path / "after.tif").unlink()
    with pytest.raises(error, match=next(iter(named)).replace("bands", "raster")):
        gd.write_report(result, tmp_path / "r.html", **named)
    assert not (tmp_path / "r.html").exists()
    assert "After: " in report_of(result).warned()


@pytest.mark.parametrize(
    ("bands", "dtype"), [(1, np.uint8), (2, np.uint8), (5, np.uint16), (3, np.float32), (1, np.int16), (4, np.float64)]
)
def test_images_of_any_kind_are_shown(tmp_path, bands, dtype):
    photos = {
        "from_raster": photograph(tmp_path, "before.tif", change_of(), dtype=dtype, bands=bands),
        "to_raster": photograph(tmp_path, "after.tif", change_of(), seed=3, dtype=dtype, bands=bands),
    }
    shown = report_of(write_result(tmp_path / "change.tif", change_of(), photos=photos))
    assert not shown.warned()
    before = decoded(shown.data["photos"][0]["0/0/0"])[:3, :240, :320]
    assert before.std() > 20
    assert (np.ptp(before.astype(int), axis=0).max() < 12) == (bands < 3)


def test_bytes_are_shown_as_they_are_and_others_by_percentiles():
    valid = np.ones((100, 100), bool)
    valid[0] = False
    ramp = np.arange(10_000, dtype=np.float32).reshape(1, 100, 100)
    assert Stretch.of(ramp.astype(np.uint8), valid) == Stretch((0.0,), (255.0,))
    found = Stretch.of(ramp, valid)
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(np.percentile(ramp[0, 1:], (2, 98))))
    rgba = found.apply(ramp, valid)
    assert (rgba[3] == np.where(valid, 255, 0)).all() and (np.diff(rgba[0][valid].astype(int)) >= 0).all()
    assert Stretch.of(ramp, ~valid & False).apply(ramp, ~valid & False)[3].max() == 0


def test_image_on_another_grid_is_shown_on_that_of_the_result(tmp_path):
    change = change_of()
    coarse = from_origin(500_000 - 10, 5_400_000 + 10, 2, 2)
    before = photograph(tmp_path, "before.tif", np.zeros((75, 95)), transform=coarse)
    shown = report_of(write_result(tmp_path / "change.tif", change, photos={"from_raster": before}))
    with rasterio.open(before) as dataset:
        expected = dataset.read()[:, 5:65, 5:85].repeat(4, axis=1).repeat(4, axis=2).astype(int)
    got = decoded(shown.data["photos"][0]["0/0/0"])[:3, :240, :320].astype(int)
    assert np.abs(got - expected).mean() < 5


def test_image_that_covers_a_part_is_clear_where_it_is_not(tmp_path):
    before = photograph(tmp_path, "before.tif", np.zeros((240, 160)))
    account = "from_raster before.tif: GeoTIFF, covers 50.0% of the output; the rest is nodata"
    result = write_result(tmp_path / "change.tif", change_of(), photos={"from_raster": before}, rasters=[account])
    shown = report_of(result)
    assert "The images do not cover all of the result" in shown.warned() and "covers 50.0%" in shown.warned()
    alpha = decoded(shown.data["photos"][0]["0/0/0"])[3, :240, :320]
    assert (alpha[:, :160] == 255).all() and (alpha[:, 160:] == 0).all()


def test_failed_blocks_and_skipped_tiles_are_told(tmp_path):
    result = write_result(tmp_path / "change.tif", change_of())
    record = Manifest.read(manifest_of(result))
    failed = tuple(FailedBlock(128 * row, 0, 128, 128, f"cause {row}") for row in range(7))
    replace(record, failed_blocks=failed, tiles=1200, empty_tiles=300).write(manifest_of(result))
    shown = report_of(result)
    warned = shown.warned()
    assert "7 blocks could not be computed" in warned and "cause 4" in warned and "and 2 more" in warned
    assert "cause 5" not in warned and "300 of 1,200 tiles were skipped" in warned
    assert shown.data["failed"][1] == [128, 0, 128, 128]


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_failed_blocks_are_known_from_the_result_itself(tmp_path, suffix):
    result = write_result(tmp_path / f"change{suffix}", change_of(), failing=(0, 1))
    assert "cannot be computed" in report_of(result).warned()
    manifest_of(result).unlink()
    shown = report_of(result)
    assert "1 block could not be computed" in shown.warned() and shown.data["failed"] == [[0, 128, 128, 128]]
    assert "78.7% of the raster" in shown.text


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_confidence_of_an_area_is_the_mean_of_its_pixels(tmp_path, suffix):
    change = change_of()
    sure = np.where(change == 4, 0.75, 0.2)
    sure[20:80, 30:50] = np.where(change[20:80, 30:50] == 4, 0.95, 0.2)
    shown = report_of(write_result(tmp_path / f"change{suffix}", change, confidence=sure))
    assert "Woods cleared 600 m² 85% sure" in shown.text and "New building 150 m² 20% sure" in shown.text


def test_no_change_and_no_observation_are_said(tmp_path):
    nothing = report_of(write_pair(tmp_path, tmp_path / "change.tif", np.zeros((50, 60), np.uint8)))
    assert "No change was found." in nothing.text and nothing.data["layers"] == []
    assert "Changed 0 m² 0.0% of the observed area" in nothing.text
    blind = report_of(write_pair(tmp_path, tmp_path / "blind.tif", np.full((50, 60), TABLE.nodata, np.uint8)))
    assert "No change was found." in blind.text and "0.0% of the raster" in blind.text


@pytest.mark.parametrize("shape_yx", [(1, 1), (1, 900), (700, 3), (1, 20_001), (9001, 3)])
def test_thin_rasters_have_a_report(tmp_path, shape_yx):
    shown = report_of(write_pair(tmp_path, tmp_path / "change.tif", np.ones(shape_yx, np.uint8)))
    assert shown.data["areas"][0]["window"] == [0, 0, *shape_yx]
    (size,) = re.findall(r'class="much">([^<]*)', shown.source)
    assert size == area_text(0.25 * np.prod(shape_yx) / 10_000, 0)


def test_area_at_the_border_of_a_coarse_overview_is_no_larger_than_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(views, "OVERVIEW_PX", 300)
    change = np.zeros((901, 1101), np.uint8)
    change[880:, 1000:], change[200:300, 200:300] = 4, 4
    shown = report_of(write_result(tmp_path / "change.zarr", change))
    assert [area["window"] for area in shown.data["areas"]] == [[200, 200, 100, 100], [880, 1000, 21, 101]]
    assert re.findall(r'class="much">([^<]*)', shown.source) == ["0.25 ha", area_text(0.25 * 21 * 101 / 10_000, 0)]


def test_degrees_have_a_scale_and_areas_on_the_ellipsoid(tmp_path):
    result = write_result(
        tmp_path / "change.tif", change_of(), crs="EPSG:4326", transform=from_origin(10, 60, 1e-4, 1e-4)
    )
    shown = report_of(result)
    across, down = shown.data["metres"]
    assert across / down == pytest.approx(0.5, abs=0.01) and down == pytest.approx(11.1, abs=0.1)
    assert shown.data["isGeographic"]
    square_metres = abs(Geod(ellps="WGS84").geometry_area_perimeter(box(10, 59.976, 10.032, 60))[0])
    table = gd.change_table(result)
    assert table["hectares"].sum() == pytest.approx(square_metres / 10_000, rel=1e-3)
    assert all(f"{hectares:,.2f} ha" in shown.text for hectares in table["hectares"])


def test_scale_is_that_of_the_ground_where_the_map_enlarges(tmp_path):
    at_60_north = from_origin(1_000_000, 8_399_738 + 1200, 10, 10)
    result = write_result(tmp_path / "change.tif", change_of(), crs="EPSG:3857", transform=at_60_north)
    assert report_of(result).data["metres"] == pytest.approx([5.0126, 5.0042], abs=1e-4)


def test_pixel_that_is_nowhere_or_around_the_globe_has_no_scale():
    assert facts.metres_per_pixel(GeoBox((1, 1), from_origin(-180, 45, 360, 90), "EPSG:4326")) is None
    assert facts.metres_per_pixel(GeoBox((9, 9), from_origin(3e7, 3e7, 1000, 1000), "ESRI:54030")) is None


def test_classes_of_one_raster_are_all_shown(tmp_path):
    photo = photograph(tmp_path, "image.tif", change_of())
    shown = report_of(write_result(tmp_path / "class.tif", change_of(), photos={"raster": photo}))
    assert "Class report" in shown.text and "Largest areas" in shown.text
    assert len(shown.data["layers"]) == 3 and len(shown.data["photos"]) == 1
    with pytest.raises(RasterInputError, match="leave from_raster out"):
        gd.write_report(tmp_path / "class.tif", overwrite=True, from_raster=photo)


def test_huge_class_tables_stay_small_pages(tmp_path):
    classes = tuple(ModelClass(value, f"Class {value}", (value % 256, value // 256, 99)) for value in range(4000))
    change = np.arange(240 * 320).reshape(240, 320) // 60 % 4000
    shown = report_of(write_result(tmp_path / "change.tif", change, table=ClassTable(classes)))
    assert len(shown.data["layers"]) == views.OWN_LAYERS + 1
    together = decoded(shown.data["layers"][-1]["0/0/0"])[:, :240, :320]
    assert (together[:, 100, 100] == (*classes[change[100, 100]].color, 255)).all()
    assert "smaller ones, which only the result itself lists" in shown.text
    assert len(shown.source) < 2_000_000


def test_large_classes_values_are_shown(tmp_path):
    table = ClassTable((TABLE.classes[0], ModelClass(3_000_000_000, "Far", (9, 9, 9))))
    change = np.where(change_of() == 4, 3_000_000_000, 0)
    shown = report_of(write_result(tmp_path / "change.zarr", change, table=table))
    assert shown.data["areas"][0] == {"window": [20, 30, 60, 40], "text": "Far"}


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_raster_larger_than_a_page_is_shown_coarser_and_its_areas_sharp(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(views, "OVERVIEW_PX", 300)
    change = np.zeros((900, 1100), np.uint8)
    change[410:441, 603:655] = 4
    change[10:12, 10] = 1  # less than half of any pixel of the overview
    shown = report_of(write_pair(tmp_path, tmp_path / f"change{suffix}", change))
    assert shown.data["level"] == 2 and "at 1/4 of the resolution" in shown.text
    assert {key.split("/")[0] for key in shown.data["photos"][0]} == {"2"}
    (area,), (detail,) = shown.data["areas"], shown.data["details"]
    assert area["window"] == pytest.approx([410, 603, 31, 52], abs=4)
    row, col, height, width = detail["window"]
    sharp = decoded(detail["layers"]["0"])
    np.testing.assert_array_equal(sharp[3] == 255, change[row : row + height, col : col + width] == 4)
    assert decoded(detail["photos"][0]).shape[1:] == (height, width)
    assert all("2/" not in key for key in shown.data["layers"][0])  # for the detail stands in its place
    assert "New building 1 0 m² < 0.01%" in shown.text


def test_pyramid_of_a_store_is_read_in_the_place_of_its_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "OVERVIEW_PX", 300)
    change = np.kron(change_of(), np.ones((5, 5), np.uint8))
    flat = open_result(write_result(tmp_path / "flat.zarr", change))
    levels = open_result(write_result(tmp_path / "levels.zarr", change, pyramid=True))
    assert (sorted(flat.levels), sorted(levels.levels)) == ([], [2, 4])
    read = []
    monkeypatch.setattr(type(levels.classes), "read", _noting(type(levels.classes).read, read))
    found = [views.overview_of(each, TABLE).classes for each in (flat, levels)]
    np.testing.assert_array_equal(*found)
    assert {raster.grid.shape.yx for raster in read} == {(1200, 1600), (300, 400)}


def _noting(read: Any, noted: list[Any]) -> Any:
    def read_noted(raster: Any, window: Any) -> Any:
        noted.append(raster)
        return read(raster, window)

    return read_noted


def test_areas_are_connected_pixels_of_one_class_largest_first():
    classes = np.ones((60, 60), np.int32)
    classes[5:10, 5:10], classes[10:14, 10:14] = 2, 2  # touch across a corner
    classes[30:36, 30:36], classes[36, 30:36] = 3, 2
    classes[50, 50], classes[0, 0] = 3, 0
    found = largest_areas(classes, {1}, 3)
    assert [(area.index, area.pixels) for area in found] == [(2, 41), (3, 36), (2, 6)]
    assert found[0].window == type(found[0].window)(5, 5, 9, 9)


def test_specks_are_left_out_of_many_and_shown_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(areas_module, "MANY_PX", 50)
    classes = np.ones((99, 99), np.int32)
    classes[::3, ::3] = 2
    assert len(largest_areas(classes, {1}, 5)) == 5
    classes[40:44, 40:44] = 3
    (only,) = largest_areas(classes, {1}, 5)
    assert (only.index, only.pixels) == (3, 16)


def test_coarser_levels_mix_only_what_there_is_to_see():
    rgba = np.zeros((4, 2, 4), np.uint8)
    rgba[:, 0, 0] = (200, 100, 50, 255)
    rgba[:, :, 2:] = np.array([10, 20, 30, 255])[:, None, None]
    half = halved(rgba)
    assert half[:, 0, 0].tolist() == [200, 100, 50, 64] and half[:, 0, 1].tolist() == [10, 20, 30, 255]
    big = np.full((4, 1100, 700), 255, np.uint8)
    assert [name for name, _ in pyramid_tiles(big, 3, lambda tile: "x")] == [
        *("3/0/0", "3/1/0", "3/0/1", "3/1/1", "3/0/2", "3/1/2"), "4/0/0", "4/0/1", "5/0/0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda folder: folder / "none.tif", RasterNotFoundError, "does not exist"),
        (lambda folder: folder / "a.png", RasterInputError, "does not end in"),
        (lambda folder: photograph(folder, "a.tif", change_of()), RasterInputError, "no class table"),
        (lambda folder: folder, RasterInputError, "does not end in"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, make, error, says):
    with pytest.raises(error, match=says):
        gd.write_report(make(tmp_path), tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("name", [".", "/", ""])
def test_folder_is_no_result_even_where_no_place_is_said(name):
    with pytest.raises(RasterInputError, match="does not end in"):
        gd.write_report(name)


def test_place_of_a_report_is_checked(pair, tmp_path):
    for path, says in ((tmp_path / "r.pdf", "does not end in .html"), (tmp_path / "no" / "r.html", "does not exist"),
                       ("s3://bucket/r.html", "URL")):  # fmt: skip
        with pytest.raises(OutputError, match=says):
            gd.write_report(pair, path)


def test_command_writes_it_and_says_its_size(pair, tmp_path):
    done = CliRunner().invoke(cli, ["report", str(pair), str(tmp_path / "r.html"), "--from-bands", "1"])
    assert done.exit_code == 0, done.output
    assert re.search(rf"{re.escape(str(tmp_path / 'r.html'))}: 0\.\d MB in \d+\.\d s", done.stdout)
    again = CliRunner().invoke(cli, ["report", str(pair), str(tmp_path / "r.html")])
    assert again.exit_code == 2 and "--overwrite" in again.stderr


def test_map_library_is_whole_and_with_its_licence():
    readme = (page.ASSETS / "leaflet" / "README.md").read_text()
    script = (page.ASSETS / "leaflet" / "leaflet.js").read_bytes()
    assert hashlib.sha256(script).hexdigest() in readme
    assert "BSD 2-Clause" in (page.ASSETS / "leaflet" / "LICENSE").read_text()
    assert "sourceMappingURL" not in page._asset("leaflet/leaflet.js")


def test_raster_without_record_or_images_is_reported(tmp_path):
    plain = write_raster(tmp_path / "plain.tif", change_of()[None], transform=TRANSFORM, nodata=255)
    with rasterio.open(plain, "r+") as dataset:
        attrs = TABLE.to_attrs()
        dataset.update_tags(**{key: each if isinstance(each, str) else json.dumps(each) for key, each in attrs.items()})
    shown = report_of(plain)
    assert "Woods cleared 4 600 m² 3.1%" in shown.text and shown.data["photos"] == []


def test_assets_lie_in_the_package(tmp_path):
    names = {path.relative_to(page.ASSETS).as_posix() for path in page.ASSETS.rglob("*") if path.is_file()}
    assert {"report.html", "report.css", "report.js", *page.SCRIPTS, *page.STYLES, "leaflet/LICENSE"} <= names
