"""Web layers by their plain URL: what is read is what the raster behind the server holds."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import write_raster
from servers import NORTH_FIRST, serving

from geodl_dask.errors import RasterInputError, RasterNotFoundError, RasterReadError
from geodl_dask.rasters import open_raster
from geodl_dask.tiling import Window

MERCATOR = 20037508.342789244
ZOOM = 14
PIXEL = 2 * MERCATOR / (256 << ZOOM)
FIRST_TILE = (5400, 8800)
"""Row and column of the tile in whose upper left corner, 40 rows and 70 columns off, the raster begins."""
OFFSET = (40, 70)
AT = (FIRST_TILE[0] * 256 + OFFSET[0], FIRST_TILE[1] * 256 + OFFSET[1])
"""Row and column of the raster's first pixel in the world of that zoom."""
SHAPE = (500, 600)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path_factory, monkeypatch):
    """In which GDAL must leave nothing behind."""
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(folder))
    yield
    assert list(folder.iterdir()) == []


def write(path: Path, *, dtype="uint8", bands=3, origin=AT, **profile) -> Path:
    kind = np.dtype(dtype)
    high = 250 if kind.itemsize == 1 else 30_000
    pixels = np.random.default_rng(2).integers(0, high, (bands, *SHAPE)).astype(dtype)
    profile = {"crs": "EPSG:3857", **profile}
    if bands != 3:
        profile["photometric"] = "MINISBLACK"  # or rasterio takes the last of four for alpha
    transform = profile.pop("transform", None) or Affine(
        PIXEL, 0, -MERCATOR + origin[1] * PIXEL, 0, -PIXEL, MERCATOR - origin[0] * PIXEL
    )
    return write_raster(path, pixels, transform=transform, **profile)


def assert_read_from(raster, path: Path, *, at=(0, 0), reach=0) -> None:
    """A window of the raster behind, and ``reach`` pixels beyond its corner, which are invalid.

    at : row and column of its first pixel in the layer's grid.
    """
    raster = pickle.loads(pickle.dumps(raster))
    pixels, valid = raster.read(Window(at[0] - reach, at[1] - reach, 300 + reach, 310 + reach))
    with rasterio.open(path) as dataset:
        expected = dataset.read(window=rasterio.windows.Window(0, 0, 310, 300))
        seen = (dataset.read_masks(window=rasterio.windows.Window(0, 0, 310, 300)) != 0).all(axis=0)
        place = raster.grid.transform @ (at[1], at[0])
        assert np.hypot(*np.subtract(place, dataset.transform @ (0, 0))) < PIXEL / 1000
        assert raster.grid.crs.to_epsg() == dataset.crs.to_epsg()
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(valid[reach:, reach:], seen)
    np.testing.assert_array_equal(pixels[:, reach:, reach:][:, seen], expected[:, seen])
    assert not valid[:reach].any()
    assert not valid[:, :reach].any()


# XYZ and TMS.

XYZ = r"/t/(?P<z>\d+)/(?P<x>\d+)/(?P<y>\d+)\.png"
XYZ_FROM_BELOW = r"/t/(?P<z>\d+)/(?P<x>\d+)/(?P<n>\d+)\.png"
WORLD = ((-MERCATOR, MERCATOR), PIXEL, ZOOM)


@pytest.mark.parametrize(("pattern", "y"), [(XYZ, "{y}"), (XYZ_FROM_BELOW, "{-y}")])
def test_xyz_layer_is_the_raster_behind(tmp_path, pattern, y):
    path = write(tmp_path / "map.tif")
    with serving(("tiles", path, pattern, *WORLD)) as site:
        raster = open_raster(f"{site.url}/t/{{z}}/{{x}}/{y}.png#zoom={ZOOM}")
        assert_read_from(raster, path, at=AT, reach=320)
    assert raster.kind == f"XYZ layer, zoom {ZOOM}"
    assert raster.grid.shape == (256 << ZOOM, 256 << ZOOM)


def test_coarser_level_of_an_xyz_layer_is_its_overview(tmp_path):
    path = write(tmp_path / "map.tif")
    with serving(("tiles", path, XYZ, *WORLD)) as site:
        raster = open_raster(f"{site.url}/t/{{z}}/{{x}}/{{y}}.png#zoom={ZOOM}")
        with rasterio.open(raster.dataset) as dataset:
            assert dataset.overviews(1) == [2**level for level in range(1, ZOOM + 1)]
        with rasterio.open(raster.dataset, overview_level=1) as dataset:
            dataset.read(1, window=rasterio.windows.Window(AT[1] // 4, AT[0] // 4, 10, 10))
        assert [path for path, *_ in site.log if "/12/" in path]


def test_zoom_of_an_xyz_layer_is_18_unless_said(tmp_path):
    with serving(("status", 404)) as site:
        assert open_raster(f"{site.url}/{{z}}/{{x}}/{{y}}.png").grid.shape == (256 << 18, 256 << 18)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{z}/{x}/{y}.png#zoom=best", "#zoom=best is no zoom"),
        ("{z}/{x}/{y}.png#23", "0 to 22"),
        ("{z}/{x}/{y}.png?key={key}", "has the placeholder {key}"),
    ],
)
def test_xyz_template_that_cannot_be_filled_is_refused(text, message):
    with pytest.raises(RasterInputError, match=message):
        open_raster(f"http://127.0.0.1:9/{text}", "to_raster")


@pytest.mark.parametrize("code", [500, 503, 403])
def test_failing_tile_fails_the_read(tmp_path, code):
    """The probe of tile 0/0/0 is answered, the others fail."""
    path = write(tmp_path / "map.tif")
    world = ("tiles", path, r"/t/(?P<z>0)/(?P<x>0)/(?P<y>0)\.png", *WORLD)
    with serving(world, ("status", code)) as site:
        raster = open_raster(f"{site.url}/t/{{z}}/{{x}}/{{y}}.png#zoom={ZOOM}")
        with pytest.raises(RasterReadError, match="cannot be read at row"):
            raster.read(Window(*AT, 100, 100))


def test_tile_that_is_no_image_fails_at_once(tmp_path):
    with (
        serving(("document", "/0/0/0.png", "text/html", "<html>Log in</html>")) as site,
        pytest.raises(RasterInputError, match="is no image tile; it begins with '<html>Log in"),
    ):
        open_raster(f"{site.url}/{{z}}/{{x}}/{{y}}.png")


def test_server_of_tiles_that_is_not_there_cannot_be_reached():
    with serving() as site:
        pass
    with pytest.raises(RasterNotFoundError, match="cannot be reached"):
        open_raster(f"{site.url}/{{z}}/{{x}}/{{y}}.png")


TILE_MAP = """<?xml version="1.0" encoding="utf-8"?>
<TileMap version="1.0.0" tilemapservice="http://tms.osgeo.org/1.0.0">
  <Title>map</Title><SRS>{srs}</SRS><BoundingBox minx="{box[0]}" miny="{box[1]}" maxx="{box[2]}" maxy="{box[3]}"/>
  <Origin x="{origin[0]}" y="{origin[1]}"/><TileFormat width="256" height="256" mime-type="image/png" extension="png"/>
  <TileSets profile="{profile}">{sets}</TileSets></TileMap>"""


def tile_sets(finest: float, levels: range) -> str:
    return "".join(
        f'<TileSet href="{level}" units-per-pixel="{finest * 2 ** (levels[-1] - level)!r}" order="{level}"/>'
        for level in levels
    )


@pytest.mark.parametrize(("address", "coarsest"), [("/t/tilemapresource.xml", 0), ("/t", 3)])
def test_tms_of_the_world_is_the_raster_behind(tmp_path, address, coarsest):
    path = write(tmp_path / "map.tif")
    text = TILE_MAP.format(
        srs="EPSG:3857", box=(-85.05, -180, 85.05, 180), origin=(-MERCATOR, -MERCATOR), profile="mercator",
        sets=tile_sets(PIXEL, range(coarsest, ZOOM + 1)),
    )  # fmt: skip
    with serving(("document", address, "text/xml", text), ("tiles", path, XYZ_FROM_BELOW, *WORLD)) as site:
        raster = open_raster(site.url + address)
        assert_read_from(raster, path, at=AT, reach=20)
    assert raster.kind == f"TMS layer, level {ZOOM}"


def test_tms_of_a_region_begins_at_its_origin(tmp_path):
    """Two levels; the coarsest has one tile of 512 finest pixels from the origin, below and left."""
    path = write(tmp_path / "map.tif", crs="EPSG:32633", transform=Affine(0.5, 0, 4e5, 0, -0.5, 5e6 + 256))
    text = TILE_MAP.format(
        srs="EPSG:32633", box=(4e5, 5e6, 4e5 + 256, 5e6 + 256), origin=(4e5, 5e6), profile="local",
        sets=tile_sets(0.5, range(2)),
    )  # fmt: skip
    tiles = ("tiles", path, XYZ_FROM_BELOW, (4e5, 5e6 + 256), 0.5, 1)
    with serving(("document", "/t/tilemapresource.xml", "text/xml", text), tiles) as site:
        raster = open_raster(f"{site.url}/t/tilemapresource.xml")
        assert_read_from(raster, path)
    assert raster.grid.shape == (512, 512)


def test_tile_map_without_its_parts_is_refused():
    with (
        serving(("document", "/t", "text/xml", "<TileMap/>")) as site,
        pytest.raises(RasterInputError, match="is no TileMap of the Tile Map Service"),
    ):
        open_raster(f"{site.url}/t")


# ArcGIS.

IMAGE_SERVICE = "/arcgis/rest/services/image/ImageServer"
MAP_SERVER = "/arcgis/rest/services/map/MapServer"


@pytest.mark.parametrize(
    ("dtype", "bands", "nodata"),
    [
        ("uint8", 3, None),
        ("uint8", 3, 0),
        ("uint8", 1, None),
        ("uint8", 4, None),
        ("uint16", 4, None),
        ("int16", 2, -1),
        ("float32", 1, 7),
    ],
)
def test_image_service_gives_the_pixels_as_they_are(tmp_path, dtype, bands, nodata):
    path = write(tmp_path / "image.tif", dtype=dtype, bands=bands, nodata=nodata)
    with serving(("image_service", path, {})) as site:
        raster = open_raster(site.url + IMAGE_SERVICE)
        assert raster.grid.shape == SHAPE
        assert len(raster.band_names) == bands
        assert_read_from(raster, path)
        with rasterio.open(raster.dataset) as dataset:
            assert dataset.overviews(1) == []
    assert raster.kind == "Image Service"


def test_large_image_service_is_asked_for_blocks_and_has_overviews(tmp_path):
    path = write(tmp_path / "image.tif")
    with serving(("image_service", path, {"maxImageHeight": 128, "maxImageWidth": 256})) as site:
        raster = open_raster(site.url + IMAGE_SERVICE)
        assert_read_from(raster, path)
        assert {size for path, *_ in site.log for size in [path.partition("&size=")[2][:9]] if size} == {"128%2C128"}
        with rasterio.open(raster.dataset) as dataset:
            assert dataset.overviews(1) == [2, 4, 8]


def test_default_function_of_an_image_service_is_switched_off(tmp_path):
    path = write(tmp_path / "image.tif")
    with serving(("image_service", path, {"rasterFunctionInfos": [{"name": "Stretch"}, {"name": "None"}]})) as site:
        assert_read_from(open_raster(site.url + IMAGE_SERVICE), path)
        assert "renderingRule=%7B%22rasterFunction%22%3A%20%22None%22%7D" in site.log[-1][0]


def test_token_of_an_image_service_is_kept(tmp_path):
    path = write(tmp_path / "image.tif")
    with serving(("image_service", path, {"token": "a-b"})) as site:
        assert_read_from(open_raster(f"{site.url}{IMAGE_SERVICE}?token=a-b"), path)
        raster = open_raster(site.url + IMAGE_SERVICE)
        with pytest.raises(RasterReadError, match="cannot be read"):
            raster.read(Window(0, 0, 10, 10))


@pytest.mark.parametrize("address", [IMAGE_SERVICE, MAP_SERVER])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('{"error": {"code": 499, "message": "Token Required"}}', r"answered 499 Token Required.*\?token="),
        ("<html>Sign in</html>", "is not JSON .* begins with '<html>Sign in"),
        ('{"name": "x"}', "does not describe itself as a"),
        ("[]", "an object is needed"),
    ],
)
def test_service_that_does_not_describe_itself_is_refused(address, answer, message):
    with (
        serving(("document", address, "application/json", answer)) as site,
        pytest.raises(RasterInputError, match=f"to_raster .*{message}"),
    ):
        open_raster(site.url + address, "to_raster")


def test_map_server_is_drawn_at_its_finest_scale(tmp_path):
    path = write(tmp_path / "map.tif")
    with serving(("map_service", path, {"maxScale": PIXEL * 96 / 0.0254})) as site:
        raster = open_raster(site.url + MAP_SERVER)
        assert_read_from(raster, path)
    assert raster.grid.shape == SHAPE
    assert raster.kind == f"Map Server, drawn at scale 1:{PIXEL * 96 / 0.0254:.0f}"


def test_cached_map_server_gives_its_tiles(tmp_path):
    """Four levels, of which the coarsest breaks the row of halves, from an origin far from the data."""
    path = write(tmp_path / "map.tif")
    origin = (-MERCATOR, MERCATOR)
    info = {
        "rows": 256, "cols": 256, "origin": {"x": origin[0], "y": origin[1]},
        "spatialReference": {"wkid": 102100, "latestWkid": 3857},
        "lods": [{"level": 14 - at, "resolution": PIXEL * factor} for at, factor in enumerate((1, 2, 4, 9))],
    }  # fmt: skip
    tiles = ("tiles", path, rf"{MAP_SERVER}/tile/(?P<z>\d+)/(?P<y>\d+)/(?P<x>\d+)", *WORLD)
    about = {"singleFusedMapCache": True, "tileInfo": info}
    with serving(("map_service", path, about), tiles) as site:
        raster = open_raster(site.url + MAP_SERVER)
        first = tuple(each // 4 * 4 for each in FIRST_TILE)
        assert_read_from(raster, path, at=tuple(AT[axis] - first[axis] * 256 for axis in (0, 1)), reach=30)
        with rasterio.open(raster.dataset) as dataset:
            assert dataset.overviews(1) == [2, 4]
    assert raster.kind == "Map Server, cached tiles of level 14"
    assert max(raster.grid.shape) <= 8 * 256


# WMTS and WMS.


def capabilities(names: list[str]) -> str:
    matrices = "".join(
        f"<TileMatrix><ows:Identifier>{level}</ows:Identifier>"
        f"<ScaleDenominator>{PIXEL * 2 ** (ZOOM - level) / 0.00028!r}</ScaleDenominator>"
        f"<TopLeftCorner>{-MERCATOR!r} {MERCATOR!r}</TopLeftCorner><TileWidth>256</TileWidth>"
        f"<TileHeight>256</TileHeight>"
        f"<MatrixWidth>{1 << level}</MatrixWidth><MatrixHeight>{1 << level}</MatrixHeight></TileMatrix>"
        for level in range(ZOOM + 1)
    )
    layers = "".join(
        f"<Layer><ows:Identifier>{name}</ows:Identifier>"
        "<Style isDefault='true'><ows:Identifier>s</ows:Identifier></Style><Format>image/png</Format>"
        "<TileMatrixSetLink><TileMatrixSet>world</TileMatrixSet></TileMatrixSetLink>"
        f"<ResourceURL format='image/png' resourceType='tile' template='http://HOST/{name}/{{TileMatrix}}/{{TileCol}}/"
        "{TileRow}.png'/></Layer>"
        for name in names
    )
    return (
        "<?xml version='1.0'?><Capabilities xmlns='http://www.opengis.net/wmts/1.0' "
        "xmlns:ows='http://www.opengis.net/ows/1.1' version='1.0.0'><Contents>"
        f"{layers}<TileMatrixSet><ows:Identifier>world</ows:Identifier><ows:SupportedCRS>urn:ogc:def:crs:EPSG::3857"
        f"</ows:SupportedCRS>{matrices}</TileMatrixSet></Contents></Capabilities>"
    )


@pytest.mark.parametrize(("names", "choice"), [(["t"], ""), (["other", "t"], "#t")])
@pytest.mark.parametrize("address", ["/1.0.0/WMTSCapabilities.xml", "/wmts?SERVICE=WMTS&REQUEST=GetCapabilities"])
def test_wmts_layer_is_the_raster_behind(tmp_path, names, choice, address):
    path = write(tmp_path / "map.tif")
    page = ("document", address.partition("?")[0], "application/xml", capabilities(names))
    with serving(page, ("tiles", path, XYZ, *WORLD)) as site:
        raster = open_raster(site.url + address + choice)
        assert_read_from(raster, path, at=AT, reach=20)
    assert raster.kind == "WMTS layer t"


@pytest.mark.parametrize(("choice", "message"), [("", "layers a, b. Choose one"), ("#c", "layers a, b, not c")])
def test_wmts_of_several_layers_lists_them(choice, message):
    with (
        serving(("document", "/WMTSCapabilities.xml", "text/xml", capabilities(["a", "b"]))) as site,
        pytest.raises(RasterInputError, match=message),
    ):
        open_raster(f"{site.url}/WMTSCapabilities.xml{choice}")


EXCEPTION = (
    "<?xml version='1.0'?><ServiceExceptionReport><ServiceException>No</ServiceException></ServiceExceptionReport>"
)


@pytest.mark.parametrize("failure", [("status", 500), ("everything", "text/xml", EXCEPTION)])
def test_failing_tile_of_a_wmts_fails_the_read(failure):
    with serving(("document", "/WMTSCapabilities.xml", "text/xml", capabilities(["t"])), failure) as site:
        raster = open_raster(f"{site.url}/WMTSCapabilities.xml")
        with pytest.raises(RasterReadError, match="cannot be read"):
            raster.read(Window(*AT, 100, 100))


@pytest.mark.parametrize("document", ["<WMS_Capabilities><Name>x</Name></WMS_Capabilities>", "<a><b></a>"])
def test_other_xml_is_refused(document):
    with serving(("document", "/x", "text/xml", document)) as site, pytest.raises(RasterInputError, match="XML"):
        open_raster(f"{site.url}/x")


@pytest.mark.parametrize(
    ("version", "crs"), [
        ("1.1.1", "SRS=EPSG:32633"), ("1.3.0", "CRS=EPSG:32633"), ("1.3.0", "CRS=EPSG:4326"),
        ("1.3.0", "CRS=EPSG:3035"), ("1.3.0", "CRS=EPSG:4258"), ("1.3.0", "CRS=epsg:31467"), ("1.1.1", "SRS=EPSG:3035"),
        ("1.3.0", "CRS=EPSG:3031"),
    ],
)  # fmt: skip
def test_wms_is_read_on_the_grid_of_the_request(tmp_path, version, crs):
    number = crs.partition("=")[2]
    is_geographic = number in ("EPSG:4326", "EPSG:4258")
    transform = Affine(0.01, 0, 10, 0, -0.01, 50) if is_geographic else Affine(0.5, 0, 4e5, 0, -0.5, 5e6)
    path = write(tmp_path / "map.tif", crs=number, transform=transform)
    with rasterio.open(path) as dataset:
        left, bottom, right, top = dataset.bounds
    is_north_first = version == "1.3.0" and number.upper() in NORTH_FIRST
    box = (bottom, left, top, right) if is_north_first else (left, bottom, right, top)
    with serving(("wms", path)) as site:
        raster = open_raster(
            f"{site.url}/wms?SERVICE=WMS&REQUEST=GetMap&VERSION={version}&LAYERS=a,b&STYLES=&{crs}&FORMAT=image/png"
            f"&BBOX={','.join(map(repr, box))}&WIDTH=600&HEIGHT=500&key=1"
        )
        assert_read_from(raster, path)
        assert all("key=1" in asked for asked, *_ in site.log)
    assert raster.kind == "WMS layer a,b"


def test_wms_without_a_grid_is_refused():
    with pytest.raises(RasterInputError, match="no complete GetMap request"):
        open_raster("http://127.0.0.1:9/wms?SERVICE=WMS&REQUEST=GetCapabilities")
