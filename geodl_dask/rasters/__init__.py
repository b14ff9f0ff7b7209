"""Path, URL or DataArray -> pixels and validity ``(band, y, x)`` on one grid, lazily and in windows.

Two kinds of raster: one is read by whoever needs a window of it (`WindowedRaster`), the other is already a Dask
graph (`RasterArray`).
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from ..errors import BandCountError, GridMismatchError, RasterInputError
from .arrays import RasterArray, describe_array
from .bands import Bands
from .files import RasterFile, at_overview, open_file
from .grids import Align, GridRequest, describe_grid, require_place, target_grid
from .mask import POLYGON_SUFFIXES, open_polygons
from .overlap import nearest_turn, share_covered
from .placing import find_move, move_raster
from .sources import find_source
from .states import state_of
from .warping import OVERVIEW_METHODS, TILE_SOURCE_LIMIT, Warp
from .windows import Chunks, WindowedRaster, chunked
from .zarr_raster import ZarrRaster, open_store

__all__ = [
    "Bands", "Chunks", "GridOptions", "GridRequest", "Raster", "RasterArray", "RasterFile", "RasterLike", "RasterStack",
    "WindowedRaster", "arrays_of", "open_pair", "open_raster", "open_single", "request_grid",
]  # fmt: skip

log = logging.getLogger(__name__)

Raster = WindowedRaster | RasterArray
SCALE_ATTRIBUTES = ("scale_factor", "add_offset", "scales", "offsets")
RasterLike = str | os.PathLike[str] | xr.DataArray | xr.Dataset


class GridOptions(TypedDict, total=False):
    """What the result's grid shall be, as users say it."""

    like: RasterLike | GeoBox | None
    """The raster or grid to start from in the place of the from raster's."""
    output_crs: str | None
    """CRS as PROJ reads it."""
    cell_size: float | tuple[float, float] | RasterLike | None
    """A number, width and height, or a raster whose cell size is meant."""
    extent: tuple[float, float, float, float] | RasterLike | None
    """xmin, ymin, xmax, ymax in the output's CRS, or a raster whose extent is meant."""
    snap_raster: RasterLike | GeoBox | None
    """The raster whose pixel corners the result's fall on."""
    align: Align
    """``"warp"``, or ``"strict"``: refuse to resample."""
    resampling: str
    """By rasterio's names."""


@dataclass(frozen=True)
class RasterStack:
    """One raster, or a from and a to raster, on one grid with the same bands."""

    rasters: tuple[Raster, ...]
    """From before to."""
    mask: Raster | None
    """Where the result is wanted: on the same grid, where its first band is valid and not 0. None: everywhere."""
    accounts: tuple[str, ...]
    """What each raster was taken for, and how it came to the grid, for people."""
    states: tuple[str, ...]
    """What each was when it was opened, as `states.state_of` has it."""

    @property
    def grid(self) -> GeoBox:
        """The grid of all."""
        return self.rasters[0].grid

    @property
    def band_count(self) -> int:
        """How many bands each has."""
        return len(self.rasters[0].band_names)

    @property
    def dtype(self) -> str:
        """NumPy name of the smallest type that holds the pixels of all."""
        return str(np.result_type(*(raster.dtype for raster in self.rasters)))


def request_grid(options: GridOptions) -> GridRequest:
    """What was asked of the grid, with rasters that stand for their grid opened.

    Raises TypeError for an unknown option, GridMismatchError, RasterNotFoundError or RasterInputError.
    """
    unknown = [name for name in options if name not in GridOptions.__annotations__]
    if unknown:
        raise TypeError(
            f"There is no keyword {unknown[0]!r}; of the grid can be said: {', '.join(GridOptions.__annotations__)}."
        )
    like, snap, cell_size, extent = (options.get(name) for name in ("like", "snap_raster", "cell_size", "extent"))
    if isinstance(cell_size, Real) and not isinstance(cell_size, bool):
        cell_size = (cell_size, cell_size)
    return GridRequest(
        like=None if like is None else _grid_of(like, "like"),
        output_crs=options.get("output_crs"),
        cell_size=_numbers_or_grid(cell_size, 2, "cell_size"),
        extent=_numbers_or_grid(extent, 4, "extent"),
        snap=None if snap is None else _grid_of(snap, "snap_raster"),
        align=options.get("align", "warp"),
        resampling=options.get("resampling", "bilinear"),
    )


def open_pair(
    from_raster: Any, to_raster: Any, request: GridRequest | None = None, *, from_bands: Bands = None,
    to_bands: Bands = None, mask: Any = None,
) -> RasterStack:  # fmt: skip
    """Both rasters, checked and on one grid; no pixel is read.

    from_raster, to_raster : path, URL or DataArray with dimensions y, x and, for several bands, one more.
    request : what was asked of the grid. mask : raster or polygon layer. Raises RasterNotFoundError, RasterInputError,
    BandCountError, GridMismatchError or MissingDependencyError.
    """
    before = open_raster(from_raster, "from_raster", from_bands)
    after = open_raster(to_raster, "to_raster", to_bands)
    if len(before.band_names) != len(after.band_names):
        raise BandCountError(
            f"from_raster has {len(before.band_names)} band(s) ({', '.join(before.band_names)}), to_raster "
            f"{len(after.band_names)} ({', '.join(after.band_names)}); both dates need the same bands in the same "
            "order. Choose them by number or name: --from-bands, --to-bands (from_bands=, to_bands=)."
        )
    if before.dtype != after.dtype:
        log.warning(
            "from_raster has pixels of %s, to_raster of %s, and the model is given both as they are. Do they have the "
            "same units?", before.dtype, after.dtype,
        )  # fmt: skip
    return _stack({"from_raster": before, "to_raster": after}, request or GridRequest(), mask)


def open_single(
    raster: Any, request: GridRequest | None = None, *, bands: Bands = None, mask: Any = None
) -> RasterStack:
    """One raster, checked; no pixel is read. Raises as `open_pair`."""
    return _stack({"raster": open_raster(raster, "raster", bands)}, request or GridRequest(), mask)


def open_raster(raster: Any, role: str = "raster", bands: Bands = None) -> Raster:
    """One raster, checked; no pixel is read. ``role`` names it in messages.

    Raises RasterNotFoundError, RasterInputError or BandCountError.
    """
    opened = _open(raster, role, bands)
    require_place(opened.grid, f"{role} {opened.name}")
    return opened


def _open(raster: Any, role: str, bands: Bands) -> Raster:
    if isinstance(raster, xr.DataArray | xr.Dataset):
        return describe_array(raster, role, bands)
    if isinstance(raster, str | os.PathLike):
        text = os.fspath(raster)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise RasterInputError(f"{role} {text!r} has a name that is not UTF-8, which GDAL cannot open; rename it.")
        source = find_source(text, role)
        if source.is_zarr:
            return open_store(source.dataset, source.choice, text, role, bands)
        return open_file(source, text, role, bands)
    raise RasterInputError(f"{role} is a {type(raster).__name__}; a path, a URL or an xarray DataArray is needed.")


def arrays_of(raster: Raster, chunks: Chunks) -> tuple[da.Array, da.Array]:
    """Pixels (band, y, x) and validity (y, x), lazily, in the given chunks."""
    return raster.arrays(chunks) if isinstance(raster, RasterArray) else chunked(raster, chunks)


def _stack(rasters: dict[str, Raster], request: GridRequest, mask: Any) -> RasterStack:
    """Rasters, by their role, on the grid that was asked for."""
    first = next(iter(rasters.values()))
    grid = target_grid(first.grid, request)
    for role, raster in list(rasters.items())[1:]:
        if not share_covered(nearest_turn(raster.grid, first.grid), first.grid):
            raise GridMismatchError(
                f"{role} {raster.name} does not overlap from_raster {first.name}. It is {describe_grid(raster.grid)}; "
                f"from_raster is {describe_grid(first.grid)}. Are both CRS right?"
            )
    moved = [_onto(_turned(raster, grid), role, grid, request) for role, raster in rasters.items()]
    states = [state_of(raster) for raster in rasters.values()]
    if mask is None:
        return RasterStack(tuple(raster for raster, _ in moved), None, tuple(said for _, said in moved), tuple(states))
    wanted, account, state = _open_mask(mask, grid)
    accounts = (*(said for _, said in moved), account)
    return RasterStack(tuple(raster for raster, _ in moved), wanted, accounts, (*states, state))


def _turned(raster: Any, grid: GeoBox) -> Any:
    """A raster whose degrees are counted as the grid lies: 0 to 360, or -180 to 180."""
    turned = nearest_turn(raster.grid, grid)
    return raster if turned == raster.grid else replace(raster, grid=turned)


def _onto(raster: Raster, role: str, grid: GeoBox, request: GridRequest) -> tuple[Raster, str]:
    """A raster on the grid, and what was done."""
    share = share_covered(raster.grid, grid)
    if not share:
        raise GridMismatchError(
            f"{role} {raster.name} does not overlap the output. It is {describe_grid(raster.grid)}; the output is "
            f"{describe_grid(grid)}. Are both CRS right?"
        )
    source, move, level = raster, find_move(raster.grid, grid, request.resampling), None
    if isinstance(move, Warp):
        _require_warpable(raster, role, grid, request)
        if isinstance(raster, RasterFile) and request.resampling in OVERVIEW_METHODS:
            source = coarser = at_overview(raster, min(move.shrink_yx))
            move, level = find_move(source.grid, grid, request.resampling), coarser.overview
        _require_small_tiles(source, role, move)
    what = f"{raster.kind}, {len(raster.band_names)} band(s) of {raster.dtype}"
    said = [f"{role} {raster.name}: {what}", describe_grid(raster.grid)]
    if level is not None:
        said.append(f"read from overview {level}")
    if isinstance(move, Warp):
        said.append(f"warped to the output's grid, {request.resampling}")
    elif move:
        said.append("cut to the output's grid")
    if share < 1 - 1e-6:
        said.append(f"covers {share:.1%} of the output; the rest is nodata")
    return move_raster(source, move), ", ".join(said)


def _require_warpable(raster: Raster, role: str, grid: GeoBox, request: GridRequest) -> None:
    if request.align == "strict":
        raise GridMismatchError(
            f"{role} {raster.name} is {describe_grid(raster.grid)}; the output is {describe_grid(grid)}, and align is "
            "strict. Allow warping (--align warp), or pass --like (like=) to choose the grid."
        )
    if request.resampling == "sum" and np.issubdtype(raster.dtype, np.integer):
        raise GridMismatchError(
            f"{role} {raster.name} has pixels of {raster.dtype}, and resampling is sum, whose values do not fit that "
            "type. Use another method, such as average (--resampling), or a raster of real numbers."
        )


def _require_small_tiles(source: Raster, role: str, move: Any) -> None:
    """A tile's source window is read in one piece."""
    if not isinstance(move, Warp) or move.tile_source_px * len(source.band_names) <= TILE_SOURCE_LIMIT:
        return
    rows, cols = move.shrink_yx
    raise GridMismatchError(
        f"{role} {source.name} has {rows:.4g} x {cols:.4g} pixels (rows x columns) in one of the output's, too many to "
        f"read for {move.resampling}. Make overviews (rio overview --build auto FILE) and use one of "
        f"{', '.join(sorted(OVERVIEW_METHODS))} (--resampling), pass a coarser copy, or choose a smaller cell size."
    )


def _open_mask(mask: Any, grid: GeoBox) -> tuple[Raster, str, str]:
    """A mask on the grid, each pixel from the nearest of the mask's; what it was taken for, and its state."""
    if isinstance(mask, str | os.PathLike) and Path(mask).suffix.lower() in POLYGON_SUFFIXES:
        if not Path(mask).exists():
            raise RasterInputError(f"The mask {mask} does not exist (looked in {Path.cwd()}).")
        polygons = open_polygons(mask, grid)
        return polygons, f"mask {mask}: polygons", state_of(polygons)
    found = open_raster(_without_scale(mask), "mask", (1,))
    if isinstance(found, RasterFile | ZarrRaster):
        found = replace(found, scaling=())
    return *_onto(found, "mask", grid, GridRequest(resampling="nearest")), state_of(found)


def _without_scale(mask: Any) -> Any:
    """A mask is what is stored: 0 remains 0, whatever offset an array's attributes name."""
    if not isinstance(mask, xr.DataArray | xr.Dataset):
        return mask
    stored = mask.copy(deep=False)
    for variable in [stored.variable] if isinstance(stored, xr.DataArray) else stored.variables.values():
        variable.attrs = {key: value for key, value in variable.attrs.items() if key not in SCALE_ATTRIBUTES}
    return stored


def _grid_of(raster: Any, role: str) -> GeoBox:
    if not isinstance(raster, GeoBox):
        return open_raster(raster, role).grid
    require_place(raster, role)
    return raster


def _numbers_or_grid(given: Any, count: int, what: str) -> Any:
    if given is None:
        return None
    if isinstance(given, str | os.PathLike | xr.DataArray | xr.Dataset | GeoBox):
        return _grid_of(given, what)
    try:
        numbers = tuple(float(each) for each in given)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count:
        raise GridMismatchError(f"{what} is {given!r}; {count} numbers, or a raster whose {what} is meant, are needed.")
    return numbers
