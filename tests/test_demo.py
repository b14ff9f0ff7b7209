"""The demo makes all that it names, finds the change, and replaces only what it may."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import rasterio
import xarray as xr
from click.testing import CliRunner
from rio_cogeo.cogeo import cog_validate
from test_cli import settings_of_the_command_end_with_it  # noqa: F401  (for every test here)

from geodl_dask import demo
from geodl_dask.cli import cli
from geodl_dask.errors import OutputError, OutputExistsError

MADE = {"from.tif", "to.tif", "truth.tif", "model.emd", "model.pt2", "change.tif", "change.zarr", "change.png"}
MADE |= {f"change.{kind}.{about}.json" for kind in ("tif", "zarr") for about in ("manifest", "stac")}
MADE |= {"change.tif.aux.xml"}
COMMAND = str(Path(sys.executable).with_name("geodl-dask"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a whole demo run by the installed command, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    done = subprocess.run([COMMAND, "demo", str(folder)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def small(monkeypatch):
    """A smaller scene, for tests that look at files alone."""
    monkeypatch.setattr(demo, "SHAPE_YX", (96, 128))


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_demo_makes_the_files_that_it_names(ran):
    folder, printed = ran
    assert {path.name for path in folder.iterdir()} == MADE
    for name in MADE:
        said = re.findall(rf"{re.escape(str(folder / name))}(?![.\w])", printed)
        assert len(said) == (2 if name == "change.zarr" else 1)


def test_demo_finds_the_change(ran):
    folder, printed = ran
    found, true = read(folder / "change.tif") != 0, read(folder / "truth.tif") != 0
    f1 = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert f1 >= 0.85
    assert f"F1 against the truth, any change: {f1:.3f}" in printed


def test_each_class_is_scored_and_measured(ran):
    folder, printed = ran
    found, true = read(folder / "change.tif"), read(folder / "truth.tif")
    classes = demo.load_definition(folder / "model.emd").classes.classes
    assert len(classes) > 2
    for each in classes:
        ours, theirs = found == each.value, true == each.value
        area = ours.sum() * demo.CELL_SIZE_M**2 / 10_000
        assert any(each.name in line and f"{area:,.2f} ha" in line for line in printed.splitlines())
        if each.value:
            f1 = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
            assert f"F1 against the truth, {each.name}: {f1:.3f}" in printed


def test_geotiff_is_a_valid_cog_on_the_images_grid_with_palette(ran):
    folder, _ = ran
    is_valid, errors, warnings = cog_validate(folder / "change.tif", strict=True)
    assert (is_valid, errors, warnings) == (True, [], [])
    with rasterio.open(folder / "change.tif") as change, rasterio.open(folder / "from.tif") as image:
        assert (change.crs, change.transform, change.shape) == (image.crs, image.transform, image.shape)
        assert change.crs.to_string() == demo.CRS
        assert change.nodata == 255
        palette = change.colormap(1)
        for each in demo.load_definition(folder / "model.emd").classes.classes:
            assert palette[each.value] == (*each.color, 255)


def test_zarr_store_holds_what_the_geotiff_holds(ran):
    folder, _ = ran
    with xr.open_zarr(folder / "change.zarr", mask_and_scale=False) as store:
        np.testing.assert_array_equal(store["change"].values, read(folder / "change.tif"))
        with rasterio.open(folder / "change.tif") as dataset:
            assert store["change"].rio.crs == dataset.crs
            assert store["change"].rio.transform() == dataset.transform


def test_picture_shows_three_images_side_by_side(ran):
    folder, _ = ran
    pixels = matplotlib.image.imread(folder / "change.png")[..., :3]
    assert pixels.shape[1] > 1.5 * pixels.shape[0]
    thirds = np.array_split(pixels, 3, axis=1)
    assert all(third.std() > 0.04 for third in thirds)


def test_second_demo_is_refused_and_changes_nothing(ran):
    folder, _ = ran
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = CliRunner().invoke(cli, ["demo", str(folder)])
    assert result.exit_code == 2
    assert result.stdout == ""
    (message,) = result.stderr.splitlines()
    assert message.startswith(f"Error: {folder} holds ")
    assert "--overwrite" in message
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("name", [*sorted(MADE), "change.tif.partial", "change.zarr.partial"])
def test_any_file_of_a_demo_is_in_the_way(name, tmp_path, small):
    (tmp_path / name).touch()
    with pytest.raises(OutputExistsError, match=f"holds {name} already"):
        demo.prepare_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_folder_that_cannot_be_made_is_refused(tmp_path, small):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        demo.prepare_demo(tmp_path / "file" / "folder")
    assert CliRunner().invoke(cli, ["demo", str(tmp_path / "file")]).exit_code == 2


def test_overwrite_replaces_everything_and_leaves_other_files(tmp_path, small):
    for name in MADE - {"change.zarr"}:
        (tmp_path / name).write_text("old")
    (tmp_path / "change.zarr").mkdir()
    for name in ("zarr.json", "old"):
        (tmp_path / "change.zarr" / name).touch()
    (tmp_path / "mine.txt").write_text("kept")
    result = CliRunner().invoke(cli, ["demo", str(tmp_path), "--overwrite", "--quiet"])
    assert (result.exit_code, result.output) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == MADE | {"mine.txt"}
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert not (tmp_path / "change.zarr" / "old").exists()
    assert all((tmp_path / name).stat().st_size > 100 for name in MADE - {"change.zarr"})
    assert read(tmp_path / "change.tif").shape == (96, 128)


def test_same_scene_is_rendered_every_time(tmp_path, small):
    first, second = (demo.prepare_demo(tmp_path / name) for name in ("first", "second"))
    for ours, theirs in ((first.from_raster, second.from_raster), (first.truth, second.truth)):
        np.testing.assert_array_equal(read(ours), read(theirs))
