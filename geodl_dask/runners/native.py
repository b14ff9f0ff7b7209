"""What we run ourselves: bands, normalisation and the meaning of the answer, for any network of one file."""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ..arguments import check_names, integer_argument
from ..definition import ModelDefinition
from ..emd import read_numbers, wrong
from ..errors import BandCountError, InferenceError, MemoryShortageError, ModelDefinitionError, ModelFileError
from ..tiling import TileSpec, crop_to_core
from . import Batch, Parameter, RunnerSpec

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 4
GPU_SHARE = 0.4
"""Of the free memory, for one of the two predictions that are under way."""
_BATCH_SIZE = "Tiles per call of the network on a GPU; on a CPU they go one by one."
BUSY_PX = 1 << 21
"""Pixels of one call with which a GPU is busy."""
DEFAULT_TILE_PX = 256
"""Height and width of a tile where neither definition nor network says."""
PADDING_SHARE = 4
"""The default padding is this part of a tile, as in ArcGIS."""


class Network(Protocol):
    """A loaded network."""

    device: torch.device
    """Where it wants its inputs, and answers."""
    batch_size: int | None
    """The batch axis's fixed length; None where any length will do."""
    tile_yx: tuple[int, int] | None
    """The fixed height and width of its input, pixels; None where several will do."""

    def lane(self) -> AbstractContextManager[object]:
        """What a thread holds while it predicts, for as many as may do that at once; each computes on one core."""
        ...

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """inputs : one (stack) or two (pair) float32 tensors (tile, band, y, x). Returns (tile, ..., y, x).

        Raises ModelFileError, or MemoryShortageError where fewer or smaller tiles might go through.
        """
        ...


class NativeRunner:
    """Runner of a network that stands in one file: TorchScript, torch.export, ONNX or Keras.

    On a CPU tiles are predicted one by one, whatever the batch size: it costs nothing there, and so scores do not
    depend on it, to the last bit. On a GPU the bits hold for one batch size alone; so they do for a network whose
    batch axis is fixed.

    Raises ModelDefinitionError, ModelArgumentError, BandCountError or ModelFileError where definition, network
    and rasters do not fit together: a first prediction on random pixels shows it before any work.
    """

    returns: Literal["scores", "classes"]

    def __init__(self, spec: RunnerSpec, network: Network) -> None:
        definition, given = spec.definition, dict(spec.arguments)
        check_names(given, [each.name for each in describe_parameters(definition)], definition.source)
        self._network = network
        self._sources = _sources(spec)
        self._class_count = len(definition.classes.classes)
        self._source = definition.source
        self.size_is_fixed: bool = network.tile_yx is not None or network.batch_size not in (None, 1)
        size_yx = definition.tile_yx or network.tile_yx or (DEFAULT_TILE_PX, DEFAULT_TILE_PX)
        self.tile = TileSpec(size_yx, _padding(definition, given, size_yx))
        self.margin_px = definition.model_padding or 0
        """What its answer is smaller by on each side."""
        self._said = spec.output or definition.native.output
        scores = self._try_out(spec, given)
        self._check_shape(scores, definition)
        self.output = self._said or _meaning(scores, definition)
        if self._said is None:
            logger.info("The answer of %s is taken for %s.", self._source, self.output)
        self.returns = "classes" if self.output == "classes" else "scores"
        self._values = np.array(definition.classes.values)
        self.threshold = _threshold(self.output, definition.native.threshold)
        if scores.ndim == 4 and scores.shape[1] == 1:
            definition.classes.change_values()

    def lane(self) -> AbstractContextManager[object]:
        """What a thread holds while it predicts, for as many as may do that at once."""
        return self._network.lane()

    def predict(self, batch: Batch) -> torch.Tensor | np.ndarray:
        """Scores (tile, class, y, x) float32, or class values (tile, y, x) where the network decides itself."""
        answer = self._forward(batch)
        if self.returns == "scores":
            return answer.float()
        indices = (answer[:, 0] if answer.ndim == 4 else answer).cpu().numpy()
        valid = batch.valid if indices.shape == batch.valid.shape else crop_to_core(batch.valid, self.tile)
        known = np.isin(indices, np.arange(len(self._values)))
        if (unknown := indices[valid & ~known]).size:
            raise ModelFileError(
                f"{self._source} answered with class index {unknown.min()} to {unknown.max()}; Classes lists "
                f"{len(self._values)}, so 0 to {len(self._values) - 1} are possible."
            )
        return self._values[np.where(known, indices, 0).astype(np.int64)]

    def inputs_of(self, images: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
        """What the network is given for pixels as stored: float32 (tile, band, y, x), normalised on its device."""
        stored = [_to_device(pixels, self._network.device) for pixels in images]
        (count, _, height, width), inputs = stored[0].shape, []
        for sources in self._sources:
            ready = torch.empty((count, len(sources), height, width), device=self._network.device)
            for place, source in enumerate(sources):  # band by band: a band of a tile stays in a CPU's cache
                band = ready[:, place].copy_(stored[source.raster][:, source.band])
                if source.normalises:
                    band.sub_(source.shift).div_(source.scale)
            inputs.append(ready)
        return inputs

    def scores_of(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The network's answer (tile, score, y, x), or (tile, y, x) where it decides itself."""
        answer = self._network(*inputs)
        has_decided = self._said == "classes" or (self._said is None and not answer.is_floating_point())
        return answer if answer.ndim != 3 or has_decided else answer[:, None]

    def _forward(self, batch: Batch) -> torch.Tensor:
        try:
            return self.scores_of(self.inputs_of(batch.images))
        except MemoryShortageError as error:
            if self._network.batch_size is None:
                raise
            raise InferenceError(f"{error} It takes no fewer at once: its batch axis is fixed.") from error

    def _try_out(self, spec: RunnerSpec, given: dict[str, str]) -> torch.Tensor:
        """Settle the batch size, and give the scores of some random pixels."""
        wanted = integer_argument(given, "batch_size", spec.definition.batch_size or DEFAULT_BATCH_SIZE, 1)
        fixed, on_cpu = self._network.batch_size, spec.device == "cpu"
        if "batch_size" in given and fixed not in (None, wanted):
            logger.warning("batch_size %s was asked for; the model's network takes %d.", wanted, fixed)
        if fixed is None and (on_cpu or "batch_size" not in given):
            scores = self._scores_of_one(spec)
            if scores is not None and on_cpu:
                if "batch_size" in given:
                    logger.info("On a CPU tiles go one by one, so the batch size makes no difference.")
                self.batch_size = 1
                return scores
            if scores is not None:
                wanted = self._fitting_batch(spec)
        self.batch_size = fixed or wanted
        while True:
            try:
                with self.lane():
                    return self._forward(random_batch(spec, self.tile, self.batch_size))
            except MemoryShortageError as error:
                if fixed or self.batch_size == 1:
                    raise
                self.batch_size //= 2
                logger.warning("%s It goes on with a batch size of %d.", error, self.batch_size)

    def _scores_of_one(self, spec: RunnerSpec) -> torch.Tensor | None:
        """Its answer to one tile; None where that is not one: some are traced for the batch they were traced with."""
        try:
            with self.lane():
                scores = self._forward(random_batch(spec, self.tile, 1))
        except ModelFileError:
            return None
        return scores if scores.shape[:1] == (1,) else None

    def _fitting_batch(self, spec: RunnerSpec) -> int:
        """Tiles for which the GPU has memory, up to a number with which it is busy."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with self.lane():
            self._forward(random_batch(spec, self.tile, 1))
            torch.cuda.synchronize()
        needed = max(1, torch.cuda.max_memory_allocated() - before)
        busy = max(1, BUSY_PX // self.tile.area_px)
        return max(1, min(busy, int(torch.cuda.mem_get_info()[0] * GPU_SHARE) // needed))

    def _check_shape(self, scores: torch.Tensor, definition: ModelDefinition) -> None:
        (height, width), margin = self.tile.size_yx, self.margin_px
        wanted_yx = (height - 2 * margin, width - 2 * margin)
        channels = scores.shape[1] if scores.ndim == 4 else 1
        if scores.ndim not in (3, 4) or scores.shape[0] != self.batch_size or scores.shape[-2:] != wanted_yx:
            hint = " If it gives the centre of a tile alone, say so with ModelPadding." if not margin else ""
            raise ModelFileError(
                f"{self._source} answered with shape {tuple(scores.shape)} to a batch of {self.batch_size} tiles; "
                f"({self.batch_size}, classes, {wanted_yx[0]}, {wanted_yx[1]}) is needed.{hint}"
            )
        if self._said == "classes" and channels != 1:
            raise ModelFileError(
                f"{self._source} answers with {channels} scores per pixel, and GeodlDask output says classes, which "
                'are one class index per pixel. Say "logits" or "probabilities", or leave output out.'
            )
        if channels not in (1, self._class_count):
            raise ModelFileError(
                f"{self._source} answers with {channels} scores per pixel, and Classes lists {self._class_count}; "
                "as many, or one that is thresholded, are needed."
            )


def describe_parameters(definition: ModelDefinition) -> tuple[Parameter, ...]:
    """The arguments of a native model; no padding where the definition has a ModelPadding, which fixes it."""
    batch_size = str(definition.batch_size or DEFAULT_BATCH_SIZE)
    known = [Parameter("batch_size", "numeric", batch_size, "Batch size", _BATCH_SIZE, ())]
    what = "Keep the probability of each pixel's class in a second band, or variable; where the model gives scores."
    known.append(
        Parameter("return_probability_raster", "boolean", "False", "Return probability raster", what, ("True", "False"))
    )
    if definition.model_padding is None:
        what = "Pixels cut from each side of a tile's prediction."
        tile = definition.tile_yx
        default = definition.padding if definition.padding is not None else tile and min(tile) // PADDING_SHARE
        known.insert(0, Parameter("padding", "numeric", None if default is None else str(default), "Padding", what, ()))
    return tuple(known)


def _padding(definition: ModelDefinition, given: dict[str, str], size_yx: tuple[int, int]) -> int:
    if definition.model_padding is not None:
        return definition.model_padding
    default = definition.padding if definition.padding is not None else min(size_yx) // PADDING_SHARE
    return integer_argument(given, "padding", default, 0)


def _stacked_bands(spec: RunnerSpec) -> tuple[int, ...]:
    """Indices into the stack (of a pair: from bands, then to bands) that the network takes."""
    definition, band_count, rasters = spec.definition, spec.band_count, spec.raster_count
    everything = tuple(range(rasters * band_count))
    bands = definition.extract_bands or everything
    # 0, 1, .., 5 of a pair with four bands each would be the whole first date and half of the second.
    takes_half = rasters == 2 and bands == tuple(range(len(bands))) != everything
    if max(bands) >= len(everything) or takes_half:
        halves = rasters == 2 and len(bands) % 2 == 0
        wish = f"{len(bands) // 2} of each date" if halves else f"{max(bands) + 1} bands"
        if rasters == 1 and max(bands) + 1 == 2 * band_count:
            advice = "It looks like a model of two dates: detect-change (detect_change) runs it over a pair."
        else:
            advice = f"Choose them: {'--from-bands and --to-bands' if rasters == 2 else '--bands'}, by number or name."
        raise BandCountError(
            f"{definition.source} takes {wish} (ExtractBands {list(bands)}); "
            f"{'the rasters have' if rasters == 2 else 'the raster has'} {band_count} band(s)"
            f"{' each' if rasters == 2 else ''}. {advice}"
        )
    if definition.native.input == "pair" and rasters == 1:
        raise ModelDefinitionError(f"{definition.source} takes a pair of rasters (GeodlDask input), and one is given.")
    if definition.native.input == "pair" and len(bands) % 2:
        raise ModelDefinitionError(
            f"{definition.source} takes a pair, and ExtractBands lists {len(bands)} bands, an odd number."
        )
    return bands


@dataclass(frozen=True)
class _Source:
    """Where one band of the network's input comes from: (pixel - shift) / scale."""

    raster: int
    band: int
    shift: float = 0.0
    scale: float = 1.0

    @property
    def normalises(self) -> bool:
        """Whether the pixel is changed at all."""
        return (self.shift, self.scale) != (0.0, 1.0)


def _sources(spec: RunnerSpec) -> list[list[_Source]]:
    """For each input of the network its bands."""
    bands = _stacked_bands(spec)
    normalisation = _normalisation(spec, len(bands))
    shifts, scales = normalisation or (np.zeros(len(bands)), np.ones(len(bands)))
    sources = [
        _Source(*divmod(band, spec.band_count), float(shift), float(scale))
        for band, shift, scale in zip(bands, shifts, scales, strict=True)
    ]
    half = len(sources) // 2
    return [sources[:half], sources[half:]] if spec.definition.native.input == "pair" else [sources]


def _to_device(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """Pixels as stored, without a copy on a CPU."""
    tensor = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _normalisation(spec: RunnerSpec, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(shift, scale), each (channel,) float32: the network is given (pixel - shift) / scale.

    The first of these that the definition has: ``GeodlDask`` mean and std; ``NormalizationStats``
    (band_min/max_values to 0..1, then scaled_mean/std_values where both stand); ``DataRange``, to which an
    integer type's whole range is rescaled.
    """
    definition, pixel_type, rasters = spec.definition, spec.pixel_type, spec.raster_count
    native, stats = definition.native, definition.keys.get("NormalizationStats")
    if native.mean or native.std:
        half = len(native.mean or native.std or ())
        shift, scale = np.array(native.mean or [0.0] * half), np.array(native.std or [1.0] * half)
    elif isinstance(stats, dict):
        shift, scale = statistics_of(stats, definition)
    elif definition.data_range and np.issubdtype(pixel_type, np.integer):
        (low, high), kind = definition.data_range, np.iinfo(pixel_type)
        scale = np.array([(kind.max - kind.min) / (high - low)])
        shift = kind.min - low * scale
    else:
        return None
    if len(shift) == 1:
        shift, scale = np.repeat(shift, channels), np.repeat(scale, channels)
    elif rasters * len(shift) == channels:
        shift, scale = np.tile(shift, rasters), np.tile(scale, rasters)
    if len(shift) != channels or len(scale) != channels:
        raise BandCountError(
            f"{definition.source} normalises {len(shift)} band(s) of each raster; the model is given {channels} in all."
        )
    return shift.astype(np.float32), scale.astype(np.float32)


def statistics_of(stats: dict[str, Any], definition: ModelDefinition) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale) that the ``NormalizationStats`` of a definition mean, one each per band of one date."""
    keys = ["band_min_values", "band_max_values"]
    if stats.get("scaled_mean_values") and stats.get("scaled_std_values"):
        keys += ["scaled_mean_values", "scaled_std_values"]
    try:
        numbers = [read_numbers(f"NormalizationStats.{key}", stats.get(key)) for key in keys]
        low, high, *scaled = numbers
        if len({len(each) for each in numbers}) > 1 or any(a >= b for a, b in zip(low, high, strict=True)):
            needed = f"one number per band of one date in each of {', '.join(keys)}, min below max,"
            raise wrong("NormalizationStats", {key: stats[key] for key in keys}, needed)
        if scaled and min(scaled[1]) <= 0:
            raise wrong("NormalizationStats.scaled_std_values", list(scaled[1]), "a list of numbers above 0")
    except ModelDefinitionError as error:
        raise ModelDefinitionError(f"{definition.source}: {error}") from error
    spread = np.subtract(high, low)
    if not scaled:
        return np.array(low), spread
    return low + np.multiply(scaled[0], spread), np.multiply(scaled[1], spread)


def random_batch(spec: RunnerSpec, tile: TileSpec, size: int) -> Batch:
    """A batch of noise that spans what such pixels usually are."""
    shape = (spec.raster_count, size, spec.band_count, *tile.size_yx)
    top = {"u1": 255, "i1": 127}.get(np.dtype(spec.pixel_type).str[1:], 10_000)
    top = 1 if np.issubdtype(spec.pixel_type, np.floating) else top
    noise = np.random.default_rng(0).random(shape, dtype=np.float32) * top
    images = tuple(noise.astype(spec.pixel_type))
    return Batch(images, np.ones((size, *tile.size_yx), bool), np.zeros((size, 2), np.int64))


def _meaning(scores: torch.Tensor, definition: ModelDefinition) -> str:
    """What scores on random pixels look like, where the definition does not say."""
    if not scores.is_floating_point():
        return "classes"
    if scores.min() >= 0 and scores.max() <= 1:
        return "probabilities"
    if scores.min() < 0 or scores.shape[1] > 1:
        return "logits"
    raise ModelDefinitionError(
        f"{definition.source} answers with one score of 0 to {scores.max():.3g} per pixel, which is neither a "
        'probability nor a logit for certain. Say which in the definition: "GeodlDask": {"output": "distance", '
        '"threshold": 1.0}.'
    )


def _threshold(output: str, threshold: float | None) -> float | None:
    """The threshold in the score's own unit: a logit is compared with the logit of the probability."""
    if output == "classes":
        return None
    if output == "distance":
        return 1.0 if threshold is None else threshold
    probability = 0.5 if threshold is None else threshold
    if not 0 < probability < 1:
        raise ModelDefinitionError(f"threshold is {probability}; a probability between 0 and 1 is needed for {output}.")
    return math.log(probability / (1 - probability)) if output == "logits" else probability
