"""Where the result is wanted: a raster, or a layer of polygons."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.features import rasterize

from ..errors import GridMismatchError, MissingDependencyError, RasterInputError
from ..tiling import Window
from .windows import canonical_tiles, shared_slices

POLYGON_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".parquet", ".gml", ".kml", ".gdb")
"""Endings of files that hold polygons rather than pixels."""


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
        polygons, tree = _polygons(self.path, str(self.grid.crs))
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
    polygons, tree = _polygons(mask.path, str(grid.crs))
    if not len(tree.query(grid.extent.geom)):
        bounds = ", ".join(f"{value:.10g}" for value in shapely.total_bounds(polygons))
        raise GridMismatchError(
            f"The mask {path} does not touch the output: its polygons lie within ({bounds}), the output within "
            f"({', '.join(f'{value:.10g}' for value in grid.boundingbox.bbox)}), both in the output's CRS."
        )
    return mask


@lru_cache(maxsize=2)
def _polygons(path: str, crs: str) -> tuple[np.ndarray, Any]:
    """Polygons in the given CRS, and what finds those near a place."""
    try:
        import pyogrio
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading the polygons of {path} needs pyogrio. Install it: pip install 'geodl_dask[vectors]'"
        ) from error
    try:
        meta, _, shapes, _ = pyogrio.raw.read(path, columns=[])
    except pyogrio.errors.DataSourceError as error:
        raise RasterInputError(f"The mask {path} opens neither as a raster nor as a polygon layer: {error}.") from error
    polygons = shapely.from_wkb(shapes)
    polygons = polygons[np.isin(shapely.get_type_id(polygons), (3, 6))]
    if not len(polygons) or meta["crs"] is None:
        lacks = "no CRS" if len(polygons) else "no polygons"
        raise RasterInputError(f"The mask {path} has {lacks}; a polygon layer that says where it lies is needed.")
    onto = Transformer.from_crs(meta["crs"], crs, always_xy=True)
    moved = shapely.transform(polygons, lambda x, y: onto.transform(x, y), interleaved=False)
    return moved, shapely.STRtree(moved)
