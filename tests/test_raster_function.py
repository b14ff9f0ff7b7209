"""Raster functions in the published style run unmodified: what they are given, and what is made of their answer."""

import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from raster_functions.hosting import box_difference, check_against_network, load, one_tile, predict_whole, write_model

from geodl_dask.definition import load_definition
from geodl_dask.errors import (
    BandCountError,
    InferenceError,
    ModelArgumentError,
    ModelDefinitionError,
    TileGeometryError,
)
from geodl_dask.runners import Batch, Runner
from geodl_dask.runners import raster_function_blocks as blocks
from geodl_dask.runners.raster_function import describe_parameters
from geodl_dask.runners.raster_function_configuration import read_configuration, read_domain, read_pixel_type
from geodl_dask.tiling import TileSpec


@pytest.fixture
def model(tmp_path):
    """Write a definition: model("Recorder") or model("PairClassifier", BatchSize=4)."""
    return partial(write_model, tmp_path)


# Geometry: against the same computation on the whole pair


@pytest.mark.parametrize(
    ("batch_size", "block_yx"), [(1, (24, 40)), (4, (48, 80)), (6, (48, 120)), (5, (120, 40))], ids=str
)
@pytest.mark.parametrize("padding", [1, 3, 8])
def test_generic_function_equals_whole_image_computation(model, pixels, batch_size, block_yx, padding):
    runner = load(model("PairClassifier"), padding=padding, batch_size=batch_size)
    rows, cols = block_yx[0] // 24, block_yx[1] // 40
    inner_yx = (24 - 2 * padding) * rows, (40 - 2 * padding) * cols
    assert runner.tile == TileSpec((inner_yx[0] + 2 * padding, inner_yx[1] + 2 * padding), padding)
    values = predict_whole(runner, *pixels)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, box_difference(*pixels))
    assert set(np.unique(values)) == {0, 7}


def test_without_padding_tiles_are_computed_alone(model, pixels):
    values = predict_whole(load(model("PairClassifier")), *pixels)
    expected = box_difference(*pixels)
    inside = np.s_[1:23, 1:39]
    np.testing.assert_array_equal(values[inside], expected[inside])
    assert not np.array_equal(values, expected)


def test_model_padding_and_batch_size_of_the_definition_are_followed(model, pixels):
    runner = load(model("PairClassifier", ModelPadding=4, BatchSize=2), threshold="1200")
    assert runner.tile == TileSpec((2 * (24 - 8) + 8, 40), 4)
    assert [each.name for each in runner.parameters] == ["threshold"]
    np.testing.assert_array_equal(predict_whole(runner, *pixels), box_difference(*pixels, threshold=1200))


def test_torch_network_in_a_function_equals_the_network_on_the_whole_pair(model, pixels, toy_network):
    path = model("PairClassifier", ModelConfiguration="TorchDifference", ModelFile=".\\weights\\toy.pth")
    (path.parent / "weights").mkdir()
    torch.save(toy_network.state_dict(), path.parent / "weights" / "toy.pth")
    values = predict_whole(load(path, padding=2, batch_size=4), *pixels)
    check_against_network(values, toy_network, pixels)


def test_onnx_network_with_a_batch_axis_of_one_equals_the_network_on_the_whole_pair(model, pixels, toy_network):
    path = model("PairClassifier", ModelConfiguration="OnnxDifference", ModelFile="toy.onnx")
    with warnings.catch_warnings():  # the exporter warns of its own deprecations
        warnings.simplefilter("ignore")
        torch.onnx.export(toy_network, (torch.zeros(1, 6, 24, 40),), path.parent / "toy.onnx", verbose=False)
    values = predict_whole(load(path, padding=2, batch_size=6), *pixels)
    check_against_network(values, toy_network, pixels)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras.*")  # Keras 3.15 on NumPy 2
def test_keras_network_in_a_function_equals_the_network_on_the_whole_pair(model, pixels, toy_network, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    network = keras.Sequential(
        [
            keras.layers.Input((24, 40, 6)),
            keras.layers.Rescaling(1 / 255, -0.5),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(2, 3, padding="same"),
        ]
    )
    weights = [parameter.detach().numpy() for parameter in toy_network.parameters()]
    network.set_weights([each.transpose(2, 3, 1, 0) if each.ndim == 4 else each for each in weights])
    path = model("PairClassifier", ModelConfiguration="KerasDifference", ModelFile="toy.keras")
    network.save(path.parent / "toy.keras")
    values = predict_whole(load(path, padding=3, batch_size=4), *pixels)
    check_against_network(values, toy_network, pixels)


@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_tensorflow_network_in_a_function_equals_the_network_on_the_whole_pair(model, pixels, toy_network):
    reason = 'TensorFlow is not installed. To run this (1.4 GB): pip install "geodl_dask[tensorflow]"'
    tensorflow = pytest.importorskip("tensorflow", reason=reason)
    weights = [parameter.detach().numpy() for parameter in toy_network.parameters()]
    kernels, biases = [each.transpose(2, 3, 1, 0) for each in weights[::2]], weights[1::2]

    class Toy(tensorflow.Module):
        @tensorflow.function(input_signature=[tensorflow.TensorSpec((None, None, None, 6), tensorflow.float32)])
        def score(self, stack):
            first = tensorflow.nn.conv2d(stack / 255 - 0.5, kernels[0], 1, "SAME") + biases[0]
            return tensorflow.nn.conv2d(tensorflow.nn.relu(first), kernels[1], 1, "SAME") + biases[1]

    path = model("PairClassifier", ModelConfiguration="TensorFlowDifference", ModelFile=".\\saved\\saved_model.pb")
    tensorflow.saved_model.save(Toy(), str(path.parent / "saved"))
    values = predict_whole(load(path, padding=3, batch_size=4), *pixels)
    check_against_network(values, toy_network, pixels)


# The protocol


def test_function_is_called_in_order_with_text_and_fresh_full_masks(model, capfd):
    path = model("Recorder", ExtractBands=[0, 1, 2, 3, 4, 5])
    runner = load(path, pixel_type="uint16", part="0.5", flag="false")
    assert isinstance(runner, Runner)
    assert runner.tile == TileSpec((24, 16), 2)
    batch = one_tile(runner, 5, dtype="uint16")
    valid = batch.valid.copy()
    valid[0, :, :4] = False
    for each in (*batch.images, batch.valid, batch.origins):
        each.setflags(write=False)
    values = runner.predict(Batch(batch.images, valid, batch.origins))
    assert values.shape == (1, 20, 12)
    assert (values[0, :, :2] == 255).all()
    assert (values[0, :, 2:] == 7).all()
    calls = json.loads((path.parent / "calls.json").read_text())
    scalars = {"model": "Recorder.emd", "device": -1, "whole": "8", "part": "0.5", "flag": "False", "way": "mean"}
    assert calls == [
        ["initialize", ["device", "model"], "int"],
        ["getParameterInfo"],
        ["getConfiguration", scalars],
        ["updateRasterInfo", 6, "u2"],
        ["updateKeyMetadata", [], -1],
        ["selectRasters", [482.0, -162.0], [1, 20, 12]],
        ["updatePixels", "i4", [482.0, -182.0, 494.0, -162.0], [6, 24, 16], "uint16", [6, 24, 16], "uint8", 24 * 12,
         [True, True, True]],
    ]  # fmt: skip
    assert capfd.readouterr().out == "predicting\n"
    assert (path.parent / "recorder.log").read_text() == "predicting\n"


def test_a_function_that_zeroes_its_input_leaves_the_batch_as_it_was(model):
    runner = load(model("Recorder"))
    batch = one_tile(runner, 3)
    first = runner.predict(batch)
    assert (batch.images[0] == 3).all()
    np.testing.assert_array_equal(first, runner.predict(batch))


@pytest.mark.parametrize("function", ["NoConfiguration", "FileName", "TwoRasters", "ManyRasters"])
def test_function_without_configuration_is_given_the_tile_of_the_definition(model, pixels, function):
    runner = load(model(function))
    assert runner.tile == TileSpec((16, 12), 0)
    np.testing.assert_array_equal(predict_whole(runner, *pixels), np.where(pixels[1][0] > pixels[0][0], 7, 0))


def test_only_the_rasters_that_the_function_selects_are_delivered(model, pixels):
    values = predict_whole(load(model("SelectedRaster")), *pixels)
    np.testing.assert_array_equal(values, np.where(pixels[1][0] > 100, 7, 0))


def test_pixels_without_observation_become_nodata(model, pixels):
    valid = np.random.default_rng(1).random(pixels[0].shape[1:]) < 0.7
    values = predict_whole(load(model("NoConfiguration")), *pixels, valid)
    np.testing.assert_array_equal(values, np.where(valid, np.where(pixels[1][0] > pixels[0][0], 7, 0), 255))


def test_files_beside_the_definition_are_found_and_the_working_directory_comes_back(model):
    path = model("Elsewhere")
    (path.parent / "more").mkdir()
    (path.parent / "more" / "value.txt").write_text("7")
    before = Path.cwd()
    runner = load(path)
    assert (runner.predict(one_tile(runner)) == 7).all()
    assert Path.cwd() == before


def test_private_definition_goes_with_the_runner(model):
    runner = load(model("FileName"))
    private = Path(runner._function.definition_file).parent
    assert private.is_dir()
    del runner
    assert not private.exists()


def test_fixed_pixel_types_are_rescaled_to_the_data_range_and_others_are_not(model, caplog):
    path = model("Answers", DataRange=[0, 1])
    path.with_name("plain.py").write_text(
        path.with_name("plain.py").read_text().replace(
            "return dict(self.configuration)", "return {'dataRange': (0, 1)}"
        )
    )  # fmt: skip
    answer = "{'output_pixels': np.full(shape, 7 if str(pixels.dtype) == 'float32' and pixels.max() <= 1 else 0)}"
    runner = load(path, answer=answer)
    assert (runner.predict(one_tile(runner, 200)) == 7).all()
    assert "rescaled from 0 to 255 (uint8)" in caplog.text
    runner = load(path, answer=answer, pixel_type="float32")
    assert (runner.predict(one_tile(runner, 200, dtype="float32")) == 0).all()
    assert "handed over as stored" in caplog.text


ODD = {
    "padding": ({"tx": 16, "ty": 16, "padding": "x"}, "'x' for padding; a whole number"),
    "negative padding": ({"tx": 16, "ty": 16, "padding": -1}, "-1 for padding; 0 or more"),
    "tx": ({"tx": "a", "ty": 16}, "'a' for tx; a whole number"),
    "fraction": ({"tx": 32.5, "ty": 16}, r"32\.5 for tx; a whole number"),
    "bands": ({"extractBands": 3}, "3 for extractBands; a list of band numbers"),
    "a text of bands": ({"extractBands": "012345"}, "'012345' for extractBands; a list"),
    "names of bands": ({"extractBands": ["red", "nir"]}, "'red' for extractBands; a list of band numbers"),
    "range": ({"dataRange": 255}, r"255 for dataRange; \(lowest, highest\)"),
    "range of three": ({"dataRange": (0, 1, 2)}, r"\(0, 1, 2\) for dataRange"),
    "range of texts": ({"dataRange": ("a", "b")}, r"\('a', 'b'\) for dataRange"),
    "empty range": ({"dataRange": (1, 1)}, r"\(1, 1\) for dataRange"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_configuration_is_named_by_key_and_value(name):
    configuration, message = ODD[name]
    with pytest.raises(ModelDefinitionError, match=rf"^Fn\.py answers with {message}.* is needed\.$"):
        read_configuration(configuration, "Fn.py")


def test_a_configuration_is_read_as_functions_write_it():
    given = {"tx": 16.0, "ty": "16", "padding": None, "extractBands": np.array([0, 1]), "dataRange": [0, 1], "more": 1}
    expected = {"tx": 16, "ty": 16, "extractBands": (0, 1), "dataRange": (0, 1), "more": 1}
    assert read_configuration(given, "Fn.py") == expected
    for nothing in (None, "text", {"extractBands": [], "dataRange": ()}):
        assert read_configuration(nothing, "Fn.py") == {}


@pytest.mark.parametrize("info", [None, {}, {"pixelType": 3}, "u1"])
def test_an_output_without_a_pixel_type_is_named(info):
    with pytest.raises(ModelDefinitionError, match=r"Fn\.py answers with .* for output_info; a dict with a pixelType"):
        read_pixel_type({"output_info": info}, "u1", "Fn.py")
    assert read_pixel_type({}, "u1", "Fn.py") == read_pixel_type(None, "u1", "Fn.py") == "u1"


def test_a_domain_of_words_is_named():
    with pytest.raises(ModelDefinitionError, match=r"\('low', 'high'\) for the domain of a; \(lowest, highest\)"):
        read_domain("a", ("low", "high"))


# Arguments


def test_arguments_are_those_that_the_function_tells(model):
    parameters = {each.name: each for each in load(model("Recorder")).parameters}
    assert list(parameters) == ["whole", "part", "flag", "way", "prompt"]
    whole = parameters["whole"]
    assert (whole.data_type, whole.default, whole.display_name) == ("numeric", "8", "Whole")
    assert whole.description == "A whole number"
    assert parameters["way"].domain == ("mean", "max")
    assert parameters["prompt"].default is None


def test_arguments_can_be_described_without_rasters(model):
    names = [each.name for each in describe_parameters(load_definition(model("PairClassifier")))]
    assert names == ["padding", "batch_size", "threshold"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"score_threshold": "0.6"}, "score_threshold"),
        ({"wohle": "1"}, "flag, part, prompt, way, whole"),
        ({"model": "x"}, "model"),
        ({"device": "1"}, "device"),
        ({"whole": "many"}, "whole is 'many'; a number is needed"),
        ({"part": "1.5"}, "part is 1.5; 0 to 1 is possible"),
        ({"flag": "perhaps"}, "one of True, False is needed"),
        ({"way": "median"}, "one of mean, max is needed"),
    ],
    ids=str,
)
def test_arguments_that_the_function_does_not_take_are_refused(model, given, message):
    with pytest.raises(ModelArgumentError, match=message):
        load(model("Recorder"), **given)


def test_numbers_reach_the_function_without_a_point_where_they_are_whole(model, pixels):
    runner = load(model("PairClassifier"), padding="3.0", batch_size="4", threshold="900.0")
    np.testing.assert_array_equal(predict_whole(runner, *pixels), box_difference(*pixels))


def test_another_batch_size_than_the_one_asked_for_is_reported(model, caplog):
    path = model("PairClassifier")
    load(path, batch_size=6)
    assert "batch_size" not in caplog.text
    file = path.with_name("rectangles.py")
    square = "batch_size = math.isqrt(batch_size) ** 2\n    rows = int(math.sqrt"
    file.write_text(file.read_text().replace("rows = int(math.sqrt", square))
    load(path, batch_size=6)
    assert "batch_size 6 was asked for; the model's function takes 4" in caplog.text


def test_padding_that_leaves_nothing_is_refused(model):
    with pytest.raises(TileGeometryError, match="padding 12 leaves nothing of a tile of 24 x 40 pixels"):
        load(model("PairClassifier"), padding=12)


def test_a_value_that_the_function_cannot_read_is_an_argument_error_with_its_cause(model):
    with pytest.raises(ModelArgumentError, match=r"as a whole number and got '8\.5'"):
        load(model("Raises"), number="8.5")


# Bands


@pytest.mark.parametrize(
    ("extract", "bands"), [([0, 1, 2, 3, 4, 5], 4), ([0, 1, 2, 3, 4, 5], 2), ([0, 1, 2, 3, 4, 8], 4)], ids=str
)
def test_rasters_with_other_bands_than_the_model_takes_are_refused(model, extract, bands):
    with pytest.raises(BandCountError, match=f"the rasters have {bands} band"):
        load(model("PairClassifier", ExtractBands=extract), bands=bands)


def test_bands_are_extracted_from_the_stacked_pair_in_the_order_of_the_definition(model, pixels):
    runner = load(model("PairClassifier", ExtractBands=[2, 1, 5, 4]), padding=2)
    expected = box_difference(pixels[0][[2, 1]], pixels[1][[2, 1]])
    np.testing.assert_array_equal(predict_whole(runner, *pixels), expected)


# Answers


def answering(model, expression):
    runner = load(model("Answers"), answer=expression)
    return runner.predict(one_tile(runner))[0]


@pytest.mark.parametrize(
    "expression",
    [
        "{'output_pixels': np.full(shape, 7)}",
        "{'output_pixels': np.full(shape[1:], 7, 'i2')}",
        "{'output_pixels': np.full(shape, 7.0, 'f4')}",
        "{'output_pixels': np.full(shape, 7).tolist()}",
    ],
)
def test_whole_numbers_of_one_band_are_an_answer(model, expression):
    values = answering(model, expression)
    assert values.dtype == np.uint8
    assert (values == 7).all()


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("{}", "without output_pixels"),
        ("None", "without output_pixels"),
        ("{'output_pixels': np.zeros((2, 16, 12))}", r"shape \(2, 16, 12\).*\(1, 16, 12\)"),
        ("{'output_pixels': np.zeros((1, 12, 16))}", r"shape \(1, 12, 16\)"),
        ("{'output_pixels': np.full(shape, 'x')}", "numbers of shape"),
        ("{'output_pixels': np.full(shape, 0.5)}", "0.5, which is no class value"),
        ("{'output_pixels': np.full(shape, np.nan)}", "nan, which is no class value"),
        ("{'output_pixels': np.full(shape, np.inf)}", "inf, which is no class value"),
        ("{'output_pixels': np.full(shape, 256)}", "answered with 256. uint8 values of 0 to 255"),
        ("{'output_pixels': np.full(shape, -1)}", "answered with -1"),
        ("{'output_pixels': np.full(shape, 255)}", "255, which means no observation"),
        ("{'output_pixels': np.zeros(shape), 'output_mask': np.zeros(3)}", "output_mask has shape"),
    ],
)
def test_answers_that_are_none_are_errors_with_the_position(model, expression, message):
    with pytest.raises(InferenceError, match=f"(?s)16 x 12 pixels from row 160, column 480.*Answers.py.*{message}"):
        answering(model, expression)


def test_pixels_that_the_function_masks_out_become_nodata(model):
    mask = "np.arange(12) % 2 * np.ones(shape)"
    values = answering(model, f"{{'output_pixels': np.full(shape, 7), 'output_mask': {mask}}}")
    np.testing.assert_array_equal(values, np.where(np.arange(12) % 2, 7, 255) * np.ones((16, 1), int))


def test_what_is_answered_where_nothing_was_observed_does_not_matter(model):
    runner = load(model("Answers"), answer="{'output_pixels': np.full(shape, np.nan)}")
    batch = one_tile(runner)
    values = runner.predict(Batch(batch.images, np.zeros_like(batch.valid), batch.origins))
    assert (values == 255).all()


def test_values_that_classes_does_not_list_are_kept_and_named_once(model, caplog, monkeypatch):
    monkeypatch.setattr(blocks, "_warned_of", set())
    for _ in range(2):
        assert (answering(model, "{'output_pixels': np.full(shape, 42)}") == 42).all()
    assert caplog.text.count("answered with [42]; Classes lists [0, 7]. Written as they are.") == 1
