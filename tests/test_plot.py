"""The picture of a result: what it shows, how it is labelled, and that it is small."""

from __future__ import annotations

import subprocess
import sys

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from geodl_dask.errors import MissingDependencyError
from geodl_dask.plot import save_change_picture

NAMES, COLORS, VALUES = (
    ("No change", "New road", "Cleared"),
    ((227, 227, 223), (242, 177, 52), (123, 79, 163)),
    (0, 3, 9),
)
SHAPE_YX = (40, 60)
QUIET = """
import sys
import numpy as np
from geodl_dask.plot import save_change_picture
assert "matplotlib" not in sys.modules
image = np.zeros((3, 8, 8), np.uint8)
save_change_picture(sys.argv[1], image, image, image[0], ("a",), ((1, 2, 3),), (0,))
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.fixture
def figures(monkeypatch) -> list[matplotlib.figure.Figure]:
    """The figures drawn, in order."""
    drawn, draw = [], FigureCanvasAgg.draw
    monkeypatch.setattr(FigureCanvasAgg, "draw", lambda canvas: (drawn.append(canvas.figure), draw(canvas))[1])
    return drawn


@pytest.fixture
def save(tmp_path, figures):
    """Save a picture of whatever is given, the rest being gray; gives its pixels (y, x, 3)."""

    def save_picture(from_pixels=None, to_pixels=None, change=None, names=NAMES, colors=COLORS, values=VALUES):
        gray = np.full((3, *SHAPE_YX), 128, np.uint8)
        images = (gray if each is None else each for each in (from_pixels, to_pixels))
        change = np.zeros(SHAPE_YX, np.uint8) if change is None else change
        save_change_picture(tmp_path / "change.png", *images, change, names, colors, values)
        return np.array(Image.open(tmp_path / "change.png").convert("RGB"))

    return save_picture


def solid(*color: int) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8)[:, None, None], (len(color), *SHAPE_YX))


def box_of(picture: np.ndarray, color: tuple[int, ...], tolerance: int = 4) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a colour in a picture."""
    y, x = np.nonzero((np.abs(picture.astype(int) - color) <= tolerance).all(-1))
    return y.min(), y.max() + 1, x.min(), x.max() + 1


def shown(figures, panel: int) -> np.ndarray:
    """The (y, x, 3) image that a panel of the last picture holds."""
    return np.asarray(figures[-1].axes[panel].images[0].get_array())


def legend_of(figure):
    (legend,) = figure.legends
    return legend


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_picture_is_a_png_1600_pixels_wide(tmp_path, kind):
    path = tmp_path / "any.name"
    image = solid(1, 2, 3)
    save_change_picture(kind(path), image, image, image[0], NAMES, COLORS, VALUES)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1600


def test_panels_stand_side_by_side_in_order_of_time(save, figures):
    picture = save(solid(200, 30, 40), solid(20, 140, 60), np.full(SHAPE_YX, 9))
    before, after, change = (box_of(picture, color) for color in ((200, 30, 40), (20, 140, 60), COLORS[2]))
    assert before[3] < after[2] < after[3] < 1600 * 2 / 3 < change[3]
    assert before[:2] == after[:2]
    for top, bottom, left, right in (before, after):
        assert (right - left) / (bottom - top) == pytest.approx(60 / 40, rel=0.02)
        assert right - left > 0.3 * 1600
    assert [axes.get_title("left") for axes in figures[-1].axes] == ["Before", "After", "Change"]


def test_class_colors_are_exact_in_the_change_panel(save, figures):
    change = np.zeros(SHAPE_YX, np.uint8)
    change[:20, 30:] = 3
    change[20:, 30:] = 9
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, *SHAPE_YX), np.uint8)
    picture = save(*noise, change)
    box = figures[-1].axes[2].get_window_extent()
    panel = picture[::-1][round(box.y0) : round(box.y1), round(box.x0) : round(box.x1)]
    found = [(panel == color).all(-1).mean() for color in COLORS]
    assert found == pytest.approx([0.5, 0.25, 0.25], abs=0.02)


def test_color_of_a_rare_class_is_not_mixed_with_the_photographs(save):
    change = np.zeros(SHAPE_YX, np.uint8)
    change[7:9, 20:22] = 3
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 400, 600), np.uint8)
    picture = save(*noise, change)[:, 1600 * 2 // 3 + 15 :][:350]
    assert (picture == COLORS[1]).all(-1).sum() > 100


@pytest.mark.parametrize("shape_yx", [(60, 40), (40, 60)])
def test_panels_fill_the_width(save, shape_yx):
    image = np.full((3, *shape_yx), 90, np.uint8)
    picture = save(image, image, np.full(shape_yx, 9))
    top, bottom, left, right = box_of(picture[:, 1600 * 2 // 3 :], COLORS[2])
    assert right - left > 0.31 * 1600
    assert picture.shape[0] - (bottom - top) < 120


def test_value_without_a_class_is_white(save, figures):
    save(change=np.full(SHAPE_YX, 5))
    assert (shown(figures, 2) == 255).all()


def test_legend_gives_each_class_its_color_and_share_of_the_area(save, figures):
    change = np.zeros(SHAPE_YX, np.uint8)
    change[:10] = 3
    change[10, :3] = 5  # of no class
    save(change=change)
    legend = legend_of(figures[-1])
    assert [text.get_text() for text in legend.get_texts()] == ["No change  74.9%", "New road  25.0%", "Cleared  0.0%"]
    faces = [np.round(np.multiply(patch.get_facecolor()[:3], 255)) for patch in legend.get_patches()]
    assert np.array_equal(faces, COLORS)


def test_share_counts_every_pixel_of_a_raster_too_large_to_show(save, figures):
    change = np.zeros((4200, 30), np.uint8)
    change[1::3] = 3  # of which a picture of every third row shows nothing
    save(change=change)
    assert legend_of(figures[-1]).get_texts()[1].get_text() == "New road  33.3%"
    assert max(shown(figures, 2).shape) <= 2048


@pytest.mark.parametrize(
    ("classes", "letters"), [(1, 5), (3, 40), (5, 16), (5, 45), (7, 5), (12, 20), (30, 10), (2, 90)]
)
def test_legend_covers_no_panel_and_stays_in_the_picture(save, figures, classes, letters):
    names = ["Mown Meadow " * 8] * classes
    save(names=[name[:letters] for name in names], colors=[(9, 9, 9)] * classes, values=range(classes))
    figure = figures[-1]
    width, height = figure.canvas.get_width_height()
    legend = legend_of(figure).get_window_extent()
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert legend.x0 >= 0 and legend.x1 <= width and legend.y0 >= 0
    assert legend.y1 <= min(panel.y0 for panel in panels)
    assert max(axes.get_tightbbox().y1 for axes in figure.axes) <= height


@pytest.mark.parametrize("name", [r"$\foo$", "lost $5 to $10"])
def test_dollar_signs_of_a_name_are_drawn_as_they_are(save, figures, name):
    save(names=[name, "$", "New road"])
    text = legend_of(figures[-1]).get_texts()[0]
    assert (text.get_text(), text.get_parse_math()) == (f"{name}  100.0%", False)


def test_long_name_is_shortened_and_keeps_its_share(save, figures):
    save(names=["x" * 300, "a\nb", "New road"])
    texts = [each.get_text() for each in legend_of(figures[-1]).get_texts()]
    assert texts == ["x" * 59 + "…  100.0%", "a b  0.0%", "New road  0.0%"]


@pytest.mark.parametrize("classes", [65, 300])
def test_any_number_of_classes_is_drawn(save, classes):
    colors = [(value % 256, 255 - value % 256, 90) for value in range(classes)]
    change = np.full(SHAPE_YX, 40)
    picture = save(change=change, names=["x"] * classes, colors=colors, values=range(classes))
    assert (picture == colors[40]).all(-1).sum() > 100_000


def test_one_band_and_two_are_shown_as_gray(save, figures):
    ramp = np.arange(2400, dtype=np.uint32).reshape(1, *SHAPE_YX).astype(np.uint8)
    save(ramp, np.concatenate([ramp, 255 - ramp]))
    for panel in (0, 1):
        assert np.array_equal(shown(figures, panel), np.repeat(ramp[0][..., None], 3, -1))


@pytest.mark.parametrize("bands", [3, 4, 8])
def test_first_three_bands_are_red_green_and_blue(save, figures, bands):
    pixels = np.random.default_rng(bands).integers(0, 256, (bands, *SHAPE_YX), np.uint8)
    save(pixels)
    assert np.array_equal(shown(figures, 0), pixels[:3].transpose(1, 2, 0))


def test_bytes_are_shown_as_they_are(save, figures):
    dark = np.random.default_rng(0).integers(20, 40, (3, *SHAPE_YX), np.uint8)
    save(dark)
    assert shown(figures, 0).max() < 40


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
def test_other_types_are_stretched_by_date_and_band(save, figures, dtype):
    order = np.random.default_rng(1).permutation(2400)
    bands = np.stack([order, 5000 + 3 * order, -order if np.dtype(dtype).kind != "u" else 7 * order])
    save(bands.reshape(3, *SHAPE_YX).astype(dtype), (2 * bands).reshape(3, *SHAPE_YX).astype(dtype))
    for panel in (0, 1):
        for band in np.moveaxis(shown(figures, panel), -1, 0):
            assert np.mean(band == 0) == pytest.approx(0.02, abs=0.006)
            assert np.mean(band == 255) == pytest.approx(0.02, abs=0.006)
            assert np.median(band) == pytest.approx(127.5, abs=1.5)
    rising = shown(figures, 0)[..., 0].ravel()[np.argsort(order)]
    assert (np.diff(rising.astype(int)) >= 0).all()


def test_what_is_not_finite_is_white_and_does_not_count(save, figures):
    values = np.linspace(0, 1, 2400, dtype=np.float32).reshape(1, *SHAPE_YX)
    holed = values.copy()
    for start, hole in enumerate((np.nan, np.inf, -np.inf)):
        holed.ravel()[start::20] = hole
    save(values, holed)
    whole, stretched = (shown(figures, panel)[..., 0].astype(int) for panel in (0, 1))
    finite = np.isfinite(holed[0])
    assert (stretched[~finite] == 255).all()
    assert np.abs(stretched - whole)[finite].max() <= 3


@pytest.mark.parametrize(("value", "expected"), [(np.nan, 255), (7.5, 0)])
def test_band_of_one_value_is_drawn(save, figures, value, expected):
    save(np.full((1, *SHAPE_YX), value, np.float32))
    assert (shown(figures, 0) == expected).all()


@pytest.mark.parametrize("shape_yx", [(4, 3000), (3000, 4), (1, 1)])
def test_strips_make_a_picture_of_reasonable_height(save, shape_yx):
    image = np.zeros((3, *shape_yx), np.uint8)
    picture = save(image, image, image[0])
    assert picture.shape[1] == 1600
    assert 150 < picture.shape[0] < 1600


def test_file_of_noisy_images_is_small(save, tmp_path):
    noise = np.random.default_rng(0).normal(120, 9, (2, 3, 600, 900)).astype(np.uint8)
    picture = save(*noise, np.zeros((600, 900), np.uint8))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) <= 256
    assert (tmp_path / "change.png").stat().st_size < 400_000


@pytest.mark.parametrize("missing", ["matplotlib", "matplotlib.figure", "PIL"])
def test_missing_matplotlib_is_named_with_its_install_line(monkeypatch, tmp_path, missing):
    for name in [each for each in sys.modules if each == missing or each.startswith(f"{missing}.")] + [missing]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "geodl_dask\[plot\]"'):
        save_change_picture(tmp_path / "a.png", solid(1, 2, 3), solid(1, 2, 3), solid(1)[0], NAMES, COLORS, VALUES)
    assert not any(tmp_path.iterdir())


def test_matplotlib_is_loaded_late_and_without_pyplot(tmp_path):
    subprocess.run([sys.executable, "-W", "error", "-c", QUIET, str(tmp_path / "a.png")], check=True, timeout=120)
