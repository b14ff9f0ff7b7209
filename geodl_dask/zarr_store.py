"""A change raster to a Zarr store, one chunk per block."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from .blocks import Index, Progress, Tally, regular_blocks
from .classes import ClassTable, list_values
from .outputs import Written
from .writing import grid_of, write_result


@dataclass(frozen=True)
class ZarrBlocks:
    """Block store: each block is one chunk of one array, which Zarr writes atomically."""

    path: str
    """The array's folder."""
    block_yx: tuple[int, int]
    """Height and width of a chunk."""

    def is_done(self, index: Index) -> bool:
        """Whether the chunk's file is there."""
        return Path(self.path, "c", str(index[0]), str(index[1])).exists()

    def read_block(self, index: Index) -> np.ndarray:
        """One whole chunk: (y, x). Runs on workers."""
        return np.asarray(zarr.open_array(self.path, mode="r").blocks[index])

    def write_block(self, index: Index, values: np.ndarray) -> None:
        """Write one whole chunk: (y, x). Runs on workers."""
        row, col = index[0] * self.block_yx[0], index[1] * self.block_yx[1]
        # Opened for each block: a later run may lay another array under the same path, or have taken it away.
        # `open_array` of Zarr 3.1 takes a config and forgets it; a chunk that is all nodata would leave no file.
        array = zarr.open_array(self.path, mode="r+").with_config({"write_empty_chunks": True})
        array[row : row + values.shape[0], col : col + values.shape[1]] = values


def write_zarr(
    change: xr.DataArray,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Compute a change raster block by block into a Zarr (version 3) store.

    change : (y, x) integers as `detect_change` gives it. The store holds it under its name, with class table, nodata
    and provenance as attributes, coordinates, and the CRS in ``spatial_ref`` (CF) and for GDAL.
    path : on this disk, or a URL of object storage (`geodl_dask.uploads` says what holds there): the result then grows
    in the current folder, and stays there until it has been uploaded.
    Uses the active Dask client, else this process. Returns where it is, how long it took, and pixels by value.
    resume : go on with what an interrupted run of the same words has left, if one has; a result that is whole is left
    as it is.
    Raises OutputError, OutputExistsError or BlockFailedError; what was there before stays until the new one is whole.
    """
    blocks = regular_blocks(change)
    block_yx = (blocks.chunks[0][0], blocks.chunks[1][0])
    name = str(change.name or "change")

    def finish(folder: Path, tally: Tally) -> Path:
        for half in (folder / "store.zarr").rglob("*.partial"):  # of a process that died while Zarr wrote
            half.unlink(missing_ok=True)
        _list_found(folder / "store.zarr", name, list_values(change.attrs, tally.pixels))
        return folder / "store.zarr"

    def begin(folder: Path) -> ZarrBlocks:
        if not (folder / "store.zarr").exists():
            _create(change.copy(data=blocks).rename(name), folder / "new.zarr", block_yx)
            (folder / "new.zarr").rename(folder / "store.zarr")
        return ZarrBlocks(str(folder / "store.zarr" / name), block_yx)

    return write_result(change, path, (".zarr",), begin, finish, overwrite=overwrite, resume=resume, progress=progress)


def _create(change: xr.DataArray, store: Path, block_yx: tuple[int, int]) -> None:
    """The store with everything but its chunks."""
    grid, table = grid_of(change), ClassTable.from_attrs(change.attrs)
    variable = change.drop_encoding()
    variable.attrs = dict(change.attrs)
    # GDAL's Zarr driver reads the CRS from here; CF readers follow grid_mapping to spatial_ref.
    variable.attrs["_CRS"] = {"wkt": grid.crs.to_wkt() if grid.crs else ""}
    nodata = variable.attrs.pop("_FillValue", table.nodata if table else None)
    encoding = {"chunks": block_yx, "write_empty_chunks": True, "grid_mapping": "spatial_ref"}
    if nodata is not None:
        encoding |= {"_FillValue": nodata, "fill_value": nodata}
    with warnings.catch_warnings():
        # Zarr 3's specification has no word on consolidated metadata yet, and xarray warns where it is missing.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        variable.to_dataset().to_zarr(
            store, compute=False, zarr_format=3, consolidated=True, encoding={variable.name: encoding}
        )


def _list_found(store: Path, name: str, attrs: dict[str, Any]) -> None:
    """Bring the class table up to what was found."""
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    if any(group[name].attrs.get(key) != value for key, value in attrs.items() if key != "_FillValue"):
        group[name].attrs.update({key: value for key, value in attrs.items() if key != "_FillValue"})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata")
            zarr.consolidate_metadata(store)
