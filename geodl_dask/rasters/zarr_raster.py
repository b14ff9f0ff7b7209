"""A Zarr store (format 2 or 3), read in windows by the CF conventions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from ..errors import MissingDependencyError, RasterInputError, RasterReadError
from ..tiling import Window
from .arrays import ArrayLayout, layout_of, pixel_type, scaled
from .bands import Bands, choose_bands
from .validity import validity_by_nodata

METADATA = ("zarr.json", ".zmetadata", ".zattrs", ".zarray")
"""Files of a store that describe its arrays."""


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
    scaling: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each band that is read; empty where pixels are used as stored."""

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
        place: dict[str, Any] = dict(zip(self.layout.dims_yx, (rows, cols), strict=True))
        wanted = self.variables if len(self.variables) == 1 else [self.variables[each] for each in self.positions]
        if len(self.variables) == 1 and self.positions != tuple(range(len(self.layout.band_names))):
            place[str(self.layout.band_dim)] = list(self.positions)
        try:
            dataset = _opened(self.store, _stamp(self.store))
            parts = [self.layout.ordered(dataset[variable].isel(place)).to_numpy() for variable in wanted]
        except Exception as error:  # a codec raises whatever it likes
            raise RasterReadError(
                f"{self.name} cannot be read at row {window.row_off}, column {window.col_off}, "
                f"{window.height} x {window.width} pixels: {type(error).__name__}: {error}. Is the store whole and "
                "reachable?"
            ) from error
        stored = np.concatenate(parts)
        return scaled(stored, self.dtype, self.scaling), validity_by_nodata(stored, self.layout.nodata)


def open_store(store: str, choice: str, text: str, role: str, bands: Bands) -> ZarrRaster:
    """Variables of a store as a raster; no pixel is read.

    choice : names of variables with commas between them; empty for the only raster there is. text : what the user
    wrote. Raises RasterInputError, which lists what there is, BandCountError or MissingDependencyError.
    """
    name = f"{role} {text}"
    try:
        dataset = _opened(store, _stamp(store))
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs one more library: pip install aiohttp s3fs ({error})") from error
    except Exception as error:  # a store that is none fails in as many ways as there are libraries beneath
        raise RasterInputError(f"{name} cannot be opened as a Zarr group: {type(error).__name__}: {error}.") from error
    variables = _chosen(dataset, choice, name)
    layouts = [layout_of(dataset[variable], f"{name}, variable {variable}") for variable in variables]
    layout, dtypes = layouts[0], [pixel_type(dataset[variable]) for variable in variables]
    if len(variables) > 1:
        marks = [(each.grid, each.dims_yx, each.nodata, each.scaling) for each in layouts]
        if any(mark != marks[0] for mark in marks) or any(len(each.band_names) > 1 for each in layouts):
            raise RasterInputError(
                f"{name}: the variables {', '.join(variables)} differ in grid, nodata or scale, or have a dimension "
                "beside y and x, so they are not the bands of one raster. Choose one."
            )
    names = layout.band_names if len(variables) == 1 else variables
    chosen = choose_bands(bands, names, name)
    scales = layout.scaling * len(variables)
    return ZarrRaster(
        text, store, variables, layout, chosen, tuple(names[each] for each in chosen),
        layout.dtype(np.result_type(*dtypes)), tuple(scales[each] for each in chosen) if scales else (),
    )  # fmt: skip


def _stamp(store: str) -> tuple[tuple[str, int, int], ...]:
    """What changes when a store of this machine is written anew: its metadata's names, times and sizes."""
    folder = Path(store)
    files = sorted(found for mark in METADATA for found in (*folder.glob(mark), *folder.glob(f"*/{mark}")))
    stats = [(str(file), file.stat()) for file in files]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


@lru_cache(maxsize=16)
def _opened(store: str, _stamp: tuple[tuple[str, int, int], ...]) -> xr.Dataset:
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
