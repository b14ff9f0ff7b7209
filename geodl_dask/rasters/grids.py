"""The grid of the result, and how another raster's grid lies on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import point
from rasterio.enums import Resampling

from ..errors import GridMismatchError, RasterInputError
from .overlap import same_crs

Align = Literal["warp", "strict"]

GRID_TOLERANCE_PX = 1e-3
"""Two grids are one where no corner is further apart than this, pixels."""
MOST_PIXELS = 2**45
"""A grid of more than this (3,500 times 100,000 x 100,000) is taken for a mistake."""
RESAMPLING = tuple(each.name for each in Resampling if each is not Resampling.gauss)
"""Those of GDAL's warper."""


@dataclass(frozen=True)
class GridRequest:
    """What was asked of the result's grid. Nothing: the from raster's. Raises GridMismatchError for what cannot be."""

    like: GeoBox | None = None
    """The grid to start from in the place of the from raster's."""
    output_crs: str | None = None
    """CRS as PROJ reads it: ``EPSG:32633``, WKT."""
    cell_size: tuple[float, float] | GeoBox | None = None
    """Width and height of a pixel in units of the output's CRS, or the grid in that CRS whose pixels are meant."""
    extent: tuple[float, float, float, float] | GeoBox | None = None
    """xmin, ymin, xmax, ymax in the output's CRS, or the grid whose extent is meant; widened to whole pixels."""
    snap: GeoBox | None = None
    """The grid whose pixel corners the result's fall on."""
    align: Align = "warp"
    """Whether a raster may be warped to the grid."""
    resampling: str = "bilinear"
    """How, by rasterio's names."""

    def __post_init__(self) -> None:
        if self.align not in get_args(Align):
            raise GridMismatchError(f"align is {self.align!r}; {' or '.join(get_args(Align))} is needed.")
        if self.resampling not in RESAMPLING:
            raise GridMismatchError(f"resampling is {self.resampling!r}; one of {', '.join(RESAMPLING)} is needed.")
        if isinstance(self.cell_size, tuple) and not all(math.isfinite(side) and side > 0 for side in self.cell_size):
            raise GridMismatchError(f"The cell size is {self.cell_size}; lengths above 0 are needed.")
        if isinstance(self.extent, tuple):
            xmin, ymin, xmax, ymax = self.extent
            if not all(map(math.isfinite, self.extent)) or xmin >= xmax or ymin >= ymax:
                raise GridMismatchError(
                    f"The extent is {self.extent}; xmin ymin xmax ymax in the output's CRS, each min below its max, is "
                    "needed."
                )


def target_grid(from_grid: GeoBox, request: GridRequest) -> GeoBox:
    """The grid of the result: the from raster's, or what was asked for. Raises GridMismatchError."""
    base = request.like or from_grid
    if request.output_crs is not None:
        base = _in_crs(base, _parse_crs(request.output_crs))
    if request.cell_size is None and request.extent is None and request.snap is None:
        return base
    if not base.axis_aligned:
        raise GridMismatchError(
            "The from raster's grid is rotated, so cell size, extent and snap raster do not say which grid is meant. "
            "Hand over the whole grid with like=, or leave them out."
        )
    width, height = _cell_size(request.cell_size or base, base.crs)
    bounds = _bounds(request.extent or base, base.crs)
    corner = _corner_in(request.snap, base.crs) if request.snap else (base.boundingbox.left, base.boundingbox.top)
    left, right = _widened(bounds[0], bounds[2], corner[0], width)
    bottom, top = _widened(bounds[1], bounds[3], corner[1], height)
    _require_size(top - bottom, right - left)
    transform = Affine(width, 0, corner[0] + left * width, 0, -height, corner[1] + top * height)
    return GeoBox((top - bottom, right - left), transform, base.crs)


def _name_of(crs: CRS | None) -> str:
    if crs is None:
        return "no CRS"
    epsg = crs.to_epsg()
    return f"EPSG:{epsg}" if epsg else str(crs.proj.name)


def _in_crs(grid: GeoBox, crs: CRS) -> GeoBox:
    """A grid of square pixels in another CRS over the same ground."""
    if same_crs(crs, grid.crs):
        return grid
    if not (crs.projected or crs.geographic):
        raise GridMismatchError(
            f"The output CRS {_name_of(crs)} is neither projected nor geographic; one that is, is needed."
        )
    try:
        moved = grid.to_crs(crs)
    except (ValueError, ArithmeticError) as error:
        raise GridMismatchError(
            f"The from raster cannot be placed in {_name_of(crs)}: {error}. Give an extent in it."
        ) from error
    _require_size(*moved.shape)
    return moved


def _require_size(rows: int, columns: int) -> None:
    if not (0 < rows < 2**31 and 0 < columns < 2**31 and rows * columns <= MOST_PIXELS):
        raise GridMismatchError(
            f"The output would have {rows:,} x {columns:,} pixels, which is taken for a mistake. Give an extent "
            "(--extent, extent=) or a larger cell size, in the units of the output's CRS."
        )


def _cell_size(given: tuple[float, float] | GeoBox, crs: CRS | None) -> tuple[float, float]:
    if isinstance(given, tuple):
        return given
    if not same_crs(given.crs, crs):
        raise GridMismatchError(
            f"The cell size is taken from a raster in {_name_of(given.crs)}, and the output is in {_name_of(crs)}. "
            "Give it as a number."
        )
    return abs(given.resolution.x), abs(given.resolution.y)


def _bounds(given: tuple[float, float, float, float] | GeoBox, crs: CRS | None) -> tuple[float, float, float, float]:
    if isinstance(given, tuple):
        return given
    box = given.boundingbox if crs is None or same_crs(given.crs, crs) else given.extent.to_crs(crs).boundingbox
    if not all(map(math.isfinite, box.bbox)):
        raise GridMismatchError(
            f"The extent of a raster in {_name_of(given.crs)} has no place in {_name_of(crs)}. Give it as numbers."
        )
    return box.left, box.bottom, box.right, box.top


def require_place(grid: GeoBox, name: str) -> None:
    """Raise RasterInputError for a grid whose place on the Earth is not known."""
    if grid.crs is None or not (grid.crs.projected or grid.crs.geographic):
        raise RasterInputError(
            f"{name} has the CRS {grid.crs.proj.name if grid.crs else None!r}, which is neither projected nor "
            "geographic, so where it lies is not known. Assign one that is, or warp it to one."
        )
    if grid.transform == Affine.identity():
        raise RasterInputError(
            f"{name} has a CRS and no transform: its pixels have no coordinates but row and column. Give it one, for "
            "instance with: rio edit-info --transform '[cell width, 0, xmin, 0, -cell height, ymax]' FILE"
        )


def whole_pixel_offset(source: GeoBox, target: GeoBox) -> tuple[int, int] | None:
    """Row and column, in ``source``, of the upper-left pixel of ``target``.

    None where pixels of the two are not the same pixels, by more than `GRID_TOLERANCE_PX` at any corner of ``target``.
    """
    if not same_crs(source.crs, target.crs):
        return None
    height, width = target.shape
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], float)
    shifts = np.array([source.wld2pix(*target.pix2wld(*corner)) for corner in corners]) - corners
    offset = np.rint(shifts[0])
    if np.hypot(*(shifts - offset).T).max() > GRID_TOLERANCE_PX:
        return None
    return int(offset[1]), int(offset[0])


def describe_grid(grid: GeoBox) -> str:
    """Shape, pixel size, CRS and bounds, for messages."""
    bounds = ", ".join(f"{value:.10g}" for value in grid.boundingbox.bbox)
    return (
        f"{grid.shape[0]} x {grid.shape[1]} pixels (rows x columns) of {grid.resolution.x:.6g} x "
        f"{abs(grid.resolution.y):.6g}, {_name_of(grid.crs)}, bounds ({bounds})"
    )


def _widened(low: float, high: float, anchor: float, step: float) -> tuple[int, int]:
    """The range in whole steps from ``anchor`` that covers it."""
    tolerance = min(GRID_TOLERANCE_PX, (high - low) / step / 2)
    first = math.floor((low - anchor) / step + tolerance)
    return first, max(math.ceil((high - anchor) / step - tolerance), first + 1)


def _corner_in(grid: GeoBox, crs: CRS | None) -> tuple[float, float]:
    x, y = grid.pix2wld(0, 0)
    if crs is None or same_crs(grid.crs, crs):
        return x, y
    placed = point(x, y, grid.crs).to_crs(crs)
    return placed.coords[0]


def _parse_crs(text: Any) -> CRS:
    try:
        crs = CRS(text)
    except Exception as error:  # pyproj's CRSError, or a TypeError
        raise GridMismatchError(f"The output CRS {text!r} is not one that PROJ knows, such as EPSG:32633.") from error
    if not (crs.projected or crs.geographic):
        raise GridMismatchError(f"The output CRS {text!r} is neither projected nor geographic, such as EPSG:32633.")
    return crs
