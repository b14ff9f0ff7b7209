"""The demo's model file does what its definition says, and is right about held-out scenes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from geodl_dask.demo.network import RADIUS_PX, ChangeNetwork
from geodl_dask.demo.scenes import CLASS_NAMES, ScenePair, render_pair
from geodl_dask.demo.train import (
    DEFINITION_NAME,
    EVALUATION_SEEDS,
    MODEL_FOLDER,
    WEIGHTS_NAME,
    find_change,
    score_classes,
)

STRIDE_PX = 4
"""Shifting the input by a multiple of it shifts the output alike; sides are multiples of it."""
WEIGHTS = MODEL_FOLDER / WEIGHTS_NAME
LOAD = """
import sys, torch
torch.set_num_threads(1)
network = torch.export.load(sys.argv[1]).module()
answer = network(torch.zeros(3, 3, 16, 40), torch.zeros(3, 3, 16, 40))
assert answer.shape == (3, 5, 16, 40) and answer.dtype == torch.float32
assert not any(name.startswith("geodl_dask") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return torch.export.load(WEIGHTS).module()


@pytest.fixture(scope="module")
def definition() -> dict:
    return json.loads((MODEL_FOLDER / DEFINITION_NAME).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scene() -> ScenePair:
    return render_pair(EVALUATION_SEEDS[0], (1024, 1024))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_definition_promises_what_the_model_file_does(network, definition):
    assert definition["ModelFile"] == WEIGHTS_NAME
    assert [each["Value"] for each in definition["Classes"]] == list(range(len(CLASS_NAMES)))
    assert tuple(each["Name"] for each in definition["Classes"]) == CLASS_NAMES
    assert definition["ExtractBands"] == list(range(6))
    assert definition["GeodlDask"]["input"] == "pair"
    assert len(definition["GeodlDask"]["mean"]) == len(definition["GeodlDask"]["std"]) == 3
    tiles, side = definition["BatchSize"], definition["ImageHeight"]
    assert side == definition["ImageWidth"]
    assert (side - 2 * definition["Padding"]) % STRIDE_PX == 0
    with torch.inference_mode():
        logits = network(draw(tiles, 3, side, side), draw(tiles, 3, side, side, seed=1))
    assert logits.shape == (tiles, len(CLASS_NAMES), side, side)
    assert logits.dtype == torch.float32
    assert logits.min() < 0  # logits, not probabilities


def test_model_is_small(network):
    parameters = sum(each.numel() for each in network.parameters())
    assert 50_000 <= parameters <= 300_000
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) < 1_500_000


def test_model_file_loads_without_this_package():
    command = [sys.executable, "-W", "error", "-c", LOAD, str(WEIGHTS)]
    subprocess.run(command, check=True, cwd=MODEL_FOLDER, timeout=180)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 64, 128), (2, 40, 72), (5, 256, 256), (1, 520, 8)])
def test_any_batch_and_any_multiple_of_eight_is_taken(network, shape):
    tiles, rows, cols = shape
    with torch.inference_mode():
        logits = network(draw(tiles, 3, rows, cols), draw(tiles, 3, rows, cols, seed=1))
    assert logits.shape == (tiles, len(CLASS_NAMES), rows, cols)


def test_no_pixel_beyond_the_radius_matters(definition):
    """By gradient through the exported graph, its weights made positive so that nothing cancels."""
    network = torch.export.load(WEIGHTS).module()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1 / parameter[0].numel())
    farthest = 0
    for row, col in np.ndindex(STRIDE_PX, STRIDE_PX):
        at = np.array((48 + row, 48 + col))
        from_pixels, to_pixels = (torch.ones(1, 3, 96, 96, requires_grad=True) for _ in range(2))
        network(from_pixels, to_pixels)[0, :, at[0], at[1]].sum().backward()
        reached = (from_pixels.grad.abs() + to_pixels.grad.abs())[0].sum(0).nonzero().numpy()
        assert len(reached) > 32**2
        farthest = max(farthest, int(np.abs(reached - at).max()))
    assert farthest == RADIUS_PX
    assert farthest <= definition["Padding"] == 32


def test_padded_tiles_equal_the_whole_image(network):
    whole = draw(1, 3, 320, 320), draw(1, 3, 320, 320, seed=1)
    with torch.inference_mode():
        expected = network(*whole)
        for row, col in ((0, 0), (64, 32), (8, 64)):
            tile = network(*(each[..., row : row + 256, col : col + 256] for each in whole))
            core = expected[..., row + 32 : row + 224, col + 32 : col + 224]
            assert torch.allclose(tile[..., 32:224, 32:224], core, atol=1e-4)


def test_network_definition_is_the_one_that_was_exported(network):
    folded = sum(each.numel() for each in network.parameters())
    own = ChangeNetwork(len(CLASS_NAMES))
    convolutions = [each for each in own.modules() if isinstance(each, torch.nn.Conv2d)]
    assert folded == sum(each.weight.numel() + each.out_channels for each in convolutions)


def test_change_of_a_held_out_scene_is_found(scene):
    scores = score_classes(find_change(MODEL_FOLDER, scene), scene.truth)
    assert scores["any change"] >= 0.90
    assert min(scores.values()) >= 0.80
