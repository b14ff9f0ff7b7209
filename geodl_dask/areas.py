"""How much ground a pixel covers: on the map, or on the ellipsoid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import hypot
from typing import Literal, get_args

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import CRS, Geod, Proj, Transformer

from .errors import RasterInputError
from .tiling import Window

AreaOn = Literal["auto", "map", "ellipsoid"]
SQUARE_METRES_PER_HECTARE = 10_000
TRUSTED = 0.01
"""A map whose areas are off by more than this share somewhere in the raster is not measured on."""
_NODE_EVERY_PX = 16
"""On the ellipsoid so many pixels lie between those whose corners are projected, where a map is not in degrees."""


def map_area(grid: GeoBox) -> float | None:
    """Square metres of a pixel on the map; None where the CRS is not in lengths."""
    if grid.crs is None or not grid.crs.projected:
        return None
    metres = float(grid.crs.proj.axis_info[0].unit_conversion_factor)
    return abs(grid.transform.determinant) * metres**2


def choose_area(grid: GeoBox, on: AreaOn) -> Literal["map", "ellipsoid"]:
    """Where the pixels of a raster are to be measured.

    ``"auto"``: on the map where that is in lengths and shows areas within 1 % of the ellipsoid's (as UTM, and national
    grids at home), else on the ellipsoid (as degrees, and Web Mercator).
    Raises RasterInputError for a place that is not known, or a map without lengths.
    """
    if on not in get_args(AreaOn):
        raise RasterInputError(f"area is {on!r}; one of {', '.join(get_args(AreaOn))} is needed.")
    if grid.crs is None or not (grid.crs.projected or grid.crs.geographic):
        raise RasterInputError("The raster has no CRS that says where it lies, so its pixels have no area.")
    flat = map_area(grid)
    if on == "map" and flat is None:
        raise RasterInputError("The raster's CRS is in degrees, which have no area on the map. Say area='ellipsoid'.")
    if on != "auto":
        return on
    return "ellipsoid" if flat is None or _distortion(grid, flat) > TRUSTED else "map"


def _distortion(grid: GeoBox, flat: float) -> float:
    """By how much the map's areas are off at the worst of a few places, as a share of the ellipsoid's; 0.5: half."""
    rows, cols = (np.linspace(0, length - 1, 5) for length in grid.shape)
    with np.errstate(divide="ignore"):  # of places that are nowhere on Earth
        return float(np.abs(flat / _Ellipsoid(grid).pixel_areas(rows, cols) - 1).max())


@dataclass(frozen=True)
class PixelAreas:
    """Square metres of the pixels of a grid."""

    grid: GeoBox
    """CRS, transform and shape."""
    on: Literal["map", "ellipsoid"]
    """Where they are measured."""

    @cached_property
    def each(self) -> float | None:
        """Of any pixel; None where they differ."""
        return map_area(self.grid) if self.on == "map" else None

    def of(self, window: Window) -> np.ndarray:
        """Square metres of a window's pixels: (y, x), or what broadcasts to that. Runs on workers."""
        if self.each is not None:
            return np.full((1, 1), self.each)
        rows, cols = (
            offset + np.arange(length)
            for offset, length in ((window.row_off, window.height), (window.col_off, window.width))
        )
        ellipsoid = _Ellipsoid(self.grid)
        if ellipsoid.is_alike_along_rows:
            return ellipsoid.pixel_areas(rows, cols[:1])
        row_nodes, col_nodes = _nodes(rows), _nodes(cols)
        return _hats(rows, row_nodes) @ ellipsoid.pixel_areas(row_nodes, col_nodes) @ _hats(cols, col_nodes).T

    def sides(self, row: int, col: int) -> tuple[float, float]:
        """Metres across and down a pixel; infinite or no number where it is nowhere on Earth."""
        if self.on == "ellipsoid":
            return _Ellipsoid(self.grid).sides(row, col)
        a, b, _, d, e, _ = tuple(self.grid.transform)[:6]
        metres = float(self.grid.crs.proj.axis_info[0].unit_conversion_factor)  # type: ignore[union-attr]
        return hypot(a, d) * metres, hypot(b, e) * metres


class _Ellipsoid:
    """Pixels of a grid, laid on its CRS's own ellipsoid."""

    def __init__(self, grid: GeoBox) -> None:
        crs: CRS = grid.crs.proj  # type: ignore[union-attr]
        flat = crs.sub_crs_list[0] if crs.is_compound else crs.to_2d()
        degrees = flat.geodetic_crs
        self._geod: Geod = flat.get_geod()  # type: ignore[assignment]
        self.is_alike_along_rows = bool(flat.is_geographic) and grid.axis_aligned
        self._grid = grid
        self._radians = float(degrees.axis_info[0].unit_conversion_factor)  # type: ignore[union-attr]
        self._to_degrees = None if flat.is_geographic else Transformer.from_crs(flat, degrees, always_xy=True)
        # Lambert's cylindrical map keeps areas, and the cell between two meridians and two parallels a rectangle.
        self._equal_area = Proj(proj="cea", a=self._geod.a, b=self._geod.b)
        self._metres_per_radian = self._geod.a

    def pixel_areas(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Square metres of the pixels in some rows and columns: (row, column); 0 for one that is nowhere on Earth."""
        row, col = np.meshgrid(rows, cols, indexing="ij")
        corners = [self._project(col + right, row + down) for right, down in ((0, 0), (1, 0), (1, 1), (0, 1))]
        x, y = (np.array(each) for each in zip(*corners, strict=True))
        with np.errstate(invalid="ignore"):
            x = np.unwrap(x, axis=0, period=2 * np.pi * self._metres_per_radian)
            twice = (x[2] - x[0]) * (y[3] - y[1]) - (x[3] - x[1]) * (y[2] - y[0])
        return np.nan_to_num(np.abs(twice) / 2, nan=0.0, posinf=0.0)

    def sides(self, row: int, col: int) -> tuple[float, float]:
        """Metres across and down a pixel, through its middle."""
        cols, rows = np.array([0, 1, 0.5, 0.5]), np.array([0.5, 0.5, 0, 1])
        lon, lat = np.degrees(self._locate(col + cols, row + rows))
        across, down = self._geod.inv(lon[::2], lat[::2], lon[1::2], lat[1::2])[2]
        return float(across), float(down)

    def _project(self, col: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metres on the equal-area map."""
        lon, lat = self._locate(col, row)
        _, y = self._equal_area(np.zeros_like(lat), np.degrees(lat))
        return lon * self._metres_per_radian, np.asarray(y)

    def _locate(self, col: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Longitude and latitude in radians."""
        a, b, c, d, e, f = tuple(self._grid.transform)[:6]
        lon, lat = a * col + b * row + c, d * col + e * row + f
        if self._to_degrees is not None:
            lon, lat = self._to_degrees.transform(lon, lat)
        # Of global grids half a pixel may lie beyond a pole.
        return lon * self._radians, np.clip(lat * self._radians, -np.pi / 2, np.pi / 2)


def _nodes(places: np.ndarray) -> np.ndarray:
    """A few of the places, first and last among them."""
    return np.linspace(places[0], places[-1], -(-(len(places) - 1) // _NODE_EVERY_PX) + 1)


def _hats(places: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Weights of linear interpolation: (place, node)."""
    return np.stack([np.interp(places, nodes, weights) for weights in np.eye(len(nodes))], axis=1)


def add_up(values: np.ndarray, areas: np.ndarray) -> dict[int, tuple[int, float]]:
    """Pixels and square metres by value. Runs on workers.

    values : (y, x) integers. areas : of each pixel, as `PixelAreas.of` has them.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:  # ten times as fast as finding them
        found, places = np.arange(np.iinfo(values.dtype).max + 1), values.ravel()
    else:
        found, inverse = np.unique(values, return_inverse=True)
        places = inverse.ravel()
    pixels = np.bincount(places, minlength=len(found))
    weights = None if areas.size == 1 else np.broadcast_to(areas, values.shape).ravel()
    metres = pixels * float(areas.item()) if weights is None else np.bincount(places, weights, len(found))
    return {int(found[at]): (int(pixels[at]), float(metres[at])) for at in np.flatnonzero(pixels)}
