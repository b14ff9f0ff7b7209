"""Tests of geodl_dask.tiling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodl_dask.errors import TileGeometryError
from geodl_dask.tiling import BlockPlan, TileRun, TileSpec, Window, crop_to_core, plan_blocks, tile_runs


@st.composite
def plans(draw: st.DrawFn) -> BlockPlan:
    padding = draw(st.integers(0, 5))
    tile = TileSpec((2 * padding + draw(st.integers(1, 9)), 2 * padding + draw(st.integers(1, 9))), padding)
    shape = (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
    return plan_blocks(shape, tile, draw(st.integers(1, 40)))


@given(plans())
def test_every_pixel_lies_in_the_core_of_exactly_one_block(plan):
    covered = np.zeros(plan.shape_yx, int)
    for row in range(len(plan.chunks[0])):
        for col in range(len(plan.chunks[1])):
            core = plan.core((row, col))
            covered[core.row_off : core.row_off + core.height, core.col_off : core.col_off + core.width] += 1
    assert (covered == 1).all()
    assert plan.chunks == (
        tuple(plan.core((row, 0)).height for row in range(len(plan.chunks[0]))),
        tuple(plan.core((0, col)).width for col in range(len(plan.chunks[1]))),
    )


@given(plans())
def test_tiles_lie_on_one_lattice_anchored_at_the_grid_corner(plan):
    for row in range(len(plan.chunks[0])):
        for col in range(len(plan.chunks[1])):
            core = plan.core((row, col))
            for run in tile_runs(np.ones(plan.tiles_yx(core), bool), plan.tile, 1):
                origin = np.array(run.origin(core, plan.tile)) + plan.tile.padding
                assert (origin % plan.tile.stride_yx == 0).all()


@given(plans(), st.integers(1, 5))
def test_a_filled_block_holds_the_tiles_of_the_whole_filled_grid(plan, most):
    rng = np.random.default_rng(0)
    image = rng.integers(1, 1000, plan.shape_yx)
    p, (stride_y, stride_x) = plan.tile.padding, plan.tile.stride_yx
    whole = np.pad(image, ((p, p + stride_y), (p, p + stride_x)))
    for row in range(len(plan.chunks[0])):
        for col in range(len(plan.chunks[1])):
            core = plan.core((row, col))
            window = plan.haloed(core)
            read = image[
                window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width
            ]
            filled = np.pad(read, plan.fill(core))
            for run in tile_runs(np.ones(plan.tiles_yx(core), bool), plan.tile, most):
                (y, x), (height, width) = np.array(run.origin(core, plan.tile)) + p, run.merged(plan.tile).size_yx
                np.testing.assert_array_equal(filled[run.inside(plan.tile)], whole[y : y + height, x : x + width])


@given(plans(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_runs_cover_each_asked_tile_once_and_are_never_more_work_than_the_tiles_alone(plan, most, chance):
    asked = np.array([[chance.random() < 0.4 for _ in range(11)] for _ in range(9)])
    covered, area = np.zeros(asked.shape, int), 0
    for run in tile_runs(asked, plan.tile, most):
        assert max(run.rows, run.cols) <= most
        covered[run.row : run.row + run.rows, run.col : run.col + run.cols] += 1
        area += run.merged(plan.tile).area_px
    assert (covered[asked] == 1).all()
    assert covered.max() <= 1
    assert area <= asked.sum() * plan.tile.area_px


def test_tiles_far_apart_are_not_joined_and_neighbours_are():
    tile = TileSpec((8, 8), 2)
    asked = np.zeros((4, 4), bool)
    asked[0, 0] = asked[3, 3] = True
    assert list(tile_runs(asked, tile, 4)) == [TileRun(0, 0), TileRun(3, 3)]
    asked[:] = True
    assert list(tile_runs(asked, tile, 4)) == [TileRun(0, 0, 4, 4)]
    assert list(tile_runs(asked, tile, 3))[:2] == [TileRun(0, 0, 3, 3), TileRun(0, 3, 3, 1)]


def test_halves_of_a_run_are_its_tiles():
    assert TileRun(2, 3, 5, 4).halves() == (TileRun(2, 3, 3, 4), TileRun(5, 3, 2, 4))
    assert TileRun(0, 0, 1, 2).halves() == (TileRun(0, 0), TileRun(0, 1))


def test_automatic_blocks_are_whole_strides_and_look_at_the_grid_alone():
    assert plan_blocks((100_000, 100_000), TileSpec((256, 256), 32)).block_yx == (1920, 1920)
    assert plan_blocks((1024, 1536), TileSpec((256, 256), 32)).block_yx == (384, 384)
    assert plan_blocks((10, 10), TileSpec((256, 256), 32)).block_yx == (192, 192)


def test_blocks_are_whole_runs_of_tiles_that_are_joined_where_they_hold_one():
    tile = TileSpec((256, 256), 32)  # 10 strides of 192 in 1,920
    assert plan_blocks((100_000, 100_000), tile, run=4).block_yx == (8 * 192, 8 * 192)
    assert plan_blocks((100_000, 100_000), tile, 1000, run=8).block_yx == (5 * 192, 5 * 192)


def test_a_prediction_of_the_core_alone_is_kept_and_a_whole_tile_is_cropped():
    tile = TileSpec((6, 8), 2)
    whole = np.arange(48).reshape(1, 6, 8)
    np.testing.assert_array_equal(crop_to_core(whole, tile), whole[:, 2:4, 2:6])
    assert crop_to_core(np.zeros((1, 2, 4)), tile).shape == (1, 2, 4)
    with pytest.raises(ValueError, match="answered with 5 x 8 pixels for a tile of 6 x 8"):
        crop_to_core(np.zeros((1, 5, 8)), tile)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TileSpec((256, 256), 128), "padding 128 leaves nothing of a tile of 256 x 256.* at most 127"),
        (lambda: TileSpec((256, 256), -1), "padding is -1"),
        (lambda: TileSpec((0, 256)), "The tile is 0 x 256"),
        (lambda: plan_blocks((5, 5), TileSpec((4, 4)), 0), "chunks is 0"),
        (lambda: BlockPlan((5, 5), (3, 4), TileSpec((4, 4))), "not whole strides"),
        (lambda: BlockPlan((0, 5), (4, 4), TileSpec((4, 4))), "nothing to do"),
    ],
)
def test_geometry_that_leaves_nothing_is_refused(make, message):
    with pytest.raises(TileGeometryError, match=message):
        make()


def test_a_window_inside_the_grid_borrows_the_whole_halo():
    plan = plan_blocks((100, 100), TileSpec((12, 12), 2), 16)
    assert plan.haloed(plan.core((1, 1))) == Window(14, 14, 20, 20)
    assert plan.fill(plan.core((1, 1))) == ((0, 0), (0, 0))
