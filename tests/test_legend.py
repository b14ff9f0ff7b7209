"""What GIS software reads of a result: class names, colours, the attribute table and statistics, in GDAL's words."""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from test_cog import HIGHEST, change_raster, classes, client, table_of  # noqa: F401 (one client for all)

from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.cog import write_cog
from geodl_dask.legend import add_statistics, side_text
from geodl_dask.outputs import side_file_of

NAMES = ["Value", "Count", "Class_Name", "Red", "Green", "Blue"]
TYPES = {int: "0", float: "1", str: "2"}


def pam_band(path: Path) -> ET.Element:
    """What GDAL's side file says of band 1."""
    root = ET.parse(side_file_of(path)).getroot()
    assert root.tag == "PAMDataset"
    (band,) = root
    assert (band.tag, band.attrib) == ("PAMRasterBand", {"band": "1"})
    return band


def rows_of(band: ET.Element) -> list[list[str]]:
    """The attribute table's rows, its columns checked."""
    table = band.find("GDALRasterAttributeTable")
    assert table.attrib == {"tableType": "thematic"}
    columns = [[column.findtext(name) for name in ("Name", "Usage")] for column in table.findall("FieldDefn")]
    assert columns == [list(pair) for pair in zip(NAMES, "512678", strict=True)]
    assert [row.get("index") for row in table.findall("Row")] == [str(n) for n in range(len(table.findall("Row")))]
    return [[cell.text for cell in row] for row in table.findall("Row")]


def counts(values: np.ndarray) -> Counter[int]:
    found, times = np.unique(values, return_counts=True)
    return Counter(dict(zip(found.tolist(), times.tolist(), strict=True)))


@pytest.mark.parametrize("dtype", HIGHEST)
def test_attribute_table_has_each_class_with_its_pixels_and_colour(tmp_path, dtype):
    values = classes((33, 57), dtype)
    band = pam_band(write_cog(change_raster(values), tmp_path / "change.tif").path)
    assert rows_of(band) == [
        [str(each.value), str((values == each.value).sum()), each.name, *map(str, each.color)]
        for each in table_of(dtype).classes
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_names_and_colours_go_by_value_and_end_with_the_last_class(tmp_path, dtype):
    """A viewer that knows no tables lists every colour: those after the last class would be black and nameless."""
    band = pam_band(write_cog(change_raster(classes((33, 57), dtype)), tmp_path / "change.tif").path)
    names = [each.text or "" for each in band.find("CategoryNames")]
    colors = [tuple(int(each.get(f"c{part}")) for part in (1, 2, 3, 4)) for each in band.find("ColorTable")]
    assert len(names) == len(colors) == HIGHEST[dtype] + 1
    assert {value: name for value, name in enumerate(names) if name} == dict(
        zip(table_of(dtype).values, table_of(dtype).names, strict=True)
    )
    assert {value: color for value, color in enumerate(colors) if color[3]} == {
        each.value: (*each.color, 255) for each in table_of(dtype).classes
    }


def test_values_of_32_bits_have_the_table_alone(tmp_path):
    band = pam_band(write_cog(change_raster(classes((33, 57), np.uint32)), tmp_path / "change.tif").path)
    assert [each.tag for each in band] == ["GDALRasterAttributeTable"]


def test_value_that_no_class_has_is_in_the_table(tmp_path):
    values = classes((33, 57))
    values[:3] = 9
    band = pam_band(write_cog(change_raster(values), tmp_path / "change.tif").path)
    assert ["9", str(3 * 57), "9 (unlisted)", "128", "128", "128"] in rows_of(band)
    assert band.find("CategoryNames")[9].text == "9 (unlisted)"


def test_raster_without_classes_has_no_side_file(tmp_path):
    change = change_raster(classes((33, 57)))
    change.attrs = {"_FillValue": 255}
    write_cog(change, tmp_path / "change.tif")
    assert not (tmp_path / "change.tif.aux.xml").exists()


def test_numbers_that_outgrow_32_bits_have_columns_that_hold_them():
    """GDAL's integer columns are of 32 bits."""
    high = ClassTable((ModelClass(0, "None", (1, 2, 3)), ModelClass(2**32 - 2, "High", (4, 5, 6))))
    band = ET.fromstring(side_text(high.to_attrs(), {0: 4 * 10**10, 2**32 - 2: 5}, np.dtype("uint32")))[0]
    types = [column.findtext("Type") for column in band.iter("FieldDefn")]
    assert types == [TYPES[kind] for kind in (float, float, str, int, int, int)]
    assert [row[:2] for row in rows_of(band)] == [["0", "40000000000"], ["4294967294", "5"]]


@pytest.mark.parametrize("dtype", HIGHEST)
def test_statistics_are_numpys_of_the_valid_pixels(tmp_path, dtype):
    values = classes((701, 513), dtype)
    path = write_cog(change_raster(values), tmp_path / "change.tif").path
    side_file_of(path).unlink()  # they are in the file itself
    with rasterio.open(path) as dataset:
        said = {key: float(value) for key, value in dataset.tags(1).items()}
    valid = values[values != table_of(dtype).nodata].astype(np.float64)
    assert said == {
        "STATISTICS_MINIMUM": valid.min(),
        "STATISTICS_MAXIMUM": valid.max(),
        "STATISTICS_MEAN": pytest.approx(valid.mean(), rel=1e-13),
        "STATISTICS_STDDEV": pytest.approx(valid.std(), rel=1e-13),
        "STATISTICS_VALID_PERCENT": pytest.approx(100 * valid.size / values.size, rel=1e-15),
    }


@given(st.lists(st.integers(-(2**31), 2**32 - 1), min_size=1, max_size=30), st.integers(1, 10**12))
def test_statistics_are_exact_however_many_pixels(values, times):
    """Of each pixel ``times`` over, which numpy could not hold: all but the count stay the same."""
    band = ET.Element("VRTRasterBand")
    add_statistics(band, {value: count * times for value, count in Counter(values).items()}, None)
    said = {each.get("key"): float(each.text) for each in band.iter("MDI")}
    assert said["STATISTICS_MEAN"] == pytest.approx(np.mean(values), rel=1e-12, abs=1e-3)
    assert said["STATISTICS_STDDEV"] == pytest.approx(np.std(values), rel=1e-6, abs=1e-3)
    assert (said["STATISTICS_MINIMUM"], said["STATISTICS_MAXIMUM"]) == (min(values), max(values))
    assert said["STATISTICS_VALID_PERCENT"] == 100


def test_without_a_valid_pixel_there_are_no_statistics(tmp_path):
    nothing = np.full((33, 57), 255, np.uint8)
    with rasterio.open(write_cog(change_raster(nothing), tmp_path / "change.tif").path) as dataset:
        assert not dataset.tags(1)
        assert dataset.nodata == 255


def test_without_nodata_every_pixel_counts(tmp_path):
    change = change_raster(classes((33, 57)))
    del change.attrs["_FillValue"]
    with rasterio.open(write_cog(change, tmp_path / "change.tif").path) as dataset:
        assert float(dataset.tags(1)["STATISTICS_MAXIMUM"]) == 255
        assert float(dataset.tags(1)["STATISTICS_VALID_PERCENT"]) == 100


@pytest.mark.skipif(not shutil.which("gdalinfo"), reason="gdalinfo is not installed")
@pytest.mark.parametrize("dtype", HIGHEST)
def test_gdalinfo_reads_the_same(tmp_path, dtype):
    values = classes((33, 57), dtype)
    path = write_cog(change_raster(values), tmp_path / "change.tif").path
    told = json.loads(subprocess.run(["gdalinfo", "-json", path], capture_output=True, text=True, check=True).stdout)
    (band,) = told["bands"]
    pixels, table = counts(values), table_of(dtype)
    assert [list(row["f"]) for row in told["rat"]["row"]] == [
        [each.value, pixels[each.value], each.name, *each.color] for each in table.classes
    ]
    assert [(each["name"], each["usage"]) for each in told["rat"]["fieldDefn"]] == list(
        zip(NAMES, (5, 1, 2, 6, 7, 8), strict=True)
    )
    assert band["metadata"][""]["STATISTICS_MAXIMUM"] == str(HIGHEST[dtype])
    if dtype != np.uint32:
        assert [band["colorTable"]["entries"][value] for value in table.values] == [
            [*each.color, 255] for each in table.classes
        ]
        text = subprocess.run(["gdalinfo", path], capture_output=True, text=True, check=True).stdout
        categories = dict(line.split(": ", 1) for line in text.split("Categories:\n")[1].splitlines() if ": " in line)
        assert [categories[f"{value:7}"] for value in table.values] == list(table.names)
