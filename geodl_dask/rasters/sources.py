"""What a user writes for a raster -> what opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import RasterNotFoundError


@dataclass(frozen=True)
class Source:
    """A raster, before anybody has opened it."""

    dataset: str
    """What GDAL opens: a path, a URL, a prefixed name or XML text."""
    kind: str
    """What the text was taken for, for people; empty where GDAL's driver says it."""


def find_source(text: str, role: str) -> Source:
    """What opens the raster that ``text`` names; ``role`` names it in messages. Raises RasterNotFoundError."""
    is_local = not text.startswith("/vsi") and len(urlsplit(text).scheme) < 2 and ":" not in text[2:]
    if is_local and not Path(text).exists():
        raise RasterNotFoundError(f"{role} {text} does not exist (looked in {Path.cwd()}).")
    # Workers may stand in another folder.
    return Source(str(Path(text).absolute()) if is_local else text, "")
