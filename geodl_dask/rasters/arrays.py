"""A raster that somebody holds as a DataArray, in memory or as a Dask graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import odc.geo.xr  # noqa: F401  (registers the .odc accessor)
import rioxarray  # noqa: F401  (registers the .rio accessor)
import xarray as xr
from odc.geo.geobox import GeoBox

from ..errors import BandCountError, RasterInputError
from .bands import Bands, choose_bands, require_real
from .validity import validity_by_nodata
from .windows import Chunks

SPACING_TOLERANCE_PX = 0.1
"""Coordinates are evenly spaced where none is further than this from its place; they are often rounded."""


@dataclass(frozen=True, eq=False)
class RasterArray:
    """Pixels and validity as Dask arrays."""

    name: str
    """For messages."""
    kind: str
    """What it is, for people."""
    grid: GeoBox
    """CRS, affine transform and shape."""
    band_names: tuple[str, ...]
    """One for each band."""
    pixels: da.Array
    """(band, y, x) as stored."""
    valid: da.Array
    """(y, x) bool, True where every band has an observation."""

    @property
    def dtype(self) -> str:
        """NumPy name of the pixel type."""
        return str(self.pixels.dtype)

    def arrays(self, chunks: Chunks) -> tuple[da.Array, da.Array]:
        """Pixels (band, y, x) and validity (y, x), lazily, in the given chunks."""
        return self.pixels.rechunk(((len(self.band_names),), *chunks)), self.valid.rechunk(chunks)


@dataclass(frozen=True)
class ArrayLayout:
    """How the dimensions of a DataArray are those of a raster."""

    grid: GeoBox
    """CRS, affine transform and shape."""
    band_dim: str | None
    """Along which the bands lie; None for one band."""
    dims_yx: tuple[str, str]
    """Of the rows and of the columns."""
    band_names: tuple[str, ...]
    """One for each band."""
    nodata: float | None
    """The value that means no observation."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each band; empty where pixels are used as stored."""
    single_dims: tuple[str, ...] = ()
    """Beside those, of length 1."""

    def ordered(self, array: xr.DataArray) -> xr.DataArray:
        """The array, or a part of it, as (band, y, x); truth values as 0 and 1."""
        array = array.isel(dict.fromkeys(self.single_dims, 0))
        array = array.expand_dims("band") if self.band_dim is None else array
        array = array.astype(pixel_type(array), copy=False)
        return array.transpose(self.band_dim or "band", *self.dims_yx)

    def dtype(self, stored: np.dtype) -> str:
        """NumPy name of the type of the scaled pixels."""
        return str(np.result_type(stored, np.float32) if self.scaling else stored)


def layout_of(array: xr.DataArray, name: str) -> ArrayLayout:
    """How an array is a raster; nothing but its coordinates is read. Raises RasterInputError where it is none."""
    if not all(size > 0 for size in array.shape):  # NaN where Dask does not know it
        raise RasterInputError(
            f"{name} has the shape {array.shape}; at least one pixel and known lengths are needed (of Dask arrays: "
            "array.compute_chunk_sizes())."
        )
    grid, spatial = array.odc.geobox, array.odc.spatial_dims
    if not isinstance(grid, GeoBox) or not all(_is_evenly_spaced(array[dim].values) for dim in spatial):
        raise RasterInputError(
            f"{name} has dimensions {array.dims} without evenly spaced y, x coordinates; a raster has both."
        )
    if grid.crs is None:
        raise RasterInputError(f"{name} has no CRS. Assign the right one first: array.rio.write_crs('EPSG:xxxx').")
    rest = [str(dim) for dim in array.dims if dim not in spatial]
    single = tuple(dim for dim in rest if array.sizes[dim] == 1 and dim != "band") if len(rest) > 1 else ()
    if len(single) == len(rest):
        single = single[:-1]
    rest = [dim for dim in rest if dim not in single]
    if len(rest) > 1:
        raise RasterInputError(f"{name} has dimensions {array.dims}; y, x and at most one band dimension are needed.")
    require_real(pixel_type(array), name)
    names = _band_names(array, rest)
    scaling = _scaling_of(array, len(names), name)
    return ArrayLayout(grid, rest[0] if rest else None, spatial, names, _nodata_of(array, name), scaling, single)


def describe_array(array: xr.DataArray | xr.Dataset, role: str, bands: Bands) -> RasterArray:
    """A DataArray, or the one variable of a Dataset, as a raster; nothing is computed.

    Raises RasterInputError or BandCountError.
    """
    if isinstance(array, xr.Dataset):
        array, bands = _variable_of(array, role, bands)
    name = f"{role} {array.name}" if array.name else f"{role} (DataArray)"
    layout = layout_of(array, name)
    names = layout.band_names
    chosen = list(choose_bands(bands, names, name))
    ordered = layout.ordered(array)
    pixels = da.asarray(ordered.data)[chosen] if bands is not None else da.asarray(ordered.data)
    pixels = pixels.rechunk({0: len(chosen)})
    scaling = tuple(layout.scaling[each] for each in chosen) if layout.scaling else ()
    valid = pixels.map_blocks(validity_by_nodata, layout.nodata, drop_axis=0, dtype=bool, meta=np.empty((0, 0), bool))
    if scaling:
        pixels = pixels.map_blocks(scaled, layout.dtype(pixels.dtype), scaling, dtype=layout.dtype(pixels.dtype))
    return RasterArray(name, "DataArray", layout.grid, tuple(names[each] for each in chosen), pixels, valid)


def _variable_of(dataset: xr.Dataset, role: str, bands: Bands) -> tuple[xr.DataArray, Bands]:
    """The variable that holds the raster, and its bands; or variables named as bands, stacked."""
    mappings = {each.attrs.get("grid_mapping", each.encoding.get("grid_mapping")) for each in dataset.values()}
    dataset = dataset.set_coords([name for name in dataset.data_vars if name in mappings])
    rasters = [str(name) for name, variable in dataset.data_vars.items() if variable.ndim >= 2]
    if len(rasters) == 1:
        return dataset[rasters[0]], bands
    if bands is not None and len(bands) and all(band in rasters for band in bands):
        variables = [dataset[band] for band in bands]
        marks = [(_nodata_of(each, f"{role} {each.name}"), _scaling_of(each, 1, role)) for each in variables]
        if any(mark != marks[0] for mark in marks):
            raise RasterInputError(
                f"{role}: the variables {', '.join(map(str, bands))} differ in nodata or scale, so they are not the "
                "bands of one raster. Choose one, or decode them first: xarray.decode_cf(dataset)."
            )
        array = dataset[list(bands)].to_dataarray("band")
        array.attrs, array.encoding = variables[0].attrs, variables[0].encoding
        return array, None
    raise BandCountError(
        f"{role} is a Dataset with the variables {', '.join(rasters) or 'none'}; hand over one of them, as "
        "dataset[name], or name the ones that are its bands."
    )


def _band_names(array: xr.DataArray, rest: list[str]) -> tuple[str, ...]:
    if not rest:
        return ("1",)
    if isinstance(array.attrs.get("long_name"), tuple | list) and len(array.attrs["long_name"]) == array.sizes[rest[0]]:
        return tuple(str(name) for name in array.attrs["long_name"])  # what rioxarray makes of band descriptions
    if rest[0] not in array.coords:
        return tuple(str(number) for number in range(1, array.sizes[rest[0]] + 1))
    return tuple(str(name) for name in array[rest[0]].values)


def _is_evenly_spaced(coordinates: np.ndarray) -> bool:
    even, step_px = np.linspace(coordinates[0], coordinates[-1], len(coordinates), retstep=True)
    return len(coordinates) == 1 or bool(np.all(np.abs(coordinates - even) <= SPACING_TOLERANCE_PX * abs(step_px)))


def scaled(stored: np.ndarray, dtype: str, scaling: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Pixels (band, y, x) in ``dtype``, by the scale and offset of each band. Runs on workers."""
    pixels = stored.astype(dtype, copy=bool(scaling))
    for band, (scale, offset) in zip(pixels, scaling, strict=bool(scaling)):
        band *= scale
        band += offset
    return pixels


def pixel_type(array: xr.DataArray) -> np.dtype:
    """Of the pixels as they are handed out, unscaled; truth values are numbers."""
    return np.dtype(np.uint8) if array.dtype == bool else array.dtype


def _scaling_of(array: xr.DataArray, bands: int, name: str) -> tuple[tuple[float, float], ...]:
    """Scale and offset of each band by the attributes of CF, or by those that rioxarray makes where bands differ."""
    columns = []
    for one, each, without in (("scale_factor", "scales", 1), ("add_offset", "offsets", 0)):
        given = array.attrs.get(each, [array.attrs.get(one, without)] * bands)
        if len(given) != bands:
            raise RasterInputError(
                f"{name} has {bands} band(s) and {len(given)} {each} in its attributes; drop or cut them."
            )
        columns.append([float(_number(value, one, name)) for value in given])
    scaling = tuple(zip(*columns, strict=True))
    return () if all(each == (1, 0) for each in scaling) else scaling


def _number(value: Any, key: str, name: str) -> float:
    """One number, an integer as such: a float does not hold each of 64 bits."""
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "iuf":
        raise RasterInputError(f"{name} has the attribute {key} {value!r}; one number is needed. Set it or drop it.")
    return number.item()


def _nodata_of(array: xr.DataArray, name: str) -> float | None:
    """The nodata value by the attributes that CF and odc know.

    Encoding speaks of the array as it was stored: real numbers were given NaN for its nodata, integers kept it.
    """
    if array.dtype == bool:
        return None
    places = (array.attrs, array.encoding) if np.issubdtype(array.dtype, np.integer) else (array.attrs,)
    named = ((key, place.get(key)) for place in places for key in ("_FillValue", "missing_value", "nodata"))
    return next((_number(value, key, name) for key, value in named if value is not None), None)
