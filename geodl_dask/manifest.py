"""What a run was asked and what it has finished; may an existing output be continued?"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OutputExistsError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

FORMAT = 1
_NAMES_ONLY = ("model", "model_name", "long_name", "prediction")
"""Attributes on which no pixel depends: the model's digest says which one it is, and the tiles how large they are."""
_INPUTS, _ACCOUNTS = {"from_raster", "to_raster", "raster", "mask"}, {"rasters", "raster_states"}
INPUT_ATTRS = _INPUTS | _ACCOUNTS
"""Attributes that say where the rasters were, and what they were like."""


@dataclass(frozen=True)
class FailedBlock:
    """A block that could not be computed, and is nodata in the result."""

    row_off: int
    """Its first row, pixels."""
    col_off: int
    """Its first column, pixels."""
    height: int
    """Its rows."""
    width: int
    """Its columns."""
    cause: str
    """Why."""


@dataclass(frozen=True)
class Manifest:
    """The record of a run, as JSON beside its result, and in its parts while it grows."""

    asked: dict[str, Any]
    """All that a pixel depends on, by name: attributes of the result, its grid, type and blocks."""
    model: str
    """Where the model was."""
    model_name: str = ""
    """What it is called."""
    replaces: bool = False
    """Whether it was said that an earlier result under that name may be replaced."""
    is_complete: bool = False
    """Whether the result is whole."""
    parts: str = ""
    """Of a run that is not whole yet: the folder of its parts, which no other run has had."""
    shards: int = 0
    """Of such a run: how many shards of it compute side by side; 0 where one run computes all."""
    form: dict[str, Any] = field(default_factory=dict)
    """Of such a run: what else a result is made of, so that it can be made without model and rasters: attributes
    (``attrs``), CRS in the words in which it came (``crs``), of a layer of confidence ``attrs`` and ``dtype``
    (``confidence``), and references from the result to rasters and model (``references``)."""
    begun: str = ""
    """When the run began, or the last of those that the result was made in: ISO 8601, UTC."""
    ended: str = ""
    """When it ended."""
    seconds: float = 0.0
    """How long it took."""
    computed_blocks: int = 0
    """Blocks that it computed."""
    kept_blocks: int = 0
    """Blocks that earlier runs had kept."""
    failed_blocks: tuple[FailedBlock, ...] = ()
    """Blocks that could not be computed."""
    pixels: dict[int, int] | None = None
    """Pixels by value, of a complete result."""
    tiles: int = 0
    """Tiles of the model's lattice; 0 where it is not known."""
    empty_tiles: int = 0
    """Of those, how many had no valid pixel, so that the model has not run on them."""
    software: dict[str, str] = field(default_factory=dict)
    """Versions of what it ran with, by name."""
    format: int = FORMAT
    """Version of this layout."""

    def write(self, path: Path) -> None:
        """Write it at once or not at all."""
        self._write_beside(path).replace(path)

    def write_first(self, path: Path) -> None:
        """The same, but what stands there stays, whoever else may be writing one at this very moment."""
        unfinished = self._write_beside(path)
        try:
            path.hardlink_to(unfinished)  # unlike a rename, never replaces
        except FileExistsError:
            pass
        except OSError:  # the file system has no hard links
            if not path.exists():
                unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _write_beside(self, path: Path) -> Path:
        # Processes of two machines may have the same number.
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        unfinished.write_bytes(self.to_json())
        return unfinished

    def to_json(self) -> bytes:
        """What a file of it holds."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """The manifest at ``path``; None where there is none that can be read."""
        try:
            return cls.parse(path.read_bytes())
        except OSError:
            return None

    @classmethod
    def parse(cls, content: bytes) -> Manifest | None:
        """The manifest that a file holds; None for anything else."""
        try:
            record = json.loads(content)
            if record["pixels"] is not None:
                record["pixels"] = {int(value): int(count) for value, count in record["pixels"].items()}
            record["failed_blocks"] = tuple(FailedBlock(**each) for each in record.get("failed_blocks", ()))
            manifest = cls(**record)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None
        return manifest if manifest.format == FORMAT and manifest._is_sound() else None

    def _is_sound(self) -> bool:
        """Whether each value is of the kind that it has to be: anybody may have written the file."""
        blank = Manifest({}, "", pixels=self.pixels)
        kinds = all(type(getattr(self, name)) is type(value) for name, value in vars(blank).items())
        blocks = all(
            [type(value) for value in vars(each).values()] == [int, int, int, int, str] for each in self.failed_blocks
        )
        counts = all(0 <= value < 2**32 and count >= 0 for value, count in (self.pixels or {}).items())
        return kinds and blocks and counts and Path(self.parts).name == self.parts and _is_moment(self.begun)

    def is_on(self, grid: GeoBox) -> bool:
        """Whether it is of a raster that lies there, and has as many pixels as it has counted."""
        of_grid = list(grid.shape.yx), list(grid.transform)[:6]
        is_there = (self.asked.get("shape"), self.asked.get("transform")) == of_grid
        return is_there and (self.pixels is None or sum(self.pixels.values()) == math.prod(grid.shape.yx))


def _is_moment(text: str) -> bool:
    try:
        return not text or datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def asked_of(attrs: Mapping[str, Any], **place: Any) -> dict[str, Any]:
    """What a run is asked, comparable after JSON.

    attrs : the result's attributes. place : its grid, type and blocks.
    """
    named = {key: value for key, value in attrs.items() if key not in _NAMES_ONLY}
    asked: dict[str, Any] = json.loads(json.dumps({**named, **place}, default=str))
    return asked


def require_same(
    found: Manifest | None, asked: Mapping[str, Any], where: Path | str, *, same_pixels: bool = False,
    else_: str = "say --overwrite (overwrite=True)",
) -> None:  # fmt: skip
    """Raise OutputExistsError unless what ``where`` holds was asked for in the same words, naming the difference.

    same_pixels : the user's word that rasters in other files, or files of another time, have the same pixels.
    else_ : what to do where neither the words nor the name are to be others.
    """
    if found is None:
        raise OutputExistsError(
            f"{where} has no manifest that says which run it is from, so it cannot be continued. Choose another name, "
            f"or {else_}."
        )
    differing = _differing(found, asked, same_pixels=same_pixels)
    are_inputs = set(differing) <= INPUT_ATTRS
    hint = " If its pixels are the same (copied, mended), say --same-pixels (same_pixels=True)." if are_inputs else ""
    if _INPUTS & set(differing):  # which then says it all
        differing = [key for key in differing if key not in _ACCOUNTS]
    differing.sort(key=lambda key: len(f"{found.asked.get(key)}{asked.get(key)}"))  # the shortest says it best
    told = "; ".join(f"{key} was {_shown(found.asked.get(key))}, is {_shown(asked.get(key))}" for key in differing[:3])
    more = f"; {', '.join(differing[3:])} too" if differing[3:] else ""
    if differing:
        raise OutputExistsError(
            f"{where} is from another run, so it cannot be continued: {told}{more}. Ask for the same, choose another "
            f"name, or {else_}.{hint}"
        )


def is_same(found: Manifest, asked: Mapping[str, Any], *, same_pixels: bool) -> bool:
    """Whether `require_same` lets it pass."""
    return not _differing(found, asked, same_pixels=same_pixels)


def _differing(found: Manifest, asked: Mapping[str, Any], *, same_pixels: bool) -> list[str]:
    keys = [key for key in {**found.asked, **asked} if not same_pixels or key not in INPUT_ATTRS]
    return [key for key in keys if json.dumps(found.asked.get(key)) != json.dumps(asked.get(key))]  # NaN is NaN


def _shown(value: Any) -> str:
    text = "nothing" if value in (None, "") else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
