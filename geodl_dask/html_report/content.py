"""All that a page shows, by the names of its template: studied first, then said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.xr import xr_coords

from ..areas import SQUARE_METRES_PER_HECTARE
from ..classes import ClassTable
from ..report import ClassArea, class_areas
from ..tiling import Window
from . import facts
from .areas import Area, largest_areas
from .sources import Photo, Result, ground_of, measure_values
from .views import (
    Close,
    Layer,
    Overview,
    PhotoTiles,
    as_list,
    close_view,
    hex_color,
    layer_tiles,
    layers_of_classes,
    overview_of,
    photo_tiles,
)

LARGEST_AREAS = 20


@dataclass(frozen=True)
class Study:
    """A result, looked at: in memory that does not grow with it."""

    result: Result
    """What was looked at."""
    table: ClassTable
    """Its classes, with all values that occur."""
    overview: Overview
    """All of it."""
    layers: list[Layer]
    """Of what is drawn over the images."""
    photos: list[PhotoTiles]
    """The images."""
    closes: list[tuple[Area, Close]]
    """Its largest areas, the largest first."""
    areas: tuple[ClassArea, ...]
    """How much each class covers."""

    @cached_property
    def same(self) -> frozenset[int]:
        """Class values that mean no change."""
        return _same_values(self.result, self.table)

    @cached_property
    def shown(self) -> list[PhotoTiles]:
        """Images that could be read."""
        return [each for each in self.photos if each.photo.raster is not None]

    @cached_property
    def details(self) -> list[Close]:
        """Areas that are shown closer than in the overview; none overlaps another, so that no class is drawn twice."""
        kept: list[Close] = []
        for _, close in self.closes:
            if close.is_detail and not any(_overlap(close, other) for other in kept):
                kept.append(close)
        return kept

    def size(self, area: Area) -> str:
        """One of the largest areas, in words; its pixels are taken to be as large as the one in its middle."""
        window = _window_of(area, self.overview)
        ground = ground_of(self.result.grid)
        pixels = area.pixels * self.overview.factor**2
        if ground is None:
            return facts.area_text(None, pixels)
        middle = Window(window.row_off + window.height // 2, window.col_off + window.width // 2, 1, 1)
        return facts.area_text(pixels * float(ground.of(middle).item()) / SQUARE_METRES_PER_HECTARE, pixels)


def study_result(result: Result, photos: list[Photo]) -> Study:
    """Read what a page needs. Raises RasterInputError or RasterReadError."""
    pixels, square_metres = measure_values(result)
    table = result.table(pixels)
    overview = overview_of(result, table)
    same = _same_values(result, table)
    unchanged = {index for index, value in enumerate(table.values, 1) if value in same}
    layers = layers_of_classes(table, pixels, unchanged)
    tiled = [photo_tiles(photo, overview) for photo in photos]
    largest = largest_areas(overview.classes, unchanged, LARGEST_AREAS, _reach(result, overview))
    closes = [(area, close_view(area, result, overview, table, layers, tiled)) for area in largest]
    areas = class_areas(_without_pixels(result, table), pixels, square_metres)
    return Study(result, table, overview, layers, tiled, closes, areas)


def page_content(study: Study) -> dict[str, Any]:
    """What the template names."""
    result, photos = study.result, [each.photo for each in study.photos]
    return {
        "title": facts.title_of(result),
        "compares": result.compares,
        "made_at": facts.made_at(result),
        "named": [facts.short_name(photo.name) for photo in photos],
        "roles": [facts.ROLES[each.photo.role] for each in study.shown],
        "figures": _figures(study),
        "warnings": facts.warnings_of(result, study.areas, photos),
        "layers": study.layers,
        "areas": [_listed_area(study, *each) for each in study.closes],
        "factor": study.overview.factor,
        "classes": _class_rows(study),
        "provenance": facts.provenance_of(result, photos),
        "record": facts.record_of(result),
        "data": _map_data(study),
    }


def _map_data(study: Study) -> dict[str, Any]:
    """What the page's script needs; windows are first row, first column, rows, columns."""
    result, grid, windows = study.result, study.result.grid, [close.window for close in study.details]
    failed = facts.failed_blocks(result)
    return {
        "size": list(grid.shape.yx),
        "level": study.overview.level,
        "transform": list(grid.transform)[:6],
        "crs": facts.crs_name(grid),
        "isGeographic": bool(grid.crs and grid.crs.geographic),
        "metres": facts.metres_per_pixel(grid),
        "photos": [each.tiles for each in study.shown],
        "layers": [layer_tiles(study.overview, layer, study.table, windows) for layer in study.layers],
        "details": [
            {"window": as_list(close.window), "photos": close.photos, "layers": close.layers} for close in study.details
        ],
        "areas": [
            {"window": as_list(_window_of(area, study.overview)), "text": study.table.names[area.index - 1]}
            for area, _ in study.closes
        ],
        "failed": [[each.row_off, each.col_off, each.height, each.width] for each in failed],
    }


def _same_values(result: Result, table: ClassTable) -> frozenset[int]:
    return frozenset({0} & set(table.values)) if result.compares else frozenset()


def _without_pixels(result: Result, table: ClassTable) -> xr.DataArray:
    """The result's grid and classes, as an array that takes no memory."""
    nothing = np.broadcast_to(np.uint8(0), result.grid.shape.yx)
    return xr.DataArray(nothing, xr_coords(result.grid, dims=("y", "x")), ("y", "x"), attrs=table.to_attrs())


def _overlap(one: Close, other: Close) -> bool:
    ours, theirs = one.window, other.window
    return (
        ours.row_off < theirs.row_off + theirs.height
        and theirs.row_off < ours.row_off + ours.height
        and ours.col_off < theirs.col_off + theirs.width
        and theirs.col_off < ours.col_off + ours.width
    )


def _reach(result: Result, overview: Overview) -> tuple[float, float]:
    """How many columns and rows of the overview the result fills."""
    rows, cols = result.grid.shape.yx
    return cols / overview.factor, rows / overview.factor


def _window_of(area: Area, overview: Overview) -> Window:
    """The window of the result around an area."""
    left, top, right, bottom = (round(overview.factor * each) for each in area.outline.bounds)
    return Window(top, left, bottom - top, right - left)


def _listed_area(study: Study, area: Area, close: Close) -> dict[str, Any]:
    """An area as the page lists it."""
    model_class = study.table.classes[area.index - 1]
    return {
        "name": model_class.name,
        "color": hex_color(model_class.color),
        "size": study.size(area),
        "sure": facts.sure_text(close.confidence, study.result.meaning),
        "photos": [uri for uri in close.photos if uri],
        "layers": close.layers,
    }


def _figures(study: Study) -> list[tuple[str, str, str]]:
    """Name, figure and remark of what is worth knowing first."""
    compares, grid = study.result.compares, study.result.grid
    changed = [each for each in study.areas if each.model_class.value not in study.same]
    observed = sum(each.pixels for each in study.areas)
    share = facts.share_text(observed / (grid.shape.y * grid.shape.x))
    found = [("Observed", _sum(study.areas), f"{share} of the raster")]
    if compares:
        share = facts.share_text(sum(each.share for each in changed))
        found.insert(0, ("Changed", _sum(changed), f"{share} of the observed area"))
    if any(each.pixels for each in changed):
        most = max(changed, key=lambda each: each.share)
        found.append(("Most of it" if compares else "Largest class", most.model_class.name, _sum([most])))
    return found


def _sum(areas: Iterable[ClassArea]) -> str:
    """What some classes cover together, in words."""
    hectares = [each.hectares for each in areas if each.hectares is not None]
    return facts.area_text(sum(hectares) if hectares else None, sum(each.pixels for each in areas))


def _class_rows(study: Study) -> list[dict[str, Any]]:
    """The classes as the page's table has them: changed ones first, the largest first."""
    most = max((each.share for each in study.areas if each.model_class.value not in study.same), default=0.0) or 1.0
    rows = [
        {
            "value": each.model_class.value,
            "name": each.model_class.name,
            "color": hex_color(each.model_class.color),
            "pixels": each.pixels,
            "size": facts.area_text(each.hectares, each.pixels),
            "share": facts.share_text(each.share),
            "is_same": each.model_class.value in study.same,
            "bar": 0.0 if each.model_class.value in study.same else 100 * each.share / most,
        }
        for each in study.areas
    ]
    return sorted(rows, key=lambda row: (row["is_same"], -row["bar"], -row["pixels"]))
