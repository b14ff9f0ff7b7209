"""The way of every result to its place: checked, grown block by block, published whole, with a manifest beside it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, cast

import dask.array as da
import numpy as np
import rasterio
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from .blocks import BlockReader, BlockStore, Continued, Index, Tally, lattice_of, regular_blocks
from .classes import TABLE_ATTRS, ClassTable, list_values
from .confidence import layers_of
from .dispatch import Progress, store_blocks
from .errors import ModelDefinitionError, OutputError, RunError
from .manifest import INPUT_ATTRS, FailedBlock, Manifest, asked_of
from .outputs import (
    SIDES,
    Growth,
    Written,
    check_output,
    check_space,
    finished_in,
    growing_output,
    manifest_of,
    publish,
)
from .stac_item import write_item
from .standing import failed_in, whole_result, written_by
from .uploads import RemoteOutput, local_place

_LIBRARIES = ("geodl_dask", "dask", "distributed", "numpy", "rasterio", "torch", "xarray", "zarr")


class WriteOptions(TypedDict, total=False):
    """What both writers take."""

    overwrite: bool
    """Replace what stands there once the new result is whole."""
    resume: bool
    """Go on with what an interrupted run of the same words has left, if one has; a whole result is left as it is."""
    same_pixels: bool
    """The user's word that rasters which were copied, moved or mended since the interrupted run have its pixels."""
    keep_going: bool
    """Blocks that go on failing become nodata, and `Written` and the manifest list them."""
    progress: Progress | None
    """Called with the pixels that are done and those to be done in all."""


def write_result(
    change: xr.DataArray | xr.Dataset,
    path: str | os.PathLike[str],
    suffixes: tuple[str, ...],
    begin: Callable[[Path], BlockStore],
    finish: Callable[[Path, Tally], Path],
    reopen: Callable[[Path], BlockReader],
    *,
    layout: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    same_pixels: bool = False,
    keep_going: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Compute a raster block by block into a store, make the result of it, and give that its name.

    begin : the store in a folder of parts, new or as an earlier run has left it. finish : makes the result of the
    finished store, and returns where in that folder it is. reopen : a result, of which blocks failed, to take over the
    others. layout : what else was asked of the result's form.
    Raises OutputError, OutputExistsError, BlockFailedError, SchedulerLostError, and what ``finish`` does. After an
    error, and when it is stopped, finished blocks stay beside the output for a run that resumes.
    """
    blocks, (classes, confidence) = regular_blocks(change), plain_layers(change)
    out = check_output(path, suffixes, overwrite=overwrite, resume=resume, provenance=classes.attrs)
    if keep_going and "_FillValue" not in classes.attrs:
        raise OutputError("The raster has no _FillValue, which blocks that fail would be filled with.")
    more = dict(layout or {}) | ({} if confidence is None else {"confidence": str(confidence.dtype)})
    started = replace(_start(classes, blocks, more), replaces=overwrite)
    whole = whole_result(out, started.asked, same_pixels=same_pixels) if resume else None
    if whole is not None:
        return whole
    here = out if isinstance(out, Path) else local_place(out)
    failed = failed_in(out, started.asked, same_pixels=same_pixels) if resume else frozenset()
    if failed:
        started = replace(started, replaces=True)
    with growing_output(here, started, resume=resume, same_pixels=same_pixels) as growth:
        if isinstance(out, str):
            RemoteOutput.at(out).require_writable()
        finished = finished_in(growth.folder, here)
        if finished and finished.exists() and not keep_going and _has_holes(finished):
            manifest_of(finished).unlink()  # whoever resumes without keep_going wants it whole
            finished = None
        if finished is None:
            store = begin(growth.folder)
            check_space(growth.folder, _missing_bytes(blocks, store) if growth.has_finished() else int(blocks.nbytes))
            growth.has_finished = lambda: any(store.is_done(index) for index in np.ndindex(*blocks.numblocks))
            continued = Continued(store, reopen(here), _indices(failed, blocks)) if failed else store
            tally = store_blocks(
                blocks, continued, progress, lattice_of(classes, blocks), keep_going=keep_going, folder=growth.folder
            )
            _count_failed(tally, classes, blocks)
            finished = finish(growth.folder, tally)
            ended = _end(started, growth, tally, blocks)
            write_item(change, out, finished=finished, manifest=ended)
            ended.write(manifest_of(finished))
        manifest = cast("Manifest", Manifest.read(manifest_of(finished)))
        growth.has_finished = lambda: True
        place = _publish(finished, out, growth, begun=started.begun)
    if place != out:
        raise RunError(f"{out} has come there since the run began, and stays as it is. The result is {place}.")
    return written_by(out, manifest)


def _start(classes: xr.DataArray, blocks: da.Array, more: dict[str, Any]) -> Manifest:
    """The record of a run that begins. more : what else it is asked."""
    grid, attrs = grid_of(classes), classes.attrs
    crs = cast("CRS", grid.crs)
    asked = asked_of(
        attrs, name=classes.name, dtype=str(classes.dtype), blocks=[lengths[0] for lengths in blocks.chunks],
        shape=list(blocks.shape), transform=list(grid.transform)[:6], crs=crs.proj.name, wkt=crs.to_wkt(), **more,
    )  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    software = {"python": platform.python_version(), "gdal": rasterio.__gdal_version__, **versions}
    return Manifest(
        asked, str(attrs.get("model", "")), str(attrs.get("model_name", "")), begun=_now(), software=software
    )


def _has_holes(finished: Path) -> bool:
    manifest = Manifest.read(manifest_of(finished))
    return manifest is not None and bool(manifest.failed_blocks)


def _publish(finished: Path, out: Path | str, growth: Growth, *, begun: str) -> Path | str:
    """Give a result its name, here or in object storage. Returns its place."""
    if isinstance(out, Path):
        return publish(finished, out, overwrite=growth.started.replaces)
    RemoteOutput.at(out, is_patient=True).upload(finished, replace(growth.started, begun=begun), sides=SIDES)
    return out


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _missing_bytes(blocks: da.Array, store: BlockStore) -> int:
    """Size of what is to be computed, as it is in memory."""
    missing = sum(not store.is_done(index) for index in np.ndindex(*blocks.numblocks))
    return blocks.nbytes * missing // blocks.npartitions


def _indices(failed: Iterable[FailedBlock], blocks: da.Array) -> frozenset[Index]:
    height, width = (lengths[0] for lengths in blocks.chunks)
    return frozenset((block.row_off // height, block.col_off // width) for block in failed)


def _end(started: Manifest, growth: Growth, tally: Tally, blocks: da.Array) -> Manifest:
    """The record of a run whose result is finished."""
    ended = _now()
    seconds = datetime.fromisoformat(ended) - datetime.fromisoformat(started.begun)
    return replace(
        started, replaces=growth.started.replaces, is_complete=True, ended=ended, seconds=seconds.total_seconds(),
        computed_blocks=tally.computed, kept_blocks=tally.kept, failed_blocks=tuple(_failed(tally, blocks)),
        pixels=dict(sorted(tally.pixels.items())), tiles=tally.tiles, empty_tiles=tally.empty_tiles,
    )  # fmt: skip


def _count_failed(tally: Tally, change: xr.DataArray, blocks: da.Array) -> None:
    """Pixels of blocks that failed, which are nodata."""
    missing = sum(each.height * each.width for each in _failed(tally, blocks))
    if missing:
        tally.pixels[int(change.attrs["_FillValue"])] += missing


def _failed(tally: Tally, blocks: da.Array) -> Iterator[FailedBlock]:
    for (row, col), cause in sorted(tally.failed.items()):
        (heights, widths) = blocks.chunks
        yield FailedBlock(sum(heights[:row]), sum(widths[:col]), heights[row], widths[col], cause)


def plain_layers(change: xr.DataArray | xr.Dataset) -> tuple[xr.DataArray, xr.DataArray | None]:
    """The classes and, where it is there, their confidence, with attributes that every format can hold.

    Raises OutputError for a class table or nodata value that is none.
    """
    classes, confidence = layers_of(change)
    if not isinstance(classes, xr.DataArray):
        raise OutputError(f"What to write is a {type(classes).__name__}; a DataArray as of detect_change is needed.")
    classes = _with_plain_attrs(classes)
    try:
        ClassTable.from_attrs(classes.attrs)
    except (ModelDefinitionError, ValueError, AttributeError) as error:
        raise OutputError(f"The raster's class table ({', '.join(TABLE_ATTRS)}) cannot be used: {error}") from error
    nodata = classes.attrs.get("_FillValue", 0)
    if isinstance(nodata, bool) or not isinstance(nodata, int):
        raise OutputError(f"The raster's _FillValue is {nodata!r}; a whole number is needed.")
    return classes, None if confidence is None else _with_plain_attrs(confidence)


def _with_plain_attrs(layer: xr.DataArray) -> xr.DataArray:
    layer = layer.copy(deep=False)
    layer.attrs = _plain(layer.attrs)
    return layer


def _plain(value: Any) -> Any:
    """Attributes as JSON and GeoTIFF know them: numpy's numbers as Python's, anything else as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode(errors="replace").decode()


def found_attrs(attrs: Mapping[str, Any], tally: Tally, blocks: da.Array) -> dict[str, Any]:
    """Attributes that a finished raster gets: a class table of all that was found, inputs as by now, failed blocks."""
    listed = list_values(attrs, tally.pixels)
    failed = [[each.row_off, each.col_off, each.height, each.width] for each in _failed(tally, blocks)]
    known = {key: listed[key] for key in (*TABLE_ATTRS, *sorted(INPUT_ATTRS)) if key in listed}
    return known | ({"failed_blocks": failed} if failed else {})


def grid_of(change: xr.DataArray) -> GeoBox:
    """CRS, transform and shape of a raster. Raises OutputError."""
    grid: Any = change.odc.geobox
    if not isinstance(grid, GeoBox) or grid.crs is None:
        raise OutputError(
            "The change raster has no CRS or no evenly spaced y, x coordinates; it cannot be placed on a map."
        )
    return grid
