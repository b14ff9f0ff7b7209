"""Hosts the functions of this folder in tests: a definition beside a copy of them, loaded, and run over a pair."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from geodl_dask.definition import load_definition
from geodl_dask.runners import Batch, RunnerSpec, load_runner
from geodl_dask.tiling import BlockPlan, TileSpec, Window, crop_to_core, tile_runs

FUNCTIONS = Path(__file__).parent
CLASSES = [
    {"Value": 0, "Name": "No change", "Color": [0, 0, 0]},
    {"Value": 7, "Name": "Change", "Color": [255, 0, 0]},
]
GENERIC = {
    "Framework": "Networks",
    "ModelConfiguration": {"Name": "BoxDifference"},
    "InferenceFunction": ".\\PairClassifier.py",
    "ImageHeight": 24,
    "ImageWidth": 40,
    "ExtractBands": [0, 1, 2, 3, 4, 5],
    "Classes": CLASSES,
}


def write_model(parent: Path, function: str, folder: str = "model", **keys) -> Path:
    """A definition beside a copy of the functions, with any key replaced (None removes it)."""
    source = "generic" if function == "PairClassifier" else "single"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(FUNCTIONS / source, parent / folder, dirs_exist_ok=True, ignore=ignored)
    plain = {"InferenceFunction": f"{function}.py", "ImageHeight": 16, "ImageWidth": 12, "Classes": CLASSES}
    path = parent / folder / f"{function}.emd"
    definition = {**(GENERIC if source == "generic" else plain), **keys}
    path.write_text(json.dumps({key: value for key, value in definition.items() if value is not None}))
    return path


def load(path, *, bands=3, pixel_type="uint8", **arguments):
    given = tuple((name, str(value)) for name, value in arguments.items())
    return load_runner(RunnerSpec(load_definition(path), "raster-function", bands, pixel_type, given))


def tiles_of(from_pixels, to_pixels, tile: TileSpec, valid=None) -> tuple[Batch, BlockPlan]:
    """All tiles of a pair (band, y, x), filled with 0 outside, as read-only arrays."""
    shape_yx = from_pixels.shape[1:]
    block = tuple(-(-length // stride) * stride for length, stride in zip(shape_yx, tile.stride_yx, strict=True))
    plan = BlockPlan(shape_yx, block, tile)
    fill = [(tile.padding, whole - length + tile.padding) for whole, length in zip(block, shape_yx, strict=True)]
    valid = np.ones(shape_yx, bool) if valid is None else valid
    core = Window(0, 0, *shape_yx)
    runs = list(tile_runs(np.ones(plan.tiles_yx(core), bool), tile, 1))
    filled = [np.pad(np.where(valid, each, 0).astype(each.dtype), ((0, 0), *fill)) for each in (from_pixels, to_pixels)]
    stacks = [np.stack([each[..., *run.inside(tile)] for run in runs]) for each in (*filled, np.pad(valid, fill))]
    for each in stacks:
        each.setflags(write=False)
    return Batch(tuple(stacks[:2]), stacks[2], np.array([run.origin(core, tile) for run in runs])), plan


def predict_whole(runner, from_pixels, to_pixels, valid=None) -> np.ndarray:
    """Class values (y, x) of a whole pair, tile by tile."""
    batch, plan = tiles_of(from_pixels, to_pixels, runner.tile, valid)
    alone = [
        Batch(tuple(image[at] for image in batch.images), batch.valid[at], batch.origins[at])
        for at in (slice(i, i + 1) for i in range(len(batch.origins)))
    ]
    cores = [crop_to_core(runner.predict(each), runner.tile)[0] for each in alone]
    (height, width), (stride_y, stride_x) = plan.block_yx, runner.tile.stride_yx
    grid = np.array(cores).reshape(height // stride_y, width // stride_x, stride_y, stride_x)
    return grid.swapaxes(1, 2).reshape(height, width)[: plan.shape_yx[0], : plan.shape_yx[1]]


def one_tile(runner, value=0, bands=3, dtype="uint8") -> Batch:
    """A batch of one tile where the to raster is 1 higher than the from raster."""
    pixels = np.full((1, bands, *runner.tile.size_yx), value, dtype)
    valid = np.ones((1, *runner.tile.size_yx), bool)
    return Batch((pixels, pixels + np.array(1, dtype)), valid, np.array([[160, 480]]))


def box_difference(from_pixels, to_pixels, threshold=900) -> np.ndarray:
    """What BoxDifference computes, on the whole pair at once."""
    difference = np.abs(from_pixels.astype(int) - to_pixels.astype(int)).sum(axis=0)
    padded = np.pad(difference, 1)
    height, width = difference.shape
    total = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return np.where(total > threshold, 7, 0)


def check_against_network(values, network, pixels):
    """The same class wherever the scores are further apart than rounding, away from the edge of the grid."""
    stack = np.concatenate(pixels)[np.newaxis].astype(np.float32)
    with torch.no_grad():
        scores = network(torch.from_numpy(stack))[0].numpy()
    # The function fills with 0 outside the grid, the network's convolutions with (0 / 255 - 0.5) of that.
    edge = np.s_[2:-2, 2:-2]
    clear = np.abs(scores[0] - scores[1])[edge] > 1e-3
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(values[edge][clear], np.array([0, 7])[scores.argmax(axis=0)][edge][clear])
