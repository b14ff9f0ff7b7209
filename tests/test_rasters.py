"""Rasters as they come, from files and DataArrays: pixels, validity, grids, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rioxarray
import xarray as xr
from affine import Affine
from conftest import TRANSFORM, write_raster
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.enums import ColorInterp

from geodl_dask.errors import BandCountError, GridMismatchError, RasterInputError, RasterNotFoundError, RasterReadError
from geodl_dask.rasters import arrays_of, open_pair, open_raster, request_grid
from geodl_dask.tiling import Window

CRS = "EPSG:32633"
SHAPE = (3, 20, 30)
CHUNKS = ((8, 8, 4), (16, 14))
WHOLE = Window(0, 0, 20, 30)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 200, SHAPE).astype(np.uint8)


def as_array(image: np.ndarray, *, transform=TRANSFORM, crs=CRS, dims=("y", "x"), **attrs) -> xr.DataArray:
    grid = GeoBox(image.shape[-2:], transform, crs)
    bands = ("band",) * (image.ndim - 2)
    return xr.DataArray(image, dims=(*bands, *dims), coords=xr_coords(grid, dims=dims), attrs=attrs)


def computed(raster) -> tuple[np.ndarray, np.ndarray]:
    return da.compute(*arrays_of(raster, CHUNKS), scheduler="synchronous")


# What has no place on the map


@pytest.mark.parametrize("crs", ['LOCAL_CS["site",UNIT["metre",1]]', "EPSG:4978"])
def test_crs_that_is_neither_projected_nor_geographic_is_refused(image, tmp_path, crs):
    path = write_raster(tmp_path / "local.tif", image, crs=crs)
    good = write_raster(tmp_path / "good.tif", image)
    with pytest.raises(RasterInputError, match="neither projected nor geographic"):
        open_raster(path)
    array = xr.DataArray(image, dims=("band", "y", "x")).rio.write_crs(crs).rio.write_transform(TRANSFORM)
    with pytest.raises(RasterInputError, match="neither projected nor geographic"):
        open_raster(array)
    for options in ({"output_crs": crs}, {"like": GeoBox((20, 30), TRANSFORM, crs)}):
        with pytest.raises((RasterInputError, GridMismatchError)):
            open_pair(good, good, request_grid(options))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_raster_with_a_crs_and_no_transform_is_refused(image, tmp_path):
    path = write_raster(tmp_path / "nowhere.tif", image, transform=Affine.identity())
    with pytest.raises(RasterInputError, match=r"raster .*nowhere\.tif has a CRS and no transform.*rio edit-info"):
        open_raster(path)


def test_file_name_that_is_not_utf_8_is_refused():
    with pytest.raises(RasterInputError, match=r"from_raster 'caf\\udce9\.tif' has a name that is not UTF-8"):
        open_raster("caf\udce9.tif", "from_raster")


# Validity of files. The oracle is GDAL's own mask, all bands together, without what is not finite.


def valid_by_gdal(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        bands = [band for band, what in enumerate(dataset.colorinterp, 1) if what != ColorInterp.alpha]
        pixels = dataset.read(bands)
        return (dataset.read_masks(bands) != 0).all(axis=0) & np.isfinite(pixels).all(axis=0)


def plain(folder: Path, image: np.ndarray) -> Path:
    return write_raster(folder / "plain.tif", image)


def with_nodata(folder: Path, image: np.ndarray) -> Path:
    image[1, 2, 3] = image[:, 7, 20:] = 0
    return write_raster(folder / "nodata.tif", image, nodata=0)


def with_float_nodata(folder: Path, image: np.ndarray) -> Path:
    image = image.astype(np.float32)
    image[1, 2, 3], image[0, 4, 5], image[2, 6, 7] = -9999, np.nan, np.inf
    return write_raster(folder / "float_nodata.tif", image, nodata=-9999)


def with_nan_as_nodata(folder: Path, image: np.ndarray) -> Path:
    image = image.astype(np.float64)
    image[1, 2, 3] = np.nan
    return write_raster(folder / "nan.tif", image, nodata=np.nan)


def with_nan_undeclared(folder: Path, image: np.ndarray) -> Path:
    image = image.astype(np.float32)
    image[2, 2, 3], image[0, 9, 9] = np.nan, -np.inf
    return write_raster(folder / "undeclared.tif", image)


def with_negative_nodata(folder: Path, image: np.ndarray) -> Path:
    image = image.astype(np.int16)
    image[0, 0, 0] = -32768
    return write_raster(folder / "int16.tif", image, nodata=-32768)


def with_mask_band(folder: Path, image: np.ndarray) -> Path:
    mask = np.full(SHAPE[1:], 255, np.uint8)
    mask[3:5, 10:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_raster(folder / "mask.tif", image)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask)
    return path


def with_alpha_band(folder: Path, image: np.ndarray) -> Path:
    alpha = np.full((1, *SHAPE[1:]), 255, np.uint8)
    alpha[0, 11:, :4], alpha[0, 0, 0] = 0, 1
    return write_raster(folder / "alpha.tif", np.concatenate([image, alpha]), photometric="RGB", alpha="YES")


def with_nodata_per_band(folder: Path, image: np.ndarray) -> Path:
    """Band 1 has nodata 0, band 2 nodata 9, band 3 none; GeoTIFF knows but one, a virtual raster more."""
    image[0, 0, :3], image[1, 0, :3], image[2, 0, :3] = (0, 9, 5), (0, 9, 5), (0, 9, 5)
    source = write_raster(folder / "source.tif", image)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}">{nodata}<SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{source.name}</SourceFilename><SourceBand>{band}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for band, nodata in (
            (1, "<NoDataValue>0</NoDataValue>"),
            (2, "<NoDataValue>9</NoDataValue>"),
            (3, ""),
        )
    )
    path = folder / "per_band.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="30" rasterYSize="20"><SRS>{CRS}</SRS>'
        f"<GeoTransform>{', '.join(map(str, TRANSFORM.to_gdal()))}</GeoTransform>{bands}</VRTDataset>"
    )
    return path


FILES = {
    plain: 0, with_nodata: 11, with_float_nodata: 3, with_nan_as_nodata: 1, with_nan_undeclared: 2,
    with_negative_nodata: 1, with_mask_band: 40, with_alpha_band: 36, with_nodata_per_band: 2,
}  # fmt: skip


@pytest.fixture(params=FILES, ids=lambda make: make.__name__)
def file(request, tmp_path, image) -> tuple[Path, int]:
    """A file, and how many of its pixels are certainly not valid."""
    image = image.clip(10)
    return request.param(tmp_path, image), FILES[request.param]


def test_file_is_read_as_rasterio_reads_it_with_gdals_validity(file):
    path, invalid = file
    raster = open_raster(path)
    pixels, valid = raster.read(WHOLE)
    with rasterio.open(path) as dataset:
        expected = dataset.read([1, 2, 3])
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(valid, valid_by_gdal(path))
    assert (~valid).sum() == invalid
    assert (raster.dtype, len(raster.band_names), str(pixels.dtype)) == (str(expected.dtype), 3, str(expected.dtype))


@pytest.mark.parametrize("window", [WHOLE, Window(0, 0, 1, 1), Window(3, 7, 9, 11), Window(19, 29, 1, 1)])
def test_window_is_cut_from_the_whole(file, window):
    raster = open_raster(file[0])
    pixels, valid = raster.read(WHOLE)
    at = np.s_[..., window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width]
    part, part_valid = raster.read(window)
    np.testing.assert_array_equal(part, pixels[at])
    np.testing.assert_array_equal(part_valid, valid[at])


def test_lazy_blocks_of_a_file_are_its_windows(file):
    raster = open_raster(file[0])
    for lazy, eager in zip(arrays_of(raster, CHUNKS), raster.read(WHOLE), strict=True):
        assert lazy.chunks[-2:] == CHUNKS
        assert lazy.dtype == eager.dtype
        np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), eager)


KEPT_BY_RIOXARRAY = [make for make in FILES if make not in (with_mask_band, with_alpha_band, with_nodata_per_band)]


@pytest.mark.parametrize("make", KEPT_BY_RIOXARRAY, ids=lambda make: make.__name__)
@pytest.mark.parametrize("masked", [False, True])
def test_open_file_and_open_array_of_it_agree(tmp_path, image, make, masked):
    path = make(tmp_path, image)
    array = rioxarray.open_rasterio(path, masked=masked)
    pixels, valid = computed(open_raster(array))
    expected, expected_valid = open_raster(path).read(WHOLE)
    np.testing.assert_array_equal(valid, expected_valid)
    np.testing.assert_array_equal(pixels[:, valid], expected[:, valid])


def test_bands_of_several_types_are_read_in_the_type_that_holds_all(tmp_path, image):
    path = with_nodata_per_band(tmp_path, image)
    path.write_text(path.read_text().replace('dataType="Byte" band="3"', 'dataType="Int16" band="3"'))
    raster = open_raster(path)
    assert raster.dtype == "int16"
    np.testing.assert_array_equal(raster.read(WHOLE)[0], image)


def test_described_file_survives_pickling_and_another_working_folder(tmp_path, image, monkeypatch):
    write_raster(tmp_path / "plain.tif", image)
    monkeypatch.chdir(tmp_path)
    raster = pickle.loads(pickle.dumps(open_raster("plain.tif")))
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(raster.read(WHOLE)[0], image)


# Validity of DataArrays.


@pytest.mark.parametrize("key", ["_FillValue", "missing_value", "nodata"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_nodata_in_the_attributes_is_obeyed(image, key, dtype):
    valid = computed(open_raster(as_array(image.astype(dtype), **{key: 17})))[1]
    assert not valid.all()
    np.testing.assert_array_equal(valid, (image != 17).all(axis=0))


def test_nodata_of_0_is_obeyed(image):
    np.testing.assert_array_equal(computed(open_raster(as_array(image, _FillValue=0)))[1], (image != 0).all(axis=0))


def test_integers_keep_the_nodata_that_their_encoding_names(image):
    array = as_array(image)
    array.encoding["_FillValue"] = 17
    np.testing.assert_array_equal(computed(open_raster(array))[1], (image != 17).all(axis=0))


def test_decoded_numbers_have_nan_and_not_what_their_encoding_names(image):
    array = as_array(np.where(image == 17, np.nan, image + 1.0))
    array.encoding |= {"_FillValue": 17, "add_offset": 1}
    np.testing.assert_array_equal(computed(open_raster(array))[1], (image != 17).all(axis=0))


def test_nan_as_nodata_of_integers_makes_none_invalid(image):
    assert computed(open_raster(as_array(image, _FillValue=np.nan)))[1].all()


@pytest.mark.parametrize("value", [2**62 + 1, -(2**53) - 1])
def test_integers_of_64_bits_have_their_very_nodata(value):
    array = as_array(np.array([[value, value - 1], [value + 1, 0]]), _FillValue=np.int64(value))
    np.testing.assert_array_equal(open_raster(array).valid.compute(), [[False, True], [True, True]])


@pytest.mark.parametrize("value", ["none", [1, 2], b"0"])
@pytest.mark.parametrize("key", ["_FillValue", "scale_factor"])
def test_attribute_that_is_no_number_is_named(image, key, value):
    with pytest.raises(RasterInputError, match=f"^to_raster .*{key} .*; one number is needed"):
        open_raster(as_array(image, **{key: value}), "to_raster")


# Shapes and names of DataArrays.


def test_truth_values_are_0_and_1(image):
    raster = open_raster(as_array(image > 99))
    np.testing.assert_array_equal(computed(raster)[0], (image > 99).astype(np.uint8))
    assert raster.dtype == "uint8"


@pytest.mark.parametrize("dims", [("time",), ("time", "level")])
def test_other_dimensions_of_length_1_are_none(image, dims):
    array = as_array(image).assign_coords(band=["a", "b", "c"])
    for dim in dims:
        array = array.expand_dims(dim)
    raster = open_raster(array.transpose("band", "y", *dims, "x"), bands=["c", "a"])
    np.testing.assert_array_equal(computed(raster)[0], image[[2, 0]])
    one = open_raster(array.isel(band=[1]))
    np.testing.assert_array_equal(computed(one)[0], image[1:2])
    assert one.band_names == ("b",)


def test_array_without_pixels_is_refused(image):
    for array in (as_array(image).isel(band=slice(0, 0)), as_array(image)[:, :0]):
        with pytest.raises(RasterInputError, match="at least one pixel"):
            open_raster(array)


def test_dask_array_of_unknown_lengths_is_refused(image):
    lazy = da.from_array(image)
    lazy = lazy[da.from_array(np.array([True, True, False]))]
    array = xr.DataArray(lazy, dims=("band", "y", "x"), coords=as_array(image[0]).coords)
    with pytest.raises(RasterInputError, match=r"known lengths.*compute_chunk_sizes"):
        open_raster(array)


@pytest.mark.parametrize("order", [("band", "y", "x"), ("y", "x", "band"), ("x", "band", "y"), ("y", "band", "x")])
def test_order_of_dimensions_does_not_matter(image, order):
    raster = open_raster(as_array(image).transpose(*order))
    np.testing.assert_array_equal(computed(raster)[0], image)
    assert raster.grid.shape == SHAPE[1:]


@pytest.mark.parametrize("order", [("y", "x"), ("x", "y")])
def test_array_without_band_dimension_has_one_band(image, order):
    raster = open_raster(as_array(image[0]).transpose(*order))
    assert len(raster.band_names) == 1
    np.testing.assert_array_equal(computed(raster)[0], image[:1])


@pytest.mark.parametrize("crs", ["EPSG:4326", CRS])
@pytest.mark.parametrize("dims", [("y", "x"), ("latitude", "longitude")])
def test_names_of_the_dimensions_do_not_depend_on_the_crs(image, crs, dims):
    raster = open_raster(as_array(image, crs=crs, transform=Affine(0.01, 0, 10, 0, -0.01, 50), dims=dims))
    np.testing.assert_array_equal(computed(raster)[0], image)


def test_band_dimension_may_have_any_name(image):
    assert len(open_raster(as_array(image).rename(band="wavelength")).band_names) == 3


def test_cut_array_has_the_cut_grid(image):
    whole, part = open_raster(as_array(image)), open_raster(as_array(image)[:, 4:, 5:])
    assert part.grid == whole.grid[4:, 5:]


def test_dask_array_stays_lazy(image):
    def read(block):
        raise AssertionError("computed")

    lazy = da.from_array(image, chunks=(1, 7, 7)).map_blocks(read, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    pixels, valid = open_pair(as_array(lazy), as_array(lazy)).rasters[0].arrays(CHUNKS)
    assert (pixels.chunks, valid.chunks) == (((3,), *CHUNKS), CHUNKS)


def test_rounded_coordinates_are_evenly_spaced(image):
    array = as_array(image, crs="EPSG:4326", transform=Affine(1.037e-4, 0, 10.123456, 0, -1.037e-4, 50.654321))
    rounded = array.assign_coords(x=array.x.values.round(5), y=array.y.values.round(5))
    assert open_raster(rounded).grid.shape == SHAPE[1:]


@pytest.mark.parametrize("dim", ["y", "x"])
def test_uneven_coordinates_are_refused(image, dim):
    coordinates = as_array(image)[dim].values.copy()
    coordinates[5] += 0.1
    with pytest.raises(RasterInputError, match="evenly spaced"):
        open_raster(as_array(image).assign_coords({dim: coordinates}))


# What is refused.


def test_missing_file_is_named_with_its_role(tmp_path):
    with pytest.raises(RasterNotFoundError, match=r"to_raster .*none\.tif does not exist"):
        open_raster(tmp_path / "none.tif", "to_raster")


@pytest.mark.parametrize("content", [b"", b"no raster", b"II*\x00\x08\x00\x00\x00"])
def test_file_that_is_no_raster_is_refused(tmp_path, content):
    path = tmp_path / "text.tif"
    path.write_bytes(content)
    with pytest.raises(RasterInputError, match=r"text\.tif cannot be opened as a raster"):
        open_raster(path)


def test_raster_without_crs_is_refused_with_what_to_do(tmp_path, image):
    with pytest.raises(RasterInputError, match=r"no CRS.*rio edit-info"):
        open_raster(write_raster(tmp_path / "nowhere.tif", image, crs=None))
    array = as_array(image).drop_vars("spatial_ref")
    for dim in ("y", "x"):
        del array[dim].attrs["crs"]
    with pytest.raises(RasterInputError, match=r"no CRS.*write_crs"):
        open_raster(array)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_pixels_that_are_no_real_numbers_are_refused(tmp_path, image, dtype):
    with pytest.raises(RasterInputError, match=f"^to_raster .*{np.dtype(dtype)}"):
        open_raster(as_array(image.astype(dtype)), "to_raster")
    if dtype is not bool:
        with pytest.raises(RasterInputError, match=f"{np.dtype(dtype)}"):
            open_raster(write_raster(tmp_path / "complex.tif", image.astype(dtype)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda array: array.expand_dims(time=2), "at most one band dimension"),
        (lambda array: array[0, 0].drop_vars("y"), "evenly spaced y, x"),
        (lambda array: array.drop_vars(["y", "x", "spatial_ref"]), "evenly spaced y, x"),
        (lambda array: array.values, "is a ndarray"),
        (lambda array: None, "is a NoneType"),
    ],
)
def test_what_is_no_raster_is_refused(image, make, reason):
    with pytest.raises(RasterInputError, match=f"from_raster.*{reason}"):
        open_pair(make(as_array(image)), as_array(image))


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_file_fails_when_its_missing_pixels_are_read(tmp_path, image, kept):
    path = write_raster(tmp_path / "cut.tif", image.repeat(20, axis=1).repeat(20, axis=2))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    raster = open_raster(path)
    with pytest.raises(
        RasterReadError, match=r"cut\.tif cannot be read at row 336, column 536, 64 x 64 pixels: .+whole"
    ):
        raster.read(Window(336, 536, 64, 64))
    assert raster.read(Window(0, 0, 8, 8))[0].shape == (3, 8, 8)


def test_file_that_has_gone_fails_when_it_is_read(tmp_path, image):
    path = write_raster(tmp_path / "gone.tif", image)
    raster = open_raster(path)
    path.unlink()
    with pytest.raises(RasterReadError, match=r"gone\.tif cannot be read"):
        raster.read(WHOLE)


# Pairs.


def test_pair_shares_the_grid_of_the_from_raster_and_the_wider_type(tmp_path, image):
    path = write_raster(tmp_path / "from.tif", image)
    pair = open_pair(path, as_array(image.astype(np.int16)))
    assert (pair.dtype, pair.grid) == ("int16", open_raster(path).grid)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:2263", "+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80"])
def test_file_and_array_of_any_crs_are_one_grid(tmp_path, image, crs):
    path = write_raster(tmp_path / "from.tif", image, crs=crs, transform=Affine(0.01, 0, 10, 0, -0.01, 50))
    open_pair(path, rioxarray.open_rasterio(path))
    open_pair(as_array(image, crs=crs, transform=Affine(0.01, 0, 10, 0, -0.01, 50)), path)


def test_rotated_file_keeps_its_grid(tmp_path, image):
    transform = TRANSFORM @ Affine.rotation(30)
    path = write_raster(tmp_path / "rotated.tif", image, transform=transform)
    assert open_pair(path, path).grid.transform.almost_equals(transform)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"crs": "EPSG:32634"}, ["EPSG:32633", "EPSG:32634"]),
        ({"transform": TRANSFORM @ Affine.translation(0, 0.01)}, ["5399999.995"]),
        ({"transform": TRANSFORM @ Affine.scale(1.001)}, ["of 0.5 x 0.5", "of 0.5005 x 0.5005"]),
        ({"transform": TRANSFORM @ Affine.rotation(0.1)}, []),
    ],
)
def test_strict_alignment_refuses_other_pixels_with_both_grids(tmp_path, image, other, named):
    paths = write_raster(tmp_path / "from.tif", image), write_raster(tmp_path / "to.tif", image, **other)
    if "crs" in other:  # where they overlap
        # The same ground in two zones.
        write_raster(paths[0], image, transform=Affine(100, 0, 833000, 0, -100, 5399000))
        write_raster(paths[1], image, transform=Affine(100, 0, 391100, 0, -100, 5390200), **other)
    with pytest.raises(GridMismatchError, match="align is strict") as raised:
        open_pair(*paths, request_grid({"align": "strict"}))
    assert [text for text in [*named, "to_raster", "--align warp"] if text not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("shift_px", "is_one_grid"), [(0.0009, True), (-0.0009, True), (0.0011, False), (-0.0011, False)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_grids_may_differ_by_a_thousandth_of_a_pixel(image, shift_px, is_one_grid, axis):
    shift = (shift_px, 0) if axis else (0, shift_px)
    pair = as_array(image), as_array(image, transform=TRANSFORM @ Affine.translation(*shift))
    said = open_pair(*pair).accounts
    assert ["warped" in each for each in said] == [False, not is_one_grid]


def test_other_number_of_bands_is_refused_with_both(image):
    with pytest.raises(BandCountError, match=r"from_raster has 3 band\(s\) \(1, 2, 3\), to_raster 2 \(1, 2\)"):
        open_pair(as_array(image), as_array(image[:2]))


# Bands.


def described(folder: Path, image: np.ndarray) -> Path:
    path = write_raster(folder / "described.tif", image)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("Red", "Green", "nir")
    return path


def as_dataset(folder: Path, image: np.ndarray) -> xr.Dataset:
    return xr.Dataset(dict(zip(("Red", "Green", "nir"), as_array(image), strict=True)))


@pytest.mark.parametrize(
    "make",
    [
        described,
        lambda folder, image: rioxarray.open_rasterio(described(folder, image)),
        lambda folder, image: as_array(image).assign_coords(band=["Red", "Green", "nir"]),
        lambda folder, image: as_array(image).assign_coords(band=["Red", "Green", "nir"]).transpose("y", "x", "band"),
        as_dataset,
    ],
    ids=["file", "rioxarray", "named", "bands last", "dataset"],
)
def test_bands_are_chosen_by_name_in_any_order(tmp_path, image, make):
    raster = open_raster(
        make(tmp_path, image.copy()), bands=["NIR", "red"] if make is not as_dataset else ["nir", "Red"]
    )
    pixels, _ = computed(raster)
    np.testing.assert_array_equal(pixels, image[[2, 0]])
    assert raster.band_names == ("nir", "Red")


@pytest.mark.parametrize("bands", [[3, 1], ["3", "1"], np.array([3, 1])])
def test_bands_are_chosen_by_number_from_1(tmp_path, image, bands):
    for raster in (described(tmp_path, image), as_array(image)):
        np.testing.assert_array_equal(computed(open_raster(raster, bands=bands))[0], image[[2, 0]])


@pytest.mark.parametrize("bands", [[0], [4], ["blue"], [], "red", ["1.0"], [-1], 1, np.array([], int)])
def test_band_that_is_not_there_is_refused_with_those_that_are(tmp_path, image, bands):
    with pytest.raises(BandCountError, match=r"bands"):
        open_raster(described(tmp_path, image), bands=bands)
    with pytest.raises(BandCountError, match=r"has the bands 1 \(Red\), 2 \(Green\), 3 \(nir\)"):
        open_raster(described(tmp_path, image), bands=["swir"])


def test_dataset_of_several_variables_is_refused_with_their_names(image):
    with pytest.raises(BandCountError, match="variables Red, Green, nir"):
        open_raster(as_dataset(Path(), image))


def test_variable_of_a_dataset_is_a_raster(image):
    dataset = as_array(image).to_dataset(name="image").assign(time=3)
    np.testing.assert_array_equal(computed(open_raster(dataset))[0], image)


# Colour indices, scale and offset.


def with_palette(folder: Path, image: np.ndarray) -> tuple[Path, np.ndarray]:
    colors = np.random.default_rng(1).integers(0, 255, (256, 4)).astype(np.uint8)
    colors[:, 3] = 255
    colors[7] = 0
    path = write_raster(folder / "palette.tif", image[:1], photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {value: tuple(map(int, color)) for value, color in enumerate(colors)})
    return path, colors


def test_colour_indices_become_colours(tmp_path, image):
    path, colors = with_palette(tmp_path, image)
    raster = open_raster(path)
    pixels, valid = raster.read(WHOLE)
    with rasterio.open(path) as dataset:
        colors = dataset.colormap(1)  # GeoTIFF keeps no alpha
        index = dataset.read(1)
    np.testing.assert_array_equal(pixels, np.array([colors[each] for each in range(256)])[index, :3].transpose(2, 0, 1))
    assert (raster.band_names, raster.dtype, pixels.dtype) == (("red", "green", "blue"), "uint8", np.uint8)
    assert valid.all()


def test_transparent_colour_is_no_observation(tmp_path, image):
    path, _ = with_palette(tmp_path, image)
    virtual = tmp_path / "transparent.vrt"
    rasterio.shutil.copy(path, virtual, driver="VRT")
    before, *entries = virtual.read_text().split("<Entry")
    entries[7] = entries[7].replace('c4="255"', 'c4="0"')
    virtual.write_text("<Entry".join([before, *entries]))
    raster = open_raster(virtual)
    assert raster.band_names == ("red", "green", "blue")
    assert 7 in image[0]
    np.testing.assert_array_equal(raster.read(WHOLE)[1], image[0] != 7)


def test_band_1_of_a_palette_is_its_indices(tmp_path, image):
    path, _ = with_palette(tmp_path, image)
    np.testing.assert_array_equal(open_raster(path, bands=[1]).read(WHOLE)[0], image[:1])


@pytest.mark.filterwarnings("ignore:.* differ across bands")
@pytest.mark.parametrize("differ", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_file_and_arrays_and_store_of_it_are_scaled_alike(tmp_path, image, dtype, differ):
    path = write_raster(tmp_path / "scaled.tif", image.astype(dtype), nodata=3)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.25, 0.5 if differ else 0.25, 0.25), (3, 3, -1 if differ else 3)
    lazy = rioxarray.open_rasterio(path, chunks={"x": 7})
    rasters = [open_raster(array) for array in (rioxarray.open_rasterio(path), lazy)]
    if not differ:
        rasters.append(open_raster(rioxarray.open_rasterio(path, mask_and_scale=True)))
        lazy.encoding = {}
        lazy.to_dataset(name="image").to_zarr(tmp_path / "image.zarr", consolidated=False)
        rasters.append(open_raster(tmp_path / "image.zarr"))
    expected, valid = open_raster(path).read(WHOLE)
    for raster in rasters:
        pixels, seen = computed(raster)
        np.testing.assert_array_equal(seen, valid)
        np.testing.assert_array_equal(pixels[:, valid], expected[:, valid])
    assert not valid.all()
    some = [open_raster(source, bands=[3, 2]) for source in (path, lazy)]
    np.testing.assert_array_equal(*(computed(each)[0] for each in some))
    assert some[0].dtype == some[1].dtype == "float32"


def test_variables_keep_their_nodata_and_scale_as_bands(image):
    attrs = {"_FillValue": 17, "scale_factor": 0.5}
    dataset = xr.Dataset({name: as_array(image[at], **attrs) for at, name in enumerate("abc")})
    pixels, valid = computed(open_raster(dataset, bands=["c", "a"]))
    np.testing.assert_array_equal(valid, (image[[2, 0]] != 17).all(axis=0))
    np.testing.assert_array_equal(pixels, image[[2, 0]] * np.float32(0.5))
    dataset["a"].attrs["scale_factor"] = 1
    with pytest.raises(RasterInputError, match="c, a differ in nodata or scale"):
        open_raster(dataset, bands=["c", "a"])


def test_a_band_that_is_taken_for_alpha_is_named(tmp_path, image):
    near_infrared = np.full((1, *SHAPE[1:]), 90, np.uint8)
    path = write_raster(tmp_path / "rgbn.tif", np.concatenate([image, near_infrared]))  # GDAL marks it so unasked
    (account, _) = open_pair(str(path), str(path)).accounts
    assert "GeoTIFF with alpha in band 4, 3 band(s) of uint8" in account
    with pytest.raises(BandCountError, match=r"Band 4 is marked as alpha.* --colorinterp red,green,blue,nir"):
        open_raster(path, bands=[1, 2, 4])
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.nir]
    assert open_raster(path, bands=[1, 2, 4]).band_names == ("red", "green", "nir")
    with pytest.raises(BandCountError, match=r"4 \(nir\)\.$"):
        open_raster(path, bands=[5])


def test_dates_of_different_pixel_types_are_warned_of(tmp_path, image, caplog):
    path = write_raster(tmp_path / "a.tif", image)
    open_pair(str(path), str(path))
    assert not caplog.messages
    open_pair(str(path), str(write_raster(tmp_path / "b.tif", image.astype(np.uint16))))
    assert "from_raster has pixels of uint8, to_raster of uint16" in caplog.text


def test_alpha_and_nodata_both_make_invalid(tmp_path, image):
    alpha = (image[:1] % 5 != 0).astype(np.uint8) * 255
    path = write_raster(tmp_path / "both.tif", np.concatenate([image, alpha]), nodata=3, photometric="RGB", alpha="YES")
    pixels, valid = open_raster(path).read(WHOLE)
    np.testing.assert_array_equal(valid, (image != 3).all(axis=0) & (alpha[0] != 0))
    np.testing.assert_array_equal(pixels, image)


def test_scale_and_offset_are_honoured(tmp_path, image):
    path = write_raster(tmp_path / "scaled.tif", image.astype(np.uint16), nodata=3)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (1e-4, 1e-4, 1), (-0.1, 0.0, 0)
    raster = open_raster(path)
    pixels, valid = raster.read(WHOLE)
    expected = image * np.array([1e-4, 1e-4, 1])[:, None, None] + np.array([-0.1, 0, 0])[:, None, None]
    np.testing.assert_allclose(pixels, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(valid, (image != 3).all(axis=0))
    assert (raster.dtype, pixels.dtype) == ("float32", np.float32)
