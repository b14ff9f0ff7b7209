"""The state of an opened raster: the same while its pixels are, another once a file of it was written anew."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio.shutil
import rioxarray
from conftest import TRANSFORM, write_raster

from geodl_dask.rasters import open_raster, open_single
from geodl_dask.rasters.states import state_of

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 40, 50)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """One raster in many shapes, of which ``a.tif`` or its copy is a part."""
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "a.tif", PIXELS)
    (tmp_path / "tiles").mkdir()
    shutil.copy2(tmp_path / "a.tif", tmp_path / "tiles" / "a.tif")
    write_raster(tmp_path / "tiles" / "b.tif", PIXELS, transform=TRANSFORM @ rasterio.Affine.translation(50, 0))
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.tif", "a.tif")
    with rioxarray.open_rasterio(tmp_path / "a.tif", chunks=20) as array:
        array.to_dataset(name="v").to_zarr(tmp_path / "a.zarr", zarr_format=2)
        array.to_dataset(name="v").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    return tmp_path


MADE_OF = {
    "a.tif": "a.tif",
    "a.vrt": "a.tif",
    "tiles": "tiles/a.tif",
    "tiles/*.tif": "tiles/b.tif",
    "/vsizip/a.zip/a.tif": "a.zip",
    "a.zarr": "a.zarr/v/0.0.0",
    "a.nc": "a.nc",
    'NETCDF:"a.nc":v': "a.nc",
}


@pytest.mark.parametrize("name", MADE_OF)
def test_it_stays_until_a_file_is_written_anew(folder, name):
    before = state_of(open_raster(name))
    (folder / "a.tif.aux.xml").write_text("<PAMDataset/>")  # as GDAL keeps the statistics that a viewer asks for
    assert state_of(open_raster(name)) == before
    touched = folder / MADE_OF[name]
    at = touched.stat().st_mtime_ns
    os.utime(touched, ns=(at, at + 1))
    assert state_of(open_raster(name)) != before


def test_it_is_another_where_the_size_is(folder):
    before, at = state_of(open_raster("a.tif")), (folder / "a.tif").stat().st_mtime_ns
    with (folder / "a.tif").open("ab") as file:
        file.write(b"\0")
    os.utime("a.tif", ns=(at, at))
    assert state_of(open_raster("a.tif")) != before


def test_size_and_time_can_be_read_off(folder):
    os.utime("a.tif", (0, 1.5))
    size = (folder / "a.tif").stat().st_size
    assert state_of(open_raster("a.tif")) == f"bands 1,2,3 of {size:,} bytes of 1970-01-01 00:00:01.500000000 UTC"


BANDS = (1, 2), (2, 1)


@pytest.mark.parametrize("name", ["a.tif", "a.zarr", "a.nc", "array"])
def test_it_says_which_bands_are_read(folder, name):
    if name == "array":
        with rioxarray.open_rasterio("a.tif", chunks=20) as array:
            rasters = [array, array]
    else:
        rasters = [name, name]
    one, other = (state_of(open_raster(raster, bands=bands)) for raster, bands in zip(rasters, BANDS, strict=True))
    assert one != other


IN_ANOTHER_PROCESS = """
import numpy as np, rioxarray, xarray as xr
from geodl_dask.rasters import open_raster
from geodl_dask.rasters.states import state_of
with rioxarray.open_rasterio("a.tif", chunks=20) as lazy:
    print(state_of(open_raster(lazy)))
    print(state_of(open_raster(lazy.compute())))
"""


def test_array_from_the_same_file_is_the_same_in_another_process(folder):
    told = [subprocess.run([sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS], capture_output=True, text=True,
                           check=True).stdout for _ in range(2)]  # fmt: skip
    assert told[0] == told[1]
    assert len(told[0].split()) == 2


def test_array_of_other_pixels_or_nodata_is_another(folder):
    with rioxarray.open_rasterio("a.tif") as opened:
        array = opened.compute()
    other = array.copy(data=array.values.copy())
    same = other.copy()
    other[0, 0, 0] ^= 1
    states = [state_of(open_raster(each)) for each in (array, same, other, array.assign_attrs(_FillValue=7))]
    assert states[0] == states[1]
    assert len(set(states)) == 3


def test_mask_has_a_state_too(folder):
    pyogrio = pytest.importorskip("pyogrio")
    import shapely

    outline = shapely.to_wkb([shapely.box(500_000, 5_399_990, 500_010, 5_400_000)])
    pyogrio.raw.write("mask.gpkg", np.array(outline, object), [], [], geometry_type="Polygon", crs="EPSG:32633")
    for mask in ("mask.gpkg", "a.tif"):
        before = open_single("tiles/a.tif", mask=mask).states
        os.utime(mask, (0, 1))
        after = open_single("tiles/a.tif", mask=mask).states
        assert len(before) == len(after) == 2
        assert before[0] == after[0]
        assert before[1] != after[1]


@pytest.mark.parametrize("dataset", ["/vsicurl/http://127.0.0.1:1/a.tif", "/vsis3/bucket/a.tif", f"WMS:{'x' * 5000}"])
def test_of_what_lies_elsewhere_nothing_is_asked(folder, dataset):
    described = dataclasses.replace(open_raster("a.tif"), dataset=dataset)
    assert state_of(described) == "bands 1,2,3 of a file elsewhere"
