"""A result that was written, opened again: as `detect_change` gives it, or coarser, from its overviews."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import rioxarray
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.enums import Resampling
from rasterio.windows import Window

from .confidence import CONFIDENCE, layers_of
from .errors import RasterInputError, RasterNotFoundError
from .geozarr import without_place
from .pyramid import levels_of
from .rasters.gdal import opened as opened_by_gdal
from .rasters.grids import whole_pixel_offset
from .survey import BLOCK_PX

ResultLike = str | os.PathLike[str] | xr.DataArray | xr.Dataset
LARGEST_PX = 4_096**2
"""What is not computed yet and has more pixels than this is not computed for a picture of it."""
_LISTS = ("flag_values", "class_names", "rasters", "raster_states", "tile_size", "failed_blocks")
_READS = ("original-open_", "open_", "getitem-", "rechunk-")
"""How Dask names the steps that read a file, and cut."""


def open_change(path: str | os.PathLike[str]) -> xr.DataArray | xr.Dataset:
    """A result that `write_cog` or `write_zarr` has written, as `detect_change` gave it: lazy, with its class table.

    path : a ``.tif`` or ``.zarr``. Returns a DataArray (y, x) or, with confidence, a Dataset of both as they are kept.
    Raises RasterNotFoundError or RasterInputError.
    """
    text = os.fspath(path)
    if Path(text).suffix.lower() not in (".tif", ".tiff", ".zarr"):
        raise RasterInputError(f"{text} does not end in .tif, .tiff or .zarr, as results do.")
    if "://" not in text and not Path(text).exists():
        raise RasterNotFoundError(f"There is no result at {text} (looked in {Path.cwd()}).")
    try:
        layers = _layers_of_store(text) if Path(text).suffix.lower() == ".zarr" else _layers_of_tiff(text)
    except RasterInputError:
        raise
    except Exception as error:  # a store that is none fails in as many ways as there are libraries beneath
        raise RasterInputError(f"{text} cannot be opened as a result: {type(error).__name__}: {error}") from error
    for layer in layers:
        layer.encoding = {"source": text}
    return layers[0] if len(layers) == 1 else xr.Dataset({layer.name: layer for layer in layers})


def opened(change: ResultLike) -> tuple[xr.DataArray, xr.DataArray | None]:
    """The classes, in integers, and confidence of what is given by path, or is there. Raises RasterInputError."""
    classes, confidence = layers_of(open_change(change) if isinstance(change, str | os.PathLike) else change)
    if not isinstance(classes, xr.DataArray):
        raise RasterInputError(f"What was given is a {type(classes).__name__}; a path or a DataArray is needed.")
    if classes.dtype.kind not in "ui":
        raise RasterInputError(
            f"The raster holds {classes.dtype}; class values, which are integers, are needed. Of a comparison they are "
            "kept by change.where(change == 7)."
        )
    return classes, confidence


def grid_of_result(classes: xr.DataArray) -> GeoBox:
    """CRS, transform and shape. Raises RasterInputError."""
    if not classes.size:
        raise RasterInputError(f"The raster has no pixels ({dict(classes.sizes)}): what was cut from it is empty.")
    grid = classes.odc.geobox if classes.ndim == 2 else None
    if classes.dims != ("y", "x") or not isinstance(grid, GeoBox):
        raise RasterInputError(
            f"The raster has dimensions {dict(classes.sizes)}; y and x with evenly spaced coordinates are needed. Of a "
            "stack, take one at a time: change.sel(year=2024), change.isel(band=0)."
        )
    return grid


def coarse_view(change: ResultLike, longest_px: int) -> xr.DataArray:
    """The classes of a result, in memory, with at most so many pixels a side; classes are picked, never averaged.

    Of a file they come from its overviews (of the most frequent class), where it has some; else each is the middle one
    of those that it stands for.
    Raises RasterInputError for a large one that is neither computed nor in a file.
    """
    classes, _ = opened(change)
    grid = grid_of_result(classes)
    step = max(1, -(-max(grid.shape) // longest_px))
    source, at = _source_of(classes, grid)
    if source is not None:
        read = _view_of_store if Path(source).suffix.lower() == ".zarr" else _view_of_tiff
        pixels, coarse = read(source, Window(at[1], at[0], *reversed(grid.shape.yx)), step)
    elif classes.size > LARGEST_PX and isinstance(classes.data, da.Array) and not _is_read(classes.data):
        raise RasterInputError(
            f"The raster has {classes.sizes['x']:,} x {classes.sizes['y']:,} pixels, which are not computed yet, and "
            "would all be computed for a picture. Write it first (write_cog, write_zarr) and give the path, or take a "
            "part: change[:4000, :4000]."
        )
    else:
        pixels = np.asarray(classes.data[tuple(_middles(0, length, step) for length in grid.shape.yx)])
        coarse = grid.transform @ Affine.scale(step)
    coords = xr_coords(GeoBox(pixels.shape, coarse, grid.crs), dims=("y", "x"))
    return xr.DataArray(pixels, coords=coords, dims=("y", "x"), name=classes.name, attrs=classes.attrs)


def _layers_of_tiff(path: str) -> list[xr.DataArray]:
    with opened_by_gdal(path) as dataset:
        tags, nodata, block = dataset.tags(), dataset.nodata, dataset.block_shapes[0]
        scaled = [
            dict(zip(("scale_factor", "add_offset"), each, strict=True))
            for each in zip(dataset.scales, dataset.offsets, strict=True)
        ]
        grid = GeoBox(dataset.shape, dataset.transform, dataset.crs.to_wkt() if dataset.crs else None)
    attrs = {key: _parsed(key, value) for key, value in tags.items() if key != "AREA_OR_POINT"}
    if nodata is not None:
        attrs["_FillValue"] = int(nodata)
    chunks = {"band": 1, **_chunks(dict(zip(("y", "x"), block, strict=True)))}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Scales|Offsets) differ across bands")
        # By its format, for a server may have another file under that name by now.
        lazy = rioxarray.open_rasterio(path, chunks=chunks, lock=False, mask_and_scale=False, driver="GTiff")
    bands = cast("xr.DataArray", lazy)
    named = [(str(attrs.get("long_name", "change")), attrs)]
    if len(bands) > 1:
        # In a GeoTIFF it is never a distance, for which no integer has room.
        of_confidence = {"long_name": "probability of the class", "_FillValue": attrs.get("_FillValue"), "units": "1"}
        named.append((CONFIDENCE, {**of_confidence, **scaled[1]}))
    coords = xr_coords(grid, dims=("y", "x"))
    return [
        xr.DataArray(bands.data[number], coords=coords, dims=("y", "x"), name=name, attrs=of_layer)
        for number, (name, of_layer) in enumerate(named)
    ]


def _parsed(key: str, text: str) -> Any:
    """What a tag of a GeoTIFF held before it became text; the text where somebody has written another."""
    try:
        if key in _LISTS:
            return json.loads(text)
        return int(text) if key == "padding" else text
    except (ValueError, RecursionError):
        return text


def _layers_of_store(path: str) -> list[xr.DataArray]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Consolidated metadata|Failed to open Zarr store with consolidated)")
        stored = xr.open_zarr(path, mask_and_scale=False, chunks=None)
        names = [name for name in stored.data_vars if stored[name].dims == ("y", "x")]
        if not names:
            raise RasterInputError(f"{path} holds no array with the dimensions y, x.")
        names.sort(key=lambda name: (name == CONFIDENCE, "flag_values" not in stored[name].attrs))
        chunks = _chunks(stored[names[0]].encoding["preferred_chunks"])
        lazy = xr.open_zarr(path, mask_and_scale=False, chunks=chunks)
    grid = stored[names[0]].odc.geobox
    if not isinstance(grid, GeoBox):
        raise RasterInputError(f"{path} has no evenly spaced y, x coordinates.")
    coords = xr_coords(grid, dims=("y", "x"))
    return [
        xr.DataArray(lazy[name].data, coords, ("y", "x"), name, without_place(lazy[name].attrs))
        for name in names[:1] + [name for name in names[1:] if name == CONFIDENCE]
    ]


def _chunks(block: Mapping[str, int]) -> dict[str, int]:
    """Blocks to work in, each of whole blocks of the file."""
    return {dim: max(1, BLOCK_PX // block[dim]) * block[dim] for dim in ("y", "x")}


def _source_of(classes: xr.DataArray, grid: GeoBox) -> tuple[str | None, tuple[int, int]]:
    """The file that a raster was opened from, if it is a window of that and nothing else; and its first row, column."""
    path, array = classes.encoding.get("source"), classes.data
    if path is None or not isinstance(array, da.Array) or not _is_read(array):
        return None, (0, 0)
    whole = layers_of(open_change(path))[0]
    at = whole_pixel_offset(whole.odc.geobox, grid)
    is_inside = at is not None and all(
        0 <= start <= length - part for start, length, part in zip(at, whole.shape, grid.shape.yx, strict=True)
    )
    return (path, cast("tuple[int, int]", at)) if is_inside else (None, (0, 0))


def _is_read(array: da.Array) -> bool:
    """Whether all that an array does is to read a file and cut it."""
    steps = list(array.dask.layers)
    return any(step.startswith("open_") for step in steps) and all(step.startswith(_READS) for step in steps)


def _view_of_tiff(path: str, window: Window, step: int) -> tuple[np.ndarray, Affine]:
    """Every so many pixels of a window, by GDAL from the overview that fits; and where they lie."""
    shape_yx = -(-window.height // step), -(-window.width // step)
    with opened_by_gdal(path) as dataset:
        pixels = dataset.read(1, window=window, out_shape=shape_yx, resampling=Resampling.nearest)
        corner = dataset.transform @ Affine.translation(window.col_off, window.row_off)
    return pixels, corner @ Affine.scale(window.width / shape_yx[1], window.height / shape_yx[0])


def _view_of_store(path: str, window: Window, step: int) -> tuple[np.ndarray, Affine]:
    """The same of a store, from the level of its pyramid that fits, if it has one."""
    group = zarr.open_group(path, mode="r")
    stored = layers_of(open_change(path))[0]
    name, grid = str(stored.name), cast("GeoBox", stored.odc.geobox)
    levels = [each for each in levels_of(grid) if each.factor <= step and each.name in group]
    factor = levels[-1].factor if levels else 1
    array = cast("zarr.Array[Any]", group[f"{levels[-1].name}/{name}" if levels else name])
    every = -(-step // factor)
    rows, cols = (
        _middles(offset // factor, -(-(offset + length) // factor), every)
        for offset, length in ((window.row_off, window.height), (window.col_off, window.width))
    )
    corner = Affine.translation(window.col_off // factor * factor, window.row_off // factor * factor)
    return np.asarray(array[rows, cols]), grid.transform @ corner @ Affine.scale(every * factor)


def _middles(start: int, stop: int, step: int) -> slice:
    """The middle one of each so many; at least one."""
    return slice(min(start + step // 2, stop - 1), stop, step)
