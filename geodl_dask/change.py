"""Detect change between two rasters: decide the plan, build the lazy graph, label the result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
from dask.array.overlap import overlap
from odc.geo.xr import xr_coords

from . import __version__
from .arguments import parse_arguments
from .definition import load_definition
from .devices import Processor
from .kernel import Inference, infer_block, infer_file_block, runner_of_process
from .rasters import RasterFile, RasterPair, open_pair
from .runners import RunnerSpec, choose_kind, require_trust
from .tiling import Window, plan_blocks


def detect_change(
    from_raster: str | os.PathLike[str] | xr.DataArray,
    to_raster: str | os.PathLike[str] | xr.DataArray,
    model: str | os.PathLike[str],
    *,
    arguments: str | Mapping[str, object] | Iterable[tuple[str, object]] | None = None,
    trust_code: bool = False,
    runner: Literal["auto", "native", "raster-function"] = "auto",
    processor: Processor = "auto",
    chunks: int | Literal["auto"] = "auto",
) -> xr.DataArray:
    """What changed between two rasters, as a lazy classified raster. Nothing is computed, no pixel is read.

    from_raster, to_raster : the earlier and the later image on one grid: path, URL or DataArray.
    model : ``.emd`` file, ``.dlpk`` package or JSON text.
    arguments : model arguments, ``"padding 64;batch_size 16"``, a dict or pairs.
    trust_code : whether Python code that the model brings may run.
    runner : who runs the model; ``"auto"`` is its own raster function where it names one.
    processor : ``"auto"`` (a GPU where there is one), ``"cpu"`` or ``"gpu"``.
    chunks : side of a block in pixels, rounded down to whole strides of the model's tiles.

    Returns an integer DataArray (y, x) of class values on the from raster's grid; its attributes hold the
    class table (CF ``flag_*``, ``class_names``), ``_FillValue`` and the provenance. The model is loaded once, to
    see that it takes these rasters.
    Raises a RequestError (see `geodl_dask.errors`) that says what is wrong.
    """
    definition = load_definition(model)
    kind = choose_kind(definition, runner)
    require_trust(definition, kind, trust_code=trust_code)
    pair = open_pair(from_raster, to_raster)
    given = tuple(parse_arguments(arguments).items())
    spec = RunnerSpec(definition, kind, pair.from_raster.band_count, pair.dtype, given)
    loaded, _ = runner_of_process(spec, processor)
    plan = plan_blocks(pair.grid.shape.yx, loaded.tile, chunks)
    inference = Inference(replace(spec, output=loaded.output), processor, plan)
    return _label(_build(inference, pair), inference, pair)


def _build(inference: Inference, pair: RasterPair) -> da.Array:
    """(y, x) class values in the plan's blocks, by the door that fits the rasters."""
    rasters = (pair.from_raster, pair.to_raster)
    if isinstance(rasters[0], RasterFile) and isinstance(rasters[1], RasterFile):
        return _build_from_files(inference, rasters)  # type: ignore[arg-type]
    return _build_from_arrays(inference, pair)


def _build_from_files(inference: Inference, rasters: tuple[RasterFile, RasterFile]) -> da.Array:
    """One task per block, which reads its own window and halo; nothing passes between workers."""
    dtype = inference.spec.definition.classes.dtype
    return da.map_blocks(
        _infer_file_block, inference, rasters, chunks=inference.plan.chunks, dtype=dtype,
        meta=np.empty((0, 0), dtype), name=None,
    )  # fmt: skip


def _infer_file_block(inference: Inference, rasters: tuple[RasterFile, RasterFile], block_id: Any = None) -> np.ndarray:
    return infer_file_block(inference, rasters, block_id)


def _build_from_arrays(inference: Inference, pair: RasterPair) -> da.Array:
    """Blocks that borrow their halo from neighbouring blocks."""
    plan, table = inference.plan, inference.spec.definition.classes
    # A block cannot borrow more than its neighbour has, so thin blocks are merged for the while.
    chunks = tuple(_merge_thin(lengths, plan.tile.padding) for lengths in plan.chunks)
    halo = tuple(plan.tile.padding if len(lengths) > 1 else 0 for lengths in chunks)
    (from_pixels, from_valid), (to_pixels, to_valid) = (
        raster.arrays((chunks[0], chunks[1])) for raster in (pair.from_raster, pair.to_raster)
    )
    haloed = [
        overlap(
            array, depth=dict(enumerate(((0,) if array.ndim == 3 else ()) + halo)), boundary="none", allow_rechunk=False
        )
        for array in (from_pixels, to_pixels, from_valid & to_valid)
    ]
    # The class value needs the neighbours' pixels, not their bands: one block along the band axis.
    change = da.map_blocks(
        _infer_array_block, *haloed[:2], haloed[2][None], inference=inference, chunk_lengths=chunks, drop_axis=0,
        chunks=chunks, dtype=table.dtype, meta=np.empty((0, 0), table.dtype),
    )  # fmt: skip
    return change.rechunk(plan.chunks)


def _infer_array_block(
    from_pixels: np.ndarray,
    to_pixels: np.ndarray,
    valid: np.ndarray,
    inference: Inference,
    chunk_lengths: tuple[tuple[int, ...], tuple[int, ...]],
    block_id: Any = None,
) -> np.ndarray:
    row, col = block_id[-2:]
    core = Window(
        sum(chunk_lengths[0][:row]), sum(chunk_lengths[1][:col]), chunk_lengths[0][row], chunk_lengths[1][col]
    )
    return infer_block(inference, core, from_pixels, to_pixels, valid[0])


def _merge_thin(lengths: tuple[int, ...], least: int) -> tuple[int, ...]:
    """Neighbouring blocks put together until each has ``least`` pixels, or there is one."""
    merged = [0]
    for length in lengths:
        if merged[-1] < least or not merged[-1]:
            merged[-1] += length
        else:
            merged.append(length)
    if merged[-1] < least and len(merged) > 1:
        thin = merged.pop()
        merged[-1] += thin
    return tuple(merged)


def _label(change: da.Array, inference: Inference, pair: RasterPair) -> xr.DataArray:
    spec, plan = inference.spec, inference.plan
    table = spec.definition.classes
    attrs = {
        "long_name": "change",
        "_FillValue": table.nodata,
        **table.to_attrs(),
        "model": spec.definition.source,
        "model_digest": spec.definition.digest,
        "runner": spec.kind,
        "arguments": ";".join(f"{name} {value}" for name, value in spec.arguments),
        "from_raster": pair.from_raster.name,
        "to_raster": pair.to_raster.name,
        "tile_size": list(plan.tile.size_yx),
        "padding": plan.tile.padding,
        "geodl_dask_version": __version__,
    }
    coords = xr_coords(pair.grid, dims=("y", "x"))
    return xr.DataArray(change, coords=coords, dims=("y", "x"), name="change", attrs=attrs)
