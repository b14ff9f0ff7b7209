"""What a report says in words: the figures, how the result was made, and what a reader should know before trusting it.

All of it is plain text, from files that may be anybody's: nothing here is markup.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import PurePath
from typing import Any

from odc.geo.geobox import GeoBox

from ..areas import SQUARE_METRES_PER_HECTARE
from ..manifest import FailedBlock, Manifest
from ..report import ClassArea
from .sources import Photo, Result, ground_of, listed, parsed

NAMED = 5
"""Failed blocks whose cause is said."""
LONGEST = 2_000
"""Characters of a value that are shown."""
ROLES = {"from_raster": "Before", "to_raster": "After", "raster": "Image"}


@dataclass(frozen=True)
class Warned:
    """Something that a reader should know."""

    title: str
    """In a few words."""
    lines: tuple[str, ...]
    """In full."""


def area_text(hectares: float | None, pixels: float) -> str:
    """An area in the unit that suits it; in pixels where it is not known on the ground."""
    if hectares is None:
        return f"{pixels:,.0f} px"
    if hectares >= 10_000:
        return f"{hectares / 100:,.0f} km²"
    return f"{hectares:,.2f} ha" if hectares >= 0.1 else f"{hectares * SQUARE_METRES_PER_HECTARE:,.0f} m²"


def share_text(share: float) -> str:
    """A share in percent, with as many digits as it takes to tell it from none and all."""
    if 0 < share < 0.0001:
        return "< 0.01%"
    if 0.999 < share < 1:
        return f"{min(share, 0.9999):.2%}"
    return f"{share:.1%}" if share >= 0.01 or share == 0 else f"{share:.2%}"


def sure_text(confidence: float | None, meaning: str) -> str:
    """How sure the model is of an area."""
    if confidence is None:
        return ""
    return f"{confidence:.0%} sure" if meaning == "probability" else f"distance {confidence:.2f}"


def title_of(result: Result) -> str:
    """Under what name the result goes."""
    return PurePath(result.path).name or result.path


def short_name(place: str) -> str:
    """The last part of a path or URL."""
    return PurePath(place.rstrip("/").partition("?")[0]).name or place


def metres_per_pixel(grid: GeoBox) -> tuple[float, float] | None:
    """Width and height of the pixel in the middle, for the scale bar, measured where its area is; None if unknown."""
    ground = ground_of(grid)
    if ground is None:
        return None
    across, down = ground.sides(grid.shape.y // 2, grid.shape.x // 2)
    return (across, down) if 0 < across < inf and 0 < down < inf else None


def crs_name(grid: GeoBox) -> str:
    """Code of a CRS, or its name."""
    if grid.crs is None:
        return "unknown CRS"
    epsg = grid.crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else str(grid.crs.proj.name)


def warnings_of(result: Result, areas: tuple[ClassArea, ...], photos: list[Photo]) -> list[Warned]:
    """What a reader should know, the worst first."""
    manifest = result.manifest
    found = [*_failures(failed_blocks(result))]
    if manifest is not None and not manifest.is_complete:
        found.append(Warned("The record says that the result is not whole", ("Write it again, or resume its run.",)))
    partial = tuple(account for account in listed(result.attrs.get("rasters")) if ", covers " in account)
    if partial:
        found.append(Warned("The images do not cover all of the result", partial))
    if manifest is not None and manifest.empty_tiles:
        found.append(
            Warned(
                f"{manifest.empty_tiles:,} of {manifest.tiles:,} tiles were skipped",
                ("They have no valid pixel, so the model has not run on them; they are without observation.",),
            )
        )
    found += [
        Warned(f"{ROLES[photo.role]}: {_cut(photo.name)}", (_cut(photo.trouble),)) for photo in photos if photo.trouble
    ]
    unlisted = [each.model_class.name for each in areas if each.model_class.name.endswith(" (unlisted)")]
    if unlisted:
        lines = (f"Values {', '.join(unlisted)} are drawn in grey.",)
        found.append(Warned("The result holds values that the model's classes do not name", lines))
    if manifest is None:
        lines = ("No manifest of this raster stands beside it, so what it says of itself is all that is known.",)
        found.append(Warned("There is no record of the run", lines))
    return found


def failed_blocks(result: Result) -> tuple[FailedBlock, ...]:
    """Blocks that could not be computed, by the record or by the result's own word."""
    if result.manifest is not None:
        return result.manifest.failed_blocks
    found = parsed(result.attrs.get("failed_blocks"))
    windows = [each for each in found if isinstance(each, list) and len(each) == 4] if isinstance(found, list) else []
    return tuple(
        FailedBlock(row, col, height, width, "not recorded")
        for row, col, height, width in windows
        if all(type(each) is int for each in (row, col, height, width))
    )


def _failures(blocks: tuple[FailedBlock, ...]) -> list[Warned]:
    if not blocks:
        return []
    lines = [
        f"{block.height:,} x {block.width:,} pixels at row {block.row_off:,}, column {block.col_off:,}: "
        f"{_cut(block.cause)}"
        for block in blocks[:NAMED]
    ]
    more = [f"and {len(blocks) - NAMED:,} more"] if len(blocks) > NAMED else []
    what = "1 block" if len(blocks) == 1 else f"{len(blocks):,} blocks"
    return [Warned(f"{what} could not be computed, and hold no observation", (*lines, *more))]


def provenance_of(result: Result, photos: list[Photo]) -> list[tuple[str, str]]:
    """How the result was made, as name and text."""
    attrs, manifest, grid = result.attrs, result.manifest, result.grid
    rows = [
        ("Result", result.path),
        ("Grid", f"{grid.shape.x:,} x {grid.shape.y:,} pixels of {_pixel_size(grid)}, {crs_name(grid)}"),
        *((ROLES[photo.role], photo.name) for photo in photos),
        ("Rasters", "\n".join(listed(attrs.get("rasters")))),
        ("Mask", attrs.get("mask")),
        ("Model", _joined(attrs.get("model_name"), attrs.get("model"))),
        ("Digest", attrs.get("model_digest")),
        ("Arguments", attrs.get("arguments")),
        ("Run by", attrs.get("runner")),
        ("Tiles", attrs.get("prediction")),
        ("Padding", _text(attrs.get("padding")) and f"{_text(attrs.get('padding'))} px"),
        ("Precision", attrs.get("precision")),
        *(_run_of(manifest) if manifest else [("Version", attrs.get("geodl_dask_version"))]),
    ]
    return [(name, _cut(_text(value))) for name, value in rows if _text(value)]


def _run_of(manifest: Manifest) -> list[tuple[str, Any]]:
    blocks = f"{manifest.computed_blocks:,} computed, {manifest.kept_blocks:,} kept of earlier runs"
    software = ", ".join(f"{name} {version}" for name, version in manifest.software.items())
    return [
        ("Begun", _moment(manifest.begun)), ("Ended", _moment(manifest.ended)),
        ("Took", f"{manifest.seconds:,.1f} s"), ("Blocks", blocks), ("Software", software),
    ]  # fmt: skip


def record_of(result: Result) -> list[tuple[str, str]]:
    """All that the record, or the result, says, as name and text."""
    said = result.manifest.asked if result.manifest else result.attrs
    return [(str(name), _cut(_text(value))) for name, value in sorted(said.items()) if _text(value)]


def made_at(result: Result) -> str:
    """When the result was finished."""
    return _moment(result.manifest.ended) if result.manifest else ""


def _moment(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
    except (TypeError, ValueError):
        return _text(text)


def _pixel_size(grid: GeoBox) -> str:
    return f"{abs(grid.resolution.x):.6g} x {abs(grid.resolution.y):.6g}"


def _joined(name: Any, place: Any) -> str:
    return f"{_text(name)} ({_text(place)})" if _text(name) and _text(place) else _text(name) or _text(place)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
