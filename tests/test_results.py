"""Written results, opened again, whole and coarse."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from servers import serving

import geodl_dask as gd
from geodl_dask import results
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.errors import RasterInputError, RasterNotFoundError
from geodl_dask.results import coarse_view

TABLE = ClassTable((ModelClass(0, "No change", (230, 230, 230)), ModelClass(7, "Change", (200, 30, 30))))
SIDE = 1400
PLACE = Affine(2, 0, 400_000, 0, -2, 5_400_000)


def raster(pixels: np.ndarray, chunks: int = 512, transform: Affine = PLACE) -> xr.DataArray:
    grid = GeoBox(pixels.shape, transform, "EPSG:32633")
    return xr.DataArray(
        da.from_array(pixels, chunks), dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")), name="change",
        attrs={"long_name": "change", "_FillValue": TABLE.nodata, **TABLE.to_attrs(), "tile_size": [16, 16]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """Patches of 20 pixels of 0, 7 and nodata, the first two with a speck of 3, which is not listed."""
    rng = np.random.default_rng(5)
    coarse = rng.choice(np.array([0, 7, 255], np.uint8), (SIDE // 20, SIDE // 20))
    whole = coarse.repeat(20, 0).repeat(20, 1)
    specks = whole[2::20, 2::20]
    specks[specks != 255] = 3  # GDAL's most frequent class is never nodata where there is another
    return whole


@pytest.fixture(scope="module", params=["change.tif", "change.zarr", "flat.zarr"])
def written(request, tmp_path_factory, patches):
    """A COG, a store with a pyramid, and one without."""
    out = tmp_path_factory.mktemp("written") / request.param
    if out.suffix == ".tif":
        gd.write_cog(raster(patches), out)
    else:
        gd.write_zarr(raster(patches), out, pyramid=out.stem == "change")
    return out


def test_result_opens_as_it_was_given_to_the_writer(written, patches):
    lazy, again = raster(patches), gd.open_change(written)
    assert again.chunks is not None
    np.testing.assert_array_equal(again, patches)
    assert again.odc.geobox == lazy.odc.geobox
    listed = ClassTable.from_attrs(again.attrs)
    assert listed == TABLE.with_unlisted([3])  # which the writer has found
    names = {"flag_values", "flag_meanings", "flag_colors", "class_names"}
    others = {key: value for key, value in again.attrs.items() if key not in names}
    assert others == {key: value for key, value in lazy.attrs.items() if key not in names}


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_confidence_opens_as_it_is_kept(pair, models, tmp_path, suffix):
    both = gd.detect_change(*pair, models["pt2"], processor="cpu", confidence="uint8")
    (gd.write_cog if suffix == ".tif" else gd.write_zarr)(both, tmp_path / f"both{suffix}")
    again = gd.open_change(tmp_path / f"both{suffix}")
    xr.testing.assert_equal(again, both)
    assert again.confidence.attrs == both.confidence.attrs
    assert again.confidence.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("gone.tif", RasterNotFoundError, "no result"), ("change.jpg", RasterInputError, r"\.zarr"),
     ("broken.tif", RasterInputError, "cannot be opened"), ("empty.zarr", RasterInputError, "holds no array")],
)  # fmt: skip
def test_what_is_no_result_is_refused(tmp_path, name, error, message):
    (tmp_path / "broken.tif").write_bytes(b"II*\0broken")
    xr.Dataset().to_zarr(tmp_path / "empty.zarr", consolidated=False)
    with pytest.raises(error, match=message):
        gd.open_change(tmp_path / name)


def test_coarse_view_has_few_pixels_and_only_classes_of_the_result(written, patches):
    view = coarse_view(written, 100)
    assert max(view.shape) <= 100
    assert set(np.unique(view)) <= {0, 3, 7, 255}
    # Each pixel lies where the result has that class.
    found = raster(patches).sel(x=view.x, y=view.y, method="nearest")
    assert (found.data == view.data).mean() > 0.7
    assert view.odc.geobox.boundingbox.bbox == pytest.approx(raster(patches).odc.geobox.boundingbox.bbox, abs=60)


def test_coarse_view_takes_the_most_frequent_class_where_there_are_overviews(written, patches):
    specks = int((coarse_view(written, 350) == 3).sum())  # every fourth pixel is taken
    assert specks == (0 if written.name != "flat.zarr" else int((patches[2::4, 2::4] == 3).sum()))
    assert (patches[2::4, 2::4] == 3).any()


@pytest.mark.parametrize("cut", [np.s_[200:1000, 400:1300], np.s_[1390:, :10]])
def test_coarse_view_of_a_cut_is_that_of_its_place(written, patches, cut):
    view = coarse_view(gd.open_change(written)[cut], 80)
    here = raster(patches)[cut]
    assert max(view.shape) <= 80 + 1
    assert view.odc.geobox.boundingbox.bbox == pytest.approx(here.odc.geobox.boundingbox.bbox, abs=60)
    assert (here.sel(x=view.x, y=view.y, method="nearest").data == view.data).mean() > 0.7


def test_file_is_read_at_its_overviews(written, monkeypatch):
    """Whatever reads the file as it is computes blocks, which fails here."""
    monkeypatch.setattr(da.Array, "__array__", lambda *args, **named: pytest.fail("a block was read"))
    assert max(coarse_view(written, 100).shape) <= 100
    assert max(coarse_view(gd.open_change(written)[100:], 100).shape) <= 100


def test_file_is_read_at_its_overviews_under_any_name(written):
    assert coarse_view(gd.open_change(written).rename("2024"), 100).equals(coarse_view(written, 100).rename("2024"))


@pytest.mark.parametrize("written", ["change.tif"], indirect=True)
def test_result_of_a_server_opens_too(written, patches):
    with serving(("files", str(written.parent))) as server:
        opened = gd.open_change(f"{server.url}/{written.name}")
        assert (opened.values == patches).all()
        assert opened.attrs["tile_size"] == [16, 16]
        assert max(coarse_view(opened, 100).shape) <= 100


@pytest.mark.parametrize("written", ["change.tif"], indirect=True)
def test_tag_that_somebody_has_written_stays_text(written):
    copy = written.with_name("edited.tif")
    copy.write_bytes(written.read_bytes())
    with rasterio.open(copy, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(tile_size="16 by 16", padding="four")
    assert (gd.open_change(copy).attrs["tile_size"], gd.open_change(copy).attrs["padding"]) == ("16 by 16", "four")


def test_store_that_asks_to_be_unpickled_is_refused_in_our_words(tmp_path):
    store = zarr.open_group(tmp_path / "change.zarr", mode="w", zarr_format=2)
    for name, shape in {"change": (4, 4), "y": (4,), "x": (4,)}.items():
        store.create_array(name, shape=shape, dtype="u1").attrs["_ARRAY_DIMENSIONS"] = ["y", "x"][-len(shape) :]
    about = tmp_path / "change.zarr" / "y" / ".zarray"
    asked = {**json.loads(about.read_text()), "dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}
    about.write_text(json.dumps(asked))
    (tmp_path / "change.zarr" / "y" / "0").write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(RasterInputError, match="cannot be opened as a result"):
        gd.open_change(tmp_path / "change.zarr")
    assert not (tmp_path / "ran").exists()


def test_changed_copy_of_a_file_is_not_drawn_from_the_file(written):
    opened = gd.open_change(written)
    assert opened.encoding["source"] == str(written)
    for changed in (opened.copy(data=7 - opened.data * 0), opened.where(opened < 0, 7), opened * 0 + 7):
        assert (coarse_view(changed.assign_attrs(opened.attrs), 100) == 7).all()
    in_memory = opened.compute()
    in_memory[:] = 7
    assert (coarse_view(in_memory, 100) == 7).all()
    assert (coarse_view(in_memory.chunk(100), 100) == 7).all()


def test_large_result_that_is_not_computed_is_refused(monkeypatch, patches):
    monkeypatch.setattr(results, "LARGEST_PX", 1000)
    lazy = raster(patches)
    lazy.data = lazy.data.map_blocks(lambda block: pytest.fail("a block was computed"), meta=lazy.data._meta)
    with pytest.raises(RasterInputError, match=r"1,400 x 1,400 pixels.*write_cog"):
        coarse_view(lazy, 100)


def test_large_file_opened_by_xarray_is_drawn_by_its_middle_pixels(monkeypatch, tmp_path, patches):
    monkeypatch.setattr(results, "LARGEST_PX", 1000)
    gd.write_zarr(raster(patches), tmp_path / "change.zarr")
    opened = xr.open_zarr(tmp_path / "change.zarr", mask_and_scale=False).change
    np.testing.assert_array_equal(coarse_view(opened, 140), patches[5::10, 5::10])


@pytest.mark.parametrize("shape_yx", [(1, 1), (1, 900), (3, 2000)])
def test_strips_are_seen_too(tmp_path, shape_yx):
    pixels = np.full(shape_yx, 7, np.uint8)
    gd.write_cog(raster(pixels), tmp_path / "strip.tif")
    for given in (raster(pixels), tmp_path / "strip.tif"):
        view = coarse_view(given, 100)
        assert view.size
        assert (view == 7).all()


def test_file_of_a_turned_grid_opens_on_it(tmp_path):
    turned = Affine.translation(400_000, 5_400_000) @ Affine.rotation(30) @ Affine.scale(2, -2)
    lazy = raster(np.full((70, 90), 7, np.uint8), transform=turned)
    for name, write in (("a.tif", gd.write_cog), ("a.zarr", gd.write_zarr)):
        write(lazy, tmp_path / name)
        assert gd.open_change(tmp_path / name).odc.geobox == lazy.odc.geobox
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.transform.almost_equals(turned)


def test_an_empty_cut_is_said_to_be_one(patches):
    with pytest.raises(RasterInputError, match=r"no pixels \(\{'y': 0, 'x': 1400\}\): what was cut"):
        gd.change_table(raster(patches)[SIDE:])
