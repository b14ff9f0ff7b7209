"""What a run was asked and what it has finished; may an existing output be continued?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import OutputExistsError

FORMAT = 1
_NAMES_ONLY = ("model", "long_name")
"""Attributes on which no pixel depends: the model's digest says which one it is."""
_INPUTS, _ACCOUNTS = {"from_raster", "to_raster", "raster", "mask"}, {"rasters", "raster_states"}


@dataclass(frozen=True)
class Manifest:
    """The record of a run, as JSON beside its result, and in its parts while it grows."""

    asked: dict[str, Any]
    """All that a pixel depends on, by name: attributes of the result, its grid, type and blocks."""
    model: str
    """Where the model was."""
    replaces: bool = False
    """Whether it was said that an earlier result under that name may be replaced."""
    is_complete: bool = False
    """Whether the result is whole."""
    seconds: float = 0.0
    """How long the run took, or the last of those that it was made in."""
    pixels: dict[int, int] | None = None
    """Pixels by value, of a complete result."""
    tiles: int = 0
    """Tiles of the model's lattice; 0 where it is not known."""
    empty_tiles: int = 0
    """Of those, how many had no valid pixel."""
    format: int = FORMAT
    """Version of this layout."""

    def write(self, path: Path) -> None:
        """Write it at once or not at all."""
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_bytes(self.to_json())
        unfinished.replace(path)

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
            if record["format"] != FORMAT or not isinstance(record["asked"], dict):
                return None
            pixels = record["pixels"] and {int(value): int(count) for value, count in record["pixels"].items()}
            return cls(**{**record, "pixels": pixels})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def asked_of(attrs: Mapping[str, Any], **place: Any) -> dict[str, Any]:
    """What a run is asked, comparable after JSON.

    attrs : the result's attributes. place : its grid, type and blocks.
    """
    named = {key: value for key, value in attrs.items() if key not in _NAMES_ONLY}
    asked: dict[str, Any] = json.loads(json.dumps({**named, **place}, default=str))
    return asked


def require_same(found: Manifest | None, asked: Mapping[str, Any], where: Path | str) -> None:
    """Raise OutputExistsError unless what ``where`` holds was asked for in the same words, naming the difference."""
    if found is None:
        raise OutputExistsError(
            f"{where} has no manifest that says which run it is from, so it cannot be continued. Choose another name, "
            "or say --overwrite (overwrite=True)."
        )
    differing = [key for key in {**found.asked, **asked} if found.asked.get(key) != asked.get(key)]
    if _INPUTS & set(differing):  # which then says it all
        differing = [key for key in differing if key not in _ACCOUNTS]
    differing.sort(key=lambda key: len(f"{found.asked.get(key)}{asked.get(key)}"))  # the shortest says it best
    told = "; ".join(f"{key} was {_shown(found.asked.get(key))}, is {_shown(asked.get(key))}" for key in differing[:3])
    more = f"; {', '.join(differing[3:])} too" if differing[3:] else ""
    if differing:
        raise OutputExistsError(
            f"{where} is from another run, so it cannot be continued: {told}{more}. Ask for the same, choose another "
            "name, or say --overwrite (overwrite=True)."
        )


def _shown(value: Any) -> str:
    text = "nothing" if value in (None, "") else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
