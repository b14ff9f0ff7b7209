"""Real servers on 127.0.0.1, each in a process of its own: files with range requests, web layers of a raster, S3.

The web layers stand in for ArcGIS Server, tile caches and OGC servers: they speak those protocols as documented
and cut their answers out of a real raster, but they are not those products.

A process of its own, because rasterio holds the interpreter's lock while GDAL opens a file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import urlopen

Answer = tuple[int, str, bytes] | tuple[int, str, bytes, dict[str, str]]
"""Status, content type, body, and perhaps further headers."""

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


def described_files(folder: str, wanted: list[str]) -> Route:
    """The same with the headers that are wanted, of ETag and Last-Modified."""

    def route(path: str, query: dict[str, str]) -> Answer | None:
        found = files(folder)(path, query)
        if not found:
            return None
        changed = formatdate(Path(folder, path.lstrip("/")).stat().st_mtime, usegmt=True)
        headers = {"ETag": f'"{sha256(found[2]).hexdigest()[:16]}"', "Last-Modified": changed}
        return *found[:3], {name: headers[name] for name in wanted}

    return route


def signed_files(folder: str, token: str) -> Route:
    """The same for whoever brings the token in the query."""
    return lambda path, query: files(folder)(path, query) if query.get("token") == token else (403, "text/plain", b"")


def status(code: int) -> Route:
    """One answer to everything."""
    return lambda *_: (code, "text/plain", b"")


def image_service(path: str, about: dict[str, Any]) -> Route:
    """A stand-in for an ArcGIS Image Service of a raster: ``?f=json`` and ``exportImage``. about : keys replaced."""
    root = "/arcgis/rest/services/image/ImageServer"

    def route(asked: str, query: dict[str, str]) -> Answer | None:
        if asked == root and query.get("f") == "json":
            return 200, "application/json", json.dumps({**_image_service_about(path), **about}).encode()
        if asked == f"{root}/exportImage" and query.get("f") == "image":
            if about.get("token", "") != query.get("token", ""):  # ArcGIS says so with status 200
                return 200, "application/json", b'{"error": {"code": 499, "message": "Token Required"}}'
            bounds, size = _numbers(query["bbox"]), _numbers(query["size"])
            return 200, "image", cut(path, bounds, (int(size[1]), int(size[0])), query["format"])
        return None

    return route


def map_service(path: str, about: dict[str, Any]) -> Route:
    """A stand-in for an ArcGIS Map Server that draws a raster: ``?f=json`` and ``export``. about : keys replaced."""
    root = "/arcgis/rest/services/map/MapServer"

    def route(asked: str, query: dict[str, str]) -> Answer | None:
        if asked == root and query.get("f") == "json":
            extent = _image_service_about(path)["extent"]
            return 200, "application/json", json.dumps({"fullExtent": extent, **about}).encode()
        if asked == f"{root}/export" and query.get("transparent") == "true":
            bounds, size = _numbers(query["bbox"]), _numbers(query["size"])
            return 200, "image/png", cut(path, bounds, (int(size[1]), int(size[0])), query["format"])
        return None

    return route


def tiles(path: str, template: str, origin: tuple[float, float], size: float, finest: int) -> Route:
    """Tiles of 256 pixels of a raster; 404 where none touches it.

    template : regular expression of the path with the groups z, x, y and perhaps n, a y counted from below. origin :
    upper left corner of tile 0, 0. size : of a pixel of level ``finest``.
    """

    def route(asked: str, _query: dict[str, str]) -> Answer | None:
        found = re.fullmatch(template, asked)
        if not found:
            return None
        part = found.groupdict()
        level, col = int(part["z"]), int(part["x"])
        row = int(part["y"]) if part.get("y") else (1 << level) - 1 - int(part["n"])
        side = size * 256 * 2 ** (finest - level)
        left, top = origin[0] + col * side, origin[1] - row * side
        body = cut(path, (left, top - side, left + side, top), (256, 256), "png32")
        return (200, "image/png", body) if body else NOT_FOUND

    return route


def document(path: str, kind: str, text: str) -> Route:
    """One document, in which HOST stands for this site."""
    return lambda asked, query: (200, kind, text.replace("HOST", query["host"]).encode()) if asked == path else None


def everything(kind: str, text: str) -> Route:
    """One document wherever it is asked for."""
    return lambda *_: (200, kind, text.encode())


NORTH_FIRST = {"EPSG:4326", "EPSG:4258", "EPSG:3035", "EPSG:31467"}
"""Some of the CRS by whose order of axes a WMS 1.3.0 takes the north first."""


def wms(path: str) -> Route:
    """A stand-in for a WMS of a raster."""

    def route(asked: str, query: dict[str, str]) -> Answer | None:
        if asked != "/wms" or query.get("request") != "GetMap":
            return None
        bounds, size = _numbers(query["bbox"]), (int(query["height"]), int(query["width"]))
        if query.get("crs", "").upper() in NORTH_FIRST:
            bounds = bounds[1], bounds[0], bounds[3], bounds[2]
        return 200, "image/png", cut(path, bounds, size, "png32")

    return route


ROUTES = {
    each.__name__: each
    for each in (
        files,
        described_files,
        signed_files,
        status,
        image_service,
        map_service,
        tiles,
        document,
        everything,
        wms,
    )
}


def cut(path: str, bounds: tuple[float, ...], shape: tuple[int, int], form: str) -> bytes:
    """An image of a raster's part; empty where the part does not touch it. png32 has alpha."""
    import numpy as np
    import rasterio
    from rasterio.windows import Window, from_bounds

    with rasterio.open(path) as dataset:
        window = from_bounds(*bounds, dataset.transform)
        where = Window(*(round(each, 6) for each in window.flatten()))
        if (
            where.col_off >= dataset.width
            or where.row_off >= dataset.height
            or min(where.col_off + where.width, where.row_off + where.height) <= 0
        ):
            return b""
        fill = dataset.nodata or 0
        pixels = dataset.read(window=where, boundless=True, fill_value=fill, out_shape=(dataset.count, *shape))
        masks = dataset.read_masks(window=where, boundless=True, out_shape=(dataset.count, *shape))
        mask = masks.min(axis=0)
        if dataset.nodata is None:  # GDAL fills the mask of what is outside with valid
            whole = rasterio.windows.Window(0, 0, dataset.width, dataset.height)
            inside = np.zeros(shape, np.uint8)
            first, last = (
                [
                    round((at - off) / length * count)
                    for at, off, length, count in zip(
                        ends, (where.row_off, where.col_off), (where.height, where.width), shape, strict=True
                    )
                ]
                for ends in ((0, 0), (whole.height, whole.width))
            )
            inside[max(first[0], 0) : max(last[0], 0), max(first[1], 0) : max(last[1], 0)] = 255
            mask = inside
    driver = "PNG" if form.startswith("png") else "GTiff"
    if form == "png32":
        pixels = np.concatenate([pixels[:3], mask[None]])
        pixels[:, mask == 0] = 0
    with warnings.catch_warnings(), rasterio.MemoryFile() as file:
        warnings.simplefilter("ignore")
        with file.open(driver=driver, count=len(pixels), height=shape[0], width=shape[1], dtype=pixels.dtype) as image:
            image.write(pixels)
        return bytes(file.getbuffer())


def _image_service_about(path: str) -> dict[str, Any]:
    import rasterio

    kinds = {"uint8": "U8", "int8": "S8", "uint16": "U16", "int16": "S16", "int32": "S32", "float32": "F32"}
    with rasterio.open(path) as dataset:
        names = ("xmin", "ymin", "xmax", "ymax")
        return {
            "extent": {
                **dict(zip(names, dataset.bounds, strict=True)),
                "spatialReference": {"wkid": 102100 if dataset.crs.to_epsg() == 3857 else dataset.crs.to_epsg(),
                                     "latestWkid": dataset.crs.to_epsg()},
            },
            "pixelSizeX": dataset.res[0], "pixelSizeY": dataset.res[1], "bandCount": dataset.count,
            "pixelType": kinds[dataset.dtypes[0]], "maxImageHeight": 4100, "maxImageWidth": 4100,
            **({} if dataset.nodata is None else {"noDataValue": dataset.nodata}),
        }  # fmt: skip


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


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


def answer_to(
    target: str, ranges: str | None, host: str, routes: list[Route]
) -> tuple[int, str, bytes, dict[str, str]]:
    """Status, content type, body, and further headers, the content range among them."""
    parts = urlsplit(target)
    query = {key.lower(): value for key, value in parse_qsl(parts.query, keep_blank_values=True)} | {"host": host}
    answers = (route(unquote(parts.path), query) for route in routes)
    code, kind, body, *more = next((answer for answer in answers if answer), NOT_FOUND)
    headers = more[0] if more else {}
    if code != 200 or not ranges:
        return code, kind, body, headers
    first, last = ranges.removeprefix("bytes=").split("-")
    start, stop = int(first), min(int(last or len(body)), len(body) - 1)
    if start >= len(body):
        return 416, kind, b"", {"Content-Range": f"bytes */{len(body)}"}
    return 206, kind, body[start : stop + 1], headers | {"Content-Range": f"bytes {start}-{stop}/{len(body)}"}


def handler_of(routes: list[Route], takes_ranges: bool) -> type[BaseHTTPRequestHandler]:
    """What answers each request."""
    log: list[tuple[str, int, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            is_get = self.command == "GET"
            if self.path == "/_log":
                code, kind, body, headers = 200, "application/json", json.dumps(log).encode(), {}
            else:
                ranges = self.headers.get("Range") if takes_ranges else None
                code, kind, body, headers = answer_to(self.path, ranges, self.headers["Host"], routes)
                log.append((self.path, code, len(body) if is_get else 0))
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if takes_ranges:
                self.send_header("Accept-Ranges", "bytes")
            for name, value in headers.items():
                self.send_header(name, value)
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
