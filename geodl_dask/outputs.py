"""Where a result may be written, and how it takes its name once it is whole.

A result grows beside ``OUT`` (see `growth`) and is renamed when it is whole. So nothing half written ever stands under
the name that was asked for, and an old result stays until the new one is whole. A result for object storage grows in
the current folder, and stays there until it has been uploaded (see `uploads`).
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from .errors import OutputError, OutputExistsError
from .growth import OLD, owner_in_words, partial_of
from .manifest import FailedBlock, Manifest
from .uploads import ZARR_RECORDS, RemoteOutput, local_place, overlaps, url_of

log = logging.getLogger(__name__)

MANIFEST_SUFFIX = ".manifest.json"
SIDES = (".aux.xml", ".msk", ".ovr", ".stac.json", MANIFEST_SUFFIX)
"""What belongs to a result by its name: what GDAL reads with it (the first is where it keeps its own notes), and what
we say of it; the manifest comes last."""
_READ_WITH = SIDES[:3]
_INPUTS = ("from_raster", "to_raster", "raster", "model", "mask", "like", "snap_raster")


@dataclass(frozen=True)
class Written:
    """What a writer has done."""

    path: Path | str
    """Where the result is: a path, or a URL of object storage as text."""
    seconds: float
    """How long it took."""
    pixels: dict[int, int]
    """Pixels by value, nodata among them."""
    tiles: int
    """Tiles of the model's lattice; 0 where it is not known."""
    empty_tiles: int
    """Of those, how many had no valid pixel in their core, so that the model has not run on them."""
    computed_blocks: int = 0
    """Blocks that were computed; others were kept by an earlier run."""
    failed_blocks: tuple[FailedBlock, ...] = ()
    """Blocks that could not be computed, and are nodata."""
    shards_left: tuple[int, ...] | None = None
    """Of the run of a shard, after which there is no result yet: the shards that are not done; else None."""


def check_output(
    path: str | os.PathLike[str],
    suffixes: tuple[str, ...],
    *,
    overwrite: bool,
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Path | str:
    """The output's absolute path, or its URL as text, if a result may be written there.

    resume : what stands there may be of the same run, which `growth.growing_output` sees to.
    provenance : the result's attributes, which name its inputs.
    Raises OutputError for another suffix or a folder that is not there, OutputExistsError for what stands under that
    name, or was left by an interrupted run, and overwriting was not asked for; and, even if it was, for an input, or
    a folder that is no Zarr store.
    """
    if overwrite and resume:
        raise OutputError("overwrite and resume were both asked for: begin anew, or go on? Leave one out.")
    url = url_of(path)
    out = Path(path).absolute() if url is None else local_place(url)
    if out.suffix.lower() not in suffixes:
        raise OutputError(
            f"The output {str(path)!r} does not end in {' or '.join(suffixes)}; the ending decides the format."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in str(out)):
        raise OutputError(f"The output {str(out)!r} has a name that is not UTF-8; choose another name.")
    if not out.parent.is_dir():
        raise OutputError(f"The folder {out.parent} of the output does not exist; make it first.")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"The folder {out.parent} of the output cannot be written to.")
    partial = partial_of(out)
    for standing, what in (
        (out, "exists"),
        (partial, f"is what an interrupted run left, or one that is running{owner_in_words(out)}"),
    ):
        if os.path.lexists(standing) and not overwrite and not resume:
            go_on = "go on with it by --resume (resume=True), " if standing == partial else ""
            raise OutputExistsError(
                f"{standing} {what}. Choose another name, {go_on}or say --overwrite (overwrite=True)."
            )
    if not overwrite and not resume and not os.path.lexists(out):
        for side in map(out.with_name, (out.name + each for each in _READ_WITH)):
            if url is None and os.path.lexists(side):
                raise OutputExistsError(
                    f"{side} would be read with {out}. Remove it, or say --overwrite (overwrite=True)."
                )
    named = (
        [str(provenance[key]) for key in _INPUTS if isinstance(provenance.get(key), str | Path)] if provenance else []
    )
    if any(_share_files(out, each) if url is None else overlaps(url, each) for each in named):
        raise OutputExistsError(
            f"The output {path} is one of the inputs, lies in one or holds one; choose another name."
        )
    if not _is_replaceable(out):
        raise OutputExistsError(
            f"{out} is a folder, and not a Zarr store that a result may replace. Choose another name, or remove it."
        )
    if url is None:
        return out
    RemoteOutput.at(url).require_allowed(overwrite=overwrite, resume=resume)
    return url


def manifest_of(out: Path) -> Path:
    """The manifest beside a result."""
    return out.with_name(out.name + MANIFEST_SUFFIX)


def was_edited(path: Path) -> bool:
    """Whether a result was written to after its manifest. Of a Zarr store, which is many files, that is not seen."""
    return path.is_file() and path.stat().st_mtime_ns > manifest_of(path).stat().st_mtime_ns


def finished_in(parts: Path, out: Path) -> Path | None:
    """What a run had finished when it ended, before, or while, it took its name; None where none had."""
    for manifest in parts.glob(f"*{MANIFEST_SUFFIX}"):
        finished = manifest.with_name(manifest.name.removesuffix(MANIFEST_SUFFIX))
        if Manifest.read(manifest) and (os.path.lexists(finished) or os.path.lexists(out)):
            return finished
    return None


def side_file_of(out: Path) -> Path:
    """The file beside a raster in which GDAL keeps what the raster's format cannot hold."""
    return _sides_of(out)[0]


def check_space(folder: Path, size: int) -> None:
    """Raise OutputError where ``size`` bytes of class values cannot possibly be kept; warn where they may not be.

    They are compressed, and classes compress well: to a few hundredths where they lie in patches, to a tenth and more
    where they are speckled. While they become a result they are there twice.
    """
    free = shutil.disk_usage(folder).free
    least, much = 2 * size // 100, 2 * size // 10
    if free < least:
        raise OutputError(
            f"The disk of {folder.parent} has {free / 1e9:,.3f} GB free; at least {least / 1e9:,.3f} GB are needed for "
            f"{size / 1e9:,.3f} GB of class values, compressed. Free some, or write to another disk."
        )
    if free < much:
        log.warning(
            "The disk of %s has %.3f GB free. %.3f GB may be needed: less where the classes lie in patches.",
            folder.parent, free / 1e9, much / 1e9,
        )  # fmt: skip


def publish(finished: Path, out: Path, *, overwrite: bool) -> Path:
    """Give what has grown inside `growing_output`, a file or folder, its name, in the place of what may be replaced.

    What stands beside it under its name goes with it, the manifest last; what an earlier result of that name had
    beside it goes away first, so that in no moment a result has another's.
    Returns its place: where something else has come there meanwhile, that stays, and the result is beside it.
    """
    if not os.path.lexists(finished) or _is_same_file(finished, out):  # the run before ended at this very point
        _name_sides(finished, out)
        return out
    if overwrite and _is_replaceable(out):
        _remove_sides(out)
        # Only a file takes the place of a file in one step.
        if os.path.lexists(out) and (out.is_dir() or finished.is_dir()):
            out.replace(finished.with_name(OLD))
        finished.replace(out)
        _name_sides(finished, out)
        return out
    place, numbers = out, count(2)
    while not _take_free_name(finished, place):
        place = out.with_name(f"{out.stem}.{next(numbers)}{out.suffix}")
    _name_sides(finished, place)
    return place


def publish_file(finished: Path, out: Path, *, overwrite: bool) -> None:
    """As `publish`; raises OutputExistsError, which names the place, where that is not ``out``."""
    place = publish(finished, out, overwrite=overwrite)
    if place != out:
        raise OutputExistsError(f"{out} has come there meanwhile, and stays as it is. What was made is {place}.")


def _take_free_name(finished: Path, place: Path) -> bool:
    """Rename, unless something stands there: then False."""
    if not os.path.lexists(place):
        _remove_sides(place)
    if not finished.is_dir():
        try:
            place.hardlink_to(finished)  # unlike a rename, never replaces what has just come there
            return True
        except OSError:  # it exists, or the file system has no hard links
            pass
    if os.path.lexists(place):
        return False
    finished.rename(place)
    return True


def _is_same_file(finished: Path, out: Path) -> bool:
    return finished.is_file() and out.is_file() and finished.samefile(out)


def _remove_sides(place: Path) -> None:
    for side in _sides_of(place):
        side.unlink(missing_ok=True)


def _name_sides(finished: Path, place: Path) -> None:
    for side, name in zip(_sides_of(finished), _sides_of(place), strict=True):
        if side.exists():
            side.replace(name)


def _sides_of(path: Path) -> list[Path]:
    return [path.with_name(path.name + side) for side in SIDES]


def _is_replaceable(out: Path) -> bool:
    """Whether nothing is lost with what stands there but an earlier result."""
    try:
        names = {each.name for each in out.iterdir()}
    except (NotADirectoryError, FileNotFoundError):  # the latter while another run puts its own there
        return True
    return out.suffix.lower() == ".zarr" and (not names or not names.isdisjoint(ZARR_RECORDS))


def _share_files(out: Path, given: str) -> bool:
    """Whether writing ``out`` would replace an input, a file of an input that is a folder, or what holds an input."""
    names = {given, given.rpartition("#")[0]}  # after which variables or a layer are chosen
    if glob.has_magic(given):
        names.update(glob.iglob(given, recursive=True))  # noqa: PTH207  # a pattern may be absolute
    return any(_is_or_holds(out, Path(name)) for name in names if name)


def _is_or_holds(out: Path, given: Path) -> bool:
    try:
        given_place, out_place = given.resolve(), out.resolve()
        return any(each.samefile(out) for each in (given_place, *given_place.parents)) or any(
            each.samefile(given) for each in out_place.parents
        )
    except (OSError, ValueError):  # one of them is not there, or not a path at all
        return False
