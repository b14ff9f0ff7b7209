"""Content-addressed cache of what is taken out of models, shared by the processes of a node.

A folder appears in it whole or not at all::

    <cache>/<kind>/<sha256 of the source, 32 digits>/complete.json    its files; written last
                                                     content/         the files

``GEODL_DASK_CACHE`` names the cache folder. Nobody else should be able to write there: code may run from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import ModelPackageError

_CONTENT, _MARKER, _PARTIAL = "content", "complete.json", ".partial-"
_ABANDONED_AFTER_S = 24 * 3600


def cache_folder() -> Path:
    """Absolute folder that geodl_dask may keep things in that can be made again. Raises ModelPackageError."""
    if chosen := os.environ.get("GEODL_DASK_CACHE"):
        return Path(chosen).absolute()
    variable, fallback = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", ".cache")
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():  # so says the XDG specification
        try:
            base = Path.home() / fallback
        except RuntimeError as error:
            raise ModelPackageError("There is no home folder to unpack into; set GEODL_DASK_CACHE.") from error
    return base / "geodl_dask"


def keep(place: Path, fill: Callable[[Path], Iterable[str]]) -> Path:
    """The folder with what ``fill`` makes, kept in the cache at ``place``; fills it unless it is there, whole.

    fill : makes the folder that it is handed, and returns the relative names of the files in it.
    Safe to call from many processes at once. Raises what ``fill`` does, and OSError.
    """
    if not _is_complete(place):
        _fill(place, fill)
    return place / _CONTENT


def kept_with(path: Path) -> list[Path]:
    """All files of the folder of the cache that ``path`` is or lies in; none where it lies in no such folder."""
    for folder in (path, *path.parents):
        if folder.name == _CONTENT and cache_folder() in folder.parents and _is_complete(folder.parent):
            return [folder / name for name in json.loads((folder.parent / _MARKER).read_text(encoding="utf-8"))]
    return []


def _is_complete(place: Path) -> bool:
    """Whether the folder was filled whole, and no cleaner of old files has been at it since."""
    try:
        names = json.loads((place / _MARKER).read_text(encoding="utf-8"))
        return all((place / _CONTENT / name).is_file() for name in names)
    except (OSError, ValueError, TypeError):
        return False


def _fill(place: Path, fill: Callable[[Path], Iterable[str]]) -> None:
    """Fill a sibling of ``place``, then give it that name; a twin that was faster is fine."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(place.parent)
    partial = Path(tempfile.mkdtemp(prefix=place.name + _PARTIAL, dir=place.parent))
    try:
        names = list(fill(partial / _CONTENT))
        (partial / _MARKER).write_text(json.dumps(names), encoding="utf-8")
        try:
            partial.rename(place)
        except OSError:
            if not _is_complete(place):
                _mend(partial, place, names)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _mend(partial: Path, place: Path, names: Iterable[str]) -> None:
    """Put back what is missing, file by file, so that a process at work in ``place`` never misses one."""
    for name in [*(f"{_CONTENT}/{name}" for name in names), _MARKER]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).replace(place / name)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half filled, a day ago or longer."""
    for path in folder.glob(f"*{_PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)
