"""How sure a model is of the class that it gives: computed from scores, kept in few bits beside the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from .classes import ClassTable
from .composed import class_values, confidence_values
from .errors import InferenceError, ModelArgumentError, OutputError

CONFIDENCE = "confidence"
"""Name of the layer."""
ConfidenceType = Literal["uint8", "uint16", "float32"]
TOLERANCE = 1e-3
"""By so much a probability may lie outside 0 to 1, by rounding."""


@dataclass(frozen=True)
class Confidence:
    """How confidence is kept: in a float type as it is, in an integer type as one of evenly spaced steps of 0 to 1.

    The value that means "no class" is the class table's in an integer type, so that one file can hold both layers,
    and NaN in a float type. No confidence has it: the steps fill the longer side of it.

    ::

        0 |------------- steps -------------| nodata | -- not used -- | highest value of the type
        0      confidence 0 to 1              no class
    """

    dtype: np.dtype[Any]
    """The type."""
    nodata: float
    """The value of pixels without class."""
    meaning: Literal["probability", "distance"] = "probability"
    """What the confidence is: a probability, or what a model of distances answered."""

    @property
    def ends(self) -> tuple[int, int]:
        """The integers that stand for 0 and for 1."""
        highest = int(np.iinfo(self.dtype).max)
        return (0, int(self.nodata) - 1) if self.nodata > highest / 2 else (int(self.nodata) + 1, highest)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Confidence as it is kept, of the same shape; what lies outside 0 to 1 becomes the nearer one in an integer.

        An integer is off by half a step at the most. Runs on workers.
        """
        if self.dtype.kind == "f":
            return values.astype(self.dtype, copy=False)
        low, high = self.ends
        return np.rint(values.clip(0, 1).astype(np.float64) * (high - low) + low).astype(self.dtype)

    def to_attrs(self) -> dict[str, Any]:
        """CF attributes, by which readers decode it."""
        named = {"long_name": f"{self.meaning} of the class", "_FillValue": self.nodata, "units": "1"}
        if self.dtype.kind == "f":
            return named
        low, high = self.ends
        scale = 1 / (high - low)
        return {**named, "scale_factor": scale, "add_offset": -low * scale}


def plan_confidence(asked: str, returns: str, output: str, table: ClassTable, source: str) -> Confidence:
    """How the confidence of a model is kept.

    asked : ``"uint8"``, ``"uint16"`` or ``"float32"``; an integer type is at least as wide as that of the classes.
    returns, output : of the model's runner. source : the model's name, for the message.
    Raises ModelArgumentError where the model has none that could be kept so.
    """
    require_confidence_type(asked)
    if returns == "classes":
        raise ModelArgumentError(f"{source} answers with classes and has no scores, so there is no confidence to keep.")
    if asked == "float32":
        return Confidence(np.dtype(asked), float("nan"), "distance" if output == "distance" else "probability")
    if output == "distance":
        raise ModelArgumentError(
            f"{source} answers with distances, which do not end at 1 and so cannot be kept as {asked}. Say "
            '--confidence float32 (confidence="float32").'
        )
    return Confidence(np.promote_types(asked, table.dtype), table.nodata)


def require_confidence_type(asked: str) -> None:
    """Raise ModelArgumentError for a type in which confidence is not kept."""
    if asked not in get_args(ConfidenceType):
        raise ModelArgumentError(f"confidence is {asked!r}; {', '.join(get_args(ConfidenceType))} or None is needed.")


def confidence_of(scores: np.ndarray, counts: np.ndarray, output: str, threshold: float | None) -> np.ndarray:
    """How sure a model is of the class that wins. Runs on workers.

    scores : (tile, class, y, x) logits, probabilities or distances, as ``output`` says.
    counts : (tile, y, x) bool, True where the answer counts.
    threshold : above it, in the score's unit, the first class wins where there is one score alone.
    Returns (tile, y, x) float32: probability of the class that wins, 0 to 1, or its distance; 0 where none counts.
    Raises InferenceError for probabilities that are none.
    """
    # Where it does not count the answer may be anything, so that arithmetic may fail there.
    scores = (scores if counts.all() else np.where(counts[:, None], scores, 0)).astype(np.float32, copy=False)
    if output == "logits":
        won = _from_logits(scores, threshold)
    elif output == "probabilities" and scores.shape[1] == 1:
        won = np.where(scores[:, 0] > threshold, scores[:, 0], 1 - scores[:, 0])
    else:
        won = scores.max(axis=1)
    if output == "probabilities" and won.size and (won.min() < -TOLERANCE or won.max() > 1 + TOLERANCE):
        raise InferenceError(
            f"The model answered with {won.min():.3g} to {won.max():.3g} where probabilities were expected. Say what "
            'its scores are in the definition: "GeodlDask": {"output": "logits"}.'
        )
    return np.where(counts, won, np.float32(0))


def _from_logits(logits: np.ndarray, threshold: float | None) -> np.ndarray:
    """Softmax or, of one score, sigmoid of the class that wins; exact where exp alone would overflow."""
    if logits.shape[1] == 1:
        toward = np.where(logits[:, 0] > threshold, logits[:, 0], -logits[:, 0])
        return np.exp(-np.logaddexp(np.float32(0), -toward))
    highest = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        below = np.fmin(logits - highest, 0)  # an infinity less itself is NaN, of which fmin makes 0
    return 1 / np.exp(below).sum(axis=1)


def pair_type(classes: np.dtype[Any], confidence: np.dtype[Any]) -> np.dtype[Any]:
    """Type of a pixel that has both."""
    return np.dtype([("class", classes), (CONFIDENCE, confidence)])


def join_layers(classes: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """(y, x) pixels that have both. Runs on workers."""
    joined = np.empty(classes.shape, pair_type(classes.dtype, confidence.dtype))
    joined["class"], joined[CONFIDENCE] = classes, confidence
    return joined


def layers_of(result: xr.DataArray | xr.Dataset) -> tuple[xr.DataArray, xr.DataArray | None]:
    """The classes of a result, and their confidence where it has that; both as they are kept, if xarray made floats.

    Raises OutputError for another Dataset.
    """
    if not isinstance(result, xr.Dataset):
        return class_values(result) if isinstance(result, xr.DataArray) else result, None
    classes = [name for name in result.data_vars if name != CONFIDENCE]
    if len(classes) != 1:
        raise OutputError(
            f"The Dataset has the variables {', '.join(map(str, result.data_vars)) or 'none'}; classes and, beside "
            "them, confidence are needed, as of detect_change."
        )
    confidence = confidence_values(result[CONFIDENCE]) if CONFIDENCE in result else None
    return class_values(result[classes[0]]), confidence
