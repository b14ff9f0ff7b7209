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

Align = Literal["warp", "strict"]

GRID_TOLERANCE_PX = 1e-3
"""Two grids are one where no corner is further apart than this, pixels."""
SAMPLES = 17
"""Points along each side of a window by which its place on another grid is found."""
RESAMPLING = tuple(each.name for each in Resampling if each is not Resampling.gauss)
"""Those of GDAL's warper."""


@dataclass(frozen=True)
class GridRequest:
    """What was asked of the result's grid. Nothing: the from raster's. Raises GridMismatchError for what cannot be."""

    like: GeoBox | None = None
    """The grid to start from in the place of the from raster's."""
    output_crs: str | None = None
    """CRS as PROJ reads it: ``EPSG:32633``, WKT."""
    cell_size: tuple[float, float] | None = None
    """Width and height of a pixel in units of the output's CRS."""
    extent: tuple[float, float, float, float] | None = None
    """xmin, ymin, xmax, ymax in the output's CRS; widened to whole pixels."""
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
        if self.cell_size is not None and not all(math.isfinite(side) and side > 0 for side in self.cell_size):
            raise GridMismatchError(f"The cell size is {self.cell_size}; lengths above 0 are needed.")
        if self.extent is not None:
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
        crs = _parse_crs(request.output_crs)
        base = base if same_crs(crs, base.crs) else base.to_crs(crs)
    if request.cell_size is None and request.extent is None and request.snap is None:
        return base
    if not base.axis_aligned:
        raise GridMismatchError(
            "The from raster's grid is rotated, so cell size, extent and snap raster do not say which grid is meant. "
            "Hand over the whole grid with like=, or leave them out."
        )
    width, height = request.cell_size or (abs(base.resolution.x), abs(base.resolution.y))
    bounds = request.extent or tuple(base.boundingbox.bbox)
    corner = _corner_in(request.snap, base.crs) if request.snap else (base.boundingbox.left, base.boundingbox.top)
    left, right = _widened(bounds[0], bounds[2], corner[0], width)
    bottom, top = _widened(bounds[1], bounds[3], corner[1], height)
    columns, rows = right - left, top - bottom
    transform = Affine(width, 0, corner[0] + left * width, 0, -height, corner[1] + top * height)
    return GeoBox((rows, columns), transform, base.crs)


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


def share_covered(source: GeoBox, target: GeoBox) -> float:
    """How much of ``target`` lies inside ``source``, 0 to 1."""
    if same_crs(source.crs, target.crs):
        ours, theirs = target.extent, source.extent.assign_crs(target.crs)
    else:
        ours, theirs = target.geographic_extent, source.geographic_extent
    share = float((ours & theirs).area / ours.area) if ours.is_valid and theirs.is_valid else 0.0
    if share or same_crs(source.crs, target.crs):
        return min(share, 1.0)
    # Outlines break where they run round a pole or over the edge of the world; points do not.
    rows, cols = _pixels_of(source, target)
    return float(np.mean((rows > 0) & (rows < source.shape.y) & (cols > 0) & (cols < source.shape.x)))


def shrink_factor(source: GeoBox, target: GeoBox) -> tuple[float, float]:
    """Pixels of ``source`` along y and x in one of ``target``, in the middle of the ground that both cover."""
    rows, cols = _pixels_of(source, target)
    inside = (rows >= 0) & (rows <= source.shape.y) & (cols >= 0) & (cols <= source.shape.x)
    steps = [np.hypot(np.diff(rows, axis=axis), np.diff(cols, axis=axis)) for axis in (0, 1)]
    spans = (target.shape.y / (SAMPLES - 1), target.shape.x / (SAMPLES - 1))
    near = [inside[1:] & inside[:-1], inside[:, 1:] & inside[:, :-1]]
    factors = [
        float(np.median(step[both] if both.any() else step[np.isfinite(step)])) / span
        for step, both, span in zip(steps, near, spans, strict=True)
    ]
    return factors[0], factors[1]


def bounds_on(source: GeoBox, target: GeoBox) -> tuple[float, float, float, float] | None:
    """First and last row and column of ``source``, as real numbers, under ``target``; None where it lies nowhere."""
    rows, cols = _pixels_of(source, target)
    known = np.isfinite(rows) & np.isfinite(cols)
    if not known.any():
        return None
    rows, cols = rows[known], cols[known]
    return float(rows.min()), float(rows.max()), float(cols.min()), float(cols.max())


def same_crs(ours: CRS | None, theirs: CRS | None) -> bool:
    """Whether two CRS place a coordinate alike, whatever their texts."""
    if ours is None or theirs is None:
        return ours is theirs
    return bool(ours == theirs or ours.proj.equals(theirs.proj, ignore_axis_order=True))


def describe_grid(grid: GeoBox) -> str:
    """Shape, pixel size, CRS and bounds, for messages."""
    bounds = ", ".join(f"{value:.10g}" for value in grid.boundingbox.bbox)
    epsg = grid.crs.to_epsg() if grid.crs else None
    crs = f"EPSG:{epsg}" if epsg else grid.crs.proj.name if grid.crs else "no CRS"
    return (
        f"{grid.shape[0]} x {grid.shape[1]} pixels (rows x columns) of {grid.resolution.x:.6g} x "
        f"{abs(grid.resolution.y):.6g}, {crs}, bounds ({bounds})"
    )


def _pixels_of(source: GeoBox, target: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of ``source``, (SAMPLES, SAMPLES) real numbers, of points spread evenly over ``target``.

    Infinite where a point lies outside the other CRS.
    """
    rows, cols = np.meshgrid(*(np.linspace(0, length, SAMPLES) for length in target.shape), indexing="ij")
    x, y = _apply(target.transform, cols, rows)
    if source.crs is not None and target.crs is not None and not same_crs(source.crs, target.crs):
        x, y = target.crs.transformer_to_crs(source.crs)(x, y)
    cols, rows = _apply(~source.transform, x, y)
    return rows, cols


def _apply(transform: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore"):  # of points that are nowhere
        return (
            transform.a * x + transform.b * y + transform.c,
            transform.d * x + transform.e * y + transform.f,
        )


def _widened(low: float, high: float, anchor: float, step: float) -> tuple[int, int]:
    """The range in whole steps from ``anchor`` that covers it."""
    first = math.floor((low - anchor) / step + GRID_TOLERANCE_PX)
    return first, max(math.ceil((high - anchor) / step - GRID_TOLERANCE_PX), first + 1)


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
