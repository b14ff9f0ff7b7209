"""Real servers on 127.0.0.1, each in a process of its own: files with range requests, web layers of a raster, S3.

The web layers stand in for ArcGIS Server, tile caches and OGC servers: they speak those protocols as documented
and cut their answers out of a real raster, but they are not those products.

A process of its own, because rasterio holds the interpreter's lock while GDAL opens a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import urlopen

Answer = tuple[int, str, bytes]
"""Status, content type, body."""

Route = Callable[[str, dict[str, str]], Answer | None]
"""Path and query (names in lower case) -> answer; None: not mine."""

NOT_FOUND: Answer = (404, "text/plain", b"nothing here")
CONTENT_TYPES = {".html": "text/html", ".json": "application/json", ".xml": "text/xml"}


# What a site is made of: its name in `serving`, and what makes it from plain arguments.


def files(folder: str) -> Route:
    """Every file of a folder."""

    def route(path: str, _query: dict[str, str]) -> Answer | None:
        file = Path(folder, path.lstrip("/"))
        return (200, CONTENT_TYPES.get(file.suffix, "image/tiff"), file.read_bytes()) if file.is_file() else None

    return route


def signed_files(folder: str, token: str) -> Route:
    """The same for whoever brings the token in the query."""
    return lambda path, query: files(folder)(path, query) if query.get("token") == token else (403, "text/plain", b"")


def status(code: int) -> Route:
    """One answer to everything."""
    return lambda *_: (code, "text/plain", b"")


ROUTES = {each.__name__: each for each in (files, signed_files, status)}


# The process of the tests.


@dataclass(frozen=True)
class Site:
    """A running server."""

    url: str
    """Its root, without a slash at the end."""

    @property
    def log(self) -> list[tuple[str, int, int]]:
        """Path with query, status and bytes of the body of each answer so far."""
        with urlopen(f"{self.url}/_log") as answer:
            return [tuple(entry) for entry in json.load(answer)]

    @property
    def bytes_served(self) -> int:
        """Of all bodies so far."""
        return sum(length for _, _, length in self.log)


@contextmanager
def serving(*routes: tuple, takes_ranges: bool = True) -> Iterator[Site]:
    """A site while the block lasts. routes : each a name of `ROUTES` and its arguments, asked in turn."""
    told = json.dumps([takes_ranges, routes], default=str)
    with _process([__file__, told]) as port:
        yield Site(f"http://127.0.0.1:{port}")


@contextmanager
def serving_s3() -> Iterator[str]:
    """Endpoint, as host:port, of an S3 server (moto's) while the block lasts."""
    with _process([__file__, "s3"]) as port:
        yield f"127.0.0.1:{port}"


@contextmanager
def _process(arguments: list[str]) -> Iterator[int]:
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


# The process of the server.


def answer_to(target: str, ranges: str | None, routes: list[Route]) -> tuple[int, str, bytes, str]:
    """Status, content type, body, and content range."""
    parts = urlsplit(target)
    query = {key.lower(): value for key, value in parse_qsl(parts.query, keep_blank_values=True)}
    answers = (route(unquote(parts.path), query) for route in routes)
    code, kind, body = next((answer for answer in answers if answer), NOT_FOUND)
    if code != 200 or not ranges:
        return code, kind, body, ""
    first, last = ranges.removeprefix("bytes=").split("-")
    start, stop = int(first), min(int(last or len(body)), len(body) - 1)
    if start >= len(body):
        return 416, kind, b"", f"bytes */{len(body)}"
    return 206, kind, body[start : stop + 1], f"bytes {start}-{stop}/{len(body)}"


def handler_of(routes: list[Route], takes_ranges: bool) -> type[BaseHTTPRequestHandler]:
    """What answers each request."""
    log: list[tuple[str, int, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            is_get = self.command == "GET"
            if self.path == "/_log":
                code, kind, body, part = 200, "application/json", json.dumps(log).encode(), ""
            else:
                ranges = self.headers.get("Range") if takes_ranges else None
                code, kind, body, part = answer_to(self.path, ranges, routes)
                log.append((self.path, code, len(body) if is_get else 0))
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if takes_ranges:
                self.send_header("Accept-Ranges", "bytes")
            if part:
                self.send_header("Content-Range", part)
            self.end_headers()
            if is_get:
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def main(told: str) -> None:
    """Print the port, and serve until killed."""
    if told == "s3":
        from moto.server import ThreadedMotoServer

        s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        s3.start()
        print(s3.get_host_and_port()[1], flush=True)
        s3._thread.join()
        return
    takes_ranges, described = json.loads(told)
    routes = [ROUTES[name](*arguments) for name, *arguments in described]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(routes, takes_ranges))
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
