"""Path or DataArray -> pixels and validity ``(band, y, x)`` on one grid, lazily and in windows.

Two kinds of raster, alike in what they offer to `open_pair`: a `RasterFile` is read by whoever needs
a window of it, an array (`RasterArray`) is already chunked by Dask.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask.array as da
import numpy as np
import odc.geo.xr  # noqa: F401  (registers the .odc accessor)
import rasterio
import rasterio.enums
import rasterio.errors
import rioxarray  # noqa: F401  (registers the .rio accessor)
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RasterioWindow

from .errors import GridMismatchError, RasterInputError, RasterNotFoundError, RasterReadError
from .tiling import Window

GRID_TOLERANCE_PX = 1e-3
"""Two grids are one where no corner is further apart than this, pixels."""
SPACING_TOLERANCE_PX = 0.1
"""Coordinates are evenly spaced where none is further than this from its place; they are often rounded."""


@dataclass(frozen=True)
class RasterFile:
    """One raster that GDAL opens, described; a window is read when somebody asks for it.

    Small and picklable. Each read opens the file anew, so any thread of any process may read.
    """

    path: str
    """What GDAL opens."""
    grid: GeoBox
    """CRS, affine transform and shape."""
    bands: tuple[int, ...]
    """Band numbers that hold pixels (from 1), without an alpha band."""
    dtype: str
    """NumPy name of the type that holds every band."""
    all_valid: bool
    """True where the file has neither nodata nor a mask, so that every finite pixel is valid."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.path

    @property
    def band_count(self) -> int:
        """How many bands hold pixels."""
        return len(self.bands)

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and validity of a window inside the grid. Runs on workers.

        Returns pixels (band, y, x) as stored in ``dtype`` and validity (y, x) bool, True where every
        band has an observation (by nodata, mask band or alpha, and finite). Raises RasterReadError.
        """
        where = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        try:
            with rasterio.open(self.path) as dataset:
                # One by one, for rasterio reads bands of several types only so.
                pixels = np.stack([dataset.read(band, window=where, out_dtype=self.dtype) for band in self.bands])
                masks = None if self.all_valid else dataset.read_masks(list(self.bands), window=where)
        except rasterio.errors.RasterioError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise RasterReadError(
                f"{self.path} cannot be read at row {window.row_off}, column {window.col_off}, "
                f"{window.height} x {window.width} pixels: {error}{cause}. Is the file whole and reachable?"
            ) from error
        return pixels, _validity(pixels, masks)

    def arrays(self, chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[da.Array, da.Array]:
        """The same as lazy Dask arrays: pixels (band, y, x) and validity (y, x) in the given chunks."""
        starts = tuple(np.cumsum((0, *lengths[:-1])) for lengths in chunks)
        dtype = np.dtype(self.dtype)
        pixels = da.map_blocks(
            _read_pixels, self, starts, chunks, chunks=((self.band_count,), *chunks), dtype=dtype,
            meta=np.empty((0, 0, 0), dtype),
        )  # fmt: skip
        valid = da.map_blocks(
            _read_validity, self, starts, chunks, chunks=chunks, dtype=bool, meta=np.empty((0, 0), bool)
        )
        return pixels, valid


@dataclass(frozen=True, eq=False)
class RasterArray:
    """A raster that somebody holds as a DataArray, in memory or as a Dask graph."""

    name: str
    """For messages."""
    grid: GeoBox
    """CRS, affine transform and shape."""
    pixels: da.Array
    """(band, y, x) as stored."""
    nodata: float | None
    """The value that means "no observation", if there is one; NaN always does."""

    @property
    def dtype(self) -> str:
        """NumPy name of the pixel type."""
        return str(self.pixels.dtype)

    @property
    def band_count(self) -> int:
        """How many bands."""
        return int(self.pixels.shape[0])

    def arrays(self, chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[da.Array, da.Array]:
        """Pixels (band, y, x) and validity (y, x), lazily, in the given chunks."""
        pixels = self.pixels.rechunk(((self.band_count,), *chunks))
        valid = pixels.map_blocks(
            _validity_by_nodata, self.nodata, drop_axis=0, dtype=bool, meta=np.empty((0, 0), bool)
        )
        return pixels, valid


Raster = RasterFile | RasterArray


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
        return self.rasters[0].band_count

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
    if before.band_count != after.band_count:
        raise RasterInputError(
            f"to_raster has {after.band_count} band(s), from_raster {before.band_count}; both dates need the same "
            "bands in the same order."
        )
    _require_same_grid(before, after)
    return RasterStack((before, after))


def open_single(raster: Any) -> RasterStack:
    """One raster, checked; no pixel is read. Raises RasterNotFoundError or RasterInputError."""
    return RasterStack((open_raster(raster),))


def open_raster(raster: Any, role: str = "raster") -> Raster:
    """One raster, checked; no pixel is read. ``role`` names it in messages.

    Raises RasterNotFoundError or RasterInputError.
    """
    if isinstance(raster, xr.DataArray):
        return _describe_array(raster, role)
    if isinstance(raster, str | os.PathLike):
        return _describe_file(os.fspath(raster), role)
    raise RasterInputError(f"{role} is a {type(raster).__name__}; a path, a URL or an xarray DataArray is needed.")


def _describe_file(path: str, role: str) -> RasterFile:
    is_local = not path.startswith("/vsi") and len(urlsplit(path).scheme) < 2 and ":" not in path[2:]
    if is_local and not Path(path).exists():
        raise RasterNotFoundError(f"{role} {path} does not exist (looked in {Path.cwd()}).")
    if is_local:  # workers may stand in another folder
        path = str(Path(path).absolute())
    try:
        with rasterio.open(path) as dataset:
            return _describe_dataset(dataset, path, role)
    except rasterio.errors.RasterioIOError as error:
        raise RasterInputError(f"{role} {path} cannot be opened as a raster: {error}.") from error


def _describe_dataset(dataset: Any, path: str, role: str) -> RasterFile:
    if dataset.crs is None:
        raise RasterInputError(
            f"{role} {path} has no CRS, so where it lies is not known. Assign the right one first, for instance "
            f"with: rio edit-info --crs EPSG:xxxx {path}"
        )
    alpha = rasterio.enums.ColorInterp.alpha
    bands = tuple(band for band, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True) if meaning != alpha)
    dtype = np.result_type(*(dataset.dtypes[band - 1] for band in bands)) if bands else None
    dtype = _require_real(dtype, f"{role} {path}")
    flags = rasterio.enums.MaskFlags.all_valid
    all_valid = all(flags in dataset.mask_flag_enums[band - 1] for band in bands)
    grid = GeoBox(dataset.shape, dataset.transform, str(dataset.crs.to_wkt()))
    return RasterFile(path, grid, bands, str(dtype), all_valid)


def _describe_array(array: xr.DataArray, role: str) -> RasterArray:
    name = f"{role} {array.name}" if array.name else f"{role} (DataArray)"
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
    ordered = array.expand_dims("band") if not rest else array
    ordered = ordered.transpose(*(rest or ["band"]), *spatial)
    _require_real(ordered.dtype, name)
    return RasterArray(name, grid, da.asarray(ordered.data), _nodata_of(array))


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


def _require_real(dtype: np.dtype[Any] | None, name: str) -> np.dtype[Any]:
    if dtype is None or not (np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.floating)):
        raise RasterInputError(f"{name} has pixels of type {dtype}; integers or real numbers are needed.")
    return dtype


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


def _validity(pixels: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """(y, x) bool: every band unmasked (masks (band, y, x) uint8, 0 = masked) and finite."""
    valid = np.ones(pixels.shape[1:], bool) if masks is None else (masks != 0).all(axis=0)
    if np.issubdtype(pixels.dtype, np.floating):
        valid &= np.isfinite(pixels).all(axis=0)
    return valid


def _validity_by_nodata(pixels: np.ndarray, nodata: float | None) -> np.ndarray:
    masks = None if nodata is None or np.isnan(nodata) else (pixels != nodata).astype(np.uint8)
    return _validity(pixels, masks)


def _window_of_block(
    block_id: tuple[int, int], starts: tuple[np.ndarray, ...], chunks: tuple[tuple[int, ...], ...]
) -> Window:
    row, col = block_id
    return Window(int(starts[0][row]), int(starts[1][col]), chunks[0][row], chunks[1][col])


def _read_pixels(raster: RasterFile, starts: Any, chunks: Any, block_id: tuple[int, int, int]) -> np.ndarray:
    return raster.read(_window_of_block(block_id[1:], starts, chunks))[0]


def _read_validity(raster: RasterFile, starts: Any, chunks: Any, block_id: tuple[int, int]) -> np.ndarray:
    return raster.read(_window_of_block(block_id, starts, chunks))[1]
