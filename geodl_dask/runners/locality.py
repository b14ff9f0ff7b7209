"""Whether a network's scores are the same in a larger tile: a probe on four tiles, by which nothing is assumed.

Padding hides the edge of a tile only from networks that look no further than that, and whose answer hangs neither on
the whole tile (normalisation over it, attention, pooling to one number) nor on where in the tile a pixel lies.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from dask.system import CPU_COUNT

from ..allocator import bytes_in_use
from ..errors import GeodlError, ModelFileError
from ..tiling import TileRun, crop_to_core
from . import Locality
from .native import NativeRunner

log = logging.getLogger(__name__)

ROUNDING = 1e-4
"""Of a class's highest score: two ways to compute the same differ by less."""
FAR = 1e3
"""Values around a tile, in units of what it is given, that no pixel looking there could miss."""
MARGIN = 1.5
"""Memory that is seen now and then is not quite the most."""


def probe_locality(runner: NativeRunner, samples: list[tuple[np.ndarray, ...]], run: int) -> Locality:
    """Whether several tiles may be predicted as one.

    samples : of which each has, of each raster, (band, y, x) pixels as stored, over 2 x 2 of the runner's tiles and
    their padding; the first are noise, which shows what dull pixels hide. run : the most tiles a side to be joined.
    """
    if runner.returns == "classes":
        return Locality("it answers with classes, which do not show what they hang on")
    if runner.size_is_fixed:
        return Locality("its input has a fixed size")
    noise, pair, four, most = samples[0], *(TileRun(0, 0, *shape) for shape in ((1, 2), (2, 2), (run, run)))
    try:
        with runner.lane():  # the least first: by it most networks that are refused are known
            inputs = _inputs(runner, noise, pair)
            with _most_in_use(inputs[0].device) as used:
                scores = _core(runner, inputs, pair)
                obstacle = _reach(runner, inputs, scores, pair)
            bytes_per_px = MARGIN * used[0] / pair.merged(runner.tile).area_px
            obstacle = obstacle or _difference(runner, inputs, scores, pair)
        if obstacle:
            return Locality(obstacle)

        def try_out(images: tuple[np.ndarray, ...], shape: TileRun) -> str | None:
            with runner.lane():
                inputs = _inputs(runner, images, shape)
                scores = _core(runner, inputs, shape)
                obstacle = _reach(runner, inputs, scores, shape) if shape == four else None
                return obstacle or _difference(runner, inputs, scores, shape)

        trials = [(images, four) for images in samples]
        if most != four:
            trials.insert(0, (noise, most))  # it takes longest
        with ThreadPoolExecutor(min(len(trials), CPU_COUNT)) as pool:
            return Locality(next(filter(None, pool.map(try_out, *zip(*trials, strict=True))), None), bytes_per_px)
    except GeodlError as error:
        log.info("The probe ended with: %s", error)
        return Locality("the network could not be probed with larger tiles")


def _inputs(runner: NativeRunner, images: tuple[np.ndarray, ...], shape: TileRun) -> list[torch.Tensor]:
    """What the network is given for a run: the pixels, again and again where the run is larger than they are."""
    height, width = shape.merged(runner.tile).size_yx
    fitting = (
        np.pad(pixels, ((0, 0), *((0, max(0, n - m)) for n, m in zip((height, width), pixels.shape[1:], strict=True))),
               mode="wrap")
        for pixels in images
    )  # fmt: skip
    return runner.inputs_of(tuple(pixels[None, :, :height, :width].copy() for pixels in fitting))


def _core(runner: NativeRunner, inputs: list[torch.Tensor], run: TileRun) -> torch.Tensor:
    scores, merged = runner.scores_of(inputs), run.merged(runner.tile)
    wanted = tuple(length - 2 * runner.margin_px for length in merged.size_yx)
    if tuple(scores.shape[-2:]) != wanted:
        raise ModelFileError(f"It answers a tile of {merged.size_yx} with {tuple(scores.shape[-2:])} and not {wanted}.")
    return cast("torch.Tensor", crop_to_core(scores, merged)).float()


def _reach(runner: NativeRunner, inputs: list[torch.Tensor], scores: torch.Tensor, shape: TileRun) -> str | None:
    """Whether anything outside a tile changes its core by one bit, while all else, rounding too, stays the same."""
    chance = torch.Generator(device=inputs[0].device).manual_seed(0)
    for run in (TileRun(0, 0), TileRun(shape.rows - 1, shape.cols - 1)):
        cores, inside = run.cores(runner.tile), run.inside(runner.tile)
        changed = []
        for tensor in inputs:
            noise = torch.randn(tensor.shape, generator=chance, device=tensor.device)
            far = noise * (FAR * max(1.0, float(tensor.abs().max())))
            far[..., *inside] = tensor[..., *inside]
            changed.append(far)
        if not torch.equal(_core(runner, changed, shape)[..., *cores], scores[..., *cores]):
            return f"its scores hang on pixels more than the padding of {runner.tile.padding} away"
    return None


def _difference(runner: NativeRunner, inputs: list[torch.Tensor], scores: torch.Tensor, shape: TileRun) -> str | None:
    """Whether a tile alone gives other scores, beyond rounding: they may hang on its size, or on the place in it."""
    tile = runner.tile
    for row, col in {(row, col) for row in (0, shape.rows - 1) for col in (0, shape.cols - 1)}:
        run = TileRun(row, col)
        alone = _core(runner, [tensor[..., *run.inside(tile)].contiguous() for tensor in inputs], TileRun(0, 0))
        for one, other in zip(alone.unbind(1), scores[..., *run.cores(tile)].unbind(1), strict=True):
            # Of each class for itself: a class that never wins may have scores of another size, or none.
            finite = torch.isfinite(other)
            largest = float(other[finite].abs().max()) if finite.any() else 0.0
            if not torch.allclose(one, other, rtol=0, atol=ROUNDING * largest, equal_nan=True):
                return "its scores hang on the size of the tile, or on the place in it"
    return None


@contextmanager
def _most_in_use(device: torch.device) -> Iterator[list[int]]:
    """The most memory of a device that the block takes, bytes, as its one element afterwards."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        taken, most = torch.cuda.memory_allocated(), [0]
        yield most
        most[0] = torch.cuda.max_memory_allocated() - taken
        return
    before, most, ended = bytes_in_use(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(2e-4):
            most[0] = max(most[0], bytes_in_use() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()
