"""What a server says of a file without its pixels: size, time of change, etag. One small request, and no error."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from urllib.parse import urlsplit

from ..errors import GeodlError
from ..object_store import SCHEMES, open_store
from .network import CLOUDS, TIMEOUT_S, first_byte

log = logging.getLogger(__name__)

AT_ONCE, MOST_ASKED = 16, 64
"""Requests that are made together, and in all for one raster: what a mosaic of thousands of files may cost."""

LONGEST_ETAG = 80


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, as far as that tells."""

    size: int | None = None
    """Bytes."""
    changed: str = ""
    """When it was changed: seconds in UTC, or what the server said that is no time."""
    etag: str = ""
    """The server's name of this state of it."""

    def __str__(self) -> str:
        """In words; empty where nothing is known."""
        size = "" if self.size is None else f"{self.size:,} bytes"
        time = " of ".join(each for each in (size, self.changed) if each)
        return ", ".join(each for each in (time, self.etag and f"etag {self.etag}") if each)


def look_at_all(names: Iterable[str]) -> list[RemoteFile]:
    """What the servers say of the first `MOST_ASKED` of some files, in their order. names : as `look_at` takes them."""
    asked = list(names)[:MOST_ASKED]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(look_at, asked))


def look_at(name: str) -> RemoteFile:
    """What the server says of a file; nothing where it is silent, refuses, or is none that is known.

    name : a URL, or GDAL's ``/vsicurl/http...``, ``/vsis3/...``.
    """
    url = url_of(name)
    scheme = urlsplit(url).scheme.lower()
    try:
        if scheme in ("http", "https"):
            with closing(first_byte(url, "raster")) as answer:
                return _of_answer(answer)
        return _of_object(url) if scheme in SCHEMES else RemoteFile()
    except GeodlError as error:
        log.debug("Nothing is known of the state of a raster: %s", error)
        return RemoteFile()


def url_of(name: str) -> str:
    """The URL of what GDAL calls ``/vsicurl/http...`` or ``/vsis3/...``; other names stay as they are."""
    if name.startswith("/vsicurl/"):
        return name.removeprefix("/vsicurl/")
    for scheme, folder in CLOUDS.items():
        if name.startswith(f"/{folder}/"):
            return f"{scheme}://{name.removeprefix(f'/{folder}/')}"
    return name


def _of_answer(answer: HTTPResponse) -> RemoteFile:
    headers = answer.headers
    whole = headers.get("Content-Range", "").rpartition("/")[2] if answer.status == 206 else headers["Content-Length"]
    etag = headers.get("ETag", "").strip()
    return RemoteFile(
        int(whole) if whole and whole.isascii() and whole.isdigit() else None,
        _time(headers.get("Last-Modified", "").strip()),
        etag.replace('"', "")[:LONGEST_ETAG],
    )


def _time(said: str) -> str:
    try:
        return _in_words(parsedate_to_datetime(said))
    except (ValueError, OverflowError):
        return said


def _of_object(url: str) -> RemoteFile:
    store, key = open_store(url, timeout_s=TIMEOUT_S / 2, retries=1)
    import obstore

    try:
        found = obstore.head(store, key)
    except Exception as error:  # no such object, no permission, no network: each library beneath has its own
        log.debug("Nothing is known of the state of %s: %s", url, str(error).partition("\n")[0])
        return RemoteFile()
    etag = (found["e_tag"] or "").replace('"', "")[:LONGEST_ETAG]
    return RemoteFile(found["size"], _in_words(found["last_modified"]), etag)


def _in_words(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
