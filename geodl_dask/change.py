"""Detect change between two rasters: decide the plan, build the lazy graph, label the result."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, Unpack, cast

import dask.array as da
import numpy as np
import xarray as xr
from dask.array.overlap import overlap
from odc.geo.xr import xr_coords

from . import __version__
from .arguments import boolean_argument, parse_arguments
from .confidence import CONFIDENCE, Confidence, ConfidenceType, plan_confidence, require_confidence_type
from .definition import load_definition
from .devices import Processor, planning_for_others
from .kernel import Inference, infer_block, infer_windowed_block, model_of_process, wanted_by
from .prediction import TileSize, plan_prediction, wanted_run
from .rasters import (
    Bands,
    Chunks,
    GridOptions,
    Raster,
    RasterArray,
    RasterLike,
    RasterStack,
    WindowedRaster,
    arrays_of,
    open_pair,
    open_single,
    request_grid,
)
from .rasters.network import without_secrets
from .runners import Precision, Runner, RunnerSpec, choose_kind, require_torch_options, require_trust
from .tiling import Window, plan_blocks

Arguments = str | Mapping[str, object] | Iterable[tuple[str, object]] | None


def detect_change(
    from_raster: RasterLike,
    to_raster: RasterLike,
    model: str | os.PathLike[str],
    *,
    arguments: Arguments = None,
    trust_code: bool = False,
    runner: Literal["auto", "native", "raster-function"] = "auto",
    processor: Processor = "auto",
    chunks: int | Literal["auto"] = "auto",
    from_bands: Bands = None,
    to_bands: Bands = None,
    mask: RasterLike | None = None,
    confidence: ConfidenceType | None = None,
    tile_size: TileSize = "auto",
    precision: Precision = "float32",
    compiled: bool = False,
    **grid: Unpack[GridOptions],
) -> xr.DataArray | xr.Dataset:
    """What changed between two rasters, as a lazy classified raster. Nothing of it is computed yet.

    from_raster, to_raster : the earlier and the later image: path, URL, DataArray, or Dataset of one variable.
    model : ``.emd`` file, ``.dlpk`` package, ``.ecd`` or JSON text.
    arguments : model arguments, ``"padding 64;batch_size 16"``, a dict or pairs.
    trust_code : whether Python code that the model brings may run.
    runner : who runs the model; ``"auto"`` is its own raster function where it names one, and is no change detector of
        arcgis.learn's nor a package of `geodl_dask.pack_model`.
    processor : ``"auto"`` (a GPU where there is one), ``"cpu"`` or ``"gpu"``.
    chunks : side of a block in pixels, rounded down to whole strides of the model's tiles.
    from_bands, to_bands : numbers from 1 or names of the bands, in the order in which the model takes them; None: all.
    mask : where the result is wanted: a raster (where it is valid and not 0) or a file of polygons.
    confidence : the type in which the probability, 0 to 1, of the class that wins is kept beside the classes, for
        models that give scores: ``"uint8"`` and ``"uint16"`` by scale and offset, and no narrower than the classes;
        ``"float32"``, which alone can hold the distance that some models give instead. The model argument
        ``return_probability_raster True`` means the narrowest that can.
    tile_size : how much a native model is given at once. ``"auto"`` joins tiles where a probe, on noise and on four
        tiles of these rasters, shows that it makes no difference but rounding; ``"model"`` keeps the model's tiles; a
        number of pixels is the side up to which they are joined, refused where it would make a difference.
    precision : in which torch computes, ``"bfloat16"`` or ``"float16"`` by autocast; how many pixels of a tile get
        another class is logged. compiled : whether torch compiles the network (torch.export files) on its first tile.
    grid : what the result's grid shall be in the place of the from raster's. ``like``: that of another raster.
        ``output_crs``: ``"EPSG:32633"``. ``cell_size``: a number, two (width, height), or a raster. ``extent``: xmin,
        ymin, xmax, ymax in the output's CRS, or a raster. ``snap_raster``: the raster whose pixel corners the result's
        fall on. ``align``: ``"warp"`` or ``"strict"``, which refuses to resample. ``resampling``: ``"bilinear"`` or
        another of rasterio's names.

    Returns an integer DataArray (y, x) of class values; its attributes hold the class table (CF ``flag_*``,
    ``class_names``), ``_FillValue``, and the provenance, with what was done to each raster (``rasters``) and size and
    time of its files (``raster_states``). A pixel is nodata where either raster has no observation or the mask leaves
    it out. With confidence it is a Dataset of the variables ``change`` and ``confidence``, which is as it is kept: its
    attributes hold ``scale_factor`` and ``add_offset``, by which xarray.decode_cf gives 0 to 1.
    The model is loaded once, to see that it takes these rasters; of rasters that are files, four tiles are read.
    Raises a RequestError (see `geodl_dask.errors`) that says what is wrong.
    """
    stack = open_pair(from_raster, to_raster, request_grid(grid), from_bands=from_bands, to_bands=to_bands, mask=mask)
    places = {"from_raster": stack.rasters[0].name, "to_raster": stack.rasters[1].name}
    spec = _specify(stack, model, arguments, trust_code, runner, precision=precision, compiled=compiled)
    inference = _plan(stack, spec, processor, chunks, confidence, tile_size)
    return _label(_build(inference, stack), "change", places | _paths(mask=mask, **grid), inference, stack)


def classify_raster(
    raster: RasterLike,
    model: str | os.PathLike[str],
    *,
    arguments: Arguments = None,
    trust_code: bool = False,
    runner: Literal["auto", "native", "raster-function"] = "auto",
    processor: Processor = "auto",
    chunks: int | Literal["auto"] = "auto",
    bands: Bands = None,
    mask: RasterLike | None = None,
    confidence: ConfidenceType | None = None,
    tile_size: TileSize = "auto",
    precision: Precision = "float32",
    compiled: bool = False,
    **grid: Unpack[GridOptions],
) -> xr.DataArray | xr.Dataset:
    """The class of each pixel of one raster, as a lazy classified raster, by the same path as `detect_change`.

    raster : path, URL, DataArray, or Dataset of one variable. The model takes the bands of one raster; all else, and
    what is returned, is as in `detect_change`, but for the variable's name, which is ``class``.
    """
    stack = open_single(raster, request_grid(grid), bands=bands, mask=mask)
    spec = _specify(stack, model, arguments, trust_code, runner, precision=precision, compiled=compiled)
    inference = _plan(stack, spec, processor, chunks, confidence, tile_size)
    places = {"raster": stack.rasters[0].name} | _paths(mask=mask, **grid)
    return _label(_build(inference, stack), "class", places, inference, stack)


def _paths(*, mask: Any = None, like: Any = None, snap_raster: Any = None, **others: Any) -> dict[str, str]:
    """What else is read, where it was given as a path."""
    given = {"mask": mask, "like": like, "snap_raster": snap_raster}
    return {name: os.fspath(each) for name, each in given.items() if isinstance(each, str | os.PathLike)}


def _specify(
    stack: RasterStack,
    model: str | os.PathLike[str],
    arguments: Arguments,
    trust_code: bool,
    runner: str,
    *,
    precision: Precision,
    compiled: bool,
) -> RunnerSpec:
    """Which model is to run, and how, before any of it is loaded."""
    definition = load_definition(model)
    kind = choose_kind(definition, runner)
    require_trust(definition, kind, trust_code=trust_code)
    given = tuple(parse_arguments(arguments).items())
    count: Literal[1, 2] = 2 if len(stack.rasters) == 2 else 1
    spec = RunnerSpec(
        definition, kind, stack.band_count, stack.dtype, given, raster_count=count, precision=precision,
        compiled=compiled,
    )  # fmt: skip
    require_torch_options(spec)
    return spec


def _plan(
    stack: RasterStack,
    spec: RunnerSpec,
    processor: Processor,
    chunks: int | Literal["auto"],
    confidence: ConfidenceType | None,
    tile_size: TileSize,
) -> Inference:
    """Everything that is decided before a block is computed; loads the model once, to see that it takes the rasters."""
    if confidence is not None:
        require_confidence_type(confidence)
    with planning_for_others() if _has_workers_elsewhere() else nullcontext():
        loaded = model_of_process(spec, processor)
        tile, shape_yx = loaded.runner.tile, stack.grid.shape.yx
        prediction = plan_prediction(loaded, spec, processor, tile_size, stack)
    return Inference(
        replace(spec, output=loaded.runner.output), processor,
        plan_blocks(shape_yx, tile, chunks, wanted_run(spec, tile, tile_size)),
        prediction,
        _plan_confidence(confidence, spec, loaded.runner),
    )  # fmt: skip


def _has_workers_elsewhere() -> bool:
    """Whether the active Dask client has workers in other processes; without distributed there is no client."""
    distributed = sys.modules.get("distributed")
    try:
        address = distributed.default_client().scheduler.address if distributed else "inproc"
    except (ValueError, AttributeError):  # no client, or one that is closed
        return False
    return not address.startswith("inproc")


def _plan_confidence(asked: ConfidenceType | None, spec: RunnerSpec, loaded: Runner) -> Confidence | None:
    """How confidence is kept, if it was asked for, by keyword or by the argument that a native model has for it."""
    if asked is None and spec.kind == "native":
        if not boolean_argument(dict(spec.arguments), "return_probability_raster", False):
            return None
        asked = "float32" if loaded.output == "distance" else "uint8"
    if asked is None:
        return None
    return plan_confidence(asked, loaded.returns, loaded.output, spec.definition.classes, spec.definition.source)


def _build(inference: Inference, stack: RasterStack) -> da.Array:
    """(y, x) class values, or pairs with confidence, in the plan's blocks, by the door that fits the rasters."""
    if any(isinstance(raster, RasterArray) for raster in (*stack.rasters, stack.mask)):
        return _build_from_arrays(inference, stack)
    return _build_from_windows(inference, cast("Any", stack.rasters), cast("Any", stack.mask))


def _build_from_windows(
    inference: Inference, rasters: tuple[WindowedRaster, ...], mask: WindowedRaster | None
) -> da.Array:
    """One task per block, which reads its own window and halo; nothing passes between workers."""
    return da.map_blocks(
        _infer_windowed_block, inference, rasters, mask, chunks=inference.plan.chunks, dtype=inference.dtype,
        meta=np.empty((0, 0), inference.dtype), name=None,
    )  # fmt: skip


def _infer_windowed_block(
    inference: Inference, rasters: tuple[WindowedRaster, ...], mask: WindowedRaster | None, block_id: Any = None
) -> np.ndarray:
    return infer_windowed_block(inference, rasters, mask, block_id)


def _build_from_arrays(inference: Inference, stack: RasterStack) -> da.Array:
    """Blocks that borrow their halo from neighbouring blocks."""
    plan = inference.plan
    # A block cannot borrow more than its neighbour has, so thin blocks are merged for the while.
    chunks = _merge_thin(plan.chunks[0], plan.tile.padding), _merge_thin(plan.chunks[1], plan.tile.padding)
    images, masks = zip(*(arrays_of(raster, chunks) for raster in stack.rasters), strict=True)
    haloed = [_with_halo(array, plan.tile.padding) for array in (*images, reduce(operator.and_, masks)[None])]
    wanted = [] if stack.mask is None else [_wanted(stack.mask, chunks)]
    # The class value needs the neighbours' pixels, not their bands: one block along the band axis.
    classes = da.map_blocks(
        _infer_array_block, *haloed, *wanted, inference=inference, chunk_lengths=chunks, is_masked=bool(wanted),
        drop_axis=0, chunks=chunks, dtype=inference.dtype, meta=np.empty((0, 0), inference.dtype),
    )  # fmt: skip
    return classes.rechunk(plan.chunks)


def _wanted(mask: Raster, chunks: Chunks) -> da.Array:
    """(1, y, x) bool, True where the mask wants the result."""
    pixels, valid = arrays_of(mask, chunks)
    return da.map_blocks(
        _wanted_block, pixels, valid[None], chunks=((1,), *chunks), dtype=bool, meta=np.empty((0, 0, 0), bool)
    )


def _wanted_block(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return wanted_by(pixels, valid[0])[None]


def _with_halo(array: da.Array, padding: int) -> da.Array:
    """(band, y, x) whose blocks carry ``padding`` pixels of their neighbours; along one block there are none."""
    halo = (padding if count > 1 else 0 for count in array.numblocks[1:])
    return overlap(array, depth=dict(enumerate((0, *halo))), boundary="none", allow_rechunk=False)


def _infer_array_block(
    *haloed_and_wanted: np.ndarray,
    inference: Inference,
    chunk_lengths: Chunks,
    is_masked: bool,
    block_id: Any = None,
) -> np.ndarray:
    row, col = block_id[-2:]
    core = Window(
        sum(chunk_lengths[0][:row]), sum(chunk_lengths[1][:col]), chunk_lengths[0][row], chunk_lengths[1][col]
    )
    wanted = haloed_and_wanted[-1][0] if is_masked else None
    *images, valid = haloed_and_wanted[:-1] if is_masked else haloed_and_wanted
    return infer_block(inference, core, tuple(images), valid[0], wanted)


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


def _label(
    pixels: da.Array, name: str, places: dict[str, str], inference: Inference, stack: RasterStack
) -> xr.DataArray | xr.Dataset:
    """Pixels with coordinates, class table, nodata and provenance; ``places`` says where the rasters are."""
    spec, plan = inference.spec, inference.plan
    table = spec.definition.classes
    attrs = {
        "long_name": name,
        "_FillValue": table.nodata,
        **table.to_attrs(),
        "model": spec.definition.source,
        "model_name": spec.definition.name,
        "model_digest": spec.definition.digest,
        "runner": spec.kind,
        "output": spec.output,
        "arguments": ";".join(f"{name} {value}" for name, value in spec.arguments),
        **{role: without_secrets(place) for role, place in places.items()},
        **({} if stack.mask is None else {"mask": without_secrets(stack.mask.name)}),
        "rasters": [without_secrets(account) for account in stack.accounts],
        "raster_states": [without_secrets(state) for state in stack.states],
        **({} if spec.precision == "float32" else {"precision": spec.precision}),
        "prediction": inference.prediction.account,
        "tile_size": list(plan.tile.size_yx),
        "padding": plan.tile.padding,
        "geodl_dask_version": __version__,
    }
    coords = xr_coords(stack.grid, dims=("y", "x"))
    if inference.confidence is None:
        return xr.DataArray(pixels, coords=coords, dims=("y", "x"), name=name, attrs=attrs)
    confidence = (("y", "x"), pixels[CONFIDENCE], inference.confidence.to_attrs())
    return xr.Dataset({name: (("y", "x"), pixels["class"], attrs), CONFIDENCE: confidence}, coords=coords)
