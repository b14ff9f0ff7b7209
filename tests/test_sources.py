"""What a user may write for a raster: each kind read as GDAL reads the file beneath, and each refusal's message."""

from __future__ import annotations

import json
import pickle
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from conftest import TRANSFORM, write_raster
from servers import serving

from geodl_dask.errors import RasterInputError, RasterNotFoundError, RasterReadError
from geodl_dask.rasters import open_raster
from geodl_dask.rasters.gdal import opened
from geodl_dask.tiling import Window

WINDOW = Window(5, 9, 40, 50)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (3, 83, 109)).astype(np.uint8)


@pytest.fixture
def file(tmp_path, image) -> Path:
    return write_raster(tmp_path / "image.tif", image)


def assert_read_as(raster, path: Path) -> None:
    """The same pixels, validity and place as rasterio reads from a file for the same window."""
    pixels, valid = raster.read(WINDOW)
    where = rasterio.windows.Window(WINDOW.col_off, WINDOW.row_off, WINDOW.width, WINDOW.height)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(pixels, dataset.read(window=where))
        np.testing.assert_array_equal(valid, (dataset.read_masks(window=where) != 0).all(axis=0))
        assert raster.grid.transform.almost_equals(dataset.transform)
        assert (raster.grid.shape, raster.grid.crs.to_epsg()) == (dataset.shape, dataset.crs.to_epsg())


# What GDAL opens by itself.


def as_path(file: Path) -> str:
    return str(file)


def as_virtual_raster(file: Path) -> str:
    rasterio.shutil.copy(file, file.with_suffix(".vrt"), driver="VRT")
    return str(file.with_suffix(".vrt"))


def as_xml(file: Path) -> str:
    return "\n" + Path(as_virtual_raster(file)).read_text().replace(
        'relativeToVRT="1">', f'relativeToVRT="0">{file.parent}/'
    )


def as_prefixed(file: Path) -> str:
    return f"GTIFF_DIR:1:{file}"


def as_zipped(file: Path) -> str:
    with zipfile.ZipFile(file.with_suffix(".zip"), "w") as archive:
        archive.write(file, "inside.tif")
    return f"/vsizip/{file.with_suffix('.zip')}/inside.tif"


def as_zip_url(file: Path) -> str:
    as_zipped(file)
    return f"zip://{file.with_suffix('.zip')}!inside.tif"


def write_index(file: Path) -> Path:
    """A tile index of two halves of a file."""
    import pyogrio.raw
    import shapely

    with rasterio.open(file) as dataset:
        pixels, transform = dataset.read(), dataset.transform
    halves = {"left.tif": (0, 60), "right.tif": (60, 109)}
    for name, (start, stop) in halves.items():
        write_raster(file.parent / name, pixels[..., start:stop], transform=transform @ Affine.translation(start, 0))
    boxes = [
        shapely.to_wkb(shapely.box(*transform @ (start, 83), *transform @ (stop, 0))) for start, stop in halves.values()
    ]
    index = file.parent / "index.gti.gpkg"
    pyogrio.raw.write(
        index, np.array(boxes, object), [np.array([str(file.parent / name) for name in halves], object)], ["location"],
        geometry_type="Polygon", crs="EPSG:32633", driver="GPKG",
    )  # fmt: skip
    return index


def as_tile_index(file: Path) -> str:
    return str(write_index(file))


def as_tile_index_by_prefix(file: Path) -> str:
    return f"GTI:{write_index(file)}"


def as_tile_index_xml(file: Path) -> str:
    path = file.parent / "index.gti"
    path.write_text(
        f"<GDALTileIndexDataset><IndexDataset>{write_index(file)}</IndexDataset>"
        "<LocationField>location</LocationField></GDALTileIndexDataset>"
    )
    return str(path)


KINDS = [
    as_path, as_virtual_raster, as_xml, as_prefixed, as_zipped, as_zip_url, as_tile_index, as_tile_index_by_prefix,
    as_tile_index_xml,
]  # fmt: skip


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_what_gdal_opens_is_read_as_the_file_beneath(file, write):
    assert_read_as(open_raster(write(file)), file)


@pytest.mark.parametrize(
    "write", ["zip://image.zip!inside.tif", "/vsizip/image.zip/inside.tif", "zip+file://image.zip!inside.tif"]
)
def test_archive_of_the_working_folder_is_read_from_elsewhere(tmp_path, file, monkeypatch, write):
    as_zipped(file)
    monkeypatch.chdir(tmp_path)
    raster = open_raster(write)
    monkeypatch.chdir("/")
    assert_read_as(raster, file)


@pytest.mark.parametrize("relative", ["0", "1"])
def test_xml_with_files_of_the_working_folder_is_read_from_elsewhere(tmp_path, image, monkeypatch, relative):
    file = write_raster(tmp_path / "a & b.tif", image)
    xml = as_xml(file).replace(f"{file.parent}/", "").replace('relativeToVRT="0"', f'relativeToVRT="{relative}"')
    assert str(tmp_path) not in xml
    monkeypatch.chdir(tmp_path)
    raster = open_raster(xml)
    monkeypatch.chdir("/")
    assert_read_as(raster, file)


def test_prefixed_name_of_the_working_folder_is_read_from_elsewhere(tmp_path, file, monkeypatch):
    write_index(file)
    monkeypatch.chdir(tmp_path)
    rasters = open_raster("GTIFF_DIR:1:image.tif"), open_raster("GTI:index.gti.gpkg")
    monkeypatch.chdir("/")
    for raster in rasters:
        assert_read_as(raster, file)


SAID = {
    as_path: "GeoTIFF",
    as_virtual_raster: "virtual raster",
    as_tile_index: "tile index",
    as_tile_index_xml: "tile index",
}


@pytest.mark.parametrize("write", SAID, ids=lambda write: write.__name__)
def test_what_a_file_was_taken_for_is_said(file, write):
    assert open_raster(write(file)).kind == SAID[write]


# Files over HTTP.


def test_file_over_http_is_read_in_parts(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (3, 2048, 2048)).astype(np.uint8)
    path = write_raster(tmp_path / "large.tif", image, blockxsize=256, blockysize=256)
    with serving(("files", tmp_path)) as site:
        raster = open_raster(f"{site.url}/large.tif")
        assert_read_as(pickle.loads(pickle.dumps(raster)), path)
        assert site.bytes_served < path.stat().st_size / 10


def test_query_of_a_url_is_kept(tmp_path, file):
    with serving(("signed_files", tmp_path, "a&b=c")) as site:
        assert_read_as(open_raster(f"{site.url}/image.tif?token=a%26b%3Dc"), file)


def test_server_that_fails_later_fails_the_read(tmp_path, file):
    with serving(("files", tmp_path)) as site:
        raster = open_raster(f"{site.url}/image.tif")
    with pytest.raises(RasterReadError, match=r"image\.tif cannot be read at row"):
        raster.read(Window(0, 0, 83, 109))


def test_missing_file_on_a_server_is_not_found(tmp_path):
    with (
        serving(("files", tmp_path)) as site,
        pytest.raises(RasterNotFoundError, match=r"to_raster .*answered 404 Not"),
    ):
        open_raster(f"{site.url}/none.tif", "to_raster")


@pytest.mark.parametrize(("status", "hint"), [(401, "login or a token"), (403, "login or a token"), (500, "later")])
def test_refusal_of_a_server_is_said(status, hint):
    with serving(("status", status)) as site, pytest.raises(RasterInputError, match=hint) as raised:
        open_raster(f"{site.url}/x.tif")
    assert f"answered {status}" in str(raised.value)


def test_server_that_is_not_there_cannot_be_reached():
    with serving() as site:
        pass
    with pytest.raises(RasterNotFoundError, match=r"cannot be reached: .*refused"):
        open_raster(f"{site.url}/x.tif")


def test_web_page_is_no_raster(tmp_path):
    (tmp_path / "page.html").write_text("<html><body>Log in</body></html>")
    with serving(("files", tmp_path)) as site, pytest.raises(RasterInputError, match="is a web page"):
        open_raster(f"{site.url}/page.html")


def test_server_without_range_requests_is_refused(tmp_path, file):
    with (
        serving(("files", tmp_path), takes_ranges=False) as site,
        pytest.raises(RasterInputError, match=r"no range requests.* Download it"),
    ):
        open_raster(f"{site.url}/image.tif")


# What a server may not do: have files of this machine read.


def virtual(file: Path) -> str:
    return as_xml(file).strip()


def virtual_of_raw_bytes(_: Path) -> str:
    return (
        '<VRTDataset rasterXSize="10" rasterYSize="10"><SRS>EPSG:32633</SRS><GeoTransform>0,1,0,0,0,-1</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">'
        "/etc/passwd</SourceFilename><PixelOffset>1</PixelOffset><LineOffset>10</LineOffset></VRTRasterBand>"
        "</VRTDataset>"
    )


def tile_index(file: Path) -> str:
    return Path(as_tile_index_xml(file)).read_text()


EVIL = [virtual, virtual_of_raw_bytes, tile_index]


@pytest.mark.attack(
    "VRT, GTI, STAC of a server",
    "that name files of this machine, raw bytes among them, under any name, at once or later",
)
@pytest.mark.parametrize("name", ["evil.vrt", "evil.tif", "evil.xml"])
@pytest.mark.parametrize("write", EVIL, ids=lambda write: write.__name__)
def test_document_of_a_server_reads_no_files_of_this_machine(tmp_path, file, write, name):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text(write(file))
    with serving(("files", tmp_path / "site")) as site:
        for text in (f"{site.url}/{name}", f"/vsicurl/{site.url}/{name}", f"zip+{site.url}/{name}"):
            with pytest.raises(RasterInputError, match=r"download it, look|cannot be opened as a raster"):
                open_raster(text)
        with pytest.raises(RasterInputError, match="download it, look at the names"):
            open_raster(f"{site.url}/{name}")


@pytest.mark.attack(
    "VRT, GTI, STAC of a server",
    "that name files of this machine, raw bytes among them, under any name, at once or later",
)
@pytest.mark.parametrize("assets", [1, 2])
@pytest.mark.parametrize("is_local", [False, True])
def test_item_leads_to_no_virtual_raster_of_a_server(tmp_path, file, assets, is_local):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "evil.tif").write_text(virtual(file))
    with serving(("files", tmp_path / "site")) as site:
        href = {"href": f"{site.url}/evil.tif", "roles": ["data"]}
        item = {"type": "Feature", "assets": {f"a{at}": href for at in range(assets)}}
        path = tmp_path / "site" / "item.json"
        path.write_text(json.dumps(item))
        with pytest.raises(RasterInputError, match="download it, look at the names"):
            open_raster(path if is_local else f"{site.url}/item.json")


@pytest.mark.attack(
    "VRT, GTI, STAC of a server",
    "that name files of this machine, raw bytes among them, under any name, at once or later",
)
def test_server_that_changes_its_file_reads_no_files_of_this_machine_on_a_worker(tmp_path, file):
    (tmp_path / "site").mkdir()
    shutil.copy(file, tmp_path / "site" / "image.tif")
    with serving(("files", tmp_path / "site")) as site:
        raster = open_raster(f"{site.url}/image.tif")
        (tmp_path / "site" / "evil.tif").write_text(virtual(file))
        with pytest.raises(RasterInputError, match="download it, look at the names"):
            replace(raster, dataset=f"/vsicurl/{site.url}/evil.tif").read(WINDOW)


@pytest.mark.attack(
    "VRT, GTI, STAC of a server",
    "that name files of this machine, raw bytes among them, under any name, at once or later",
)
@pytest.mark.parametrize("sidecar", [".msk", ".ovr"])
def test_sidecar_of_a_server_is_a_raster_and_no_virtual_one(tmp_path, file, sidecar):
    (tmp_path / "site").mkdir()
    shutil.copy(file, tmp_path / "site" / "image.tif")
    (tmp_path / "site" / f"image.tif{sidecar}").write_text(virtual(file))
    with serving(("files", tmp_path / "site")) as site, pytest.raises(RasterInputError, match="download it, look"):
        open_raster(f"{site.url}/image.tif")


def test_mask_beside_a_file_of_a_server_is_obeyed(tmp_path, image):
    with_external_mask(tmp_path / "image.tif", image, image[0] > 99)
    with serving(("files", tmp_path)) as site:
        assert_read_as(open_raster(f"{site.url}/image.tif"), tmp_path / "image.tif")


# Settings of the user.


def test_http_settings_of_the_user_are_left_alone(file, monkeypatch):
    with rasterio.Env(GDAL_HTTP_MAX_RETRY="9"), opened(str(file)):
        assert rasterio.env.getenv()["GDAL_HTTP_MAX_RETRY"] == "9"
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "7")
    with opened(str(file)):
        assert "GDAL_HTTP_RETRY_DELAY" not in rasterio.env.getenv()
        assert "GDAL_HTTP_MAX_RETRY" in rasterio.env.getenv()


# Folders and globs.


def put_tiles(folder: Path, image: np.ndarray, *, overlap: int = 0) -> list[Path]:
    """An image in four GeoTIFFs; those to the right and below reach ``overlap`` pixels into their neighbours."""
    folder.mkdir(exist_ok=True)
    paths = []
    for row, col in ((0, 0), (0, 60), (50, 0), (50, 60)):
        top, left = max(row - overlap, 0), max(col - overlap, 0)
        part = image[:, top : row + 50 if row == 0 else None, left : col + 60 if col == 0 else None]
        path = folder / f"tile_{row:02}_{col:02}.tif"
        paths.append(write_raster(path, part, transform=TRANSFORM @ Affine.translation(left, top)))
    return paths


@pytest.mark.parametrize("write", ["{}", "{}/", "{}/*.tif", "{}/tile_??_*.tif", "{}/../**/tile*.tif"])
def test_tiles_of_an_image_are_the_image(tmp_path, file, image, write):
    put_tiles(tmp_path / "tiles", image, overlap=7)
    raster = open_raster(write.format(tmp_path / "tiles"))
    assert raster.kind == "mosaic of 4 files, later names over earlier"
    assert_read_as(pickle.loads(pickle.dumps(raster)), file)


def test_tiles_of_a_lattice_that_rounds_are_the_image(tmp_path, image):
    """Hundredths of a degree have no exact number: tile 2 is 6.999999999998 pixels from tile 1."""
    transform = Affine(0.01, 0, 100.1, 0, -0.01, 50.7)
    for at in range(0, 100, 7):
        write_raster(
            tmp_path / f"{at:03}.tif", image[..., at : at + 7], crs="EPSG:4326",
            transform=Affine(0.01, 0, 100.1 + at * 0.01, 0, -0.01, 50.7),
        )  # fmt: skip
    whole = write_raster(tmp_path / "whole.tiff", image[..., :105], crs="EPSG:4326", transform=transform)
    assert_read_as(open_raster(f"{tmp_path}/*.tif"), whole)


def test_folder_of_the_working_folder_is_read_from_elsewhere(tmp_path, file, image, monkeypatch):
    put_tiles(tmp_path / "tiles", image)
    monkeypatch.chdir(tmp_path)
    raster = open_raster("tiles/*.tif")
    monkeypatch.chdir("/")
    assert_read_as(raster, file)


def test_sidecars_in_a_glob_are_no_tiles(tmp_path, file, image):
    put_tiles(tmp_path / "tiles", image)
    (tmp_path / "tiles" / "tile_00_00.tif.aux.xml").write_text("<PAMDataset/>")
    assert_read_as(open_raster(f"{tmp_path}/tiles/*"), file)


def plain(path: Path, pixels: np.ndarray, valid: np.ndarray, **profile) -> None:
    valid[:] = True
    write_raster(path, pixels, **profile)


def with_nodata(path: Path, pixels: np.ndarray, valid: np.ndarray, nodata: int, **profile) -> None:
    pixels[:, ~valid] = nodata
    write_raster(path, pixels, nodata=nodata, **profile)
    valid &= (pixels != nodata).all(axis=0)


def with_nodata_9(path: Path, pixels: np.ndarray, valid: np.ndarray, **profile) -> None:
    with_nodata(path, pixels, valid, 9, **profile)


def with_nodata_0(path: Path, pixels: np.ndarray, valid: np.ndarray, **profile) -> None:
    with_nodata(path, pixels, valid, 0, **profile)


def with_internal_mask(path: Path, pixels: np.ndarray, valid: np.ndarray, **profile) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, pixels, **profile)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(valid)


def with_external_mask(path: Path, pixels: np.ndarray, valid: np.ndarray, **profile) -> None:
    write_raster(path, pixels, **profile)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(valid)
    assert path.with_name(path.name + ".msk").exists()


def with_alpha(path: Path, pixels: np.ndarray, valid: np.ndarray, **profile) -> None:
    alpha = np.where(valid, 200, 0).astype(np.uint8)[None]
    write_raster(path, np.concatenate([pixels, alpha]), photometric="RGB", alpha="YES", **profile)


WAYS = [plain, with_nodata_9, with_nodata_0, with_internal_mask, with_external_mask, with_alpha]


@pytest.mark.parametrize("below", WAYS, ids=lambda way: f"over {way.__name__}")
@pytest.mark.parametrize("above", WAYS, ids=lambda way: way.__name__)
def test_later_file_rules_where_it_has_an_observation(tmp_path, above, below):
    """Two files of 20 x 20 that share their middle; the oracle lays them with numpy. Left and right of it are gaps."""
    rng = np.random.default_rng(5)
    pixels, valid = np.zeros((3, 30, 30), np.uint8), np.zeros((30, 30), bool)
    for name, way, (row, col) in (("a.tif", below, (0, 0)), ("b.tif", above, (10, 10))):
        theirs = rng.integers(0, 12, (1, 20, 20)).astype(np.uint8).repeat(3, axis=0)
        seen = rng.random((20, 20)) < 0.6
        way(tmp_path / name, theirs, seen, transform=TRANSFORM @ Affine.translation(col, row))
        place = np.s_[row : row + 20, col : col + 20]
        pixels[:, *place][:, seen] = theirs[:, seen]
        valid[place] |= seen
    read, read_valid = open_raster(tmp_path).read(Window(0, 0, 30, 30))
    np.testing.assert_array_equal(read_valid, valid)
    np.testing.assert_array_equal(read[:, valid], pixels[:, valid])
    assert not valid[:10, 20:].any()
    assert (read[0, valid] == 0).any() or above is below is with_nodata_0


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_mosaic_keeps_the_pixels_of_any_type(tmp_path, dtype):
    kind = np.dtype(dtype)
    low, high = (-1e30, 1e30) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    pixels = np.random.default_rng(1).uniform(low, high, (1, 20, 30)).astype(kind)
    pixels[0, 3, 4:6] = low, high
    pixels[(pixels == 7) | (pixels == 8)] = 9  # these are nodata below
    write_raster(tmp_path / "a.tif", pixels[..., :15], nodata=7)
    write_raster(tmp_path / "b.tif", pixels[..., 15:], nodata=8, transform=TRANSFORM @ Affine.translation(15, 0))
    raster = open_raster(tmp_path)
    read, valid = raster.read(Window(0, 0, 20, 30))
    assert raster.dtype == dtype
    assert valid.all()
    np.testing.assert_array_equal(read, pixels)


def test_mosaic_keeps_names_scales_and_colours(tmp_path, image):
    for name, col in (("a.tif", 0), ("b.tif", 109)):
        transform = TRANSFORM @ Affine.translation(col, 0)
        with rasterio.open(write_raster(tmp_path / name, image, transform=transform), "r+") as dataset:
            dataset.descriptions, dataset.scales, dataset.offsets = ("x & <y>", "b", "c"), (2, 1, 0.5), (0, 3, -1)
    raster = open_raster(tmp_path)
    one = open_raster(tmp_path / "a.tif")
    assert (raster.band_names, raster.dtype) == (("x & <y>", "b", "c"), one.dtype)
    np.testing.assert_array_equal(raster.read(WINDOW)[0], one.read(WINDOW)[0])


def test_mosaic_keeps_a_palette(tmp_path, image):
    for name, col in (("a.tif", 0), ("b.tif", 109)):
        transform = TRANSFORM @ Affine.translation(col, 0)
        with rasterio.open(write_raster(tmp_path / name, image[:1], transform=transform), "r+") as dataset:
            dataset.write_colormap(1, {value: (value, 255 - value, 7, 255) for value in range(256)})
    np.testing.assert_array_equal(
        open_raster(tmp_path).read(WINDOW)[0], open_raster(tmp_path / "a.tif").read(WINDOW)[0]
    )


def test_mosaic_without_gaps_needs_no_mask(tmp_path, image):
    put_tiles(tmp_path / "tiles", image)
    assert open_raster(tmp_path / "tiles").all_valid
    (tmp_path / "tiles" / "tile_00_60.tif").unlink()
    raster = open_raster(tmp_path / "tiles")
    assert not raster.all_valid
    assert not raster.read(Window(0, 60, 50, 49))[1].any()


def test_folder_of_south_up_rasters_is_read(tmp_path, image):
    flip = TRANSFORM @ Affine.scale(1, -1)
    write_raster(tmp_path / "a.tif", image[:, :40], transform=flip)
    write_raster(tmp_path / "b.tif", image[:, 40:], transform=flip @ Affine.translation(0, 40))
    whole = write_raster(tmp_path / "whole.tiff", image, transform=flip)
    assert_read_as(open_raster(f"{tmp_path}/*.tif"), whole)


def test_mosaic_of_400_files_opens_in_seconds(tmp_path):
    pixels = np.zeros((3, 16, 16), np.uint8)
    for at in range(400):
        transform = TRANSFORM @ Affine.translation(at % 20 * 16, at // 20 * 16)
        write_raster(tmp_path / f"{at:03}.tif", pixels + at % 256, transform=transform)
    start = time.perf_counter()
    raster = open_raster(tmp_path)
    assert time.perf_counter() - start < 20
    assert len(raster.dataset) < 2000 * 400
    assert (raster.read(Window(16 * 7, 16 * 3, 16, 16))[0] == 7 * 20 + 3).all()


OTHERS = {
    "EPSG:32633, b.tif in EPSG:32634": {"crs": "EPSG:32634"},
    "has pixels of 0.5 x -0.5, b.tif of 0.6 x -0.5": {"transform": TRANSFORM @ Affine.scale(1.2, 1)},
    "shifted by 0.25 rows, 0.5 columns": {"transform": TRANSFORM @ Affine.translation(20.5, 3.25)},
    "b.tif is rotated": {"transform": TRANSFORM @ Affine.rotation(3)},
    r"a.tif has 3 band\(s\), b.tif has 2": {"bands": 2},
    "a.tif has uint8 pixels, b.tif has int16": {"dtype": "int16"},
    "b.tif has no CRS": {"crs": None},
}


@pytest.mark.parametrize("message", OTHERS)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, image, message):
    other = dict(OTHERS[message])
    theirs = image[: other.pop("bands", 3)].astype(other.pop("dtype", "uint8"))
    write_raster(tmp_path / "a.tif", image)
    write_raster(tmp_path / "b.tif", theirs, **other)
    with pytest.raises(RasterInputError, match=f"to_raster.*{message}"):
        open_raster(tmp_path, "to_raster")


def test_files_with_different_palettes_are_refused(tmp_path, image):
    for name, red in (("a.tif", 1), ("b.tif", 2)):
        with rasterio.open(write_raster(tmp_path / name, image[:1]), "r+") as dataset:
            dataset.write_colormap(1, {0: (red, 0, 0, 255)})
    with pytest.raises(RasterInputError, match=r"a\.tif and b\.tif have different palettes"):
        open_raster(tmp_path)


def test_broken_file_of_a_folder_is_named(tmp_path, image):
    write_raster(tmp_path / "a.tif", image)
    (tmp_path / "b.tif").write_bytes(b"II*\x00\x08\x00\x00\x00")
    with pytest.raises(RasterInputError, match=r"b\.tif cannot be opened"):
        open_raster(tmp_path)


# What is no raster.


@pytest.mark.parametrize("name", ["shapes.gpkg", "shapes.geojson", "shapes.shp"])
def test_vector_file_is_no_raster(tmp_path, name):
    import pyogrio.raw
    import shapely

    boxes = np.array([shapely.to_wkb(shapely.box(0, 0, 1, 1))], object)
    pyogrio.raw.write(tmp_path / name, boxes, [np.array([1])], ["a"], geometry_type="Polygon", crs="EPSG:4326")
    with pytest.raises(RasterInputError, match=r"to_raster .*cannot be opened as a raster: .*can be a mask"):
        open_raster(tmp_path / name, "to_raster")


def test_address_that_is_none_is_refused():
    with pytest.raises(RasterInputError, match=r"to_raster .*is no address"):
        open_raster("https://[foo/a.tif", "to_raster")


# What is not there.


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 300 + ".tif", "a" * 300 + "#b", "a" * 300 + "*"])
def test_name_longer_than_any_may_be_is_not_found(name):
    with pytest.raises(RasterNotFoundError, match="to_raster a"):
        open_raster(name, "to_raster")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ("none.tif", r"none\.tif does not exist \(looked in "),
        ("none/*.tif", r"none/\*\.tif matches no file"),
        ("", "does not exist"),
        ("empty", "is a folder without a GeoTIFF"),
        ("C:/none.tif", "does not exist"),
    ],
)
def test_what_is_not_there_is_not_found(tmp_path, monkeypatch, write, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RasterNotFoundError, match=f"to_raster.*{message}"):
        open_raster(write, "to_raster")
