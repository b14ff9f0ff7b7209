"""Pictures of results, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from .classes import ClassTable
from .errors import MissingDependencyError, RasterInputError
from .results import ResultLike, coarse_view

WIDTH_PX, DPI = 1600, 150
MARGIN_IN, GAP_IN, TITLE_IN, LEGEND_IN, ROW_IN = 0.1, 0.1, 0.3, 0.4, 0.25
LONGEST_SIDE_PX = 2048
STRETCH_PERCENT = (2, 98)
MOST_COLORS, MOST_EXACT_COLORS = 256, 64
PAPER, INK, EDGE, BLANK = "#FFFFFF", "#22282D", "#00000055", (255, 255, 255)
LEGEND_COLUMNS, LEGEND_CHARACTERS, ENTRY_CHARACTERS, NAME_CHARACTERS = 5, 135, 7, 60
LEGEND_STYLE = {
    "loc": "lower center",
    "frameon": False,
    "fontsize": 9,
    "labelcolor": INK,
    "handlelength": 1.2,
    "handleheight": 1.2,
    "columnspacing": 2.2,
}

DRAWN_PX, MOST_LISTED = 1024, 30
Array = NDArray[Any]


def plot_change(change: ResultLike, ax: Any = None, *, legend: bool = True, longest_px: int = DRAWN_PX) -> Any:
    """Draw a result in the colours of its classes, on a map's axes; returns the matplotlib axes.

    change : path of a result, or a DataArray or Dataset as of `detect_change` or `open_change`, also cut or masked. Of
        a file no more is read than is drawn: its overviews, where it has them, in which each pixel is the most frequent
        class below it. What is larger than 4,096 x 4,096 pixels and not computed yet is refused.
    ax : where it is drawn; new axes where it is None. legend : whether the classes are named beside it; of more than 30
        those that are seen. longest_px : of the longer side of what is drawn. Nodata is left transparent.
    Raises RasterInputError or MissingDependencyError.
    """
    view = coarse_view(change, longest_px)
    table = ClassTable.from_attrs(view.attrs)
    if table is None:
        raise RasterInputError(
            "The raster has no class table in its attributes (flag_values, flag_colors, class_names)."
        )
    grid, seen = view.odc.geobox, set(np.unique(view.data).tolist())
    classes = table.with_unlisted(seen - {view.attrs.get("_FillValue")}).classes
    if ax is None:
        ax = _load_pyplot().subplots(layout="constrained")[1]
    _draw_map(ax, _show_indices(view.data, [each.value for each in classes]), [each.color for each in classes], grid)
    if legend:
        named = [each for each in classes if len(classes) <= MOST_LISTED or each.value in seen]
        patch = _load_matplotlib().Patch
        patches = [patch(label=_shortened(each.name), fc=np.divide(each.color, 255), ec=EDGE) for each in named]
        style = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0, "frameon": False}
        _take_literally(ax.legend(handles=patches, **style))
    return ax


def _shortened(name: str) -> str:
    """A class name on one line that leaves room for the picture beside it."""
    line = " ".join(name.split())
    return line if len(line) <= NAME_CHARACTERS else line[: NAME_CHARACTERS - 1] + "…"


def _take_literally(legend: Any) -> None:
    """Draw the dollar signs of names, between which matplotlib would typeset mathematics."""
    for each in legend.get_texts():
        each.set_parse_math(False)


def _show_indices(values: Array, listed: Sequence[int]) -> Any:
    """Positions in a list of class values, (y, x); masked where a value is none of them."""
    order = np.argsort(listed)
    places = np.searchsorted(listed, values, sorter=order).clip(max=len(listed) - 1)
    indices = order[places]
    return np.ma.masked_array(indices, np.asarray(listed)[indices] != values)


def _draw_map(ax: Any, indices: Any, colors: Sequence[tuple[int, int, int]], grid: GeoBox) -> None:
    """Pixels where the grid has them, which may be turned; degrees as wide as they are in the middle."""
    from matplotlib.colors import ListedColormap
    from matplotlib.transforms import Affine2D

    (height, width), transform, box = grid.shape.yx, grid.transform, grid.boundingbox
    place = Affine2D.from_values(
        transform.a, transform.d, transform.b, transform.e, transform.c, transform.f
    )  # fmt: skip
    ax.imshow(
        indices, ListedColormap(np.divide(colors, 255)), vmin=-0.5, vmax=len(colors) - 0.5, interpolation="nearest",
        extent=(0, width, height, 0), transform=place + ax.transData,
    )  # fmt: skip
    is_in_degrees = grid.crs is not None and grid.crs.geographic
    middle = np.clip((box.bottom + box.top) / 2, -89, 89)
    ax.set(xlim=(box.left, box.right), ylim=(box.bottom, box.top))
    ax.set_aspect(1 / np.cos(np.radians(middle)) if is_in_degrees else "equal")
    ax.ticklabel_format(useOffset=False, style="plain")
    ax.tick_params(axis="x", labelrotation=30)
    if grid.crs is not None:
        ax.set(**{f"{axis}label": f"{each.name} ({each.unit_name})" for axis, each in _axes_of(grid)})


def _axes_of(grid: GeoBox) -> Iterator[tuple[str, Any]]:
    """The CRS's own axes by those of the map."""
    for each in grid.crs.proj.axis_info:  # type: ignore[union-attr]
        if each.direction in ("east", "west"):
            yield "x", each
        elif each.direction in ("north", "south"):
            yield "y", each


def _load_pyplot() -> Any:
    """The part of matplotlib that shows figures in a notebook or a window."""
    _load_matplotlib()
    from matplotlib import pyplot

    return pyplot


def save_change_picture(
    path: str | PathLike[str],
    from_pixels: Array,
    to_pixels: Array,
    change: Array,
    class_names: Sequence[str],
    class_colors: Sequence[tuple[int, int, int]],
    class_values: Sequence[int],
) -> None:
    """Save a PNG, 1600 pixels wide: before, after and change side by side, and a legend.

    from_pixels, to_pixels : (band, y, x) of any dtype. Three bands or more are shown as red, green,
    blue; fewer as gray. All but uint8 is stretched, by date and band, from the 2nd percentile to
    the 98th.
    change : (y, x) class values; a value without a class is left white.
    class_colors : red, green, blue, each 0 to 255. The legend adds each class's share of the area.

    The file has a palette of 256 colours, which makes it a third of the size; those of the first 64
    classes are exact.

    Raises MissingDependencyError where matplotlib is not installed.
    """
    plt = _load_matplotlib()
    panels = {
        "Before": _show_image(_thin(from_pixels)),
        "After": _show_image(_thin(to_pixels)),
        "Change": _show_classes(_thin(change), class_colors, class_values),
    }
    shares = [float(np.mean(change == value)) for value in class_values]
    labels = [f"{_shortened(name)}  {share:.1%}" for name, share in zip(class_names, shares, strict=True)]
    columns = _count_columns(labels)
    legend_in = LEGEND_IN + ROW_IN * ((len(labels) - 1) // columns)
    (width, height), panel = _measure_figure(change.shape, legend_in)
    figure = plt.Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    for place, (title, image) in enumerate(panels.items()):
        left = MARGIN_IN + place * (panel[0] + GAP_IN)
        box = (left / width, legend_in / height, panel[0] / width, panel[1] / height)
        _draw_panel(figure.add_axes(box), title, image)
    patches = [
        plt.Patch(label=label, fc=np.divide(color, 255), ec=EDGE)
        for label, color in zip(labels, class_colors, strict=True)
    ]
    _take_literally(figure.legend(handles=patches, ncols=columns, **LEGEND_STYLE))
    canvas = plt.FigureCanvasAgg(figure)
    canvas.draw()
    rgb = np.asarray(canvas.buffer_rgba())[..., :3]
    _reduce_colors(plt.Image, rgb, class_colors[:MOST_EXACT_COLORS]).save(path, format="PNG", optimize=True)


def _draw_panel(axes: Any, title: str, image: NDArray[np.uint8]) -> None:
    axes.imshow(image, interpolation="antialiased", aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=6)
    axes.spines[:].set(color=INK, linewidth=0.5, alpha=0.4)


def _count_columns(labels: Sequence[str]) -> int:
    """Give the most legend columns, up to five, that fit beside each other; matplotlib fills them one by one."""
    for columns in range(min(LEGEND_COLUMNS, len(labels)), 1, -1):
        longest = [max(map(len, column)) for column in np.array_split(labels, columns)]
        if sum(longest) + ENTRY_CHARACTERS * columns <= LEGEND_CHARACTERS:
            return columns
    return 1


def _reduce_colors(image_type: Any, rgb: NDArray[np.uint8], exact: Sequence[tuple[int, int, int]]) -> Any:
    """Give a picture with a palette, in which some colours of (y, x, 3) are kept as they are."""
    image = image_type.fromarray(rgb).quantize(MOST_COLORS - len(exact), dither=0)
    entries, palette = np.array(image), image.getpalette()[: 3 * (MOST_COLORS - len(exact))]
    for color in exact:
        entries[(rgb == color).all(-1)] = len(palette) // 3
        palette += color
    reduced = image_type.fromarray(entries)
    reduced.putpalette(palette)
    return reduced


def _load_matplotlib() -> SimpleNamespace:
    """Import the parts that need no display and leave no state behind, and Pillow, which they need."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            'Pictures need matplotlib, which is not installed. Install it with: pip install "geodl_dask[plot]"'
        ) from error
    return SimpleNamespace(Figure=Figure, FigureCanvasAgg=FigureCanvasAgg, Patch=Patch, Image=Image)


def _measure_figure(shape_yx: tuple[int, ...], legend_in: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Give the figure's (width, height) and one panel's (width, height), in inches."""
    width = WIDTH_PX / DPI
    across = (width - 2 * MARGIN_IN - 2 * GAP_IN) / 3
    # A strip of a raster would otherwise make a panel of no height, or a picture without end.
    down = across * min(max(shape_yx[0] / shape_yx[1], 0.25), 2.5)
    return (width, TITLE_IN + down + legend_in), (across, down)


def _thin(image: Array) -> Array:
    """Take every n-th row and column of a large (..., y, x) raster: more than a panel shows."""
    step = -(-max(image.shape[-2:]) // LONGEST_SIDE_PX)
    return image[..., ::step, ::step]


def _show_image(pixels: Array) -> NDArray[np.uint8]:
    """Give (y, x, 3) uint8 of (band, y, x) pixels of any dtype."""
    bands = pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]]
    if bands.dtype != np.uint8:
        bands = np.stack([_stretch(band) for band in bands])
    return np.ascontiguousarray(np.moveaxis(bands, 0, -1))


def _stretch(band: Array) -> NDArray[np.uint8]:
    """Map the 2nd to 98th percentile to 0 to 255; what is not finite is white."""
    values = band.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.full(band.shape, 255, np.uint8)
    low, high = np.percentile(values[finite], STRETCH_PERCENT)
    scaled = (values - low) * (255 / ((high - low) or 1.0))
    return np.where(finite, np.clip(scaled, 0, 255), 255).astype(np.uint8)


def _show_classes(change: Array, colors: Sequence[tuple[int, int, int]], values: Sequence[int]) -> NDArray[np.uint8]:
    """Give (y, x, 3) uint8 of (y, x) class values."""
    image = np.full((*change.shape, 3), BLANK, np.uint8)
    for value, color in zip(values, colors, strict=True):
        image[change == value] = color
    return image
