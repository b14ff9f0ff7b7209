"""Safe unpacking of model packages (``.dlpk``) into a content-addressed cache.

A package is untrusted. Every member is judged before the first byte is written, bytes are counted as they are inflated,
and nothing is written anywhere but into the package's folder of the cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import os
import re
import stat
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any, Literal

from .cache import cache_folder, keep
from .errors import MissingDependencyError, ModelPackageError

GIB = 2**30
RATIO_FREE_BYTES = GIB // 4
"""Inflated bytes that any package may have, however well it is compressed."""
LONGEST_NAME_BYTES, LONGEST_PART_BYTES, DEEPEST_PARTS = 1024, 255, 32
_COPY_BYTES, _7Z_ENTRY_BYTES = 2**20, 160
_PY7ZR_LIMITS = threading.Lock()
_IGNORED_FOLDERS = {"esriinfo", "__macosx"}
_SPECIAL_FILES = {stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, RuntimeError, ValueError)


@dataclass(frozen=True)
class PackageLimits:
    """What a package may cost. Environment variables change the defaults."""

    inflated_bytes: int = 32 * GIB
    """Bytes of all files together, unpacked. ``GEODL_DASK_PACKAGE_MAX_BYTES``."""
    members: int = 50_000
    """Files and folders. ``GEODL_DASK_PACKAGE_MAX_MEMBERS``."""
    ratio: int = 100
    """Inflated bytes per byte of the package, beyond the first 256 MiB. ``GEODL_DASK_PACKAGE_MAX_RATIO``."""

    @classmethod
    def from_environment(cls) -> PackageLimits:
        """The defaults, changed by the environment. Raises ModelPackageError for what is no whole number above 0."""
        return cls(
            inflated_bytes=_environment_number("GEODL_DASK_PACKAGE_MAX_BYTES", cls.inflated_bytes),
            members=_environment_number("GEODL_DASK_PACKAGE_MAX_MEMBERS", cls.members),
            ratio=_environment_number("GEODL_DASK_PACKAGE_MAX_RATIO", cls.ratio),
        )


@dataclass(frozen=True)
class _Member:
    """One entry of an archive, as its header tells it."""

    name: str
    size: int
    mode: int  # POSIX's, 0 where the archive has none
    is_folder: bool


class _Meter:
    """Counts the bytes that are really inflated. Raises ModelPackageError past what is allowed."""

    def __init__(self, package_bytes: int, limits: PackageLimits) -> None:
        self.allowed = min(limits.inflated_bytes, max(RATIO_FREE_BYTES, limits.ratio * package_bytes))
        self.spent = 0

    def spend(self, count: int) -> None:
        self.spent += count
        if self.spent > self.allowed:
            raise ModelPackageError(
                f"it unpacks to more than {self.allowed / GIB:.2f} GiB; the environment variables "
                "GEODL_DASK_PACKAGE_MAX_BYTES and GEODL_DASK_PACKAGE_MAX_RATIO set the limit."
            )


class _GuardedReader(io.BufferedReader):
    """A file that refuses to read a table of contents as large as a memory."""

    longest_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.longest_read:
            raise ModelPackageError(f"its table of contents claims {size} bytes; at most {self.longest_read} are read.")
        return super().read(size)


def is_package(path: Path) -> bool:
    """Whether the file begins as a zip or 7-Zip archive does, whatever its suffix. Raises OSError."""
    with path.open("rb") as file:
        return _sniff(file.read(6)) is not None


def open_package(path: str | os.PathLike[str], limits: PackageLimits | None = None) -> Path:
    """The folder that holds the unpacked package; unpacks it unless the cache has it already.

    Safe to call from many processes at once. Raises ModelPackageError for a package that is damaged,
    too large, encrypted, or has members that could write anywhere but below that folder;
    MissingDependencyError for a 7-Zip package without py7zr.
    """
    path, packages = Path(path), cache_folder() / "packages"
    limits = limits or PackageLimits.from_environment()
    if not path.is_file():
        raise ModelPackageError(f"{path} is not a file; the path of a model package (.dlpk) is needed.")
    try:
        with path.open("rb", buffering=0) as raw, _GuardedReader(raw, _COPY_BYTES) as file:
            file.longest_read = max(_COPY_BYTES, limits.members * LONGEST_NAME_BYTES)
            kind = _sniff(file.peek(6)[:6])
            if kind is None:
                raise ModelPackageError("it begins neither as a zip nor as a 7-Zip archive does.")
            place = packages / hashlib.file_digest(file, "sha256").hexdigest()[:32]
            unpack = _unpack_zip if kind == "zip" else _unpack_7z
            size = file.tell()
            file.seek(0)
            return keep(place, lambda folder: unpack(file, folder, _Meter(size, limits), limits))
    except ModelPackageError as error:
        raise ModelPackageError(f"{path} is not unpacked: {error}") from error
    except OSError as error:
        raise ModelPackageError(
            f"{path} cannot be unpacked into {packages}: {error}. GEODL_DASK_CACHE names another cache folder."
        ) from error


def find_definition(folder: Path) -> Path:
    """The one ``.emd`` of a folder: at its root, else anywhere below, ``esriinfo`` and ``__MACOSX`` left out.

    Raises ModelPackageError where there is none, or more than one.
    """
    found = [path for path in sorted(folder.iterdir()) if _is_definition(path)]
    if not found:
        for parent, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if name.lower() not in _IGNORED_FOLDERS)
            found += [path for path in (Path(parent, name) for name in sorted(names)) if _is_definition(path)]
    if not found:
        raise ModelPackageError(f"{folder} holds no model definition (.emd).")
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.relative_to(folder).as_posix() for path in found[:20])
    raise ModelPackageError(f"{folder} holds several model definitions: {listed}. Give the path of the one to use.")


def _sniff(head: bytes) -> Literal["zip", "7z"] | None:
    if head.startswith(b"PK"):
        return "zip"
    return "7z" if head == b"7z\xbc\xaf\x27\x1c" else None


def _unpack_zip(file: _GuardedReader, into: Path, meter: _Meter, limits: PackageLimits) -> list[str]:
    """Unpack a zip archive into the new folder ``into``; returns the names of its files."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            names = _judge([_zip_member(info) for info in infos], meter, limits)
            into.mkdir()
            for info, name in zip(infos, names, strict=True):
                if name is not None:
                    with archive.open(info) as source:
                        _copy(source, into / name, meter)
    except ModelPackageError:
        raise
    except _DAMAGE as error:
        raise ModelPackageError(f"the zip archive is damaged ({error}). Download or copy it again.") from error
    return [name for name in names if name is not None]


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    name = info.orig_filename  # info.filename is cut at a NUL
    if info.flag_bits & 0x41:
        raise ModelPackageError(f"member {_shown(name)} is encrypted. Pack it again without a password.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others inflate without bounds at once
        raise ModelPackageError(
            f"member {_shown(name)} is compressed by method {info.compress_type}. Pack it again, deflated."
        )
    return _Member(name, info.file_size, info.external_attr >> 16, name.endswith(("/", "\\")))


def _copy(source: IO[bytes], target: Path, meter: _Meter) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        while piece := source.read(_COPY_BYTES):
            meter.spend(len(piece))
            out.write(piece)


def _unpack_7z(file: _GuardedReader, into: Path, meter: _Meter, limits: PackageLimits) -> list[str]:
    """Unpack a 7-Zip archive into the new folder ``into``; returns the names of its files."""
    try:
        py7zr: Any = importlib.import_module("py7zr")
    except ImportError as error:
        raise MissingDependencyError(
            'The model package is a 7-Zip archive; reading it needs py7zr: pip install "geodl_dask[7z]"'
        ) from error
    writers = SimpleNamespace(create=functools.partial(_SevenZipWriter, into, meter))
    try:
        with _short_tables(py7zr.archiveinfo, limits):
            opened = py7zr.SevenZipFile(file)
        with opened as archive:
            if archive.needs_password():
                raise ModelPackageError("it is encrypted. Pack it again without a password.")
            names = _judge([_7z_member(entry) for entry in archive.files], meter, limits)
            into.mkdir()
            archive.extractall(into, factory=writers)
    except (ModelPackageError, OSError):
        raise
    except py7zr.exceptions.PasswordRequired as error:
        raise ModelPackageError("it is encrypted. Pack it again without a password.") from error
    except py7zr.exceptions.Bad7zFile as error:
        if "limit" not in str(error):
            raise ModelPackageError(f"the 7-Zip archive is damaged ({error}). Download or copy it again.") from error
        raise ModelPackageError(
            f"its table of contents is too long ({error}); GEODL_DASK_PACKAGE_MAX_MEMBERS is {limits.members}."
        ) from error
    except Exception as error:  # py7zr 1.1 raises whatever its parser trips over
        raise ModelPackageError(f"the 7-Zip archive is damaged ({error}). Download or copy it again.") from error
    return [name for name in names if name is not None]


@contextlib.contextmanager
def _short_tables(archiveinfo: Any, limits: PackageLimits) -> Iterator[None]:
    """py7zr makes an object of each member before anybody can judge one; its own limits, lowered to ours meanwhile."""
    ours = dict.fromkeys(("MAX_NUMFILES", "MAX_NUMFOLDERS", "MAX_SUBSTREAMS"), limits.members)
    ours["MAX_HEADER_SIZE"] = max(_COPY_BYTES, limits.members * _7Z_ENTRY_BYTES)
    with _PY7ZR_LIMITS:
        theirs = {name: getattr(archiveinfo, name) for name in ours}
        vars(archiveinfo).update(ours)
        try:
            yield
        finally:
            vars(archiveinfo).update(theirs)


def _7z_member(entry: Any) -> _Member:
    mode = stat.S_IFLNK if entry.is_symlink or entry.is_junction else entry.st_fmt or 0
    return _Member(entry.filename, entry.uncompressed, mode, entry.is_directory)


class _SevenZipWriter:
    """What py7zr asks of its ``Py7zIO``: writes one member and counts its bytes."""

    def __init__(self, into: Path, meter: _Meter, path: str) -> None:
        self.target, self.meter = into / _safe_name(Path(path).relative_to(into).as_posix()), meter
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.target.touch(exist_ok=False)

    def write(self, data: bytes) -> int:
        self.meter.spend(len(data))
        with self.target.open("ab") as out:
            return out.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def close(self) -> None:
        """Nothing is held open."""


def _judge(members: list[_Member], meter: _Meter, limits: PackageLimits) -> list[str | None]:
    """Where each member is to be written, relative; None for folders. Nothing has been written yet.

    Raises ModelPackageError for the first member that must not be, or for all of them together.
    """
    if len(members) > limits.members:
        raise ModelPackageError(f"it has {len(members)} members; GEODL_DASK_PACKAGE_MAX_MEMBERS is {limits.members}.")
    if sum(member.size for member in members) > meter.allowed:
        meter.spend(meter.allowed + 1)
    for member in members:
        if stat.S_IFMT(member.mode) in _SPECIAL_FILES:
            kind = "a link" if stat.S_ISLNK(member.mode) else "a device file, a pipe or a socket"
            raise ModelPackageError(f"member {_shown(member.name)} is {kind}; only files and folders are unpacked.")
    names = [None if member.is_folder else _safe_name(member.name) for member in members]
    _refuse_overwriting(members)
    if not any(name is not None and name.lower().endswith(".emd") for name in names):
        raise ModelPackageError(
            "it holds no model definition (.emd). Of a bare model file, give the .emd that names it."
        )
    return names


def _refuse_overwriting(members: list[_Member]) -> None:
    """Raise ModelPackageError where two members have one place, on a file system that ignores case too."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for member in members:
        key = _fold(_safe_name(member.name))
        above = [str(parent) for parent in PurePosixPath(key).parents]
        clashes = [files[each] for each in (key, *above) if each in files]
        if member.is_folder:
            above.append(key)
        elif key in folders:
            clashes.append(folders[key])
        if clashes:
            raise ModelPackageError(
                f"members {_shown(clashes[0])} and {_shown(member.name)} would overwrite one another."
            )
        folders.update(dict.fromkeys(above, member.name))
        if not member.is_folder:
            files[key] = member.name


def _safe_name(name: str) -> str:
    """The member's name, relative, with forward slashes, that means the same file on every system.

    Raises ModelPackageError for a name that leads elsewhere or that some system cannot hold.
    """
    path = name.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(name.encode(errors="surrogatepass")) > LONGEST_NAME_BYTES:
        reason = f"has a name longer than {LONGEST_NAME_BYTES} bytes"
    elif any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        reason = "has control characters in its name"
    elif path.startswith("/") or ":" in path:
        reason = "has an absolute path, or a drive letter"
    elif ".." in parts:
        reason = "leads out of the package (..)"
    elif not parts and not path.endswith("./"):
        reason = "has no name"
    elif any(part.endswith((".", " ")) or _WINDOWS_DEVICES.fullmatch(part) for part in parts):
        reason = "has a name that Windows takes for another file or a device"
    elif any(len(part.encode()) > LONGEST_PART_BYTES for part in parts):
        reason = f"has a name longer than {LONGEST_PART_BYTES} bytes between slashes"
    elif len(parts) > DEEPEST_PARTS:
        reason = f"lies more than {DEEPEST_PARTS} folders deep"
    else:
        return "/".join(parts)
    raise ModelPackageError(f"member {_shown(name)} {reason}.")


def _fold(name: str) -> str:
    """Equal for names that a file system may take for one another."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _is_definition(path: Path) -> bool:
    return path.suffix.lower() == ".emd" and not path.name.startswith("._") and path.is_file()


def _environment_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "").strip()
    if text and not re.fullmatch("0*[1-9][0-9]{0,17}", text):
        raise ModelPackageError(f"The environment variable {variable} is {text!r}; a whole number above 0 is needed.")
    return int(text) if text else default


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else name[:100] + "...")
