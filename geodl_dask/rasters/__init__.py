"""Path, URL or DataArray -> pixels and validity ``(band, y, x)`` on one grid, lazily and in windows.

Two kinds of raster: one is read by whoever needs a window of it (`WindowedRaster`), the other is already a Dask
graph (`RasterArray`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from ..errors import GridMismatchError, RasterInputError
from .arrays import RasterArray, describe_array
from .bands import Bands
from .files import RasterFile, open_file
from .sources import find_source
from .windows import Chunks, WindowedRaster, chunked

__all__ = ["RasterArray", "RasterFile", "RasterStack", "WindowedRaster", "open_pair", "open_raster", "open_single"]

GRID_TOLERANCE_PX = 1e-3
"""Two grids are one where no corner is further apart than this, pixels."""

Raster = WindowedRaster | RasterArray


@dataclass(frozen=True)
class RasterStack:
    """One raster, or a from and a to raster on one grid with the same bands."""

    rasters: tuple[Raster, ...]
    """From before to."""

    @property
    def grid(self) -> GeoBox:
        """The grid of all, which is the first one's."""
        return self.rasters[0].grid

    @property
    def band_count(self) -> int:
        """How many bands each has."""
        return len(self.rasters[0].band_names)

    @property
    def dtype(self) -> str:
        """NumPy name of the smallest type that holds the pixels of all."""
        return str(np.result_type(*(raster.dtype for raster in self.rasters)))


def open_pair(from_raster: Any, to_raster: Any) -> RasterStack:
    """Both rasters, checked and on one grid; no pixel is read.

    from_raster, to_raster : path, URL or DataArray with dimensions y, x and, for several bands, one more.
    Raises RasterNotFoundError, RasterInputError or GridMismatchError.
    """
    before, after = open_raster(from_raster, "from_raster"), open_raster(to_raster, "to_raster")
    if len(before.band_names) != len(after.band_names):
        raise RasterInputError(
            f"to_raster has {len(after.band_names)} band(s), from_raster {len(before.band_names)}; both dates need the "
            "same bands in the same order."
        )
    _require_same_grid(before, after)
    return RasterStack((before, after))


def open_single(raster: Any) -> RasterStack:
    """One raster, checked; no pixel is read. Raises RasterNotFoundError or RasterInputError."""
    return RasterStack((open_raster(raster),))


def open_raster(raster: Any, role: str = "raster", bands: Bands = None) -> Raster:
    """One raster, checked; no pixel is read. ``role`` names it in messages.

    Raises RasterNotFoundError, RasterInputError or BandCountError.
    """
    if isinstance(raster, xr.DataArray | xr.Dataset):
        return describe_array(raster, role, bands)
    if isinstance(raster, str | os.PathLike):
        text = os.fspath(raster)
        return open_file(find_source(text, role), text, role, bands)
    raise RasterInputError(f"{role} is a {type(raster).__name__}; a path, a URL or an xarray DataArray is needed.")


def arrays_of(raster: Raster, chunks: Chunks) -> tuple[da.Array, da.Array]:
    """Pixels (band, y, x) and validity (y, x), lazily, in the given chunks."""
    return raster.arrays(chunks) if isinstance(raster, RasterArray) else chunked(raster, chunks)


def _require_same_grid(from_raster: Raster, to_raster: Raster) -> None:
    ours, theirs = from_raster.grid, to_raster.grid
    height, width = ours.shape
    corners = ((0, 0), (width, 0), (0, height), (width, height))
    shift_px = max(np.hypot(*np.subtract(ours.wld2pix(*theirs.pix2wld(*corner)), corner)) for corner in corners)
    if ours.crs == theirs.crs and ours.shape == theirs.shape and shift_px <= GRID_TOLERANCE_PX:
        return
    raise GridMismatchError(
        f"The rasters do not share a grid. from_raster is {_describe_grid(ours)}; to_raster is "
        f"{_describe_grid(theirs)}. Warp one to the other first, for instance with: "
        "rio warp TO to_on_from_grid.tif --like FROM"
    )


def _describe_grid(grid: GeoBox) -> str:
    bounds = ", ".join(f"{value:.10g}" for value in grid.boundingbox.bbox)
    epsg = grid.crs.to_epsg() if grid.crs else None
    crs = f"EPSG:{epsg}" if epsg else grid.crs
    return (
        f"{grid.shape[0]} x {grid.shape[1]} pixels (rows x columns) of {grid.resolution.x:.6g} x "
        f"{abs(grid.resolution.y):.6g}, {crs}, bounds ({bounds})"
    )
