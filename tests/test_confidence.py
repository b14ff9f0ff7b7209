"""How sure a model is of the class that wins: as torch says, in few bits, the same by every door and in any blocks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import rioxarray
import torch
import xarray as xr
from conftest import CLASSES, save_network, write_definition, write_raster
from hypothesis import given
from hypothesis import strategies as st
from raster_functions.hosting import write_model

import geodl_dask as gd
from geodl_dask import kernel
from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.confidence import Confidence, confidence_of, join_layers, layers_of, plan_confidence
from geodl_dask.errors import InferenceError, ModelArgumentError, OutputError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def table_of(values) -> ClassTable:
    return ClassTable(tuple(ModelClass(value, str(value), (0, 0, 0)) for value in values))


TABLES = st.one_of(
    st.lists(st.integers(0, 300), min_size=1, max_size=4, unique=True),
    st.integers(0, 255).map(lambda missing: [value for value in range(256) if value != missing]),
    st.just([70_000]),
).map(table_of)
INTEGERS = st.sampled_from(["uint8", "uint16"])


def plan(asked: str, table: ClassTable) -> Confidence:
    return plan_confidence(asked, "scores", "logits", table, "toy.emd")


def decoded(stored: np.ndarray, confidence: Confidence) -> np.ndarray:
    """As any reader of CF, or of GDAL's scale and offset, does."""
    attrs = confidence.to_attrs()
    return stored * attrs["scale_factor"] + attrs["add_offset"]


# The value


@given(TABLES, INTEGERS, st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_integer_is_off_by_half_a_step_at_the_most_and_never_nodata(table, asked, values):
    confidence, values = plan(asked, table), np.array(values)
    stored = confidence.encode(values)
    step = confidence.to_attrs()["scale_factor"]
    assert stored.dtype == confidence.dtype
    assert (stored != table.nodata).all()
    assert (abs(decoded(stored, confidence) - values) <= step / 2 + 1e-15).all()


@given(TABLES, INTEGERS)
def test_nothing_and_certainty_have_values_of_their_own(table, asked):
    confidence = plan(asked, table)
    none, certain = decoded(confidence.encode(np.array([0, 1])), confidence)
    assert none == 0
    assert abs(certain - 1) <= np.spacing(1.0)
    np.testing.assert_array_equal(confidence.encode(np.array([-0.1, 1.1])), confidence.encode(np.array([0, 1])))


@given(TABLES, INTEGERS)
def test_type_is_no_narrower_than_that_of_the_classes_and_half_of_it_is_used(table, asked):
    confidence = plan(asked, table)
    assert confidence.dtype == max(np.dtype(asked), table.dtype, key=lambda dtype: dtype.itemsize)
    assert confidence.nodata == table.nodata
    low, high = confidence.ends
    assert high - low + 1 >= np.iinfo(confidence.dtype).max // 2


def test_a_float_is_kept_as_it_is_and_its_nodata_is_nan():
    confidence = plan("float32", table_of([0, 7]))
    values = np.random.default_rng(0).random(9, np.float32)
    np.testing.assert_array_equal(confidence.encode(values), values)
    assert np.isnan(confidence.to_attrs()["_FillValue"])
    assert "scale_factor" not in confidence.to_attrs()


# From scores

LOGITS = st.floats(-200, 200, width=32)


def scores_of(values) -> np.ndarray:
    """(1, class, 1, pixel) from rows of classes."""
    return np.array(values, np.float32).T[None, :, None, :]


def confidence_at(scores: np.ndarray, output: str, threshold: float | None = None) -> np.ndarray:
    return confidence_of(scores, np.ones((len(scores), *scores.shape[2:]), bool), output, threshold).ravel()


@given(st.integers(2, 5).flatmap(lambda count: st.lists(st.tuples(*[LOGITS] * count), min_size=1, max_size=9)))
def test_of_several_logits_it_is_the_highest_of_torchs_softmax(rows):
    expected = torch.softmax(torch.tensor(rows, dtype=torch.float64), 1).max(1).values.numpy()
    np.testing.assert_allclose(confidence_at(scores_of(rows), "logits"), expected, rtol=1e-6)


@given(st.lists(LOGITS, min_size=1, max_size=9), st.sampled_from([0.0, -1.5, 2.0]))
def test_of_one_logit_it_is_torchs_sigmoid_of_the_side_that_won(logits, threshold):
    probability = torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).numpy()
    expected = np.where(np.array(logits) > threshold, probability, 1 - probability)
    found = confidence_at(scores_of([[each] for each in logits]), "logits", threshold)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((9e4, -9e4), 1),
        ((9e4, 9e4), 0.5),
        ((np.inf, 0), 1),
        ((-np.inf, -np.inf), 0.5),
        ((-9e4,), 1),
        ((9e37,), 1),
        ((3e38, -3e38), 1),
    ],
)
def test_logits_of_any_size_give_a_probability(row, expected):
    assert confidence_at(scores_of([row]), "logits", 0.0) == expected


def test_of_probabilities_it_is_that_of_the_side_that_won():
    np.testing.assert_allclose(confidence_at(scores_of([[0.2, 0.7], [0.6, 0.4]]), "probabilities"), [0.7, 0.6])
    one = scores_of([[0.2], [0.35], [0.9]])
    np.testing.assert_allclose(confidence_at(one, "probabilities", 0.3), [0.8, 0.35, 0.9])


def test_of_a_distance_it_is_the_distance():
    np.testing.assert_array_equal(confidence_at(scores_of([[0.5], [3]]), "distance", 1.0), [0.5, 3])


def test_where_the_answer_does_not_count_it_may_be_anything():
    scores, counts = scores_of([[np.nan, 1], [2, 2], [np.inf, np.inf]]), np.array([[[False, True, False]]])
    for output, expected in (("logits", 0.5), ("distance", 2)):
        np.testing.assert_allclose(confidence_of(scores, counts, output, None).ravel(), [0, expected, 0])
    np.testing.assert_allclose(
        confidence_of(np.where(counts[:, None], 0.5, 9), counts, "probabilities", 0.3)[counts], 0.5
    )


@pytest.mark.parametrize("row", [[3.0], [-2.0, 1.5], [-0.1]])
def test_probabilities_that_are_none_are_an_error(row):
    with pytest.raises(InferenceError, match=r'where probabilities were expected.*"output": "logits"'):
        confidence_at(scores_of([row]), "probabilities", 0.5)


# Over rasters


@pytest.fixture
def one_score(tmp_path):
    """one_score(output, threshold): the model of one score per pixel, and the network itself."""

    def make(output: str, threshold: float):
        network = torch.nn.Sequential(torch.nn.Conv2d(6, 1, 3, padding=1), OVER[output])
        with torch.no_grad():
            network[0].weight.copy_(torch.linspace(-0.02, 0.025, 54).reshape(1, 6, 3, 3))
        save_network(network, tmp_path / "one.pt")
        keys = {"output": output, "threshold": threshold}
        return write_definition(tmp_path / "one.emd", ModelFile="one.pt", GeodlDask=keys), network

    return make


OVER = {"logits": torch.nn.Identity(), "probabilities": torch.nn.Sigmoid(), "distance": torch.nn.ReLU()}


def whole_image(network, pixels) -> torch.Tensor:
    """(class, y, x) scores of one forward pass, zeros around the pair."""
    with torch.inference_mode():
        return network(torch.from_numpy(np.concatenate(pixels).astype(np.float32))[None])[0]


@pytest.mark.parametrize(("asked", "within"), [("uint8", 0.5 / 254), ("uint16", 0.5 / 65279), ("float32", 0)])
def test_it_is_that_of_one_forward_pass_away_from_the_border(asked, within, models, pair, pixels, toy_network):
    both = gd.detect_change(*pair, models["pt2"], chunks=24, confidence=asked).compute()
    expected = torch.softmax(whole_image(toy_network, pixels), 0).max(0).values.numpy()
    inner = np.s_[2:-2, 2:-2]
    assert both.confidence.dtype == asked
    difference = abs(xr.decode_cf(both).confidence.values - expected)[inner]
    assert difference.max() <= within + 1e-5
    xr.testing.assert_identical(both.change, gd.detect_change(*pair, models["pt2"], chunks=24).compute())


@pytest.mark.parametrize("output", ["logits", "probabilities", "distance"])
def test_one_score_is_seen_from_the_side_that_won(output, one_score, pair, pixels):
    model, network = one_score(output, 0.3)
    both = gd.detect_change(*pair, model, confidence="float32").compute()
    score = whole_image(network, pixels)[0]
    probability = torch.sigmoid(score) if output == "logits" else score
    expected = torch.where(probability > 0.3, probability, 1 - probability) if output != "distance" else score
    inner = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(both.confidence.values[inner], expected.numpy()[inner], rtol=1e-3, atol=1e-4)
    assert set(np.unique(both.change)) == {0, 7}
    assert both.confidence.attrs["long_name"] == f"{'distance' if output == 'distance' else 'probability'} of the class"


def open_lazily(paths):
    return [rioxarray.open_rasterio(path, chunks={"y": 20, "x": 27}) for path in paths]


@pytest.mark.parametrize("asked", ["uint8", "uint16", "float32"])
def test_blocks_and_doors_do_not_change_a_bit(asked, models, pair):
    expected = gd.detect_change(*pair, models["pt2"], chunks=83, confidence=asked).compute()
    arrays = open_lazily(pair)
    for chunks in (8, 40):
        for rasters in (pair, arrays, (pair[0], arrays[1])):
            both = gd.detect_change(*rasters, models["pt2"], chunks=chunks, confidence=asked).compute()
            xr.testing.assert_equal(both, expected)


@pytest.fixture
def calls(monkeypatch) -> Counter[tuple[int, int]]:
    """How often the runner was given each tile, by its origin."""
    counted: Counter[tuple[int, int]] = Counter()
    load = kernel.load_runner

    def load_counted(spec):
        runner = load(spec)
        predict = runner.predict

        def count(batch):
            counted.update({tuple(origin) for origin in batch.origins.tolist()})
            return predict(batch)

        runner.predict = count
        return runner

    monkeypatch.setattr(kernel, "load_runner", load_counted)
    kernel._load.cache_clear()
    yield counted
    kernel._load.cache_clear()


@pytest.mark.parametrize("door", ["files", "arrays"])
@pytest.mark.parametrize("ending", ["compute", "zarr", "tif"])
def test_each_tile_is_predicted_once_for_both_layers(door, ending, calls, models, pair, tmp_path):
    rasters = pair if door == "files" else open_lazily(pair)
    both = gd.detect_change(*rasters, models["pt"], chunks=24, confidence="uint8", tile_size="model")
    calls.clear()
    if ending == "compute":
        both.compute()
    else:
        (gd.write_zarr if ending == "zarr" else gd.write_cog)(both, tmp_path / f"change.{ending}")
    assert calls == dict.fromkeys(((row - 4, col - 4) for row in range(0, 83, 8) for col in range(0, 109, 8)), 1)


def test_nothing_of_it_is_computed_unless_asked_for(models, pair, monkeypatch):
    def fail(*args):
        raise AssertionError("confidence was computed")

    monkeypatch.setattr(kernel, "confidence_of", fail)
    assert isinstance(gd.detect_change(*pair, models["pt"], chunks=48).compute(), xr.DataArray)
    with pytest.raises(AssertionError, match="confidence was computed"):
        gd.detect_change(*pair, models["pt"], chunks=48, confidence="uint8").compute()


@pytest.mark.parametrize("asked", ["uint8", "uint16", "float32"])
def test_pixels_without_class_have_no_confidence_and_all_others_have(asked, models, pair, pixels, tmp_path):
    rng = np.random.default_rng(0)
    wanted = rng.random((83, 109)) < 0.9
    wanted[:40, :48] = False  # of which whole blocks are not computed at all
    holes = rng.random((83, 109)) < 0.1
    old = write_raster(tmp_path / "old.tif", np.where(holes, 9, np.where(pixels[0] == 9, 8, pixels[0])), nodata=9)
    mask = write_raster(tmp_path / "mask.tif", wanted.astype(np.uint8)[None])
    both = gd.detect_change(old, pair[1], models["pt"], mask=mask, chunks=24, confidence=asked).compute()
    is_class = (both.change != 255).values
    np.testing.assert_array_equal(is_class, wanted & ~holes)
    np.testing.assert_array_equal(xr.decode_cf(both).confidence.notnull(), is_class)


def test_one_raster_is_classified_with_confidence_too(models, pair, tmp_path, toy_network):
    definition = write_definition(tmp_path / "model.emd", ModelFile=str(models["pt"].with_name("toy.pt")))
    stacked = write_raster(tmp_path / "stack.tif", np.concatenate([rioxarray.open_rasterio(each) for each in pair]))
    both = gd.classify_raster(stacked, definition, chunks=24, confidence="uint16").compute()
    of_pair = gd.detect_change(*pair, definition, chunks=24, confidence="uint16").compute()
    assert list(both) == ["class", "confidence"]
    np.testing.assert_array_equal(both["class"], of_pair["change"])
    np.testing.assert_array_equal(both.confidence, of_pair.confidence)


def test_one_layer_alone_is_computed_as_xarray_users_expect(models, pair):
    both = gd.detect_change(*pair, models["pt"], chunks=24, confidence="uint8")
    whole = both.compute()
    xr.testing.assert_identical(both.change.compute(), whole.change)
    assert int((both.confidence[:10, :10] > 200).sum()) == int((whole.confidence[:10, :10] > 200).sum())
    assert both.odc.geobox == both.change.odc.geobox == both.confidence.odc.geobox


# Asked


@pytest.mark.parametrize(
    ("arguments", "keyword", "expected"),
    [
        ({"return_probability_raster": True}, None, "uint8"),
        ("return_probability_raster true", None, "uint8"),
        ({"return_probability_raster": False}, None, None),
        ({"return_probability_raster": True}, "uint16", "uint16"),
        ({"return_probability_raster": False}, "float32", "float32"),
    ],
)
def test_esris_argument_asks_for_it_and_the_keyword_wins(arguments, keyword, expected, models, pair):
    result = gd.detect_change(*pair, models["pt"], arguments=arguments, confidence=keyword)
    _, confidence = layers_of(result)
    assert (None if confidence is None else str(confidence.dtype)) == expected


def test_esris_argument_gives_a_distance_as_float(one_score, pair):
    model, _ = one_score("distance", 0.3)
    both = gd.detect_change(*pair, model, arguments="return_probability_raster True")
    assert both.confidence.dtype == np.float32


def test_what_a_model_cannot_give_is_refused_before_any_work(models, one_score, pair, tmp_path):
    with pytest.raises(ModelArgumentError, match=r"confidence is 'int8'; uint8, uint16, float32 or None"):
        gd.detect_change(*pair, models["pt"], confidence="int8")
    with pytest.raises(ModelArgumentError, match="return_probability_raster is 'yes'; True or False"):
        gd.detect_change(*pair, models["pt"], arguments="return_probability_raster yes")
    model, _ = one_score("distance", 0.3)
    with pytest.raises(ModelArgumentError, match=r"distances, which do not end at 1 .* float32"):
        gd.detect_change(*pair, model, confidence="uint8")
    recorder = write_model(tmp_path, "Recorder")
    with pytest.raises(ModelArgumentError, match="answers with classes and has no scores"):
        gd.detect_change(*pair, recorder, trust_code=True, confidence="uint8")


def test_a_raster_functions_own_argument_of_that_name_goes_to_it_alone(pair, pixels, tmp_path):
    model = write_model(tmp_path, "ThresholdedPair")
    code = model.with_suffix(".py")
    code.write_text(code.read_text().replace("score_threshold", "return_probability_raster"))
    change = gd.detect_change(*pair, model, trust_code=True, arguments="return_probability_raster 0.3")
    assert isinstance(change, xr.DataArray)
    difference = abs(pixels[1][0].astype(int) - pixels[0][0])
    np.testing.assert_array_equal(change == 7, difference > 0.3 * 255)


def test_classes_wider_than_the_type_asked_for_widen_it(models, pair, tmp_path):
    wide = [{**each, "Value": value} for each, value in zip(CLASSES, (0, 700), strict=True)]
    network = str(models["pt"].with_name("toy.pt"))
    model = write_definition(tmp_path / "wide.emd", ModelFile=network, Classes=wide)
    both = gd.detect_change(*pair, model, confidence="uint8")
    assert {str(layer.dtype) for layer in both.values()} == {"uint16"}


@pytest.mark.parametrize("names", [("confidence",), ("change", "other", "confidence"), ()])
def test_a_dataset_of_other_variables_is_refused(names):
    with pytest.raises(OutputError, match="classes and, beside them, confidence are needed"):
        layers_of(xr.Dataset({name: (("y", "x"), np.zeros((2, 2), np.uint8)) for name in names}))


def test_a_pixel_has_both():
    joined = join_layers(np.array([[7]], np.uint8), np.array([[300]], np.uint16))
    assert (joined.dtype.names, joined["class"].item(), joined["confidence"].item()) == (
        ("class", "confidence"),
        7,
        300,
    )
