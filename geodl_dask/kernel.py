"""One haloed block of each raster in, one block of class values out. Runs on workers; imports no Dask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .classes import ClassTable
from .confidence import Confidence, confidence_of, join_layers, pair_type
from .devices import Processor, choose_device
from .errors import InferenceError
from .rasters import WindowedRaster
from .runners import Batch, Runner, RunnerSpec, load_runner
from .tiling import BlockPlan, Window, crop_to_core, tile_views


@dataclass(frozen=True)
class Inference:
    """Everything that turns pixels into class values; small and picklable."""

    spec: RunnerSpec
    """How to load the model."""
    processor: Processor
    """What it may run on."""
    plan: BlockPlan
    """The tile lattice, and the blocks."""
    confidence: Confidence | None = None
    """How the confidence of each class is kept; None: it is not wanted."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a pixel: the class table's, or, with confidence, a pair of the fields class and confidence."""
        classes = self.spec.definition.classes.dtype
        return classes if self.confidence is None else pair_type(classes, self.confidence.dtype)

    @property
    def blank(self) -> Any:
        """A pixel without class."""
        nodata = self.spec.definition.classes.nodata
        return np.array(nodata if self.confidence is None else (nodata, self.confidence.nodata), self.dtype)[()]


def infer_windowed_block(
    inference: Inference,
    rasters: tuple[WindowedRaster, ...],
    mask: WindowedRaster | None,
    index: tuple[int, int],
) -> np.ndarray:
    """Class values of block ``index``, read with the halo that it needs, where ``mask`` is valid and not 0.

    Returns (y, x) as `infer_block`. Raises RasterReadError or InferenceError.
    """
    core = inference.plan.core(index)
    window = inference.plan.haloed(core)
    wanted = None if mask is None else wanted_by(*mask.read(core))
    if wanted is not None and not wanted.any():
        return np.full(wanted.shape, inference.blank)
    images, masks = zip(*(raster.read(window) for raster in rasters), strict=True)
    return infer_block(inference, core, images, np.logical_and.reduce(masks), wanted)


def wanted_by(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Where a mask wants the result: (y, x) bool. pixels : (band, y, x), of which the first counts."""
    return valid & (pixels[0] != 0)


def infer_block(
    inference: Inference,
    core: Window,
    images: tuple[np.ndarray, ...],
    valid: np.ndarray,
    wanted: np.ndarray | None = None,
) -> np.ndarray:
    """Class values of the pixels of ``core``.

    core : the block's window of the grid, whole strides from the grid's upper-left corner.
    images : of each raster (band, y, x) as stored, over the core and its halo, clipped to the grid.
    valid : (y, x) bool, the same window, True where every raster has an observation.
    wanted : (y, x) bool over the core, True where the result is wanted; None: everywhere.
    Returns (y, x) over the core in the inference's dtype, nodata where not valid or not wanted.
    Raises InferenceError.
    """
    plan = inference.plan
    runner, lane = runner_of_process(inference.spec, inference.processor)
    fill = plan.fill(core)
    valid = np.pad(valid, fill)
    tiles = _Tiles(
        tuple(tile_views(_filled(pixels, fill, valid, inference), plan.tile) for pixels in images),
        tile_views(valid, plan.tile),
        plan.origins(core),
    )
    (rows, cols), (height, width) = plan.tiles_yx(core), plan.tile.stride_yx
    values = np.full((rows * cols, height, width), inference.blank)
    asked = crop_to_core(tiles.valid.reshape(-1, *plan.tile.size_yx), plan.tile)
    if wanted is not None:
        asked = asked & _by_tile(wanted, rows, cols, plan.tile.stride_yx)
    for batch, members in tiles.batches(np.flatnonzero(asked.any(axis=(1, 2))), runner.batch_size):
        with lane:
            prediction = runner.predict(batch)
        counts = np.pad(asked[members], ((0, len(prediction) - len(members)), (0, 0), (0, 0)))
        values[members] = _answer(crop_to_core(prediction, plan.tile), counts, runner, inference)[: len(members)]
    values[~asked] = inference.blank
    block = values.reshape(rows, cols, height, width).swapaxes(1, 2).reshape(rows * height, cols * width)
    return np.ascontiguousarray(block[: core.height, : core.width])


def _answer(prediction: np.ndarray, counts: np.ndarray, runner: Runner, inference: Inference) -> np.ndarray:
    """Class values of a prediction, as of `decide`, and, where it is wanted, their confidence: (tile, y, x)."""
    classes = decide(prediction, counts, runner, inference.spec.definition.classes)
    if inference.confidence is None:
        return classes
    confidence = confidence_of(prediction, counts, runner.output, runner.threshold)
    return join_layers(classes, inference.confidence.encode(confidence))


def decide(prediction: np.ndarray, counts: np.ndarray, runner: Runner, table: ClassTable) -> np.ndarray:
    """Class values of a prediction.

    prediction : what ``runner`` gave: scores (tile, class, y, x) or class values (tile, y, x).
    counts : (tile, y, x) bool, True where the answer counts; elsewhere it may be anything, and so may the result.
    Returns (tile, y, x) in the table's dtype: the class of the highest score, or, for one score, the class
    above or below ``runner.threshold``. Raises InferenceError for values that are none.
    """
    if runner.returns == "classes":
        limit, given = np.iinfo(table.dtype).max, prediction[counts]
        if given.size and (given.min() < 0 or given.max() > limit):
            raise InferenceError(
                f"The model answered with values {given.min()} to {given.max()}; {table.dtype} holds 0 to {limit}."
            )
        return prediction.astype(table.dtype)
    if (np.isnan(prediction).any(axis=1) & counts).any():
        raise InferenceError("The model answered with NaN scores for pixels that are all finite.")
    if prediction.shape[1] == 1:
        above, below = table.change_values()
        return np.where(prediction[:, 0] > runner.threshold, above, below).astype(table.dtype)
    return np.array(table.values, table.dtype)[prediction.argmax(axis=1)]


def runner_of_process(spec: RunnerSpec, processor: Processor) -> tuple[Runner, AbstractContextManager[object]]:
    """This process's runner of a model, loaded once, and what to hold while it predicts (its one lane)."""
    with _loading:
        return _load(spec, processor)


_loading = threading.Lock()


@lru_cache(maxsize=2)
def _load(spec: RunnerSpec, processor: Processor) -> tuple[Runner, AbstractContextManager[object]]:
    runner = load_runner(replace(spec, device=choose_device(processor)))
    return runner, nullcontext() if runner.is_thread_safe else threading.Lock()


def _filled(
    pixels: np.ndarray, fill: tuple[tuple[int, int], tuple[int, int]], valid: np.ndarray, inference: Inference
) -> np.ndarray:
    """(band, y, x) over whole tiles: the one place where pixels without observation get their value, which is 0.

    Every raster gets it where any has no observation, so that no edge looks like a change.
    """
    padded = np.pad(pixels.astype(inference.spec.pixel_type, copy=False), ((0, 0), *fill))
    return padded if valid.all() else np.where(valid, padded, padded.dtype.type(0))


def _by_tile(core: np.ndarray, rows: int, cols: int, stride_yx: tuple[int, int]) -> np.ndarray:
    """(y, x) over a core as (tile, y, x), filled with False beyond it."""
    (height, width), (stride_y, stride_x) = core.shape, stride_yx
    whole = np.pad(core, ((0, rows * stride_y - height), (0, cols * stride_x - width)))
    return whole.reshape(rows, stride_y, cols, stride_x).swapaxes(1, 2).reshape(-1, stride_y, stride_x)


@dataclass(frozen=True)
class _Tiles:
    """Views (row, column, ..., y, x) of a block's tiles; `batches` copies out as many as one call takes."""

    images: tuple[np.ndarray, ...]
    valid: np.ndarray
    origins: np.ndarray

    def batches(self, members: np.ndarray, size: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches of exactly ``size`` tiles (the last is filled up with its last tile) and which tiles they answer."""
        for start in range(0, len(members), size):
            answered = members[start : start + size]
            taken = np.pad(answered, (0, size - len(answered)), mode="edge")
            at = np.unravel_index(taken, self.valid.shape[:2])
            images = tuple(pixels[at] for pixels in self.images)
            yield Batch(images, self.valid[at], self.origins[taken]), answered
