"""The digest of a model: whether what is on disk is what a run was planned with."""

from __future__ import annotations

import hashlib
import mmap
import os
import posixpath
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

MOST_CODE_FILES = 1000
MOST_CODE_FOLDERS = 200
_JUST_NOW_NS = 2_000_000_000
"""A file that was written this lately may be written again without a change of its times."""


def digest_model(keys: str, weights: str | None, function: str | None, more: Sequence[str | None]) -> str:
    """sha256 over the definition's keys and the files: weights, raster function and more that the definition names.

    So are the files that hold the tensors of an ONNX model, and the Python code in the function's folder.
    """
    total = hashlib.sha256(keys.encode())
    for path in (weights, function, *more):
        total.update(digest_file(path) if path is not None and is_file(path) else b"absent")
    for parent, names in ((weights, _onnx_data(weights)), (function, _code_beside(function))):
        for name in names:
            total.update(name.encode("utf-8", "surrogateescape") + digest_file(f"{Path(parent or '').parent}/{name}"))
    return total.hexdigest()


def files_beside(weights: str | None, function: str | None) -> list[str]:
    """Absolute paths of the files that `digest_model` finds: data of an ONNX model, code in the function's folder."""
    found = ((weights, _onnx_data(weights)), (function, _code_beside(function)))
    return [f"{Path(parent or '').parent.as_posix()}/{name}" for parent, names in found for name in names]


def is_file(path: str) -> bool:
    """Whether a file is there; False too for what this system cannot look at."""
    try:
        return Path(path).is_file()
    except OSError:  # a name too long, or a folder that is not ours
        return False


def _code_beside(function: str | None) -> list[str]:
    """Python files in the folder of a raster function and below, which it may import: paths from that folder."""
    found: list[str] = []
    if function is None:
        return found
    base = Path(function).parent
    for count, (folder, folders, names) in enumerate(os.walk(base)):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and name != "site-packages")
        code = [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
        found += [path.relative_to(base).as_posix() for path in code if is_file(str(path))]
        if len(found) > MOST_CODE_FILES or count >= MOST_CODE_FOLDERS:  # a home or download folder: enough is enough
            break
    return found[:MOST_CODE_FILES]


def _onnx_data(weights: str | None) -> list[str]:
    """Files beside an ONNX model that hold its tensors (``location`` of a TensorProto's external_data)."""
    if (
        weights is None
        or not weights.lower().endswith(".onnx")
        or not is_file(weights)
        or not Path(weights).stat().st_size
    ):
        return []
    with Path(weights).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        lengths = re.finditer(rb"\n\x08location\x12([\x80-\xff]?[\x00-\x7f])", content)
        texts = {content[each.end() : each.end() + _varint(each[1])] for each in lengths}
    names = sorted(posixpath.normpath(os.fsdecode(text)) for text in texts if b"\0" not in text)
    below = [name for name in names if not name.startswith(("/", ".."))]
    return [name for name in below if is_file(f"{Path(weights).parent}/{name}")]


def _varint(encoded: bytes) -> int:
    """A protobuf length of one or two bytes."""
    return sum((byte & 127) << 7 * place for place, byte in enumerate(encoded))


def digest_file(path: str) -> bytes:
    """sha256 of a file's bytes, read once as long as size and times of the file stay."""
    stat = Path(path).stat()
    known = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    is_settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _JUST_NOW_NS
    return (_digest_once if is_settled else _digest_once.__wrapped__)(path, known)


@lru_cache(maxsize=10_000)
def _digest_once(path: str, known: tuple[int, ...]) -> bytes:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
