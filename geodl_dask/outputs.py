"""Where a result grows, and how it takes its final name.

A result grows in ``OUT.partial`` beside ``OUT`` and is renamed when it is whole. So nothing half
written ever stands under the name that was asked for, and an old result stays until the new one is
whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import OutputError, OutputExistsError


@dataclass(frozen=True)
class Written:
    """What a writer has done."""

    path: Path
    """Where the result is."""
    seconds: float
    """How long it took."""
    pixels: dict[int, int]
    """Pixels by value, nodata among them."""
    tiles: int
    """Tiles of the model's lattice; 0 where it is not known."""
    empty_tiles: int
    """Of those, how many had no valid pixel in their core, so that the model has not run on them."""


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...], *, overwrite: bool) -> Path:
    """The output's absolute path, if a result may be written there.

    Raises OutputError for another suffix or a folder that is not there, OutputExistsError where
    something stands under that name, or an interrupted run left its part, and overwriting was not asked for.
    """
    out = Path(path).absolute()
    if out.suffix.lower() not in suffixes:
        raise OutputError(f"The output {path} does not end in {' or '.join(suffixes)}; the ending decides the format.")
    if not out.parent.is_dir():
        raise OutputError(f"The folder {out.parent} of the output does not exist; make it first.")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"The folder {out.parent} of the output cannot be written to.")
    for standing, what in (
        (out, "exists"),
        (partial_of(out), "is what an interrupted run left, or one that is running"),
    ):
        if standing.exists() and not overwrite:
            raise OutputExistsError(f"{standing} {what}. Choose another name, or say --overwrite (overwrite=True).")
    return out


def partial_of(out: Path) -> Path:
    """The folder in which a result grows."""
    return out.with_name(out.name + ".partial")


@contextmanager
def growing_output(out: Path) -> Iterator[Path]:
    """An empty folder for the parts of ``out``; gone afterwards, whether the run went well or not."""
    partial = partial_of(out)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(finished: Path, out: Path) -> None:
    """Give what has grown inside `growing_output`, a file or folder, its name, in the place of what stood there."""
    # Only a file takes the place of a file in one step.
    if os.path.lexists(out) and (out.is_dir() or finished.is_dir()):
        out.replace(finished.with_name("old"))
    finished.replace(out)
