"""From scores to class values, where the scores are: of what a GPU has computed, one byte a pixel comes back."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from .classes import ClassTable
from .errors import InferenceError
from .runners import Runner


def decide(prediction: Any, counts: np.ndarray, runner: Runner, table: ClassTable) -> np.ndarray:
    """Class values of a prediction. Runs on workers.

    prediction : what ``runner`` gave: scores (tile, class, y, x), array or torch tensor, or class values (tile, y, x).
    counts : (tile, y, x) bool, True where the answer counts; elsewhere it may be anything, and so may the result.
    Returns (tile, y, x) in the table's dtype: the class of the highest score, the first of equal ones, or, for one
    score, the class above or below ``runner.threshold``. Raises InferenceError for values that are none.
    """
    if runner.returns == "classes":
        limit, given = np.iinfo(table.dtype).max, prediction[counts]
        if given.size and (given.min() < 0 or given.max() > limit):
            raise InferenceError(
                f"The model answered with values {given.min()} to {given.max()}; {table.dtype} holds 0 to {limit}."
            )
        return np.asarray(prediction.astype(table.dtype, copy=False))
    import torch

    scores = torch.as_tensor(prediction)
    # NaN is rare, and looking at each pixel is not free: the sum says whether there may be any.
    if torch.isnan(scores.sum()) and (torch.isnan(scores).any(dim=1).cpu().numpy() & counts).any():
        raise InferenceError(
            "The model answered with NaN scores for pixels that are all finite. Are its weights whole, and do the mean "
            "and std that it normalises with fit the rasters?"
        )
    first, *others = table.values
    if scores.shape[1] == 1:
        above, first = table.change_values()
        others, bests = [above], iter([scores.new_tensor(runner.threshold)])
    else:
        bests = accumulate(scores.unbind(1)[:-1], torch.maximum)  # one by one: each is as large as a band
    dtype = torch.uint8 if table.dtype == np.uint8 else torch.int64
    values = scores.new_full(scores[:, 0].shape, first, dtype=dtype)
    # By arithmetic, which wraps around where it must: for a million pixels a CPU takes half a millisecond a class, with
    # torch.where six, and with argmax 8 to 100.
    for value, score, best in zip(others, scores.unbind(1)[-len(others) :], bests, strict=True):
        values += (score > best).to(dtype).mul_(value - values)
    return np.asarray(values.cpu().numpy().astype(table.dtype, copy=False))
