"""The demo's tiled result against one forward pass over the whole scene, and across the tiles' edges."""

import numpy as np
import pytest
import torch

from geodl_dask.definition import load_definition
from geodl_dask.demo import prepare_demo
from geodl_dask.demo.scenes import render_pair

BORDER_PX = 32  # where tiles are filled with zeros beyond the raster, and the forward pass with something else
SEAM_LIMIT = 1.25


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return prepare_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def tiled(demo) -> np.ndarray:
    return demo.detect_change().values


def forward_pass(demo) -> np.ndarray:
    """(y, x) class values of the whole scene at once."""
    from geodl_dask.demo import SEED, SHAPE_YX

    scene = render_pair(SEED, SHAPE_YX)
    definition = load_definition(demo.model)
    network = torch.export.load(definition.model_file).module()
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (definition.native.mean, definition.native.std))
    dates = [torch.from_numpy(((image - mean) / std)[None]) for image in (scene.from_pixels, scene.to_pixels)]
    with torch.inference_mode():
        scores = network(*dates)
    return np.array(definition.classes.values)[scores[0].argmax(0).numpy()]


def change_rates(values: np.ndarray, stride: int) -> tuple[float, float]:
    """How often neighbours along x differ: across the edges of tiles, and elsewhere."""
    differs = (values[:, 1:] != values[:, :-1]).mean(axis=0)
    is_edge = np.arange(1, values.shape[1]) % stride == 0
    return float(differs[is_edge].mean()), float(differs[~is_edge].mean())


def seam_ratio(values: np.ndarray, stride: int) -> float:
    rates = [change_rates(each, stride) for each in (values, values.T)]
    return sum(edge for edge, _ in rates) / sum(elsewhere for _, elsewhere in rates)


def test_tiled_result_is_that_of_one_forward_pass_away_from_the_border(demo, tiled):
    inside = np.s_[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    agreement = (tiled == forward_pass(demo))[inside].mean()
    print(f"agreement {agreement:.6f}")
    assert agreement > 0.9999


def test_classes_do_not_change_at_the_edges_of_tiles(demo, tiled):
    stride = 256 - 2 * 32
    print(f"seam ratio {seam_ratio(tiled, stride):.3f}")
    assert seam_ratio(tiled, stride) <= SEAM_LIMIT


def test_the_seam_ratio_notices_missing_padding(demo):
    from geodl_dask import detect_change

    without = detect_change(demo.from_raster, demo.to_raster, demo.model, arguments="padding 0").values
    print(f"seam ratio without padding {seam_ratio(without, 256):.3f}")
    assert seam_ratio(without, 256) > SEAM_LIMIT
