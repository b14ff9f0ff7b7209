"""Two haloed blocks in, one block of class values out."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import write_definition

from geodl_dask import kernel
from geodl_dask.definition import load_definition
from geodl_dask.errors import InferenceError
from geodl_dask.kernel import Inference, infer_block
from geodl_dask.runners import RunnerSpec
from geodl_dask.tiling import BlockPlan, TileSpec, Window

TILE = TileSpec((8, 8), 2)
NODATA = 255


class DifferenceRunner:
    """Scores of "no change" and "change" from the first band; keeps the batches it was given."""

    tile, batch_size, returns, output, threshold = TILE, 3, "scores", "logits", None

    def __init__(self) -> None:
        self.batches = []

    def lane(self):
        return nullcontext()

    def predict(self, batch):
        self.batches.append(batch)
        return self.answer(batch.images[1][:, 0].astype(np.float32) - batch.images[0][:, 0])

    def answer(self, change):
        return np.stack([-change, change], axis=1)


@pytest.fixture
def infer(tmp_path, monkeypatch):
    """infer(from, to, valid=..., runner=...) over a whole grid of one block."""

    def infer_one(from_pixels, to_pixels, *, valid=None, runner=None, pixel_type="uint8", core=None):
        shape = from_pixels.shape[1:]
        definition = load_definition(write_definition(tmp_path / "model.emd", ModelFile="none.pt"))
        spec = RunnerSpec(definition, "native", len(from_pixels), pixel_type)
        block = tuple(-(-length // 4) * 4 for length in shape)
        monkeypatch.setattr(kernel, "load_runner", lambda spec: runner or DifferenceRunner())
        kernel._load.cache_clear()
        inference = Inference(spec, "cpu", BlockPlan(shape, block, TILE))
        valid = np.ones(shape, bool) if valid is None else valid
        return infer_block(inference, core or Window(0, 0, *shape), (from_pixels, to_pixels), valid)

    yield infer_one
    kernel._load.cache_clear()


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 255, (2, 1, 21, 18), dtype=np.uint8)


def test_each_pixel_gets_the_class_of_its_highest_score(infer, pixels):
    expected = np.where(pixels[1, 0].astype(int) > pixels[0, 0], 7, 0)
    values = infer(*pixels)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, expected)


def test_a_tie_goes_to_the_first_class(infer, pixels):
    assert (infer(pixels[0], pixels[0]) == 0).all()


def test_pixels_without_observation_are_nodata_and_zero_for_both_dates(infer, pixels):
    valid = np.random.default_rng(1).random((21, 18)) < 0.7
    runner = DifferenceRunner()
    values = infer(*pixels, valid=valid, runner=runner)
    expected = np.where(pixels[1, 0].astype(int) > pixels[0, 0], 7, 0)
    np.testing.assert_array_equal(values, np.where(valid, expected, NODATA))
    for batch in runner.batches:
        for image in batch.images:
            assert (image.transpose(0, 2, 3, 1)[~batch.valid] == 0).all()


def test_every_call_has_the_runners_batch_size(infer, pixels):
    runner = DifferenceRunner()
    infer(*pixels, runner=runner)
    assert len(runner.batches) == 10  # 6 x 5 tiles by threes
    assert {len(batch.origins) for batch in runner.batches} == {3}


def test_origins_say_where_in_the_grid_a_tile_lies(infer, pixels):
    runner = DifferenceRunner()
    infer(*pixels, runner=runner)
    seen = 0
    for batch in runner.batches:
        for tile, (row, col) in zip(batch.images[0], batch.origins, strict=True):
            if row >= 0 and col >= 0 and row + 8 <= 21 and col + 8 <= 18:
                np.testing.assert_array_equal(tile, pixels[0][:, row : row + 8, col : col + 8])
                seen += 1
    assert seen == 9


def test_tiles_without_any_observation_are_not_computed(infer, pixels):
    runner = DifferenceRunner()
    valid = np.zeros((21, 18), bool)
    assert (infer(*pixels, valid=valid, runner=runner) == NODATA).all()
    assert runner.batches == []
    valid[0, 0] = True
    infer(*pixels, valid=valid, runner=runner)
    assert len(runner.batches) == 1


def test_one_score_is_compared_with_the_threshold(infer, pixels):
    runner = DifferenceRunner()
    runner.answer, runner.threshold = lambda change: change[:, None], 10
    expected = np.where(pixels[1, 0].astype(int) - pixels[0, 0] > 10, 7, 0)
    np.testing.assert_array_equal(infer(*pixels, runner=runner), expected)


def test_an_answer_of_the_core_alone_is_taken_as_it_is(infer, pixels):
    runner = DifferenceRunner()
    runner.answer = lambda change: np.stack([-change, change], 1)[..., 2:-2, 2:-2]
    np.testing.assert_array_equal(infer(*pixels, runner=runner), infer(*pixels))


def test_nan_scores_are_an_error_not_a_class(infer, pixels):
    runner = DifferenceRunner()
    runner.answer = lambda change: np.full((3, 2, 8, 8), np.nan, np.float32)
    with pytest.raises(InferenceError, match="NaN"):
        infer(*pixels, runner=runner)


def test_an_answer_counts_only_where_there_is_an_observation(infer, pixels):
    """Such as (a - b) / (a + b), of which 0 and 0 make NaN."""
    valid = np.random.default_rng(1).random((21, 18)) < 0.7
    from_pixels, to_pixels = pixels + np.uint8(1)
    runner = DifferenceRunner()
    runner.predict = lambda batch: runner.answer(
        np.where(batch.valid, batch.images[1][:, 0] * 1.0 - batch.images[0][:, 0], np.nan)
    )
    values = infer(from_pixels, to_pixels, valid=valid, runner=runner)
    np.testing.assert_array_equal(values, infer(from_pixels, to_pixels, valid=valid))
    runner.returns, runner.predict = "classes", lambda batch: np.where(batch.valid, 7, -9)
    np.testing.assert_array_equal(infer(from_pixels, to_pixels, valid=valid, runner=runner), np.where(valid, 7, NODATA))


@pytest.mark.parametrize("value", [-1, 256])
def test_class_values_that_the_raster_cannot_hold_are_an_error(infer, pixels, value):
    runner = DifferenceRunner()
    runner.returns, runner.answer = "classes", lambda change: np.full((3, 8, 8), value)
    with pytest.raises(InferenceError, match="uint8 holds 0 to 255"):
        infer(*pixels, runner=runner)


def test_a_wrong_shape_of_the_answer_is_an_error(infer, pixels):
    runner = DifferenceRunner()
    runner.answer = lambda change: np.zeros((3, 2, 7, 7))
    with pytest.raises(ValueError, match="7 x 7 pixels for a tile of 8 x 8"):
        infer(*pixels, runner=runner)


def test_a_model_is_loaded_once_per_process_and_each_model_for_itself(monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(kernel, "load_runner", lambda spec: loaded.append(spec) or DifferenceRunner())
    kernel._load.cache_clear()
    definition = load_definition(write_definition(tmp_path / "model.emd", ModelFile="none.pt"))
    get = partial(kernel.model_of_process, processor="cpu")
    spec = RunnerSpec(definition, "native", 3, "uint8")
    assert get(spec) is get(replace(spec))
    assert get(replace(spec, band_count=4)) is not get(spec)
    assert len(loaded) == 2
    kernel._load.cache_clear()
