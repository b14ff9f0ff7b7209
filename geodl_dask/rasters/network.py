"""What is read over the network while a raster is opened: small documents, and whether a file is there.

Pixels are read by GDAL. Only what the user named, and what that names in turn, is asked for.
"""

from __future__ import annotations

import json
import re
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ..errors import RasterInputError, RasterNotFoundError

TIMEOUT_S = 10
"""Seconds of silence after which a server counts as gone."""

LARGEST_DOCUMENT = 64 * 2**20
"""Bytes of JSON or XML that are read."""

CLOUDS = {"s3": "vsis3", "gs": "vsigs", "az": "vsiaz", "oss": "vsioss"}
"""URL schemes of object storage, and GDAL's file systems for them, which take their settings from the environment."""


_SECRET = re.compile(
    r"([?&;](?:x-(?:amz|goog)-[a-z-]+|(?:access_?|auth_?)?token|api_?key|subscription-key|key|sig|signature|password|"
    r"secret|awsaccesskeyid|googleaccessid|expires|se|sp|st|sv|sr|spr|skoid|sktid|skt|ske|sks|skv)=)[^&#;\s]*",
    re.IGNORECASE,
)
"""What opens doors in a query, signatures among them, which also change from day to day."""


def without_secrets(text: str) -> str:
    """A text in which URLs may stand, without passwords, keys and signatures in them."""
    return _SECRET.sub(r"\1...", re.sub(r"(?<=://)[^/@\s]*@", "", text))


def gdal_name(url: str) -> str:
    """GDAL's name of a remote file; a path stays as it is."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme in CLOUDS:
        return f"/{CLOUDS[scheme]}/{parts.netloc}{parts.path}"
    return f"/vsicurl/{url}" if scheme in ("http", "https") else url


def fetch(url: str, role: str) -> bytes:
    """A whole document. Raises RasterNotFoundError or RasterInputError."""
    with _answer(url, role) as answer:
        content = _body(answer, LARGEST_DOCUMENT + 1, url, role)
    if len(content) > LARGEST_DOCUMENT:
        raise RasterInputError(f"{role} {url} is a document of over {LARGEST_DOCUMENT} bytes; is it right?")
    return content


def fetch_if_there(url: str, role: str) -> bytes | None:
    """A whole document, or None where the server says that there is none. Raises as `fetch`."""
    try:
        return fetch(url, role)
    except RasterNotFoundError as error:
        if isinstance(error.__cause__, HTTPError):
            return None
        raise


def fetch_json(url: str, role: str) -> dict[str, Any]:
    """A JSON object. Raises RasterNotFoundError or RasterInputError."""
    return parse_json(fetch(url, role), url, role)


def parse_json(content: bytes, name: str, role: str) -> dict[str, Any]:
    """A JSON object. Raises RasterInputError for anything else."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        start = content[:60].decode(errors="replace").strip()
        raise RasterInputError(f"{role} {name} is not JSON ({error}); it begins with {start!r}.") from error
    if not isinstance(document, dict):
        raise RasterInputError(f"{role} {name} holds a JSON {type(document).__name__}; an object is needed.")
    return document


def require_rangeable(url: str, role: str) -> str:
    """The content type of a file, which is there and, unless it is JSON or XML, can be read in parts.

    Raises RasterNotFoundError or RasterInputError.
    """
    with _answer(url, role, {"Range": "bytes=0-511"}) as answer:
        kind = answer.headers.get_content_type()
        if kind == "text/html":
            raise RasterInputError(
                f"{role} {url} is a web page (text/html); the address of a raster file or of a service is needed. "
                "Does it ask for a login?"
            )
        is_document = "json" in kind or "xml" in kind
        if not is_document and answer.status != 206 and answer.headers.get("Accept-Ranges", "none") == "none":
            raise RasterInputError(
                f"{role} {url}: the server hands out whole files only (no range requests), so it cannot be read in "
                "windows. Download it first."
            )
        return kind


def first_byte(url: str, role: str) -> HTTPResponse:
    """The answer to a request for a file's first byte, whose headers describe it; to be closed.

    No HEAD request, for an address may be signed for GET alone. Raises RasterNotFoundError or RasterInputError.
    """
    return _answer(url, role, {"Range": "bytes=0-0"})


def _answer(url: str, role: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    scheme = urlsplit(url).scheme.lower()
    if scheme not in ("http", "https"):
        raise RasterInputError(f"{role} {url} is to be fetched by {scheme or 'no protocol'}; http or https is needed.")
    request = Request(url, headers={"User-Agent": "geodl_dask", **(headers or {})})
    try:
        return urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        said = f"{role} {url}: the server answered {error.code} {error.reason}."
        if error.code in (404, 410):
            raise RasterNotFoundError(f"{said} There is nothing at this address; check it in a browser.") from error
        hint = "Is a login or a token needed?" if error.code in (401, 403) else "Try again later, or ask who runs it."
        raise RasterInputError(f"{said} {hint}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise RasterNotFoundError(
            f"{role} {url} cannot be reached: {reason}. Check the address and the connection (proxies by HTTPS_PROXY)."
        ) from error


def _body(answer: HTTPResponse, limit: int, url: str, role: str) -> bytes:
    try:
        return answer.read(limit)
    except (OSError, HTTPException) as error:
        raise RasterInputError(f"{role} {url} broke off while it was read: {error}. Try again.") from error
