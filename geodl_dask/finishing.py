"""The result of blocks that runs have left beside it, made without the model and the rasters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from .cog import cog_result
from .confidence import CONFIDENCE, pair_type
from .dispatch import Progress
from .errors import OutputError, OutputExistsError, RunError
from .growth import PARTS_MANIFEST, growing_output, partial_of
from .manifest import Manifest
from .outputs import Written, manifest_of
from .standing import written_by
from .uploads import RemoteOutput, local_place, url_of
from .writing import Format, join_result
from .zarr_store import zarr_result


def finalize(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Written:
    """Make the result of the blocks that shards have computed, and give it its name; no model and no raster is needed.

    path : as the shards were given it. progress : called with the pixels that are counted and those in all.
    All blocks are counted, which also shows that they can be read, on the active Dask client or else in this process.
    May be asked for again, whether it was stopped or not. Raises OutputError where there is nothing to be finalized,
    OutputExistsError where a shard, or another `finalize`, is at work, RunError where blocks are missing: nothing is
    lost, and once they are there it may be asked for again.
    """
    out, here = url_of(path) or Path(path).absolute(), place_of(path)
    left = Manifest.read(partial_of(here) / PARTS_MANIFEST)
    standing = _standing(out)
    if left is None or (standing and _is_of(standing, left)):
        if left is None and any(partial_of(here).glob("parts-*")):
            raise OutputError(f"{partial_of(here)} has no manifest that says what the result is to be.")
        if standing is None:
            raise OutputError(f"There is nothing to finalize: {partial_of(here)} is not there, or not of a run.")
        if left:
            with growing_output(here, left, resume=True):
                pass  # of one that was stopped when all else was done: its parts are removed
        return written_by(out, standing)
    change = _result_of(left, here)
    try:
        return join_result(change, out, result_format(change, path, **_layout_of(left)), left, progress)
    except OutputExistsError:
        if (standing := _standing(out)) and _is_of(standing, left):  # another was quicker
            return written_by(out, standing)
        raise


def left_result(path: str | os.PathLike[str]) -> xr.DataArray | xr.Dataset | None:
    """What runs have left of a result, as `detect_change` gives it, but that its blocks cannot be computed.

    None where no manifest says so. Raises OutputError for one that is damaged, or of an older version.
    """
    here = place_of(path)
    left = Manifest.read(partial_of(here) / PARTS_MANIFEST)
    return None if left is None else _result_of(left, here)


def _result_of(left: Manifest, here: Path) -> xr.DataArray | xr.Dataset:
    if "attrs" not in left.form:
        raise OutputError(f"{partial_of(here)} has no manifest that says what the result is to be.")
    try:
        return _lazy_result(left)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # pyproj has its own
        raise OutputError(
            f"The manifest in {partial_of(here)} is damaged ({type(error).__name__}: {error}). What is finished is "
            "there; the command of the run with --resume, and without --shard, goes on with it."
        ) from error


def _lazy_result(left: Manifest) -> xr.DataArray | xr.Dataset:
    asked, attrs, beside = left.asked, left.form["attrs"], left.form["confidence"]
    grid = GeoBox(tuple(asked["shape"]), Affine(*asked["transform"]), CRS(left.form["crs"]))
    classes = np.dtype(asked["dtype"])
    dtype = classes if beside is None else pair_type(classes, np.dtype(beside["dtype"]))
    pixels = da.map_blocks(
        _fail, chunks=da.core.normalize_chunks(asked["blocks"], grid.shape.yx), dtype=dtype,
        meta=np.empty((0, 0), dtype), name=None,
    )  # fmt: skip
    coords, dims, name = xr_coords(grid, dims=("y", "x")), ("y", "x"), asked["name"]
    coords["spatial_ref"].attrs |= dict.fromkeys(("spatial_ref", "crs_wkt"), left.form["crs"])
    if beside is None:
        return xr.DataArray(pixels, coords=coords, dims=dims, name=name, attrs=attrs)
    confidence = (dims, pixels[CONFIDENCE], beside["attrs"])
    return xr.Dataset({name: (dims, pixels["class"], attrs), CONFIDENCE: confidence}, coords=coords)


def result_format(change: xr.DataArray | xr.Dataset, path: str | os.PathLike[str], **layout: Any) -> Format:
    """How a result is made, by the ending of its name. layout : as `write_zarr` takes it. Raises OutputError."""
    return zarr_result(change, **layout) if Path(path).suffix.lower() == ".zarr" else cog_result(change)


def place_of(path: str | os.PathLike[str]) -> Path:
    """Where on this disk a result is to be, or, of one for object storage, beside which name it grows."""
    url = url_of(path)
    return Path(path).absolute() if url is None else local_place(url)


def _fail(block_id: tuple[int, int] | None = None) -> np.ndarray:
    """A block that has to be there already. Runs on workers."""
    raise RunError("it cannot be read")


def _layout_of(left: Manifest) -> dict[str, Any]:
    return {key: left.asked[key] for key in ("zarr_format", "pyramid") if key in left.asked}


def _is_of(standing: Manifest, left: Manifest) -> bool:
    """Whether a whole result is what was left, joined, and not an earlier one of the same words."""
    return standing.asked == left.asked and (not left.replaces or standing.begun == left.begun)


def _standing(out: Path | str) -> Manifest | None:
    """The manifest of a whole result under that name."""
    if isinstance(out, Path):
        manifest = Manifest.read(manifest_of(out)) if out.exists() else None
    else:
        manifest = RemoteOutput.at(out).manifest()
    return manifest if manifest and manifest.is_complete else None
