"""Where a result grows, and how it takes its final name.

A result grows in ``OUT.partial`` beside ``OUT`` and is renamed when it is whole. So nothing half
written ever stands under the name that was asked for, and an old result stays until the new one is
whole. What a run that ended early has finished stays there, with a manifest that says what it was asked,
until a run goes on with it or begins anew. A result for object storage grows in the current folder, and stays there
until it has been uploaded (see `uploads`). One run at a time writes there: it holds a lock, which the
system takes back however the run ends.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from .errors import OutputError, OutputExistsError
from .manifest import FailedBlock, Manifest, require_same
from .uploads import ZARR_RECORDS, RemoteOutput, local_place, overlaps, url_of

log = logging.getLogger(__name__)

_LOCK, _OWNER, PARTS_MANIFEST, _OLD = "lock", "owner", "manifest.json", "old"
MANIFEST_SUFFIX = ".manifest.json"
SIDES = (".aux.xml", ".msk", ".ovr", ".stac.json", MANIFEST_SUFFIX)
"""What belongs to a result by its name: what GDAL reads with it (the first is where it keeps its own notes), and what
we say of it; the manifest comes last."""
_READ_WITH = SIDES[:3]
_BEAT_EVERY_S, _SILENT_AFTER_S = 15, 120
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


def check_output(
    path: str | os.PathLike[str],
    suffixes: tuple[str, ...],
    *,
    overwrite: bool,
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Path | str:
    """The output's absolute path, or its URL as text, if a result may be written there.

    resume : what stands there may be of the same run, which `growing_output` sees to.
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
        (partial, f"is what an interrupted run left, or one that is running{_owner_in_words(partial)}"),
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


def partial_of(out: Path) -> Path:
    """The folder in which a result grows."""
    return out.with_name(out.name + ".partial")


def manifest_of(out: Path) -> Path:
    """The manifest beside a result."""
    return out.with_name(out.name + MANIFEST_SUFFIX)


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


@dataclass
class Growth:
    """A result that grows."""

    folder: Path
    """Where its parts are."""
    started: Manifest
    """What the run was asked when it began, be it in this process or an earlier one."""
    has_finished: Callable[[], bool] = lambda: False
    """Whether something is finished, so that the parts stay if the run ends early."""


@contextmanager
def growing_output(
    out: Path, started: Manifest, *, resume: bool = False, same_pixels: bool = False
) -> Iterator[Growth]:
    """A folder for the parts of ``out``: empty, or with those of an earlier run of the same words, to be resumed.

    started : what the run is asked. same_pixels : as `manifest.require_same` takes it.
    The folder is gone afterwards, unless the run ends early and something is finished; a note to the exception then
    says so.
    Raises OutputExistsError where another run is writing there, or has left its parts and neither overwriting nor
    resuming was asked for, or resuming and it was asked something else.
    """
    partial = partial_of(out)
    try:
        partial.mkdir(exist_ok=started.replaces or resume)
    except FileExistsError as error:
        raise OutputExistsError(f"{partial} is there already{_owner_in_words(partial)}; remove it.") from error
    _require_ours(partial)
    if elsewhere := _owner_elsewhere(partial):
        raise OutputExistsError(
            f"{elsewhere} is writing {out}. Wait for its end, or choose another name; if it has died, go on "
            f"{_SILENT_AFTER_S} seconds later."
        )
    with _lock(partial, out):
        has_parts = any(left.name not in (_LOCK, _OWNER) for left in partial.iterdir())
        if resume and has_parts:
            found = Manifest.read(partial / PARTS_MANIFEST)
            require_same(found, started.asked, partial, same_pixels=same_pixels)
            growth = Growth(partial / cast("Manifest", found).parts, cast("Manifest", found), lambda: True)
        else:
            _clear(partial, out)
            # A task of the run before may still be under way on a worker: what it writes must not come in here.
            begun = replace(started, parts=f"parts-{secrets.token_hex(4)}")
            (partial / begun.parts).mkdir()
            begun.write(partial / PARTS_MANIFEST)
            growth = Growth(partial / begun.parts, begun)
        with _heartbeat(partial / _OWNER):
            try:
                yield growth
            except BaseException as error:
                if growth.has_finished():
                    error.add_note(f"What is finished is kept in {partial}; --resume (resume=True) goes on with it.")
                else:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
        shutil.rmtree(partial, ignore_errors=True)


def _lock(partial: Path, out: Path) -> AbstractContextManager[object]:
    try:
        return FileLock(partial / _LOCK).acquire(timeout=0)
    except Timeout as error:
        raise OutputExistsError(
            f"Another run{_owner_in_words(partial)} is writing {out}. Wait for its end, or choose another name."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        log.warning("There are no locks on the file system of %s: let no other run write it meanwhile.", out)
        return nullcontext()


@contextmanager
def _heartbeat(owner: Path) -> Iterator[None]:
    """Say in a file that this process is at work, again and again; gone when it is not."""
    owner.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_EVERY_S):
            with suppress(OSError):
                os.utime(owner)

    thread = threading.Thread(target=beat, name="geodl-dask-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        owner.unlink(missing_ok=True)


def _owner_elsewhere(partial: Path) -> str | None:
    """The process of another machine that is at work there; not every network file system tells of its locks."""
    host, process = _owner_of(partial)
    if host in (None, socket.gethostname()):
        return None
    with tempfile.NamedTemporaryFile(dir=partial) as now, suppress(FileNotFoundError):  # by the file system's clock
        silent_s = Path(now.name).stat().st_mtime - (partial / _OWNER).stat().st_mtime
        if silent_s <= _SILENT_AFTER_S:
            return f"Process {process} on {host}"
    return None


def _clear(partial: Path, out: Path) -> None:
    """Remove what an earlier run left, but for a result that it was about to replace when it was killed."""
    for old in partial.glob(f"*/{_OLD}"):
        if not os.path.lexists(out):
            old.replace(out)
    for left in partial.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name != _LOCK:
            left.unlink()


def _require_ours(partial: Path) -> None:
    """Raise OutputExistsError for a folder that no run of ours has made, or that lies elsewhere."""
    found = {left.name for left in partial.iterdir()}
    if partial.is_symlink() or (found and not found & {_LOCK, _OWNER, PARTS_MANIFEST}):
        raise OutputExistsError(f"{partial} is not what an interrupted run left. Move it, or choose another name.")


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
            out.replace(finished.with_name(_OLD))
        finished.replace(out)
        _name_sides(finished, out)
        return out
    place, numbers = out, count(2)
    while not _take_free_name(finished, place):
        place = out.with_name(f"{out.stem}.{next(numbers)}{out.suffix}")
    _name_sides(finished, place)
    return place


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
    if not out.is_dir():
        return True
    is_store = any((out / name).is_file() for name in ZARR_RECORDS) or not any(out.iterdir())
    return out.suffix.lower() == ".zarr" and is_store


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


def _owner_of(partial: Path) -> tuple[str | None, str]:
    """Host and process of the run that writes in ``partial``, or did; None where that is not known."""
    try:
        host, _, process = (partial / _OWNER).read_text(encoding="utf-8").partition(" ")
    except OSError:
        return None, ""
    return host, process


def _owner_in_words(partial: Path) -> str:
    host, process = _owner_of(partial)
    return f" (process {process} on {host})" if host else ""
