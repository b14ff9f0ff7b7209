"""The synthetic scenes: repeatable, complete, and not to be solved by subtraction."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

from geodl_dask.demo import scenes
from geodl_dask.demo.scenes import CLASS_NAMES, ScenePair, render_pair
from geodl_dask.demo.train import EVALUATION_SEEDS, TRAINING_SEEDS, score_classes


@pytest.fixture(scope="module")
def scene() -> ScenePair:
    return render_pair(EVALUATION_SEEDS[0], (768, 768))


def test_same_seed_gives_the_same_scene():
    first, again = render_pair(5, (160, 224)), render_pair(5, (160, 224))
    assert np.array_equal(first.from_pixels, again.from_pixels)
    assert np.array_equal(first.to_pixels, again.to_pixels)
    assert np.array_equal(first.truth, again.truth)


def test_another_seed_gives_another_scene():
    first, other = render_pair(5, (160, 224)), render_pair(6, (160, 224))
    assert not np.array_equal(first.from_pixels, other.from_pixels)


@pytest.mark.parametrize("shape_yx", [(64, 64), (64, 300), (130, 65), (200, 256)])
def test_any_shape_is_drawn(shape_yx):
    pair = render_pair(11, shape_yx)
    assert pair.from_pixels.shape == pair.to_pixels.shape == (3, *shape_yx)
    assert pair.truth.shape == shape_yx
    assert pair.from_pixels.dtype == pair.to_pixels.dtype == pair.truth.dtype == np.uint8


def test_a_shape_too_small_is_refused():
    with pytest.raises(ValueError, match="64"):
        render_pair(11, (63, 200))


def test_every_class_occurs(scene):
    pixels = np.bincount(scene.truth.ravel(), minlength=len(CLASS_NAMES))
    assert len(pixels) == len(CLASS_NAMES)
    assert pixels.min() > 300
    assert pixels[0] > 0.8 * scene.truth.size


def test_pixels_use_the_range_without_clipping(scene):
    for image in (scene.from_pixels, scene.to_pixels):
        assert np.ptp(np.percentile(image, (1, 99))) > 80
        assert np.mean(image == 255) < 0.01
        assert np.mean(image == 0) < 0.01


def test_unchanged_ground_looks_different_at_the_two_dates(scene):
    unchanged = scene.truth == 0
    difference = scene.to_pixels.astype(int) - scene.from_pixels
    assert np.abs(difference[:, unchanged]).mean() > 15


def test_image_differencing_does_not_find_the_change(scene):
    difference = np.abs(scene.to_pixels.astype(int) - scene.from_pixels).max(0)
    found = [
        score_classes((difference > threshold).astype(np.uint8), scene.truth)["any change"]
        for threshold in range(4, 200, 4)
    ]
    assert max(found) < 0.4


def test_training_never_sees_a_scene_that_measures_or_shows():
    assert min(TRAINING_SEEDS) >= 1000
    assert max(EVALUATION_SEEDS) < 1000


def test_scenes_need_numpy_alone():
    waiting, seen, foreign = [Path(scenes.__file__)], set(), set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{path.name} reaches out of the demo"
                waiting += {path.with_name(f"{node.module}.py")} - seen
            elif isinstance(node, ast.ImportFrom):
                foreign.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                foreign |= {each.name.split(".")[0] for each in node.names}
    assert foreign - set(sys.stdlib_module_names) == {"numpy"}
    assert len(seen) > 1
