"""A change raster to a Zarr store, one chunk or shard per block, and on demand a pyramid of coarser levels."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from .attributes import grid_of, plain_layers
from .blocks import Index, Tally, regular_blocks
from .classes import ClassTable
from .confidence import CONFIDENCE, join_layers
from .dispatch import store_blocks, where_seen
from .errors import OutputError
from .geozarr import array_attrs, group_attrs, with_levels
from .outputs import Written
from .pyramid import halved, levels_of, windowed_mode
from .writing import Format, WriteOptions, found_attrs, write_result

ZarrFormat = Literal[2, 3]

SHARDED_ABOVE_PX = 2_048
"""A block with a longer side is a shard of several chunks, which are read one by one."""
_CHUNK_PX = 128, 1_024
"""The sides that a shard's chunks may have."""
_warnings_lock = threading.Lock()


@dataclass(frozen=True)
class ZarrBlocks:
    """Block store: each block is one file of one array, a chunk or a shard, which Zarr writes atomically."""

    path: str
    """The array's folder."""
    block_yx: tuple[int, int]
    """Height and width of a chunk, or of a shard."""
    zarr_format: ZarrFormat = 3
    """Of the array."""

    def is_done(self, index: Index) -> bool:
        """Whether the block's file is there. An empty one is none: Zarr would read an empty shard as all nodata."""
        try:
            return self.file(index).stat().st_size > 0
        except FileNotFoundError:
            return False

    def read_block(self, index: Index) -> np.ndarray:
        """One whole block: (y, x). Runs on workers."""
        rows, cols = (
            slice(number * length, (number + 1) * length) for number, length in zip(index, self.block_yx, strict=True)
        )
        return np.asarray(zarr.open_array(self.path, mode="r")[rows, cols])

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Write one whole block: (y, x). Runs on workers."""
        row, col = index[0] * self.block_yx[0], index[1] * self.block_yx[1]
        # Opened for each block: a later run may lay another array under the same path, or have taken it away.
        # `open_array` of Zarr 3.1 takes a config and forgets it; a chunk that is all nodata would leave no file.
        array = zarr.open_array(self.path, mode="r+").with_config({"write_empty_chunks": True})
        if array.shards:
            self._remove_if_broken(index)
        array[row : row + values.shape[0], col : col + values.shape[1]] = values
        self._require_run(index)

    def remove_block(self, index: Index) -> None:
        """What an earlier run may have left unreadable; without its file a block is nodata."""
        self.file(index).unlink(missing_ok=True)

    def _require_run(self, index: Index) -> None:
        """Raise FileNotFoundError where the run has ended meanwhile: Zarr has made anew what the block lies in."""
        with suppress(FileNotFoundError):
            Path(self.path, "zarr.json" if self.zarr_format == 3 else ".zarray").stat()
            return
        file = self.file(index)
        file.unlink(missing_ok=True)
        levels = next((level for level, folder in enumerate(file.parents, 1) if folder.suffix == ".partial"), 0)
        with suppress(OSError):  # another block is late, too, or the next run has begun
            for folder in file.parents[:levels]:
                folder.rmdir()
        raise FileNotFoundError(f"{self.path} is no longer there")

    def _remove_if_broken(self, index: Index) -> None:
        """Zarr 3.1 reads the shard that stands there before it writes, and fails where it cannot."""
        try:
            if self.is_done(index):
                self.read_block(index)
        except Exception:  # each codec has its own
            self.file(index).unlink(missing_ok=True)

    def file(self, index: Index) -> Path:
        """Where block ``index`` is, or will be."""
        row, col = map(str, index)
        return Path(self.path, "c", row, col) if self.zarr_format == 3 else Path(self.path, f"{row}.{col}")


@dataclass(frozen=True)
class ZarrPairs:
    """Block store of classes and their confidence: a block is one chunk of each of two arrays."""

    classes: ZarrBlocks
    """Chunks of class values."""
    confidence: ZarrBlocks
    """Chunks of confidence, as it is kept."""

    def is_done(self, index: Index) -> bool:
        """Whether both chunks' files are there."""
        return self.classes.is_done(index) and self.confidence.is_done(index)

    def read_block(self, index: Index) -> np.ndarray:
        """One whole chunk of each: (y, x) of two fields. Runs on workers."""
        return join_layers(self.classes.read_block(index), self.confidence.read_block(index))

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Write one whole chunk of each: (y, x) of two fields. Runs on workers."""
        self.confidence.write_block(index, values[CONFIDENCE])
        self.classes.write_block(index, values["class"])

    def remove_block(self, index: Index) -> None:
        """Both chunks."""
        self.classes.remove_block(index)
        self.confidence.remove_block(index)


def write_zarr(
    change: xr.DataArray | xr.Dataset,
    path: str | os.PathLike[str],
    *,
    zarr_format: ZarrFormat = 3,
    pyramid: bool = False,
    **options: Unpack[WriteOptions],
) -> Written:
    """Compute a change raster block by block into a Zarr store.

    change : (y, x) integers as `detect_change` gives it. The store holds it under its name, with class table, nodata
    and provenance as attributes, coordinates, and the CRS in ``spatial_ref`` (CF), for GDAL, and by GeoZarr's
    conventions. Of a Dataset with confidence that is a second array, which xarray decodes by its scale and offset.
    path : on this disk, or a URL of object storage (`geodl_dask.uploads` says what holds there): the result then grows
    in the current folder, and stays there until it has been uploaded.
    zarr_format : 2 for readers that do not know 3 yet, such as GDAL before 3.12.
    pyramid : also levels of half the size, a quarter and so on down to 512 pixels, of the most frequent class.
    Uses the active Dask client, else this process. Returns where it is, how long it took, and pixels by value.
    options : ``overwrite``, ``resume``, ``same_pixels``, ``keep_going``, ``shard``, ``progress``: see `WriteOptions`.
    Raises OutputError, OutputExistsError, MissingDependencyError, BlockFailedError or SchedulerLostError; what was
    there before stays until the new one is whole.
    """
    return write_result(change, path, zarr_result(change, zarr_format=zarr_format, pyramid=pyramid), **options)


def zarr_result(change: xr.DataArray | xr.Dataset, *, zarr_format: ZarrFormat = 3, pyramid: bool = False) -> Format:
    """How the blocks of a raster are kept in a Zarr store, and that is finished. Raises as `write_zarr`."""
    _check_layout(zarr_format, pyramid=pyramid)
    blocks = regular_blocks(change)
    classes, confidence = plain_layers(change)
    name = str(classes.name or "change")
    block_yx = {"y": blocks.chunks[0][0], "x": blocks.chunks[1][0]}
    layers = [each.chunk(block_yx) for each in (classes.rename(name), confidence) if each is not None]

    def finish(folder: Path, tally: Tally) -> Path:
        group = folder / "store.zarr"
        for index in tally.failed:
            store(folder).remove_block(index)
        if pyramid and tally.computed:  # levels that an earlier run has made may lack what came since
            for level in levels_of(grid_of(classes)):
                shutil.rmtree(group / level.name, ignore_errors=True)
        levels = _write_levels(layers[0], group, zarr_format) if pyramid else []
        for half in group.rglob("*.partial"):  # of a process that died while Zarr wrote
            half.unlink(missing_ok=True)
        arrays = [name, *(f"{level}/{name}" for level in levels)]
        _list_found(group, arrays, found_attrs(classes.attrs, tally, blocks))
        if levels:
            _list_levels(group, name, grid_of(classes))
        return group

    def store(folder: Path) -> ZarrBlocks | ZarrPairs:
        return _blocks_in(layers, folder / "store.zarr", zarr_format)

    def begin(folder: Path) -> None:
        _begin(layers, folder / "store.zarr", folder, zarr_format)

    def reopen(result: Path) -> ZarrBlocks | ZarrPairs:
        return _blocks_in(layers, result, zarr_format)

    layout = {"zarr_format": zarr_format, "pyramid": pyramid}
    return Format((".zarr",), store, begin, finish, reopen, layout)


def _check_layout(zarr_format: int, *, pyramid: bool) -> None:
    if zarr_format not in (2, 3):
        raise OutputError(f"zarr_format is {zarr_format!r}; 2 or 3 is needed.")
    if pyramid:
        windowed_mode()  # or say now that it is missing


def _blocks_in(layers: list[xr.DataArray], group: Path, zarr_format: ZarrFormat) -> ZarrBlocks | ZarrPairs:
    """For the blocks of one or two layers, in a Zarr group."""
    heights, widths = layers[0].chunks or ((), ())
    arrays = [ZarrBlocks(str(group / str(layer.name)), (heights[0], widths[0]), zarr_format) for layer in layers]
    return arrays[0] if len(arrays) == 1 else ZarrPairs(*arrays)


def _begin(layers: list[xr.DataArray], group: Path, spare: Path, zarr_format: ZarrFormat) -> None:
    """A Zarr group for the blocks of one or two layers, unless there is one. spare : a folder in which it grows."""
    if group.exists():
        return
    unfinished = spare / f"new-{secrets.token_hex(4)}.zarr"
    _create(layers, unfinished, zarr_format)
    try:
        unfinished.rename(group)
    except OSError:  # which a folder that is not empty makes fail: another shard was quicker
        if not group.exists():
            raise
        shutil.rmtree(unfinished)


def _create(layers: list[xr.DataArray], store: Path, zarr_format: ZarrFormat) -> None:
    """The store with everything but its chunks."""
    encoded = [_encoded(layer, zarr_format) for layer in layers]
    with _no_word_on_consolidation():
        xr.Dataset({variable.name: variable for variable, _ in encoded}, attrs=group_attrs(grid_of(layers[0]))).to_zarr(
            store, mode="w", compute=False, zarr_format=zarr_format, consolidated=True,
            encoding={variable.name: encoding for variable, encoding in encoded},
        )  # fmt: skip


def _encoded(layer: xr.DataArray, zarr_format: ZarrFormat) -> tuple[xr.DataArray, dict[str, Any]]:
    """A variable of the store, and what xarray is to be told of its encoding."""
    grid, table = grid_of(layer), ClassTable.from_attrs(layer.attrs)
    block_yx = tuple(lengths[0] for lengths in layer.chunks or ())
    variable = layer.drop_encoding()
    of_a_store = "grid_mapping", "coordinates"  # that it was read from, which xarray writes itself
    variable.attrs = array_attrs({key: layer.attrs[key] for key in layer.attrs if key not in of_a_store}, grid)
    # GDAL's Zarr driver reads the CRS from here; CF readers follow grid_mapping to spatial_ref.
    variable.attrs["_CRS"] = {"wkt": grid.crs.to_wkt() if grid.crs else ""}
    nodata = variable.attrs.pop("_FillValue", table.nodata if table else None)
    encoding: dict[str, Any] = {"chunks": block_yx, "write_empty_chunks": True, "grid_mapping": "spatial_ref"}
    if zarr_format == 3 and (chunk_yx := chunk_of(block_yx)):
        encoding |= {"chunks": chunk_yx, "shards": block_yx}
    if nodata is not None:
        encoding["_FillValue"] = nodata
        if zarr_format == 3:  # in format 2 that is the fill value
            encoding["fill_value"] = nodata
    return variable, encoding


def chunk_of(block_yx: tuple[int, ...]) -> tuple[int, ...] | None:
    """Height and width of the chunks in the shard that a block of that size is; None for a block that is one chunk."""
    if max(block_yx) <= SHARDED_ABOVE_PX:
        return None
    shortest, longest = _CHUNK_PX
    chunk_yx = tuple(
        next(side for side in range(min(longest, length), 0, -1) if not length % side) for length in block_yx
    )
    is_even = all(side >= min(shortest, length) for side, length in zip(chunk_yx, block_yx, strict=True))
    return chunk_yx if is_even else None


def _write_levels(classes: xr.DataArray, store: Path, zarr_format: ZarrFormat) -> list[str]:
    """The pyramid over a finished array, each level from the one before; what an earlier run has made of it stays.

    Returns the names of the groups that hold the levels.
    """
    below, levels = store / str(classes.name), levels_of(grid_of(classes))
    for level in levels:
        coarser = xr.DataArray(
            halved(str(below)), dims=("y", "x"), coords=xr_coords(level.grid, dims=("y", "x")), name=classes.name,
            attrs=classes.attrs,
        )  # fmt: skip
        _begin([coarser], store / level.name, store.parent, zarr_format)
        with where_seen(store):
            store_blocks(coarser.data, _blocks_in([coarser], store / level.name, zarr_format))
        below = store / level.name / str(classes.name)
    return [level.name for level in levels]


def _list_found(store: Path, arrays: list[str], found: dict[str, Any]) -> None:
    """Bring the attributes up to what was found."""
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name in reversed(arrays):  # so that the store's own record is the last to be renewed
        outdated = {key: value for key, value in found.items() if group[name].attrs.get(key) != value}
        if outdated:
            group[name].attrs.update(outdated)
        if "failed_blocks" not in found and "failed_blocks" in group[name].attrs:  # which have come since
            del group[name].attrs["failed_blocks"]
        _consolidate((store / name).parent)


def _list_levels(store: Path, name: str, grid: GeoBox) -> None:
    """Say in the store where the levels of its pyramid are."""
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    levels = [(f"{level.name}/{name}", level.grid) for level in levels_of(grid)]
    group.attrs.update(with_levels(dict(group.attrs), [(name, grid), *levels]))
    _consolidate(store)


def _consolidate(store: Path) -> None:
    with _no_word_on_consolidation():
        zarr.consolidate_metadata(store)


@contextmanager
def _no_word_on_consolidation() -> Iterator[None]:
    """Zarr 3's specification has no word on consolidated metadata yet, of which Zarr warns; xarray where it is missing.

    One thread at a time: what Python ignores it ignores for the whole process, and restores for it.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        yield
