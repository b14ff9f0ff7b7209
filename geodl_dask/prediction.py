"""How much a model is given at once: tiles are joined where a probe on these rasters shows that it changes nothing."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from .decision import decide
from .devices import Processor
from .errors import RasterReadError, TileGeometryError
from .kernel import LoadedModel, Prediction, model_of_process
from .rasters import RasterArray, RasterStack
from .runners import Batch, Locality, RunnerSpec
from .tiling import TileRun, TileSpec, Window

if TYPE_CHECKING:
    from .runners.native import NativeRunner

log = logging.getLogger(__name__)

TileSize = int | Literal["auto", "model"]

JOINED_PX = 1_024
"""Tiles are joined up to this side, without padding: their halo then costs a quarter at a padding of 64, and their
features some hundreds of megabytes."""
FEW_TILES = 128
"""Of fewer the probe would cost about what it saves."""


def plan_prediction(
    model: LoadedModel, spec: RunnerSpec, processor: Processor, tile_size: TileSize, stack: RasterStack
) -> Prediction:
    """How many tiles a side are predicted as one.

    Raises TileGeometryError for a tile size that is none, or that would make a difference.
    """
    tile = model.runner.tile
    counts = [-(-length // stride) for length, stride in zip(stack.grid.shape.yx, tile.stride_yx, strict=True)]
    run = min(wanted_run(spec, tile, tile_size), max(counts))
    if spec.precision != "float32":
        _report_disagreement(model, spec, processor, stack)
    if spec.kind == "raster-function" and tile_size not in ("auto", "model"):
        raise TileGeometryError(
            f"tile_size is {tile_size}; the raster function of {spec.definition.source} has its own."
        )
    if run == 1:
        return Prediction(account=f"tiles of {_size(tile)}, one by one")
    if tile_size == "auto" and math.prod(counts) < FEW_TILES:
        return Prediction(
            account=f"tiles of {_size(tile)}, one by one: with fewer than {FEW_TILES} a probe does not pay"
        )
    found = _probe(model, spec, processor, stack, run)
    if found.obstacle is None:
        large = TileRun(0, 0, run, run).merged(tile)
        account = f"tiles of {_size(tile)}, up to {run} x {run} of them as one of {_size(large)}"
        return Prediction(run, found.bytes_per_px, f"{account}: the scores are the same")
    if isinstance(tile_size, int):
        raise TileGeometryError(
            f"tile_size {tile_size} would join tiles of {_size(tile)} and change the answer of "
            f"{spec.definition.source}: {found.obstacle}. Say auto or model."
        )
    return Prediction(account=f"tiles of {_size(tile)}, one by one: {found.obstacle}")


def wanted_run(spec: RunnerSpec, tile: TileSpec, tile_size: TileSize) -> int:
    """Tiles a side that are to be joined, if they may be. Raises TileGeometryError for a tile size that is none."""
    if tile_size == "model" or spec.kind == "raster-function":
        return 1
    if tile_size == "auto":
        return max(1, JOINED_PX // max(tile.stride_yx))
    if isinstance(tile_size, bool) or not isinstance(tile_size, int) or tile_size < min(tile.size_yx):
        raise TileGeometryError(
            f"tile_size is {tile_size!r}; auto, model, or a number of pixels no less than the model's tile of "
            f"{_size(tile)} is needed."
        )
    return max(1, (tile_size - 2 * tile.padding) // max(tile.stride_yx))


def _size(tile: TileSpec) -> str:
    return f"{tile.size_yx[0]} x {tile.size_yx[1]} pixels"


def _probe(model: LoadedModel, spec: RunnerSpec, processor: Processor, stack: RasterStack, run: int) -> Locality:
    """Whether tiles may be joined; found once for each model of this process, and number of tiles."""
    from .runners.locality import probe_locality

    if run not in model.localities:
        exact = _exact(spec, processor)
        samples = [_noise(spec, exact.tile), *_pixels(spec, exact.tile, stack)]
        model.localities[run] = probe_locality(exact, samples, run)
    return model.localities[run]


def _exact(spec: RunnerSpec, processor: Processor) -> NativeRunner:
    plain = replace(spec, precision="float32", compiled=False)
    return cast("NativeRunner", model_of_process(plain, processor).runner)


def _noise(spec: RunnerSpec, tile: TileSpec) -> tuple[np.ndarray, ...]:
    """Of each raster (band, y, x) over 2 x 2 tiles: noise, with a patch that has no observation."""
    from .runners.native import random_batch

    images = tuple(pixels[0] for pixels in random_batch(spec, TileRun(0, 0, 2, 2).merged(tile), 1).images)
    for pixels in images:
        height, width = (length // 8 for length in pixels.shape[1:])
        pixels[:, height : 2 * height, width : 3 * width] = 0
    return images


def _pixels(spec: RunnerSpec, tile: TileSpec, stack: RasterStack) -> list[tuple[np.ndarray, ...]]:
    """Of each raster (band, y, x) over 2 x 2 tiles in the grid's centre; nothing where they are not at hand."""
    large, (rows, cols) = TileRun(0, 0, 2, 2).merged(tile), stack.grid.shape.yx
    height, width = min(large.size_yx[0], rows), min(large.size_yx[1], cols)
    window = Window((rows - height) // 2, (cols - width) // 2, height, width)
    files = [raster for raster in stack.rasters if not isinstance(raster, RasterArray)]
    if len(files) < len(stack.rasters):
        return []  # to look into a lazy array would compute it
    try:
        images, masks = zip(*(raster.read(window) for raster in files), strict=True)
    except RasterReadError as error:
        log.info("The tiles are probed with noise alone: %s", error)
        return []
    valid = np.logical_and.reduce(masks)
    missing = ((0, 0), (0, large.size_yx[0] - height), (0, large.size_yx[1] - width))
    return [tuple(np.pad(np.where(valid, each, 0).astype(spec.pixel_type), missing, mode="edge") for each in images)]


def _report_disagreement(model: LoadedModel, spec: RunnerSpec, processor: Processor, stack: RasterStack) -> None:
    """Say how many pixels of a tile get another class in the precision that was asked for."""
    exact = _exact(spec, processor)
    tile, table, classes = exact.tile, spec.definition.classes, []
    of_four = (_pixels(spec, tile, stack) or [_noise(spec, tile)])[0]
    images = tuple(pixels[None, ..., *TileRun(0, 0).inside(tile)].copy() for pixels in of_four)
    batch = Batch(images, np.ones((1, *tile.size_yx), bool), np.zeros((1, 2), np.int64))
    for runner in (exact, model.runner):
        with runner.lane():
            scores = runner.predict(batch)
            classes.append(decide(scores, np.ones((1, *scores.shape[-2:]), bool), runner, table))
    share = float((classes[0] != classes[1]).mean())
    log.warning("%s gives %.3f%% of the pixels of a tile another class than float32.", spec.precision, 100 * share)
