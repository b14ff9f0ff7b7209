"""What a report is made of: a result with its record, and the images that it was made from, if they are still there."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from odc.geo.geobox import GeoBox

from ..areas import PixelAreas, add_up, choose_area
from ..classes import ClassTable
from ..confidence import CONFIDENCE
from ..errors import GeodlError, RasterInputError, RasterNotFoundError
from ..manifest import Manifest
from ..outputs import manifest_of, was_edited
from ..rasters import Bands, open_raster
from ..rasters.coarse import coarsened
from ..rasters.gdal import holds_its_pixels, opened
from ..rasters.sources import ZARR_MARKS
from ..rasters.states import state_of
from ..rasters.windows import WindowedRaster
from ..tiling import Window
from ..uploads import RemoteOutput

SUFFIXES = (".tif", ".tiff", ".zarr")
WINDOW_PX = 512
"""Side of the windows that are read at a time."""


@dataclass(frozen=True)
class Result:
    """A change or class raster that was written, with all that is said of it."""

    path: str
    """What the user named."""
    classes: WindowedRaster
    """Class values, one band."""
    levels: dict[int, WindowedRaster]
    """The same from the pyramid of a store, by factor; a GeoTIFF's overviews are found where it is read."""
    confidence: WindowedRaster | None
    """How sure the model is, 0 to 1, or a distance."""
    meaning: str
    """Of the confidence: ``probability`` or ``distance``."""
    attrs: dict[str, Any]
    """Attributes, as text where a GeoTIFF has them."""
    manifest: Manifest | None
    """Record of the run; None where there is none that is of this raster."""

    @property
    def grid(self) -> GeoBox:
        """CRS, transform and shape."""
        return self.classes.grid

    @property
    def compares(self) -> bool:
        """Whether it tells two dates apart, so that class value 0 means no change."""
        return "from_raster" in self.attrs or "raster" not in self.attrs

    def classes_on(self, grid: GeoBox, factor: int) -> WindowedRaster:
        """Class values on a grid whose pixels are ``factor`` times as long, each the most frequent one."""
        usable = [each for each in self.levels if each <= factor]
        return coarsened(self.levels[max(usable)] if usable else self.classes, grid, "mode")

    def table(self, pixels: dict[int, int]) -> ClassTable:
        """Its classes, and the values that it holds without naming them. pixels : by value, nodata not among them."""
        try:
            table = ClassTable.from_attrs(self.attrs)
        except RasterInputError as error:
            raise RasterInputError(f"{self.path}: {error}") from error
        if table is None:
            raise RasterInputError(
                f"{self.path} has no class table in its attributes (flag_values, flag_colors, class_names); a result "
                "that geodl-dask has written is needed."
            )
        return table.with_unlisted(pixels)


def open_result(path: str | os.PathLike[str]) -> Result:
    """The result at a path or URL; no pixel is read. Raises RasterNotFoundError or RasterInputError."""
    text = os.fspath(path)
    suffix = Path(text).suffix.lower()
    if suffix not in SUFFIXES:
        raise RasterInputError(f"The result {text!r} does not end in {', '.join(SUFFIXES)}; a result of ours does.")
    if suffix == ".zarr":
        return _open_store(text)
    classes = open_raster(text, "result", (1,))
    with opened(cast("Any", classes).dataset) as dataset:
        attrs = dict(dataset.tags())
        has_confidence = dataset.count > 1 and dataset.descriptions[1] == CONFIDENCE
    confidence = cast("WindowedRaster", open_raster(text, "result", (2,))) if has_confidence else None
    return Result(
        text, cast("WindowedRaster", classes), {}, confidence, "probability", attrs, _manifest(text, classes.grid)
    )


def _open_store(text: str) -> Result:
    try:
        group = zarr.open_group(text, mode="r")
        arrays = {name: dict(array.attrs) for name, array in group.arrays()}
        levels = [found for name in group.group_keys() if (found := re.fullmatch(r"ovr_(\d+)x", name))]
    except Exception as error:  # a store that is none fails in as many ways as there are libraries beneath
        raise RasterInputError(f"{text} cannot be opened as a Zarr store: {type(error).__name__}: {error}") from error
    name = next((name for name, attrs in arrays.items() if "flag_values" in attrs), None)
    if name is None:
        raise RasterInputError(
            f"{text} holds no array with a class table (flag_values); a result that geodl-dask has written is needed."
        )
    classes = _of_store(f"{text}#{name}")
    coarser = {int(level[1]): _of_store(f"{text}/{level[0]}#{name}") for level in levels}
    confidence = _of_store(f"{text}#{CONFIDENCE}") if CONFIDENCE in arrays else None
    is_distance = str(arrays.get(CONFIDENCE, {}).get("long_name", "")).startswith("distance")
    meaning = "distance" if is_distance else "probability"
    return Result(text, classes, coarser, confidence, meaning, arrays[name], _manifest(text, classes.grid))


def _of_store(text: str) -> WindowedRaster:
    return cast("WindowedRaster", open_raster(text, "result"))


def _manifest(text: str, grid: GeoBox) -> Manifest | None:
    """The record beside a result, unless it is of another raster that had its name, or nonsense."""
    found = RemoteOutput.at(text).manifest() if "://" in text else Manifest.read(manifest_of(Path(text)))
    if found is None or not _is_sound(found):
        return None
    if not found.is_on(grid):
        return None
    return replace(found, pixels=None) if "://" not in text and was_edited(Path(text)) else found


def _is_sound(manifest: Manifest) -> bool:
    """Whether all that is counted with is a number; anybody may have written the file."""
    numbers = [manifest.tiles, manifest.empty_tiles, manifest.computed_blocks, manifest.kept_blocks]
    for block in manifest.failed_blocks:
        numbers += [block.row_off, block.col_off, block.height, block.width]
    return all(type(each) is int and each >= 0 for each in numbers) and isinstance(manifest.software, dict)


@dataclass(frozen=True)
class Photo:
    """One of the images that a result was made from."""

    role: str
    """``from_raster``, ``to_raster`` or ``raster``."""
    name: str
    """What the record calls it."""
    raster: WindowedRaster | None
    """Its bands that are shown: red, green, blue, or one; None where it cannot be."""
    trouble: str = ""
    """Why it cannot be shown, or not be trusted."""


def find_photo(result: Result, role: str, given: str | os.PathLike[str] | None, bands: Bands) -> Photo | None:
    """An image by what the user says, else by the record; None where neither names one.

    Raises RasterNotFoundError or another RequestError where the user has named it, or its bands, and it cannot be
    opened; what the record alone names is then without a raster.
    Of what the record names only what lies on this disk and holds its own pixels is opened: the record may be
    anybody's, and must not make this machine call others.
    """
    recorded = str(result.attrs.get(role, ""))
    name = recorded if given is None else os.fspath(given)
    is_asked_for = given is not None or bands is not None
    place = _place_of(recorded, Path(result.path)) if given is None else name
    if not name or place is None:
        if is_asked_for:
            raise RasterNotFoundError(f"{role} {name!r} cannot be opened. {_absence(role)}")
        return Photo(role, name, None, _absence(role)) if name else None
    try:
        opened = cast("WindowedRaster", open_raster(place, role, bands))
        trouble = _difference(result, role, opened) if given is None else ""
        colors = _colors_of(opened.band_names) if bands is None else None
        shown = opened if colors is None else cast("WindowedRaster", open_raster(place, role, colors))
    except GeodlError as error:
        if is_asked_for:
            raise
        return Photo(role, name, None, f"It cannot be opened: {error}")
    return Photo(role, name, shown, trouble)


def _place_of(name: str, result: Path) -> str | None:
    """Where on this disk a raster of the record is, as named or beside the result, if it holds its own pixels."""
    if "://" in name or name.startswith(("<", "/vsi")):
        return None
    place, mark, choice = name.partition("#")
    beside = result.parent / place, result.parent / Path(place).name
    found = next((each for each in (Path(place), *beside) if place and _is_own(each)), None)
    return None if found is None else f"{found}{mark}{choice}"


def _is_own(path: Path) -> bool:
    try:
        is_store = path.is_dir() and any((path / mark).is_file() for mark in ZARR_MARKS)
        return is_store or (path.is_file() and holds_its_pixels(str(path)))
    except (OSError, ValueError):  # a name longer than any may be, or none at all
        return False


def _absence(role: str) -> str:
    return (
        "It is no file on this disk that holds its own pixels; what lies elsewhere, or names other files, is not "
        f"opened unasked. Name it by --{role.replace('_', '-')} ({role}=) to see it."
    )


def _difference(result: Result, role: str, found: WindowedRaster) -> str:
    """In words, where the image's files are not what they were when the run began; bands do not matter."""
    states = listed(result.attrs.get("raster_states"))
    number = 1 if role == "to_raster" else 0
    if len(states) <= number:
        return ""
    was, now = (state.partition(" of ")[2] for state in (states[number], state_of(found)))
    return "" if was == now else f"Its file has changed since the run: it was {was}, and is {now}."


def _colors_of(names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Numbers of the bands to show: red, green and blue by name, else the first three, else the first; None: all."""
    lower = [name.lower() for name in names]
    if lower in (["red", "green", "blue"], lower[:1]):
        return None
    if {"red", "green", "blue"} <= set(lower):
        return tuple(lower.index(color) + 1 for color in ("red", "green", "blue"))
    return (1, 2, 3) if len(names) >= 3 else (1,)


def parsed(value: Any) -> Any:
    """A value of an attribute, which a GeoTIFF's tag holds as JSON text where it is none itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def listed(value: Any) -> list[str]:
    """The texts of an attribute that is a list of them; none where it is something else."""
    found = parsed(value)
    return [str(each) for each in found] if isinstance(found, list) else []


def windows_of(shape_yx: tuple[int, int]) -> list[Window]:
    """Windows that cover a raster, each of which fits into memory."""
    rows, cols = shape_yx
    return [
        Window(row, col, min(WINDOW_PX, rows - row), min(WINDOW_PX, cols - col))
        for row in range(0, rows, WINDOW_PX)
        for col in range(0, cols, WINDOW_PX)
    ]


def measure_values(result: Result) -> tuple[dict[int, int], dict[int, float] | None]:
    """Pixels and square metres by value, nodata left out; no metres where the raster lies nowhere.

    Of the manifest, where it has the pixels and they are all alike, else counted window by window.
    """
    ground = ground_of(result.grid)
    each_metres = ground.each if ground is not None else 0.0
    pixels: dict[int, int] = {}
    square_metres: dict[int, float] = {}
    if result.manifest is not None and result.manifest.pixels is not None and each_metres is not None:
        nodata = result.manifest.asked.get("_FillValue")
        pixels = {value: count for value, count in result.manifest.pixels.items() if value != nodata}
        square_metres = {value: count * each_metres for value, count in pixels.items()}
        return pixels, None if ground is None else square_metres
    for window in windows_of(result.grid.shape.yx):
        values, valid = result.classes.read(window)
        areas = np.ones((1, 1)) if ground is None else ground.of(window)
        weights = areas if areas.size == 1 else np.broadcast_to(areas, valid.shape)[valid]
        for value, (count, metres) in add_up(values[0][valid], weights).items():
            pixels[value] = pixels.get(value, 0) + count
            square_metres[value] = square_metres.get(value, 0.0) + metres
    return pixels, None if ground is None else square_metres


def ground_of(grid: GeoBox) -> PixelAreas | None:
    """Of what size its pixels are, by the same rule as `change_table`; None where it lies nowhere."""
    try:
        return PixelAreas(grid, choose_area(grid, "auto"))
    except RasterInputError:
        return None
