"""A change raster to a Cloud-Optimized GeoTIFF: one small GeoTIFF per block, then one GDAL COG pass."""

from __future__ import annotations

import json
import os
import time
import xml.etree.ElementTree as ET
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
from rasterio.windows import Window

from .attributes import grid_of, plain_layers
from .blocks import Index, Tally, regular_blocks
from .confidence import CONFIDENCE, join_layers
from .errors import OutputError, RunError
from .legend import add_legend, add_statistics, side_text
from .outputs import Written, side_file_of
from .tiff import clear_alpha
from .writing import Format, WriteOptions, found_attrs, write_result

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
        """One part: (y, x), of two fields where it has two bands. Runs on workers."""
        with rasterio.open(self.path(index)) as dataset:
            bands = dataset.read()
        return np.asarray(bands[0]) if len(bands) == 1 else join_layers(*bands)

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Write one part, atomically: (y, x). Runs on workers."""
        part, bands = self.path(index), _bands(values)
        unfinished = part.with_name(f"{part.stem}.{os.getpid()}.{time.monotonic_ns()}")
        to_block = Affine.translation(index[1] * self.block_yx[1], index[0] * self.block_yx[0])
        profile = {
            "driver": "GTiff", "count": len(bands), "dtype": bands.dtype,
            "height": values.shape[0], "width": values.shape[1], "transform": self.transform @ to_block,
            "tiled": True, "blockxsize": COG_BLOCK_PX, "blockysize": COG_BLOCK_PX, "compress": "zstd", "zstd_level": 1,
        }  # fmt: skip
        try:
            with rasterio.open(unfinished, "w", **profile) as dataset:
                dataset.write(bands)
            if not _holds(unfinished, bands):  # GDAL says nothing of what a full disk swallows on closing
                raise OSError(f"{part} was not written whole. Is the disk full?")
            unfinished.replace(part)
        finally:
            unfinished.unlink(missing_ok=True)


def _holds(path: Path, bands: np.ndarray) -> bool:
    """Whether a raster can be read, and has these pixels: (band, y, x)."""
    try:
        with rasterio.open(path) as dataset:
            return np.array_equal(dataset.read(), bands)
    except rasterio.errors.RasterioError:
        return False


@dataclass(frozen=True)
class CogBlocks:
    """The blocks of a result that is whole."""

    path: str
    """Where it is."""
    block_yx: tuple[int, int]
    """Height and width of a block, pixels."""
    dtype: np.dtype[Any]
    """Of a block; of two bands one of two fields."""

    def read_block(self, index: Index) -> np.ndarray:
        """One block: (y, x). Runs on workers."""
        (row, col), (height, width) = index, self.block_yx
        with rasterio.open(self.path) as dataset:
            inside = Window(0, 0, dataset.width, dataset.height)
            bands = dataset.read(window=Window(col * width, row * height, width, height).intersection(inside))
        if self.dtype.names is None:
            return np.asarray(bands[0].astype(self.dtype))
        classes, confidence = (band.astype(self.dtype[number]) for number, band in enumerate(bands))
        return join_layers(classes, confidence)


def write_cog(
    change: xr.DataArray | xr.Dataset,
    path: str | os.PathLike[str],
    **options: Unpack[WriteOptions],
) -> Written:
    """Compute a change raster block by block into a Cloud-Optimized GeoTIFF.

    change : (y, x) integers as `detect_change` gives it. The file has the class colours as its palette, nodata,
    statistics, overviews by the most frequent value, and class table and provenance as tags; ``OUT.tif.aux.xml``
    beside it has the class names and an attribute table, as GDAL, QGIS and ArcGIS read them. Of a Dataset with
    confidence, which must be of an integer type, that is the second band, with scale and offset.
    path : on this disk, or a URL of object storage (`geodl_dask.uploads` says what holds there): the result then grows
    in the current folder, and stays there until it has been uploaded.
    Uses the active Dask client, else this process. Returns where it is, how long it took, and pixels by value.
    options : ``overwrite``, ``resume``, ``same_pixels``, ``keep_going``, ``shard``, ``progress``: see `WriteOptions`.
    Raises OutputError, OutputExistsError, BlockFailedError or, where the last pass fails, RunError; what was there
    before stays until the new one is whole.
    """
    return write_result(change, path, cog_result(change), **options)


def cog_result(change: xr.DataArray | xr.Dataset) -> Format:
    """How the blocks of a raster are kept, and made into a Cloud-Optimized GeoTIFF. Raises OutputError."""
    blocks = regular_blocks(change)
    classes, confidence = plain_layers(change)
    grid = grid_of(classes)
    _require_one_type(classes, confidence)

    def store(folder: Path) -> GeoTiffParts:
        return GeoTiffParts(str(folder), grid.transform, (blocks.chunks[0][0], blocks.chunks[1][0]))

    def finish(folder: Path, tally: Tally) -> Path:
        mosaic, finished = folder / "parts.vrt", folder / "finished.tif"
        for left in (finished, side_file_of(finished)):  # by a run that was stopped in this very pass
            left.unlink(missing_ok=True)
        attrs = [{**classes.attrs, **found_attrs(classes.attrs, tally, blocks)}]
        attrs += [] if confidence is None else [confidence.attrs]
        mosaic.write_text(_mosaic(blocks, store(folder), grid, attrs, tally), encoding="utf-8")
        try:
            _translate(mosaic, finished)
            clear_alpha(finished)
        except (CPLE_BaseError, rasterio.errors.RasterioError, SystemError) as error:
            raise RunError(
                f"{finished} could not be put together from its blocks: {error}. Is the disk full?"
            ) from error
        beside = side_text(attrs[0], tally.pixels, blocks.dtype)
        if beside:  # in the place of GDAL's own, which has no table from 3.12 on
            side_file_of(finished).write_text(beside, encoding="utf-8")
        return finished

    def reopen(result: Path) -> CogBlocks:
        return CogBlocks(str(result), (blocks.chunks[0][0], blocks.chunks[1][0]), blocks.dtype)

    return Format((".tif", ".tiff"), store, lambda folder: None, finish, reopen)


def _translate(mosaic: Path, finished: Path) -> None:
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_MB, VRT_SHARED_SOURCE=False):
        rasterio.shutil.copy(
            mosaic, finished, driver="COG", compress="deflate", blocksize=COG_BLOCK_PX, num_threads="all_cpus",
            overview_resampling=Resampling.mode.name, bigtiff="if_safer",
        )  # fmt: skip


def _require_one_type(classes: xr.DataArray, confidence: xr.DataArray | None) -> None:
    """Raise OutputError for layers that one GeoTIFF cannot hold, which has one pixel type and one nodata."""
    if confidence is None:
        return
    if confidence.dtype.kind not in "ui":
        raise OutputError(
            f"The confidence is {confidence.dtype}, and a GeoTIFF has one pixel type, in which the classes would lose "
            "their colours. Write to .zarr or, of probabilities, ask for uint8 or uint16."
        )
    of_classes, of_confidence = (layer.attrs.get("_FillValue") for layer in (classes, confidence))
    if of_classes != of_confidence:
        raise OutputError(
            f"The classes have nodata {of_classes} and their confidence {of_confidence}; a GeoTIFF has one for both. "
            "Write to .zarr."
        )


def _bands(values: np.ndarray) -> np.ndarray:
    """(band, y, x) of a block (y, x), whose fields, if it has some, become bands of one type."""
    names = values.dtype.names
    return values[None] if names is None else np.stack([values[name] for name in names])


def _mosaic(blocks: da.Array, parts: GeoTiffParts, grid: GeoBox, attrs: list[dict[str, Any]], tally: Tally) -> str:
    """A GDAL virtual raster (VRT) over the parts but those that failed, with all that the file shall say of itself.

    attrs : of the classes and, where there is a band of it, of their confidence.
    """
    height, width = blocks.shape
    dataset = ET.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ET.SubElement(dataset, "SRS").text = grid.crs.to_wkt() if grid.crs else ""
    ET.SubElement(dataset, "GeoTransform").text = ", ".join(repr(value) for value in grid.transform.to_gdal())
    metadata = ET.SubElement(dataset, "Metadata")
    for key, value in attrs[0].items():
        ET.SubElement(metadata, "MDI", key=key).text = value if isinstance(value, str) else json.dumps(value)
    dtype = _bands(np.empty((0, 0), blocks.dtype)).dtype
    for number, of_band in enumerate(attrs, 1):
        band = ET.SubElement(dataset, "VRTRasterBand", dataType=_gdal_type(dtype), band=str(number))
        ET.SubElement(band, "Description").text = CONFIDENCE if number == 2 else str(of_band.get("long_name", "change"))
        for element, key in (("NoDataValue", "_FillValue"), ("Offset", "add_offset"), ("Scale", "scale_factor")):
            if key in of_band:
                ET.SubElement(band, element).text = str(of_band[key])
        if number == 1:
            add_legend(band, of_band, tally.pixels, dtype)
            add_statistics(band, tally.pixels, of_band.get("_FillValue"))
        _add_sources(band, number, blocks, parts, tally)
    return ET.tostring(dataset, encoding="unicode")


def _add_sources(band: ET.Element, number: int, blocks: da.Array, parts: GeoTiffParts, tally: Tally) -> None:
    """Where in the parts the pixels of a band are."""
    starts = [np.cumsum((0, *lengths)).tolist() for lengths in blocks.chunks]
    for row, rows in enumerate(blocks.chunks[0]):
        for col, cols in enumerate(blocks.chunks[1]):
            if (row, col) in tally.failed:  # what no source covers is nodata
                continue
            source = ET.SubElement(band, "SimpleSource")
            ET.SubElement(source, "SourceFilename", relativeToVRT="1").text = parts.path((row, col)).name
            ET.SubElement(source, "SourceBand").text = str(number)
            block_px, width_px, height_px = str(COG_BLOCK_PX), str(cols), str(rows)
            ET.SubElement(
                source, "SourceProperties", RasterXSize=width_px, RasterYSize=height_px,
                DataType=band.get("dataType", ""), BlockXSize=block_px, BlockYSize=block_px,
            )  # fmt: skip
            at = {"xOff": str(starts[1][col]), "yOff": str(starts[0][row])}
            ET.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0"}, xSize=width_px, ySize=height_px)
            ET.SubElement(source, "DstRect", at, xSize=width_px, ySize=height_px)


def _gdal_type(dtype: np.dtype[Any]) -> str:
    return str(rasterio.dtypes.typename_fwd[dtype_rev[dtype.name]])
