"""Results in object storage: may one be written there, and the way there of one that is whole on this disk.

Before anything else is changed there, the manifest beside the result says that it is incomplete, and only at the very
end that it is complete. A COG is one object, which appears when its upload is complete: until then there is nothing
under its name, or the old one. A Zarr store is many objects, none of which can be renamed: of an old one the metadata
go first; of the new one the chunks come first, the metadata after them and the root's last. So whatever opens as a
store is whole; while one is replaced there is none, and a reader that had opened the old one before must open it anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import GeodlError, OutputError, OutputExistsError, RunError
from .manifest import Manifest
from .object_store import SCHEMES, open_store

log = logging.getLogger(__name__)

ZARR_RECORDS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
_PIECE_BYTES, _MOST_PIECES, _FILES_AT_ONCE, _PIECES_AT_ONCE = 8 * 2**20, 9_000, 8, 4
"""A file goes up in pieces, of which S3 takes at most 10 000."""
_PATIENCE_S = 120
"""For a request that may carry a whole piece."""
_SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for another server than Amazon's, AWS_S3_ENDPOINT",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_ACCESS_KEY",
}


def url_of(path: str | os.PathLike[str]) -> str | None:
    """An output's URL, without a slash at its end; None for a path. Raises OutputError where none can be written."""
    text = os.fspath(path)
    scheme, is_url, rest = text.partition("://")
    if not is_url:
        return None
    bucket, _, key = rest.rstrip("/").partition("/")
    if scheme.lower() not in SCHEMES:
        schemes = ", ".join(f"{each}://" for each in SCHEMES)
        raise OutputError(
            f"The output {text} is a URL of another kind; results are written to local disks and to {schemes}."
        )
    if not bucket or not key or set("?#") & set(key) or {"", ".", ".."} & set(key.split("/")):
        raise OutputError(
            f"The output {text!r} is no name in object storage; {scheme.lower()}://BUCKET/KEY without ?, # is needed."
        )
    return f"{scheme.lower()}://{bucket}/{key}"


def local_place(url: str) -> Path:
    """Where on this disk, in the current folder, a result grows; no two URLs have the same."""
    name = PurePosixPath(url)
    digest = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return Path.cwd() / f"{name.stem}.{digest}{name.suffix}"


def overlaps(url: str, given: str) -> bool:
    """Whether what is given names the same objects, or a store within the other; also by GDAL's name."""
    if found := re.match("/vsi(s3|gs|az)/", given):
        given = f"{found[1]}://{given[found.end() :]}"
    scheme, _, rest = given.partition("#")[0].partition("://")
    other = f"{scheme.lower()}://{rest.rstrip('/')}"
    return f"{url}/".startswith(f"{other}/") or f"{other}/".startswith(f"{url}/")


@dataclass(frozen=True)
class RemoteOutput:
    """The place of a result in object storage."""

    url: str
    """As `url_of` gives it."""
    store: Any
    """The bucket."""
    key: str
    """The result's name there: of an object, or for a Zarr store the beginning of theirs."""

    @classmethod
    def at(cls, url: str, *, is_patient: bool = False) -> RemoteOutput:
        """No request is made. Raises RequestError.

        is_patient : a request waits long, as one with a part of a file must; else only as long as a user would.
        """
        timeout_s, retries = (_PATIENCE_S, 10) if is_patient else (15, 3)
        return cls(url, *open_store(url, timeout_s=timeout_s, retries=retries))

    def stands(self) -> bool:
        """Whether there is a result, or a part of one. Raises OutputError, also for a bucket that is not there."""
        import obstore

        with _refusals(self.url):
            # Of an object alone a bucket that is not there says only that there is no such object.
            has_more = bool(next(iter(obstore.list(self.store, self.key, chunk_size=1)), None))
            return has_more if self._is_zarr else self._has(self.key)

    def manifest(self) -> Manifest | None:
        """What the manifest beside the result says; None where there is none. Raises OutputError."""
        import obstore

        with _refusals(self.url):
            try:
                return Manifest.parse(bytes(obstore.get(self.store, self._manifest_key).bytes()))
            except FileNotFoundError:
                return None

    def require_allowed(self, *, overwrite: bool, resume: bool) -> None:
        """Raise OutputExistsError for what stands there and is not to be replaced or gone on with, else OutputError."""
        stands, manifest = self.stands(), self.manifest()
        with _refusals(self.url):
            is_replaceable = not stands or self._is_replaceable(manifest)
        if not overwrite and not resume:
            choices = "Choose another name, or say --overwrite (overwrite=True)."
            if stands:
                raise OutputExistsError(f"{self.url} exists. {choices}")
            if _is_begun(manifest):
                raise OutputExistsError(
                    f"{self.url} is being uploaded by a run, or was by one that ended early. {choices}"
                )
        if not is_replaceable:
            raise OutputExistsError(
                f"{self.url} holds objects, and is not a Zarr store that a result may replace. Choose another name, or "
                "remove them."
            )

    def require_writable(self) -> None:
        """Write and remove an empty object beside the result. Raises OutputError."""
        import obstore

        with _refusals(self.url):
            obstore.put(self.store, f"{self.key}.partial", b"")
            obstore.delete(self.store, f"{self.key}.partial")

    def upload(self, finished: Path, run: Manifest, *, sides: Sequence[str]) -> None:
        """Upload a whole result, a file or folder, and what stands beside it under its name.

        run : what the run was asked, not complete; no other's is equal to it. sides : endings of what belongs to a
        result by its name, the manifest's last; what an earlier result had beside it goes away. What an earlier attempt
        has uploaded is uploaded again.
        Raises RunError, also where something has come there meanwhile that this run may not replace.
        """
        import obstore

        with _failures(self.url):
            if not self._may_take(run):
                raise RunError(
                    f"{self.url} has come there since the run began, and stays as it is. The result is {finished}."
                )
            log.info("Uploading to %s", self.url)
            obstore.put(self.store, self._manifest_key, run.to_json())
            if self._is_zarr:
                self._clear()
            data, records = _sorted(finished)
            self._put_all(data, finished)
            if self.manifest() != run:
                raise RunError(f"Another run has begun to write {self.url} meanwhile.")
            for each in records:
                self._put_all([each], finished)  # one after the other
            for side in sides:
                self._put_side(finished, side)

    @property
    def _is_zarr(self) -> bool:
        return self.key.lower().endswith(".zarr")

    @property
    def _manifest_key(self) -> str:
        return f"{self.key}.manifest.json"

    def _has(self, key: str) -> bool:
        import obstore

        try:
            obstore.head(self.store, key)
        except FileNotFoundError:
            return False
        return True

    def _is_replaceable(self, manifest: Manifest | None) -> bool:
        """Whether nothing is lost with what stands there but an earlier result, or a part of one."""
        records = (f"{self.key}/{name}" for name in ZARR_RECORDS)
        return not self._is_zarr or _is_begun(manifest) or any(self._has(each) for each in records)

    def _may_take(self, run: Manifest) -> bool:
        """Whether the name is free, taken by an earlier attempt of this run, or by what the run may replace."""
        standing = self.manifest()
        if _is_begun(standing):
            return run.replaces or (standing is not None and standing.asked == run.asked)
        return not self.stands() or (run.replaces and self._is_replaceable(standing))

    def _clear(self) -> None:
        """Remove an old store, first of all what makes it one."""
        import obstore

        records = [f"{self.key}/{name}" for name in ZARR_RECORDS]
        if found := [each for each in records if self._has(each)]:
            obstore.delete(self.store, found)
        for objects in obstore.list(self.store, self.key):
            obstore.delete(self.store, [each["path"] for each in objects])

    def _put_side(self, finished: Path, side: str) -> None:
        import obstore

        file = finished.with_name(finished.name + side)
        if file.exists():
            _put(self.store, self.key + side, file, threading.Event())
        elif self._has(self.key + side):
            obstore.delete(self.store, self.key + side)

    def _put_all(self, files: Iterable[Path], finished: Path) -> None:
        """Upload a result's files; in threads, since a request cannot be interrupted and a wait can."""
        stopped, left = threading.Event(), iter(files)
        with ThreadPoolExecutor(_FILES_AT_ONCE, "geodl-dask-upload") as pool:
            try:
                while some := list(islice(left, 1000)):
                    keys = [str(PurePosixPath(self.key, *each.relative_to(finished).parts)) for each in some]
                    puts = [pool.submit(_put, self.store, *each, stopped) for each in zip(keys, some, strict=True)]
                    for put in puts:
                        put.result()
            except BaseException:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _sorted(finished: Path) -> tuple[Iterator[Path], list[Path]]:
    """The files of a result but a store's metadata; these, the root's last."""
    if finished.is_file():
        return iter([finished]), []
    records = [each for name in ZARR_RECORDS for each in finished.rglob(name)]
    data = (each for each in finished.rglob("*") if each.name not in ZARR_RECORDS and each.is_file())
    return data, sorted(records, key=lambda each: -len(each.parts))


def _is_begun(manifest: Manifest | None) -> bool:
    """Whether it is of an upload that has begun and not ended."""
    return manifest is not None and not manifest.is_complete


def _put(store: Any, key: str, file: Path, stopped: threading.Event) -> None:
    """Upload a file whole or not at all."""
    import obstore

    size = file.stat().st_size
    piece = max(_PIECE_BYTES, size // _MOST_PIECES + 1)
    if size <= piece:
        obstore.put(store, key, file.read_bytes(), use_multipart=False)
    else:
        obstore.put(store, key, _pieces(file, piece, stopped), chunk_size=piece, max_concurrency=_PIECES_AT_ONCE)


def _pieces(file: Path, length: int, stopped: threading.Event) -> Iterator[bytes]:
    with file.open("rb") as content:
        while piece := content.read(length):
            if stopped.is_set():
                raise RunError(f"The upload of {file} was stopped.")
            yield piece


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    """What the store refuses before anything is computed, as OutputError."""
    try:
        yield
    except GeodlError:
        raise
    except _errors() as error:
        settings = _SETTINGS[url.partition("://")[0]]
        raise OutputError(
            f"The output {url} cannot be written: {_cause(error)}. A bucket that may be listed, read, written and "
            f"deleted from is needed, and the settings for it: {settings}."
        ) from error


@contextmanager
def _failures(url: str) -> Iterator[None]:
    """What fails while a result is uploaded, as RunError."""
    try:
        yield
    except OutputError as error:
        raise RunError(f"The upload failed. {error}") from error
    except GeodlError:
        raise
    except _errors() as error:
        raise RunError(f"The upload to {url} failed: {_cause(error)}.") from error


def _errors() -> tuple[type[Exception], ...]:
    from obstore.exceptions import BaseError

    return BaseError, OSError, ValueError


def _cause(error: Exception) -> str:
    """What the server says, or the library's first line."""
    text = str(error)
    said = re.search("<Message>(.*?)</Message>", text, re.DOTALL)
    return (said[1] if said else text.partition("\n")[0]).strip().rstrip(".:")
