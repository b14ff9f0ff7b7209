"""A raster from a stranger, or from a server: what it may name, and what is read of it."""

from __future__ import annotations

import http.server
import json
import pickle
import shutil
import struct
import threading
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import zarr
from conftest import TRANSFORM, write_raster
from servers import serving

from geodl_dask.rasters import open_raster
from geodl_dask.rasters.gdal import opened
from geodl_dask.tiling import Window

from .test_models import Payload

GRID = "<SRS>EPSG:32633</SRS><GeoTransform>500000,0.5,0,5400000,0,-0.5</GeoTransform>"
WINDOW = Window(0, 0, 16, 16)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def raw_band(path: Path) -> str:
    """A virtual raster whose pixels are the bytes of any file."""
    return (
        f'<VRTDataset rasterXSize="16" rasterYSize="16">{GRID}<VRTRasterBand dataType="Byte" band="1" '
        f'subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{path}</SourceFilename>'
        "<PixelOffset>1</PixelOffset><LineOffset>16</LineOffset></VRTRasterBand></VRTDataset>"
    )


def simple_source(name: str) -> str:
    return (
        f'<VRTDataset rasterXSize="16" rasterYSize="16">{GRID}<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{name}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )


def bytes_of(raster) -> bytes:
    return raster.read(WINDOW)[0].tobytes()


@pytest.fixture
def image(tmp_path) -> Path:
    return write_raster(tmp_path / "image.tif", np.full((1, 256, 256), 7, np.uint8))


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    with serving(("files", folder)) as served:
        yield folder, served.url


# Local rasters that the user names


@pytest.mark.attack("VRT that the user names", "the bytes of any file as pixels: as SECURITY.md says, look at it first")
def test_local_virtual_raster_reads_what_it_names(attack, tmp_path):
    (tmp_path / "evil.vrt").write_text(raw_band(attack.canary.secret_file))
    attack.is_open(bytes_of(open_raster(str(tmp_path / "evil.vrt"))))


@pytest.mark.attack(
    "VRT that the user names: network", "a source behind /vsicurl: as SECURITY.md says, look at it first"
)
def test_local_virtual_raster_reads_servers_that_it_names(attack, tmp_path, site):
    write_raster(site[0] / "a.tif", np.full((1, 16, 16), 99, np.uint8), blockxsize=16, blockysize=16)
    (tmp_path / "evil.vrt").write_text(simple_source(f"/vsicurl/{site[1]}/a.tif"))
    assert set(bytes_of(open_raster(str(tmp_path / "evil.vrt")))) == {99}
    attack.is_open()  # the server was another one than the canary's, and has answered


@pytest.mark.attack("HDF5 that the user names", "external storage, the bytes of any file: as SECURITY.md says")
def test_local_hdf5_reads_what_it_names(attack, tmp_path):
    hdf5_of(attack.canary.secret_file, tmp_path / "evil.h5")
    with opened(str(tmp_path / "evil.h5")) as found:
        attack.is_open(found.read(1).tobytes())


@pytest.mark.attack("VRT with Python", "a pixel function in Python, which GDAL can run")
def test_pixel_function_of_a_virtual_raster_does_not_run(attack, tmp_path, monkeypatch):
    monkeypatch.delenv("GDAL_VRT_ENABLE_PYTHON", raising=False)
    (tmp_path / "evil.vrt").write_text(
        f'<VRTDataset rasterXSize="16" rasterYSize="16">{GRID}<VRTRasterBand dataType="Byte" band="1" '
        'subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python'
        f"</PixelFunctionLanguage><PixelFunctionCode><![CDATA[\ndef f(*_, **__):\n    {attack.canary.payload}\n]]>"
        "</PixelFunctionCode></VRTRasterBand></VRTDataset>"
    )
    raster = open_raster(str(tmp_path / "evil.vrt"))
    with attack.refused("cannot be read"):
        raster.read(WINDOW)
    with rasterio.Env(GDAL_VRT_ENABLE_PYTHON="YES"):
        raster.read(WINDOW)
    attack.proves_real()


@pytest.mark.attack("VRT that calls itself a picture", "its XML under the name of a GeoTIFF, alone or in a folder")
@pytest.mark.parametrize("name", ["evil.tif", "evil.TIFF", "evil.png", "evil.jp2"])
def test_virtual_raster_under_another_name_is_refused(attack, tmp_path, name):
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / name).write_text(raw_band(attack.canary.secret_file))
    for text in (tmp_path / "tiles" / name, tmp_path / "tiles" / "evil.*"):
        with attack.refused("virtual raster under the name of a picture.*names in it"):
            open_raster(str(text))


@pytest.mark.attack("VRT beside a picture", "as its overviews (.ovr) or mask (.msk)")
@pytest.mark.parametrize("sidecar", [".ovr", ".msk"])
def test_virtual_raster_beside_a_file_is_refused(attack, image, sidecar):
    image.with_name(image.name + sidecar).write_text(raw_band(attack.canary.secret_file))
    with attack.refused("in no format that holds its pixels"):
        open_raster(str(image))


def name_overviews(image: Path, elsewhere: str, way: str) -> None:
    if way == "tag":
        with rasterio.open(image, "r+") as dataset:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=elsewhere)
    else:
        named = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{elsewhere}</MDI></Metadata>'
        image.with_name(image.name + ".aux.xml").write_text(f"<PAMDataset>{named}</PAMDataset>")


@pytest.mark.attack(
    "overviews elsewhere", "a GeoTIFF's tag or .aux.xml names any file for its overviews; here, on a server"
)
@pytest.mark.parametrize("way", ["tag", "sidecar"])
@pytest.mark.parametrize("place", ["here", "server"])
def test_overviews_are_not_taken_from_elsewhere(attack, tmp_path, site, way, place):
    secret = write_raster(tmp_path / "secret.tif", np.full((1, 64, 64), 99, np.uint8))
    folder = site[0] if place == "server" else tmp_path
    image = write_raster(folder / "image.tif", np.full((1, 256, 256), 7, np.uint8))
    name_overviews(image, str(secret), way)
    with rasterio.open(image) as naive:
        assert set(np.unique(naive.read(1, out_shape=(64, 64)))) == {99}
    text = f"{site[1]}/image.tif" if place == "server" else str(image)
    with attack.refused("says that its overviews are in .*secret.tif, which may be any file. .*gdal_translate -nomd"):
        open_raster(text)


# What a server hands out


def hdf5_of(secret: Path, path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("image", shape=(16, 16), dtype="u1", external=[(str(secret), 0, 256)])


@pytest.mark.attack("HDF5 of a server", "external storage, the bytes of a file of this machine")
@pytest.mark.parametrize("name", ["evil.h5", "evil.tif"])
def test_hdf5_of_a_server_reads_no_files_of_this_machine(attack, site, name):
    hdf5_of(attack.canary.secret_file, site[0] / name)
    with rasterio.open(f"/vsicurl/{site[1]}/{name}") as naive:
        assert attack.canary.secret.encode() in naive.read(1).tobytes()
    with attack.refused("HDF or netCDF is taken there"):
        open_raster(f"{site[1]}/{name}")


ENTITIES = {
    "billion laughs": '<!DOCTYPE a [<!ENTITY l0 "lol">'
    + "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 11))
    + "]>",
    "external": '<!DOCTYPE a [<!ENTITY l10 SYSTEM "file://{secret}">]>',
    "external of a server": '<!DOCTYPE a [<!ENTITY l10 SYSTEM "{url}/x">]>',
    "parameter": '<!DOCTYPE a [<!ENTITY % p SYSTEM "{url}/x.dtd">%p;<!ENTITY l10 "x">]>',
}
DOCUMENTS = {
    "WMTS": '<Capabilities xmlns="http://www.opengis.net/wmts/1.0"><Contents>&l10;</Contents></Capabilities>',
    "TMS": "<TileMap><SRS>&l10;</SRS></TileMap>",
    "other": "<anything>&l10;</anything>",
}


@pytest.mark.attack(
    "XML entities of a server", "billion laughs, files and servers as entities, in WMTS, TMS and other XML"
)
@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("entities", ENTITIES)
def test_entities_of_xml_are_not_followed(attack, site, entities, document):
    canary = attack.canary
    head = ENTITIES[entities].replace("{secret}", str(canary.secret_file)).replace("{url}", canary.url)
    (site[0] / "evil.xml").write_text(head + DOCUMENTS[document])
    with attack.refused("evil.xml") as _:
        open_raster(f"{site[1]}/evil.xml")


@pytest.mark.attack("XML entities in a VRT", "billion laughs, and a file as an entity")
@pytest.mark.parametrize("entities", ["billion laughs", "external"])
def test_entities_of_a_virtual_raster_are_not_followed(attack, tmp_path, entities):
    head = ENTITIES[entities].replace("{secret}", str(attack.canary.secret_file))
    (tmp_path / "evil.vrt").write_text(head + simple_source("&l10;"))
    with attack.refused("evil.vrt"):
        bytes_of(open_raster(str(tmp_path / "evil.vrt")))


@pytest.mark.attack("documents of a server", "nesting without end in STAC, redirects to files, assets on this machine")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep.json", "[" * 200_000),
        ("deep-object.json", '{"a":' * 200_000),
        ("asset.json", '{"type": "Feature", "assets": {"a": {"href": "file://SECRET", "roles": ["data"]}}}'),
        ("path.json", '{"type": "Feature", "assets": {"a": {"href": "/vsisubfile/0_99,SECRET", "roles": ["data"]}}}'),
        ("vsi.json", '{"type": "Feature", "assets": {"a": {"href": "vrt://SECRET", "roles": ["data"]}}}'),
    ],
)
def test_documents_of_a_server_lead_nowhere(attack, site, name, text):
    (site[0] / name).write_text(text.replace("SECRET", str(attack.canary.secret_file)))
    with attack.refused("is not JSON|which no document of the network may|404"):
        open_raster(f"{site[1]}/{name}")


@contextmanager
def redirecting(to: str):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", to)
            self.end_headers()

        def log_message(self, *_):
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.attack("documents of a server", "nesting without end in STAC, redirects to files, assets on this machine")
def test_redirect_to_a_file_is_not_followed(attack):
    with redirecting(f"file://{attack.canary.secret_file}") as url, attack.refused("file:"):
        open_raster(f"{url}/a.tif")


@pytest.mark.attack(
    "Zarr with a pickle", "a filter or compressor that unpickles, of band names, before any pixel is read"
)
@pytest.mark.parametrize("filters", [["pickle"], ["vlen-utf8", "pickle"], ["vlen-utf8"]])
def test_zarr_store_unpickles_nothing(attack, tmp_path, filters):
    store = tmp_path / "evil.zarr"
    group = zarr.open_group(store, mode="w", zarr_format=2)
    axes = {"band": np.arange(2.0), "y": 5_400_000 - np.arange(16.0), "x": 500_000 + np.arange(16.0)}
    for name, values in axes.items():
        group.create_array(name, data=values, compressors=None, attributes={"_ARRAY_DIMENSIONS": [name]})
    dims = {"_ARRAY_DIMENSIONS": list(axes)}
    group.create_array("image", data=np.zeros((2, 16, 16), "u1"), compressors=None, attributes=dims)
    meta = json.loads((store / "band" / ".zarray").read_text())
    meta |= {"dtype": "|O", "fill_value": "", "filters": [{"id": each} for each in filters]}
    meta["compressor"] = None if "pickle" in filters else {"id": "pickle"}
    (store / "band" / ".zarray").write_text(json.dumps(meta))
    (store / "band" / "0").write_bytes(pickle.dumps(Payload(attack.canary.witness)))
    with attack.refused("cannot be opened as a Zarr group"):
        open_raster(str(store))
    pickle.loads((store / "band" / "0").read_bytes())
    attack.proves_real()


# Sizes


def tiff(width: int, height: int, tile: int | None) -> bytes:
    """A GeoTIFF of a few hundred bytes with these dimensions in its header; one strip, or tiles of that side."""
    scale, tie, keys = b"SCALE", b"TIE", b"KEYS"
    data = {
        scale: struct.pack("<3d", 0.5, 0.5, 0.0),
        tie: struct.pack("<6d", 0, 0, 0, 500_000, 5_400_000, 0),
        keys: struct.pack("<12H", 1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633),
    }
    layout = [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 8), (325, 4, 1, 16)] if tile else [
        (273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 16)
    ]  # fmt: skip
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
        (33550, 12, 3, scale), (33922, 12, 6, tie), (34735, 3, 12, keys), *layout,
    ]  # fmt: skip
    tags.sort(key=lambda tag: tag[0])
    at = 8 + 2 + 12 * len(tags) + 4
    body, tail = struct.pack("<H", len(tags)), b""
    for number, kind, count, value in tags:
        if isinstance(value, bytes):
            tail, value = tail + data[value], at + len(tail)
        body += struct.pack("<HHII", number, kind, count, value)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0) + tail


HUGE = "2^31 pixels a side, tiles and strips of gigabytes, in a file of some hundred bytes"


@pytest.mark.attack("huge TIFF header", HUGE)
@pytest.mark.parametrize(("width", "tile"), [(2**31 - 1, None), (2**31 - 1, 2**20), (2**32 - 1, None)])
def test_dimensions_of_a_header_are_not_believed(attack, models, tmp_path, width, tile):
    (tmp_path / "evil.tif").write_bytes(tiff(width, width, tile))
    words = ["classify", str(tmp_path / "evil.tif"), str(tmp_path / "out.tif"), str(models["pt"])]
    says = "at most 268,435,456 a side are taken|Too large image size|cannot be opened"
    attack.refused_by_command(says, *words, "--bands", ",".join("1" * 6))
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.attack("huge TIFF header", HUGE)
@pytest.mark.parametrize("tile", [None, 199_984])
def test_tile_as_large_as_a_memory_is_not_made(attack, tmp_path, tile):
    (tmp_path / "evil.tif").write_bytes(tiff(200_000, 200_000, tile))
    raster = open_raster(str(tmp_path / "evil.tif"))
    with attack.refused("cannot be read at row 0"):
        raster.read(WINDOW)


def test_a_raster_that_is_none_of_these_is_read(tmp_path, image):
    """So that what is refused above is refused for its sake: pictures, and virtual rasters under their own name."""
    shutil.copy(image, tmp_path / "copy.TIF")
    (tmp_path / "plain.vrt").write_text(simple_source(str(image)))
    for name in ("copy.TIF", "plain.vrt"):
        assert set(bytes_of(open_raster(str(tmp_path / name)))) == {7}
    with rasterio.open(image, "r+") as dataset:
        dataset.build_overviews([2])
        assert dataset.transform == TRANSFORM
    assert set(bytes_of(open_raster(str(image)))) == {7}
