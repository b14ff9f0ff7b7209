"""A raster that somebody holds as a DataArray, in memory or as a Dask graph."""

from __future__ import annotations

from dataclasses import dataclass

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

    def ordered(self, array: xr.DataArray) -> xr.DataArray:
        """The array, or a part of it, as (band, y, x)."""
        array = array.expand_dims("band") if self.band_dim is None else array
        return array.transpose(self.band_dim or "band", *self.dims_yx)


def layout_of(array: xr.DataArray, name: str) -> ArrayLayout:
    """How an array is a raster; nothing but its coordinates is read. Raises RasterInputError where it is none."""
    grid, spatial = array.odc.geobox, array.odc.spatial_dims
    if not isinstance(grid, GeoBox) or not all(_is_evenly_spaced(array[dim].values) for dim in spatial):
        raise RasterInputError(
            f"{name} has dimensions {array.dims} without evenly spaced y, x coordinates; a raster has both."
        )
    if grid.crs is None:
        raise RasterInputError(f"{name} has no CRS. Assign the right one first: array.rio.write_crs('EPSG:xxxx').")
    rest = [str(dim) for dim in array.dims if dim not in spatial]
    if len(rest) > 1:
        raise RasterInputError(f"{name} has dimensions {array.dims}; y, x and at most one band dimension are needed.")
    require_real(array.dtype, name)
    return ArrayLayout(grid, rest[0] if rest else None, spatial, _band_names(array, rest), _nodata_of(array))


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
    valid = pixels.map_blocks(validity_by_nodata, layout.nodata, drop_axis=0, dtype=bool, meta=np.empty((0, 0), bool))
    return RasterArray(name, "DataArray", layout.grid, tuple(names[each] for each in chosen), pixels, valid)


def _variable_of(dataset: xr.Dataset, role: str, bands: Bands) -> tuple[xr.DataArray, Bands]:
    """The variable that holds the raster, and its bands; or variables named as bands, stacked."""
    rasters = [str(name) for name, variable in dataset.data_vars.items() if variable.ndim >= 2]
    if len(rasters) == 1:
        return dataset[rasters[0]], bands
    if bands and all(band in rasters for band in bands):
        return dataset[list(bands)].to_dataarray("band"), None
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


def _nodata_of(array: xr.DataArray) -> float | None:
    """The nodata value by the attributes that CF and odc know.

    Encoding speaks of the array as it was stored: real numbers were given NaN for its nodata, integers kept it.
    """
    places = (array.attrs, array.encoding) if np.issubdtype(array.dtype, np.integer) else (array.attrs,)
    named = (place.get(key) for place in places for key in ("_FillValue", "missing_value", "nodata"))
    return next((float(value) for value in named if value is not None), None)
