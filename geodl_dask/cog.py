"""A change raster to a Cloud-Optimized GeoTIFF: one small GeoTIFF per block, then one GDAL COG pass."""

from __future__ import annotations

import json
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import dask.array as da
import numpy as np
import rasterio
import rasterio.errors
import rasterio.shutil
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.dtypes import dtype_rev
from rasterio.enums import Resampling

from .blocks import Index, Tally, regular_blocks
from .classes import ClassTable
from .errors import RunError
from .outputs import Written
from .writing import WriteOptions, found_attrs, grid_of, write_result

COG_BLOCK_PX = 512
GDAL_CACHE_MB = 256
"""GDAL's own default is a share of the machine's memory."""


@dataclass(frozen=True)
class GeoTiffParts:
    """Block store: each block is a GeoTIFF of its own in one folder."""

    folder: str
    """Where the parts lie."""
    transform: Affine
    """Pixel to map coordinates of the whole raster."""
    block_yx: tuple[int, int]
    """Height and width of a block, pixels."""

    def path(self, index: Index) -> Path:
        """The part of one block."""
        return Path(self.folder, f"{index[0]}_{index[1]}.tif")

    def is_done(self, index: Index) -> bool:
        """Whether the part is there."""
        return self.path(index).exists()

    def read_block(self, index: Index) -> np.ndarray:
        """One part: (y, x). Runs on workers."""
        with rasterio.open(self.path(index)) as dataset:
            return np.asarray(dataset.read(1))

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Write one part, atomically: (y, x). Runs on workers."""
        part = self.path(index)
        unfinished = part.with_name(f"{part.stem}.{os.getpid()}.{time.monotonic_ns()}")
        to_block = Affine.translation(index[1] * self.block_yx[1], index[0] * self.block_yx[0])
        profile = {
            "driver": "GTiff", "count": 1, "dtype": values.dtype, "height": values.shape[0], "width": values.shape[1],
            "transform": self.transform @ to_block,
            "tiled": True, "blockxsize": COG_BLOCK_PX, "blockysize": COG_BLOCK_PX, "compress": "zstd", "zstd_level": 1,
        }  # fmt: skip
        with rasterio.open(unfinished, "w", **profile) as dataset:
            dataset.write(values, 1)
        with rasterio.open(unfinished) as dataset:  # GDAL says nothing of what a full disk has swallowed on closing
            if not np.array_equal(dataset.read(1), values):
                raise OSError(f"{part} was not written whole. Is the disk full?")
        unfinished.replace(part)


def write_cog(
    change: xr.DataArray,
    path: str | os.PathLike[str],
    **options: Unpack[WriteOptions],
) -> Written:
    """Compute a change raster block by block into a Cloud-Optimized GeoTIFF.

    change : (y, x) integers as `detect_change` gives it. The file has the class colours as its palette, nodata,
    overviews by the most frequent value, and class table and provenance as tags.
    path : on this disk, or a URL of object storage (`geodl_dask.uploads` says what holds there): the result then grows
    in the current folder, and stays there until it has been uploaded.
    Uses the active Dask client, else this process. Returns where it is, how long it took, and pixels by value.
    options : ``overwrite``, ``resume``, ``same_pixels``, ``keep_going``, ``progress``: see `WriteOptions`.
    Raises OutputError, OutputExistsError, BlockFailedError or, where the last pass fails, RunError; what was there
    before stays until the new one is whole.
    """
    blocks = regular_blocks(change)
    grid = grid_of(change)

    def begin(folder: Path) -> GeoTiffParts:
        return GeoTiffParts(str(folder), grid.transform, (blocks.chunks[0][0], blocks.chunks[1][0]))

    def finish(folder: Path, tally: Tally) -> Path:
        mosaic, finished = folder / "parts.vrt", folder / "finished.tif"
        finished.unlink(missing_ok=True)  # what a run that was stopped in this very pass has left
        mosaic.write_text(
            _mosaic(
                blocks,
                begin(folder),
                grid,
                {**change.attrs, **found_attrs(change.attrs, tally, blocks)},
                set(tally.failed),
            ),
            encoding="utf-8",
        )
        try:
            _translate(mosaic, finished)
        except (CPLE_BaseError, rasterio.errors.RasterioError, SystemError) as error:
            raise RunError(f"{path} could not be put together from its blocks: {error}. Is the disk full?") from error
        return finished

    return write_result(change, path, (".tif", ".tiff"), begin, finish, **options)


def _translate(mosaic: Path, finished: Path) -> None:
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_MB, VRT_SHARED_SOURCE=False):
        rasterio.shutil.copy(
            mosaic, finished, driver="COG", compress="deflate", blocksize=COG_BLOCK_PX, num_threads="all_cpus",
            overview_resampling=Resampling.mode.name, bigtiff="if_safer",
        )  # fmt: skip


def _mosaic(
    blocks: da.Array, parts: GeoTiffParts, grid: GeoBox, attrs: dict[str, Any], failed: Collection[Index]
) -> str:
    """A GDAL virtual raster (VRT) over the parts but those that failed, with all that the file shall say of itself."""
    height, width = blocks.shape
    dataset = ET.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ET.SubElement(dataset, "SRS").text = grid.crs.to_wkt() if grid.crs else ""
    ET.SubElement(dataset, "GeoTransform").text = ", ".join(repr(value) for value in grid.transform.to_gdal())
    metadata = ET.SubElement(dataset, "Metadata")
    for key, value in attrs.items():
        ET.SubElement(metadata, "MDI", key=key).text = value if isinstance(value, str) else json.dumps(value)
    band = ET.SubElement(dataset, "VRTRasterBand", dataType=_gdal_type(blocks.dtype), band="1")
    ET.SubElement(band, "Description").text = attrs.get("long_name", "change")
    if "_FillValue" in attrs:
        ET.SubElement(band, "NoDataValue").text = str(attrs["_FillValue"])
    _add_palette(band, ClassTable.from_attrs(attrs), blocks.dtype)
    starts = [np.cumsum((0, *lengths)).tolist() for lengths in blocks.chunks]
    for row, rows in enumerate(blocks.chunks[0]):
        for col, cols in enumerate(blocks.chunks[1]):
            if (row, col) in failed:  # what no source covers is nodata
                continue
            source = ET.SubElement(band, "SimpleSource")
            ET.SubElement(source, "SourceFilename", relativeToVRT="1").text = parts.path((row, col)).name
            ET.SubElement(source, "SourceBand").text = "1"
            block_px, width_px, height_px = str(COG_BLOCK_PX), str(cols), str(rows)
            ET.SubElement(
                source, "SourceProperties", RasterXSize=width_px, RasterYSize=height_px,
                DataType=_gdal_type(blocks.dtype), BlockXSize=block_px, BlockYSize=block_px,
            )  # fmt: skip
            at = {"xOff": str(starts[1][col]), "yOff": str(starts[0][row])}
            ET.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0"}, xSize=width_px, ySize=height_px)
            ET.SubElement(source, "DstRect", at, xSize=width_px, ySize=height_px)
    return ET.tostring(dataset, encoding="unicode")


def _add_palette(band: ET.Element, table: ClassTable | None, dtype: np.dtype[Any]) -> None:
    """The class colours; GeoTIFF has palettes for 8 and 16 bits alone. Other values are transparent."""
    if table is None or dtype.itemsize > 2:
        return
    ET.SubElement(band, "ColorInterp").text = "Palette"
    palette = ET.SubElement(band, "ColorTable")
    colors = {each.value: (*each.color, 255) for each in table.classes}
    for value in range(np.iinfo(dtype).max + 1):
        red, green, blue, alpha = map(str, colors.get(value, (0, 0, 0, 0)))
        ET.SubElement(palette, "Entry", c1=red, c2=green, c3=blue, c4=alpha)


def _gdal_type(dtype: np.dtype[Any]) -> str:
    return str(rasterio.dtypes.typename_fwd[dtype_rev[dtype.name]])
