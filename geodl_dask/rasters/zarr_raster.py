"""A Zarr store (format 2 or 3), read in windows by the CF conventions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from ..errors import MissingDependencyError, RasterInputError, RasterReadError
from ..tiling import Window
from .arrays import ArrayLayout, layout_of
from .bands import Bands, choose_bands
from .validity import validity_by_nodata


@dataclass(frozen=True)
class ZarrRaster:
    """Variables of a store as one raster. The store is opened once in each process, and read by any thread of it."""

    name: str
    """For messages: what the user wrote."""
    store: str
    """Path or URL."""
    variables: tuple[str, ...]
    """One with all of the bands, or one for each band."""
    layout: ArrayLayout
    """Of each variable."""
    positions: tuple[int, ...]
    """Of the bands that are read, from 0."""
    band_names: tuple[str, ...]
    """One for each band of what is read."""
    dtype: str
    """NumPy name of the pixel type as it is handed out."""
    scaling: tuple[float, float] | None = None
    """Scale and offset; None where pixels are used as stored."""

    @property
    def grid(self) -> GeoBox:
        """CRS, affine transform and shape."""
        return self.layout.grid

    @property
    def kind(self) -> str:
        """What it is, for people."""
        return f"Zarr store, {'variable' if len(self.variables) == 1 else 'variables'} {', '.join(self.variables)}"

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and validity of a window inside the grid. Runs on workers.

        Returns pixels (band, y, x) in ``dtype`` and validity (y, x) bool, True where every band is finite and another
        value than nodata. Raises RasterReadError.
        """
        rows = slice(window.row_off, window.row_off + window.height)
        cols = slice(window.col_off, window.col_off + window.width)
        place = dict(zip(self.layout.dims_yx, (rows, cols), strict=True))
        wanted = self.variables if len(self.variables) == 1 else [self.variables[each] for each in self.positions]
        try:
            dataset = _opened(self.store)
            parts = [self.layout.ordered(dataset[variable].isel(place)).to_numpy() for variable in wanted]
        except Exception as error:  # a codec raises whatever it likes
            raise RasterReadError(
                f"{self.name} cannot be read at row {window.row_off}, column {window.col_off}, "
                f"{window.height} x {window.width} pixels: {type(error).__name__}: {error}. Is the store whole and "
                "reachable?"
            ) from error
        stored = parts[0][list(self.positions)] if len(self.variables) == 1 else np.concatenate(parts)
        valid = validity_by_nodata(stored, self.layout.nodata)
        pixels = stored.astype(self.dtype, copy=False)
        if self.scaling:
            pixels = pixels * np.asarray(self.scaling[0], self.dtype) + np.asarray(self.scaling[1], self.dtype)
        return pixels, valid


def open_store(store: str, choice: str, text: str, role: str, bands: Bands) -> ZarrRaster:
    """Variables of a store as a raster; no pixel is read.

    choice : names of variables with commas between them; empty for the only raster there is. text : what the user
    wrote. Raises RasterInputError, which lists what there is, BandCountError or MissingDependencyError.
    """
    name = f"{role} {text}"
    try:
        dataset = _opened(store)
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs one more library: pip install aiohttp s3fs ({error})") from error
    except Exception as error:  # a store that is none fails in as many ways as there are libraries beneath
        raise RasterInputError(f"{name} cannot be opened as a Zarr group: {type(error).__name__}: {error}.") from error
    variables = _chosen(dataset, choice, name)
    layouts = [layout_of(dataset[variable], f"{name}, variable {variable}") for variable in variables]
    layout, dtypes = layouts[0], [dataset[variable].dtype for variable in variables]
    if len(variables) > 1:
        marks = [(each.grid, each.dims_yx, each.band_dim, each.nodata, _scaling(dataset[variable]))
                 for each, variable in zip(layouts, variables, strict=True)]  # fmt: skip
        if any(mark != marks[0] for mark in marks) or layout.band_dim:
            raise RasterInputError(
                f"{name}: the variables {', '.join(variables)} differ in grid, nodata or scale, or have a dimension "
                "beside y and x, so they are not the bands of one raster. Choose one."
            )
    names = layout.band_names if len(variables) == 1 else variables
    chosen = choose_bands(bands, names, name)
    scaling = _scaling(dataset[variables[0]])
    dtype = np.result_type(*dtypes, *([np.float32] if scaling else []))
    return ZarrRaster(
        text, store, variables, layout, chosen, tuple(names[each] for each in chosen), str(dtype), scaling
    )  # fmt: skip


@lru_cache(maxsize=16)
def _opened(store: str) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of consolidated metadata that are not there, and of codecs without a standard
        return xr.open_dataset(
            store, engine="zarr", chunks=None, cache=False, mask_and_scale=False, decode_times=False,
            decode_coords="all", consolidated=None,
        )  # fmt: skip


def _chosen(dataset: xr.Dataset, choice: str, name: str) -> tuple[str, ...]:
    # Sorted, for a store without consolidated metadata gives them in the order of the file system.
    rasters = tuple(sorted(str(each) for each, variable in dataset.data_vars.items() if variable.ndim >= 2))
    chosen = tuple(each.strip() for each in choice.split(",") if each.strip()) or rasters
    if not set(chosen) <= set(rasters) or (len(chosen) != 1 and not choice):
        raise RasterInputError(
            f"{name} has the variables {', '.join(rasters) or 'none'}{f', not {choice}' if choice else ''}. Choose "
            f"one, or several as bands: STORE#{','.join(rasters[:2]) or 'NAME'}"
        )
    return chosen


def _scaling(array: xr.DataArray) -> tuple[float, float] | None:
    scale, offset = float(array.attrs.get("scale_factor", 1)), float(array.attrs.get("add_offset", 0))
    return None if (scale, offset) == (1, 0) else (scale, offset)
