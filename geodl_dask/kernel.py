"""One haloed block of each raster in, one block of class values out. Runs on workers; imports no Dask."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from .allocator import is_memory_shortage
from .confidence import Confidence, confidence_of, join_layers, pair_type
from .decision import decide
from .devices import Processor, choose_device, claim_gpu, memory_share
from .errors import InferenceError, MemoryShortageError
from .model_files import ModelCopy, as_at_hand, copy_model, is_at_hand, use_copy
from .rasters import WindowedRaster
from .runners import Batch, Locality, Runner, RunnerSpec, carries_code, load_runner
from .tiling import BlockPlan, TileRun, TileSpec, Window, crop_to_core, tile_runs

log = logging.getLogger(__name__)

_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Prediction:
    """How much a model is given at once."""

    run: int = 1
    """Tiles a side that are predicted as one; more than 1 only where that is known to change nothing."""
    bytes_per_px: float = 0.0
    """Memory that a prediction takes for each pixel of its input; 0: not known."""
    account: str = ""
    """The same, for people."""


@dataclass(frozen=True)
class Inference:
    """Everything that turns pixels into class values; small and picklable."""

    spec: RunnerSpec
    """How to load the model."""
    processor: Processor
    """What it may run on."""
    plan: BlockPlan
    """The tile lattice, and the blocks."""
    prediction: Prediction = Prediction()
    """How much of that the model is given at once."""
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

    def preparation(self) -> Preparation:
        """What a worker has to do before its first block. Of code that the model brings only what may run travels."""
        definition = self.spec.definition
        return Preparation(self, copy_model(definition, with_code=carries_code(definition, self.spec.kind)))


@dataclass(frozen=True)
class Preparation:
    """The model loaded on the one device of a worker's process; picklable."""

    inference: Inference
    """Which model, and where it may run."""
    copy: ModelCopy
    """What of it is sent to a worker that has not got it."""

    @property
    def files(self) -> Mapping[str, str]:
        """What a worker may lack: of each file a name, and its path on the client."""
        return dict(self.copy.files)

    def prepare(self, fetch: Callable[[], Path]) -> None:
        """Do it. Runs in a thread of a worker.

        fetch : gives the folder in which the files are, and has them sent if need be.
        Raises DeviceError, and what `load_runner` does.
        """
        spec, processor = self.inference.spec, self.inference.processor
        if processor != "cpu":
            claim_gpu()
        if self.files and not is_at_hand(spec.definition):
            use_copy(spec.definition, self.copy.at(fetch()))
        _warm_up(self.inference)


def _warm_up(inference: Inference) -> None:
    """Load the model; then, where the first large prediction is slow, have that behind us.

    On a CPU nothing is left to do: a native model has been tried out on loading, and all else would cost as much as it
    saves. A GPU settles its algorithms, and a compiled network is compiled, by the shape of what it is given.
    """
    model, plan = loaded_model(inference), inference.plan
    if choose_device(inference.processor) == "cpu" and not inference.spec.compiled:
        return
    run_yx = (inference.prediction.run * stride for stride in plan.tile.stride_yx)
    core = Window(0, 0, *map(min, run_yx, plan.shape_yx))
    window = plan.haloed(core)
    shape = (inference.spec.raster_count, inference.spec.band_count, window.height, window.width)
    noise = np.random.default_rng(0).integers(0, 100, shape).astype(inference.spec.pixel_type)
    try:
        infer_block(inference, core, tuple(noise), np.ones(noise.shape[-2:], bool))
    except InferenceError as error:  # of noise, which is nobody's raster: the blocks will show
        log.debug("%s could not be warmed up: %s", model, error)


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
    return infer_block(inference, core, images, reduce(np.logical_and, masks), wanted)


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
    plan, tile = inference.plan, inference.plan.tile
    fill, (rows, cols) = plan.fill(core), plan.tiles_yx(core)
    images = tuple(_padded(_filled(pixels, valid, inference), fill) for pixels in images)
    valid = _padded(valid, fill)
    block = _Block(images, valid, core, tile)
    asked = crop_to_core(valid, TileRun(0, 0, rows, cols).merged(tile))
    if wanted is not None:
        asked = asked & _padded(wanted, tuple((0, n - m) for n, m in zip(asked.shape, wanted.shape, strict=True)))
    is_everywhere = asked.all()
    values = np.empty(asked.shape, inference.dtype) if is_everywhere else np.full(asked.shape, inference.blank)
    of_tiles = asked.reshape(rows, tile.stride_yx[0], cols, tile.stride_yx[1]).any(axis=(1, 3))
    for run, answer in _answers(inference, block, list(tile_runs(of_tiles, tile, inference.prediction.run)), asked):
        values[run.cores(tile)] = answer
    if not is_everywhere:
        values[~asked] = inference.blank
    return np.ascontiguousarray(values[: core.height, : core.width])


def _answers(
    inference: Inference, block: _Block, runs: list[TileRun], asked: np.ndarray
) -> Iterator[tuple[TileRun, np.ndarray]]:
    """Each run, or parts of it, with the class values of its cores: (y, x). Raises InferenceError."""
    model, tile = loaded_model(inference), block.tile
    calls = deque(_calls(runs, tile, model))
    while calls:
        call = calls.popleft()
        merged, halves = call[0].merged(tile), _halves(call)
        size = model.batch_size(merged)  # once: another thread may make it smaller meanwhile
        if halves and (len(call) > size or merged.area_px > model.room_px):
            calls.extendleft(reversed(halves))
            continue
        counts = np.stack([asked[run.cores(tile)] for run in call])
        try:
            with model.runner.lane():
                prediction = model.runner.predict(block.batch(call, size))
                answers = _answer(crop_to_core(prediction, merged)[: len(call)], counts, model.runner, inference)
        except (MemoryError, RuntimeError) as error:
            # An InferenceError has been judged already: less would not help.
            is_judged = isinstance(error, InferenceError) and not isinstance(error, MemoryShortageError)
            if is_judged or not halves or not is_memory_shortage(error):
                raise
            model.shrink(len(call) * merged.area_px // 2, error)
            calls.appendleft(call)
        else:
            yield from zip(call, answers, strict=True)


def _calls(runs: list[TileRun], tile: TileSpec, model: LoadedModel) -> Iterator[list[TileRun]]:
    """Runs of one shape put together, as many as the model takes at a time."""
    for _, group in groupby(sorted(runs, key=_shape), key=_shape):
        alike = list(group)
        size = model.batch_size(alike[0].merged(tile))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _shape(run: TileRun) -> tuple[int, int]:
    return run.rows, run.cols


def _halves(call: list[TileRun]) -> list[list[TileRun]]:
    """The work of a call as two calls; none where it is one tile."""
    if len(call) > 1:
        half = -(-len(call) // 2)
        return [call[:half], call[half:]]
    return [] if _shape(call[0]) == (1, 1) else [[run] for run in call[0].halves()]


def _answer(prediction: Any, counts: np.ndarray, runner: Runner, inference: Inference) -> np.ndarray:
    """Class values of a prediction, as of `decide`, and, where it is wanted, their confidence: (tile, y, x)."""
    classes = decide(prediction, counts, runner, inference.spec.definition.classes)
    if inference.confidence is None:
        return classes
    scores = prediction if isinstance(prediction, np.ndarray) else prediction.cpu().numpy()
    confidence = confidence_of(scores, counts, runner.output, runner.threshold)
    return join_layers(classes, inference.confidence.encode(confidence))


@dataclass
class LoadedModel:
    """A model in this process, and how much of it may be asked at once."""

    runner: Runner
    """The model."""
    room_px: int = _UNLIMITED
    """Pixels for which there is memory in one call."""
    localities: dict[int, Locality] = field(default_factory=dict)
    """What probes of it have found, by the most tiles a side that were to be joined."""

    def batch_size(self, tile: TileSpec) -> int:
        """Tiles of one call: as many as the runner wants of its own, as many pixels of others, and no more than fit."""
        own = self.runner.tile
        wanted = self.runner.batch_size
        if tile != own:
            wanted = max(1, wanted * own.area_px // tile.area_px)
        return min(wanted, max(1, self.room_px // tile.area_px))

    def shrink(self, room_px: int, cause: BaseException) -> None:
        """Remember that there was not memory enough, and say so."""
        if room_px < self.room_px:
            self.room_px = room_px
            log.warning("%s It goes on with %s pixels at a time.", cause, f"{room_px:,}")


def loaded_model(inference: Inference) -> LoadedModel:
    """This process's model for an inference, with as much room as this machine has."""
    model = model_of_process(inference.spec, inference.processor)
    bytes_per_px = inference.prediction.bytes_per_px
    if bytes_per_px and model.room_px == _UNLIMITED:
        model.room_px = int(memory_share(choose_device(inference.processor)) / bytes_per_px)
    return model


def model_of_process(spec: RunnerSpec, processor: Processor) -> LoadedModel:
    """This process's model, loaded once."""
    with _loading:
        return _load(spec, processor)


_loading = threading.Lock()


@lru_cache(maxsize=2)
def _load(spec: RunnerSpec, processor: Processor) -> LoadedModel:
    definition = as_at_hand(spec.definition)
    return LoadedModel(load_runner(replace(spec, definition=definition, device=choose_device(processor))))


def _padded(pixels: np.ndarray, fill: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(..., y, x) with 0 or False around."""
    return np.pad(pixels, ((0, 0),) * (pixels.ndim - 2) + fill) if any(map(any, fill)) else pixels


def _filled(pixels: np.ndarray, valid: np.ndarray, inference: Inference) -> np.ndarray:
    """(band, y, x): the one place where pixels without observation get their value, which is 0.

    Every raster gets it where any has no observation, so that no edge looks like a change.
    """
    pixels = pixels.astype(inference.spec.pixel_type, copy=False)
    return pixels if valid.all() else np.where(valid, pixels, pixels.dtype.type(0))


@dataclass(frozen=True)
class _Block:
    """The pixels of a block with its halo, filled to whole tiles."""

    images: tuple[np.ndarray, ...]
    valid: np.ndarray
    core: Window
    tile: TileSpec

    def batch(self, call: list[TileRun], size: int) -> Batch:
        """Exactly ``size`` runs of one shape: those of the call, filled up with the last; of one they are views."""
        runs = call + call[-1:] * (size - len(call))
        *images, valid = (
            np.stack([pixels[..., *run.inside(self.tile)] for run in runs])
            if size > 1
            else pixels[None, ..., *runs[0].inside(self.tile)]
            for pixels in (*self.images, self.valid)
        )
        return Batch(tuple(images), valid, np.array([run.origin(self.core, self.tile) for run in runs]))
