"""Maps of results: classes where they lie, in their colours, from as few pixels as are drawn."""

from __future__ import annotations

import warnings

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from matplotlib import pyplot as plt
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import geodl_dask as gd
from geodl_dask import results
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.errors import RasterInputError

mpl.use("agg")

COLORS = {0: (230, 230, 230), 7: (200, 30, 30), 9: (30, 30, 200)}
TABLE = ClassTable(tuple(ModelClass(value, f"Class {value}", color) for value, color in COLORS.items()))
METRES = Affine(2, 0, 500_000, 0, -2, 5_400_000)
DEGREES = Affine(0.001, 0, 10, 0, -0.001, 60)
WHITE = (255, 255, 255)


def raster(pixels: np.ndarray, transform: Affine = METRES, crs: str = "EPSG:32633", table: ClassTable = TABLE):
    grid = GeoBox(pixels.shape, transform, crs)
    return xr.DataArray(
        pixels, dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")), name="change",
        attrs={"_FillValue": 255, **table.to_attrs()},
    )  # fmt: skip


@pytest.fixture
def quarters() -> np.ndarray:
    """0, 7, 9 and nodata, clockwise from the upper left."""
    pixels = np.zeros((60, 80), np.uint8)
    pixels[:30, 40:], pixels[30:, 40:], pixels[30:, :40] = 7, 9, 255
    return pixels


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def color_at(ax, x: float, y: float) -> tuple[int, ...]:
    """What is seen at a place of the map."""
    ax.figure.canvas.draw()
    picture = np.asarray(ax.figure.canvas.buffer_rgba())
    col, row = ax.transData.transform((x, y))
    return tuple(picture[picture.shape[0] - 1 - int(row), int(col)][:3].tolist())


def test_each_class_is_seen_in_its_colour_at_its_place(quarters):
    ax = gd.plot_change(raster(quarters))
    seen = {(x, y): color_at(ax, 500_000 + x, 5_400_000 - y) for x in (20, 140) for y in (20, 100)}
    assert seen == {(20, 20): COLORS[0], (140, 20): COLORS[7], (140, 100): COLORS[9], (20, 100): WHITE}


def test_turned_grid_is_drawn_turned(quarters):
    turned = Affine.translation(500_000, 5_400_000) @ Affine.rotation(30) @ Affine.scale(2, -2)
    ax = gd.plot_change(raster(quarters, turned))
    for (col, row), color in {(10, 10): COLORS[0], (70, 10): COLORS[7], (70, 50): COLORS[9]}.items():
        assert color_at(ax, *(turned * (col, row))) == color
    assert color_at(ax, *(turned * (-4, 20))) == WHITE


@pytest.mark.parametrize(
    ("transform", "crs", "ratio"), [(METRES, "EPSG:32633", 1), (DEGREES, "EPSG:4326", 1 / np.cos(np.radians(59.97)))]
)
def test_ground_is_as_wide_as_it_is_high(quarters, transform, crs, ratio):
    ax = gd.plot_change(raster(quarters, transform, crs))
    ax.figure.canvas.draw()
    (left, bottom), (right, top) = ax.transData.transform([(ax.get_xlim()[0], ax.get_ylim()[0]),
                                                          (ax.get_xlim()[1], ax.get_ylim()[1])])  # fmt: skip
    height_of_width = (top - bottom) / (right - left)
    assert height_of_width == pytest.approx(60 / 80 * ratio, rel=0.01)


def test_legend_names_all_classes_in_their_colours(quarters):
    legend = gd.plot_change(raster(quarters)).get_legend()
    assert [each.get_text() for each in legend.get_texts()] == ["Class 0", "Class 7", "Class 9"]
    faces = [np.round(np.multiply(each.get_facecolor()[:3], 255)).astype(int).tolist() for each in legend.get_patches()]
    assert faces == [list(color) for color in COLORS.values()]
    assert gd.plot_change(raster(quarters), legend=False).get_legend() is None


@pytest.mark.parametrize("name", [r"$\foo$", "lost $5 to $10", "$"])
def test_dollar_signs_of_a_name_are_drawn_as_they_are(quarters, name):
    ax = gd.plot_change(raster(quarters, table=ClassTable((ModelClass(0, name, (9, 9, 9)),))))
    ax.figure.canvas.draw()
    text = ax.get_legend().get_texts()[0]
    assert (text.get_text(), text.get_parse_math()) == (name, False)


def test_long_name_is_shortened_and_leaves_room_for_the_map(quarters):
    ax = gd.plot_change(raster(quarters, table=ClassTable((ModelClass(0, "x" * 300 + "\n" * 300, (9, 9, 9)),))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the layout says so where it collapses
        ax.figure.canvas.draw()
    assert ax.get_legend().get_texts()[0].get_text() == "x" * 59 + "…"


def test_of_many_classes_those_that_are_seen_are_named(quarters):
    many = ClassTable(tuple(ModelClass(value, f"Class {value}", (value, 0, 0)) for value in range(40)))
    legend = gd.plot_change(raster(quarters, table=many)).get_legend()
    assert [each.get_text() for each in legend.get_texts()] == ["Class 0", "Class 7", "Class 9"]


def test_value_without_class_is_seen_and_named(quarters):
    quarters[:10, :10] = 5
    ax = gd.plot_change(raster(quarters))
    assert color_at(ax, 500_008, 5_399_992) == (128, 128, 128)
    assert ax.get_legend().get_texts()[-1].get_text() == "5 (unlisted)"


def test_classes_are_never_mixed(tmp_path):
    """A checkerboard of single pixels, which an average would make a colour of its own."""
    board = np.where(np.indices((2000, 1500)).sum(0) % 2, 7, 9).astype(np.uint8)
    gd.write_cog(raster(board), tmp_path / "board.tif")
    for given in (raster(board), tmp_path / "board.tif"):
        ax = gd.plot_change(given, legend=False)
        assert set(np.unique(ax.images[0].get_array().compressed())) <= {1, 2}
        assert max(ax.images[0].get_array().shape) <= 1024
        assert color_at(ax, 501_500, 5_398_000) in (COLORS[7], COLORS[9])


def test_drawn_where_it_is_asked_to_be(quarters):
    figure, (_, right) = plt.subplots(1, 2)
    assert gd.plot_change(raster(quarters), right) is right
    assert len(plt.get_fignums()) == 1
    assert right.get_xlabel() == "Easting (metre)"
    assert right.get_ylabel() == "Northing (metre)"
    assert figure.axes[0].images[:] == []


def test_large_result_that_is_not_computed_is_refused(monkeypatch, pair, models):
    monkeypatch.setattr(results, "LARGEST_PX", 1000)
    lazy = gd.detect_change(*pair, models["pt2"], processor="cpu")
    with pytest.raises(RasterInputError, match="109 x 83 pixels, which are not computed yet"):
        gd.plot_change(lazy)
    assert gd.plot_change(lazy[:30, :30]).images[0].get_array().shape == (30, 30)


def test_raster_without_classes_is_refused(quarters):
    with pytest.raises(RasterInputError, match="no class table"):
        gd.plot_change(raster(quarters).drop_attrs())
