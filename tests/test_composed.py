"""Results as xarray composes them: cut, masked, stacked over years, grouped; and then counted, drawn, written."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr

import geodl_dask as gd
from geodl_dask.classes import ClassTable
from geodl_dask.errors import RasterInputError


@pytest.fixture(scope="module")
def change(pair, models) -> xr.DataArray:
    """Lazy, of several blocks, of the classes 0 and 7."""
    lazy = gd.detect_change(*pair, models["pt2"], chunks=32, processor="cpu")
    assert lazy.data.npartitions > 4
    return lazy


@pytest.fixture(scope="module")
def both(pair, models) -> xr.Dataset:
    """The same with confidence."""
    return gd.detect_change(*pair, models["pt2"], chunks=32, processor="cpu", confidence="uint8")


@pytest.fixture(scope="module")
def values(change) -> np.ndarray:
    return change.to_numpy()


def halves(change: xr.DataArray) -> xr.DataArray:
    """Which half of the raster each row lies in."""
    return xr.DataArray(np.arange(change.sizes["y"]) > 40, dims="y", name="half")


@pytest.mark.parametrize(
    "compose",
    [
        lambda change: change.isel(y=slice(10, 60), x=slice(20, 90)),
        lambda change: change.sel(y=slice(5_399_990, 5_399_970), x=slice(500_010, 500_040)),
        lambda change: change.where(change.x > 500_020),
        lambda change: change.where(change.x > 500_020, drop=True),
        lambda change: xr.concat([change, change], dim="year"),
        lambda change: (change == 7).groupby(halves(change)).sum(),
    ],
    ids=["isel", "sel", "where", "where drop", "concat", "groupby"],
)
def test_xarray_composes_without_computing_and_keeps_the_class_table(change, compose):
    composed = compose(change)
    assert composed.chunks is not None
    assert composed.attrs["class_names"] == ["No change", "Change"]
    assert composed.rio.crs == change.rio.crs


def test_repr_shows_classes_and_grid(change):
    for text in (repr(change), change._repr_html_()):
        assert "No change" in text
        assert "#c81e1e" in text
        assert "32633" in text


def test_cut_result_has_its_own_grid(change):
    cut = change.isel(y=slice(10, 60), x=slice(20, 90))
    assert cut.odc.geobox == change.odc.geobox[10:60, 20:90]


def parts(change: xr.DataArray) -> dict[str, xr.DataArray]:
    stack = xr.concat([change, change.where(change == 7)], pd.Index([2021, 2024], name="year"))
    return {
        "cut": change.isel(y=slice(10, 60), x=slice(20, 90)),
        "masked": change.where(change.x > 500_020),
        "masked and cut": change.where(change.x > 500_020, drop=True),
        "of a stack": stack.sel(year=2024),
    }


def expected(name: str, values: np.ndarray) -> np.ndarray:
    masked = np.where(np.arange(109) < 40, np.uint8(255), values)
    return {
        "cut": values[10:60, 20:90],
        "masked": masked,
        "masked and cut": values[:, 40:],
        "of a stack": np.where(values == 7, np.uint8(7), np.uint8(255)),
    }[name]


@pytest.mark.parametrize("name", ["cut", "masked", "masked and cut", "of a stack"])
@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_composed_result_is_written_with_classes_grid_and_nodata(change, values, tmp_path, name, suffix):
    part, pixels = parts(change)[name], expected(name, values)
    out = tmp_path / f"part{suffix}"
    (gd.write_cog if suffix == ".tif" else gd.write_zarr)(part, out)
    again = gd.open_change(out)
    assert again.dtype == np.uint8
    assert again.attrs["_FillValue"] == 255
    np.testing.assert_array_equal(again, pixels)
    assert again.odc.geobox == part.odc.geobox
    assert ClassTable.from_attrs(again.attrs) == ClassTable.from_attrs(change.attrs)


@pytest.mark.parametrize("name", ["cut", "masked", "masked and cut", "of a stack"])
def test_composed_result_is_counted_outlined_and_drawn(change, values, name):
    part, pixels = parts(change)[name], expected(name, values)
    table = gd.change_table(part).set_index("value")
    assert table.pixels.to_dict() == {0: (pixels == 0).sum(), 7: (pixels == 7).sum()}
    polygons = gd.change_polygons(part)
    assert polygons.pixels.sum() == (pixels == 7).sum()
    assert polygons.geometry.area.sum() == pytest.approx((pixels == 7).sum() / 4)
    ax = gd.plot_change(part)
    drawn = ax.images[0].get_array()
    assert (drawn == 1).filled(False).sum() == (pixels == 7).sum()
    ax.figure.clear()


def test_masked_confidence_is_written_as_it_was_kept(both, tmp_path):
    part = both.where(both.x > 500_020)
    assert part.confidence.dtype == np.float32  # or there would be nothing to mend
    gd.write_cog(part, tmp_path / "part.tif")
    with rasterio.open(tmp_path / "part.tif") as dataset:
        kept = dataset.read(2)
        assert dataset.scales[1] == pytest.approx(1 / 254)
    np.testing.assert_array_equal(kept, np.where(np.arange(109) < 40, 255, both.confidence))


def test_store_that_a_reader_decoded_is_a_result_again(change, values, tmp_path):
    gd.write_zarr(change, tmp_path / "change.zarr")
    decoded = xr.open_zarr(tmp_path / "change.zarr").change
    assert decoded.dtype == np.float32
    gd.write_cog(decoded, tmp_path / "again.tif")
    with rasterio.open(tmp_path / "again.tif") as dataset:
        assert dataset.nodata == 255
        np.testing.assert_array_equal(dataset.read(1), values)


def test_averaged_classes_are_refused_by_what_is_no_class(change):
    mean = xr.concat([change, change.copy(data=change.data * 0)], dim="year").mean("year", keep_attrs=True)
    with pytest.raises(RasterInputError, match=r"holds 3\.5, which is no class value"):
        gd.change_table(mean)


def test_stack_is_refused_with_the_way_to_one_year(change):
    stack = xr.concat([change, change], dim="year")
    for ask in (gd.change_table, gd.change_polygons, gd.plot_change, gd.describe_change):
        with pytest.raises(RasterInputError, match=r"change\.sel\(year=2024\)"):
            ask(stack)


def test_several_dates_in_one_loop(pair, models, values):
    """The recipe of the README."""
    rasters, model = {2019: pair[0], 2021: pair[1], 2024: pair[0]}, models["pt2"]

    changes, dates = {}, sorted(rasters)
    for earlier, later in pairwise(dates):
        changes[later] = gd.detect_change(rasters[earlier], rasters[later], model, processor="cpu")
    stack = xr.concat(changes.values(), pd.Index(changes, name="year"), combine_attrs="drop_conflicts")
    areas = pd.concat({year: gd.change_table(each) for year, each in changes.items()}, names=["year"])
    times_changed = (stack == 7).sum("year")

    assert list(stack.year.to_numpy()) == [2021, 2024]
    assert "from_raster" not in stack.attrs  # which is another one each year
    assert stack.attrs["class_names"] == ["No change", "Change"]
    np.testing.assert_array_equal(stack.sel(year=2021), values)
    of_change = areas.query("value == 7").droplevel(1)
    assert of_change.pixels.to_dict() == {2021: (values == 7).sum(), 2024: (stack.sel(year=2024) == 7).sum()}
    assert int(times_changed.sum()) == of_change.pixels.sum()


@pytest.mark.parametrize("ask", [gd.change_table, gd.change_polygons, gd.plot_change, gd.describe_change])
def test_comparison_is_refused_with_the_way_to_keep_classes(change, ask):
    with pytest.raises(RasterInputError, match=r"holds bool; .*change\.where\(change == 7\)"):
        ask(change == 7)


def test_what_is_no_raster_is_refused(values):
    with pytest.raises(RasterInputError, match="is a ndarray; a path or a DataArray"):
        gd.change_table(values)
