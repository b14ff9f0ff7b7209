"""Where the result is wanted: a raster, or a layer of polygons."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.features import rasterize

from ..errors import GridMismatchError, MissingDependencyError, RasterInputError
from ..tiling import Window
from .grids import describe_grid
from .overlap import same_crs
from .windows import canonical_tiles, shared_slices

POLYGON_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".parquet", ".gml", ".kml", ".gdb")
"""Endings of files that hold polygons rather than pixels."""
MOST_POINTS = 100_000
"""An edge is cut into pieces as long as a pixel, but an outline into no more than so many."""
FOOTPRINT_SAMPLES = 33
"""Points along each side of the grid by which its place in the layer's CRS is found."""


@dataclass(frozen=True)
class PolygonMask:
    """A polygon layer as a raster of one band: 1 where a pixel's centre lies inside a polygon, else 0."""

    path: str
    """What GDAL opens."""
    grid: GeoBox
    """The grid that it is drawn on."""
    kind: str = "polygons"
    """What it is, for people."""
    band_names: tuple[str, ...] = ("inside",)
    """The one band."""
    dtype: str = "uint8"
    """NumPy name of the pixel type."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.path

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """As `WindowedRaster.read`."""
        inside = np.zeros((1, window.height, window.width), np.uint8)
        for tile in canonical_tiles(window, self.grid.shape.yx):
            inner, outer = shared_slices(tile, window)
            inside[0, *outer] = self._draw(tile)[inner]
        return inside, np.ones(inside.shape[1:], bool)

    def _draw(self, tile: Window) -> np.ndarray:
        polygons, tree = _polygons(self.path, _stamp(self.path), self.grid)
        part = self.grid[tile.row_off : tile.row_off + tile.height, tile.col_off : tile.col_off + tile.width]
        found = polygons[tree.query(part.extent.geom)]
        if not len(found):
            return np.zeros(part.shape.yx, np.uint8)
        # A country's outline has a million corners, of which a tile needs few.
        near = shapely.clip_by_rect(found, *part.pad(2).boundingbox.bbox)
        return rasterize(
            [shape for shape in near if not shape.is_empty] or [shapely.Point()],
            part.shape.yx,
            transform=part.transform,
            dtype=np.uint8,
        )


def open_polygons(path: str | os.PathLike[str], grid: GeoBox) -> PolygonMask:
    """A polygon layer, checked. Raises MissingDependencyError, RasterInputError or GridMismatchError."""
    mask = PolygonMask(str(Path(path).absolute()), grid)
    _, tree = _polygons(mask.path, _stamp(mask.path), grid)
    if not len(tree.query(grid.extent.geom)):
        shapes, _ = _read_layer(mask.path)
        bounds = ", ".join(f"{value:.10g}" for value in shapely.total_bounds(shapes))
        raise GridMismatchError(
            f"The mask {path} does not touch the output: its polygons lie within ({bounds}), in the layer's CRS; "
            f"the output is {describe_grid(grid)}."
        )
    return mask


def _stamp(path: str) -> tuple[int, int]:
    """Another one where the file was written anew."""
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2)
def _polygons(path: str, stamp: tuple[int, int], grid: GeoBox) -> tuple[np.ndarray, Any]:
    """Polygons in the grid's CRS, all that lie near it, and what finds those near a place."""
    shapes, crs = _read_layer(path)
    parts = _valid_parts(shapes)
    if not same_crs(CRS(crs), grid.crs):
        # What lies far away may have no place in the grid's CRS, and a long edge is straight in the layer's only.
        onto = Transformer.from_crs(crs, str(grid.crs), always_xy=True)
        near, step = _footprint(grid, onto)
        parts = _valid_parts(shapely.intersection(parts[shapely.intersects(parts, near)], near))
        dense = shapely.segmentize(parts, np.maximum(step, shapely.length(parts) / MOST_POINTS))
        parts = shapely.transform(dense, lambda x, y: onto.transform(x, y), interleaved=False)
        if not np.isfinite(shapely.bounds(parts)).all():
            raise RasterInputError(
                f"The mask {path} has polygons that reach to where the output's CRS has no place. Clip them to the "
                "output's ground first."
            )
        parts = _valid_parts(parts)
    return parts, shapely.STRtree(parts)


def _valid_parts(shapes: np.ndarray) -> np.ndarray:
    """The polygons that shapes consist of; where rings cross, what GDAL would draw."""
    broken = ~shapely.is_valid(shapes)
    shapes = shapes.copy()
    shapes[broken] = shapely.make_valid(shapes[broken])
    parts = shapely.get_parts(shapely.get_parts(shapes))  # of a collection, parts may have parts
    return parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]


def _read_layer(path: str) -> tuple[np.ndarray, str]:
    """Polygons in two dimensions, and their CRS."""
    try:
        import pyogrio
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading the polygons of {path} needs pyogrio. Install it: pip install 'geodl_dask[vectors]'"
        ) from error
    try:
        meta, _, shapes, _ = pyogrio.raw.read(path, columns=[], force_2d=True)
    except pyogrio.errors.DataSourceError as error:
        raise RasterInputError(f"The mask {path} opens neither as a raster nor as a polygon layer: {error}.") from error
    polygons = shapely.from_wkb(shapes)
    polygons = polygons[np.isin(shapely.get_type_id(polygons), (3, 6))]
    if not len(polygons) or meta["crs"] is None:
        lacks = "no CRS" if len(polygons) else "no polygons"
        raise RasterInputError(f"The mask {path} has {lacks}; a polygon layer that says where it lies is needed.")
    return polygons, str(meta["crs"])


def _footprint(grid: GeoBox, onto: Transformer) -> tuple[shapely.Geometry, float]:
    """Where the layer's CRS has the grid, with some room around it, and about a pixel's length there.

    onto : from the layer's CRS to the grid's.
    """
    rows, cols = np.meshgrid(*(np.linspace(0, length, FOOTPRINT_SAMPLES) for length in grid.shape), indexing="ij")
    transform = grid.transform
    x = transform.a * cols + transform.b * rows + transform.c
    y = transform.d * cols + transform.e * rows + transform.f
    x, y = onto.transform(x, y, direction="INVERSE")
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return shapely.Polygon(), 1.0
    left, bottom, right, top = onto.transform_bounds(*grid.boundingbox.bbox, densify_pts=101, direction="INVERSE")
    if not known.all() or not np.isfinite([left, bottom, right, top]).all():
        left, right, bottom, top = x[known].min(), x[known].max(), y[known].min(), y[known].max()
    is_round = onto.source_crs is not None and onto.source_crs.is_geographic
    right += 360 if is_round and right < left else 0
    with np.errstate(invalid="ignore"):  # of points that are nowhere
        steps = [
            np.hypot(np.diff(x, axis=axis), np.diff(y, axis=axis)) * (FOOTPRINT_SAMPLES - 1) / grid.shape[axis]
            for axis in (0, 1)
        ]
    step = min(float(np.median(each[np.isfinite(each)])) for each in steps)
    room = 0.05 * max(right - left, top - bottom) + 2 * step
    turns = (-360, 0, 360) if is_round else (0,)
    boxes = [shapely.box(left - room + turn, bottom - room, right + room + turn, top + room) for turn in turns]
    return shapely.union_all(boxes), step
