"""Networks of one file run without code of their own: what they are given, and what their answer means."""

import math

import numpy as np
import pytest
import torch
from conftest import CLASSES, ToyNetwork, save_network, write_definition
from onnx import TensorProto, helper

from geodl_dask.definition import load_definition
from geodl_dask.errors import (
    BandCountError,
    ModelArgumentError,
    ModelDefinitionError,
    ModelFileError,
    TileGeometryError,
)
from geodl_dask.runners import Batch, Runner, RunnerSpec, choose_kind, load_runner, pytorch
from geodl_dask.tiling import TileSpec


class PerPixel(torch.nn.Module):
    """Answers with what a function of the stack says: small enough to see through."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return self.answer(stack)


class Siamese(torch.nn.Module):
    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        change = (after - before).sum(1, keepdim=True)
        return torch.cat([-change, change], 1)


@pytest.fixture
def load(tmp_path):
    """load(network, bands=6, arguments..., Key=...): the runner of a network saved as TorchScript."""

    def load_one(network, *, bands=3, network_bands=None, pixel_type="uint8", arguments=(), suffix="pt", **keys):
        path = tmp_path / f"network.{suffix}"
        if isinstance(network, Siamese):
            example = torch.zeros(1, bands, 16, 16)
            torch.jit.trace(network, (example, example)).save(path)
        elif network is not None:
            save_network(network, path, network_bands or 2 * bands)
        keys = {"ModelFile": path.name, "ExtractBands": list(range(2 * bands)), **keys}
        definition = load_definition(write_definition(tmp_path / "model.emd", **keys))
        spec = RunnerSpec(definition, choose_kind(definition), bands, pixel_type, tuple(dict(arguments).items()))
        return load_runner(spec)

    return load_one


def tiles(bands=3, count=4, size=16, seed=0, top=256, dtype=np.uint8) -> Batch:
    pixels = np.random.default_rng(seed).integers(0, top, (2, count, bands, size, size)).astype(dtype)
    return Batch(tuple(pixels), np.ones((count, size, size), bool), np.zeros((count, 2), np.int64))


def stacked(batch: Batch) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(batch.images, axis=1).astype(np.float32))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pt", "pt2", "onnx"])
def test_every_file_format_gives_the_scores_of_the_network(suffix, models, toy_network):
    definition = load_definition(models[suffix])
    runner = load_runner(RunnerSpec(definition, "native", 3, "uint8"))
    batch = tiles()
    with torch.inference_mode():
        expected = toy_network(stacked(batch)).numpy()
    assert isinstance(runner, Runner)
    assert (runner.tile, runner.batch_size, runner.output) == (TileSpec((16, 16), 4), 1, "logits")
    np.testing.assert_allclose(runner.predict(batch), expected, atol=1e-5)


def test_torch_answers_the_same_bits_whatever_the_number_of_threads(load):
    runner = load(ToyNetwork())
    threads, answers = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        answers.append(runner.predict(tiles()))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert all(np.array_equal(answers[0], each) for each in answers)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_pair_of_inputs_is_from_then_to(load):
    batch = tiles()
    expected = batch.images[1].sum(1, dtype=float) - batch.images[0].sum(1, dtype=float)
    scores = load(Siamese(), GeodlDask={"input": "pair"}).predict(batch)
    np.testing.assert_allclose(scores[:, 1], expected)


def test_extract_bands_choose_and_order_the_stacked_bands(load):
    runner = load(ToyNetwork(bands=2), bands=1, ExtractBands=[1, 0])
    batch = tiles(bands=1)
    swapped = Batch(batch.images[::-1], batch.valid, batch.origins)
    in_order = load(ToyNetwork(bands=2), bands=1, ExtractBands=[0, 1])
    np.testing.assert_array_equal(runner.predict(batch), in_order.predict(swapped))


def test_normalisation_of_the_definition_is_applied_to_both_dates(load):
    first_of_each = PerPixel(lambda stack: torch.cat([stack[:, :1], stack[:, 3:4]], 1) - 5)
    batch = tiles()
    by_mean = load(first_of_each, GeodlDask={"mean": [10, 0, 0], "std": [2, 1, 1]}).predict(batch)
    np.testing.assert_allclose(by_mean[:, 0], (batch.images[0][:, 0] - 10.0) / 2 - 5)
    np.testing.assert_allclose(by_mean[:, 1], (batch.images[1][:, 0] - 10.0) / 2 - 5)
    stats = {
        "band_min_values": [0, 0, 0],
        "band_max_values": [200, 255, 255],
        "scaled_mean_values": [0.5, 0, 0],
        "scaled_std_values": [0.25, 1, 1],
    }
    by_statistics = load(first_of_each, NormalizationStats=stats).predict(batch)
    np.testing.assert_allclose(
        by_statistics[:, 0], (batch.images[0][:, 0] / 200 - 0.5) / 0.25 - 5, rtol=1e-4, atol=1e-4
    )


def test_class_indices_become_class_values(load):
    classes = [{"Value": value, "Name": str(value), "Color": [0, 0, 0]} for value in (3, 40, 5)]
    brightest = PerPixel(lambda stack: stack[:, :3].argmax(1))
    batch = tiles()
    runner = load(brightest, Classes=classes, GeodlDask={"output": "classes"})
    assert runner.returns == "classes"
    expected = np.array([3, 40, 5])[batch.images[0][:, :3].argmax(1)]
    np.testing.assert_array_equal(runner.predict(batch), expected)


@pytest.mark.parametrize(
    ("answer", "output", "threshold"),
    [
        (lambda stack: torch.sigmoid(stack[:, :1] - 99), "probabilities", 0.5),
        (lambda stack: stack[:, :1] - 99, "logits", 0.0),
        (lambda stack: torch.sigmoid(stack[:, 0] - 99), "probabilities", 0.5),
        (lambda stack: (stack[:, 0] > 99).long(), "classes", None),
        (lambda stack: stack[:, 0] > 99, "classes", None),
    ],
)
def test_meaning_of_the_answer_is_read_off_the_first_prediction(load, answer, output, threshold, caplog):
    with caplog.at_level("INFO"):
        runner = load(PerPixel(answer))
    assert (runner.output, runner.threshold) == (output, threshold)
    assert f"is taken for {output}." in caplog.text


@pytest.mark.parametrize("says", [None, "probabilities"])
def test_scores_without_a_score_axis_get_one(load, says):
    runner = load(PerPixel(lambda stack: torch.sigmoid(stack[:, 0] - 99)), GeodlDask={"output": says})
    batch = tiles()
    scores = runner.predict(batch)
    assert (runner.returns, scores.shape) == ("scores", (4, 1, 16, 16))
    np.testing.assert_allclose(scores[:, 0], torch.sigmoid(stacked(batch)[:, 0] - 99))


def test_floats_are_class_indices_only_where_the_definition_says_so_and_they_are_whole(load):
    says, batch = {"output": "classes"}, tiles()
    whole = load(PerPixel(lambda stack: (stack[:, 0] > 99).float()), GeodlDask=says)
    np.testing.assert_array_equal(whole.predict(batch), np.where(batch.images[0][:, 0] > 99, 7, 0))
    with pytest.raises(ModelFileError, match=r"class index 0\.5 to 0\.5"):
        load(PerPixel(lambda stack: stack[:, 0] * 0 + 0.5), GeodlDask=says).predict(batch)
    with pytest.raises(ModelFileError, match="2 scores per pixel, and GeodlDask output says classes"):
        load(PerPixel(lambda stack: stack[:, :2]), GeodlDask=says)


def test_a_class_index_is_of_no_interest_where_nothing_was_observed(load):
    runner = load(PerPixel(lambda stack: stack[:, 0].long()), GeodlDask={"output": "classes"})
    batch = tiles(top=2)
    batch.images[0][0, 0, 8, 8], batch.valid[0, 8, 8] = 200, False
    runner.predict(batch)
    batch.valid[0, 8, 8] = True
    with pytest.raises(ModelFileError, match="class index 200 to 200"):
        runner.predict(batch)


def test_a_threshold_on_logits_is_the_logit_of_the_probability(load):
    runner = load(PerPixel(lambda stack: stack[:, :1] - 99), GeodlDask={"output": "logits", "threshold": 0.9})
    assert runner.threshold == pytest.approx(math.log(9))


def test_a_distance_has_to_be_called_one(load):
    network = PerPixel(lambda stack: stack[:, :1])
    with pytest.raises(ModelDefinitionError, match='"output": "distance"'):
        load(network)
    assert load(network, GeodlDask={"output": "distance", "threshold": 2.5}).threshold == 2.5


class Wide(torch.nn.Module):
    """Of a width for which torch takes another kernel by the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(6, 16, 3, padding=1), torch.nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(stack / 255 - 0.5)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("network", [Wide, ToyNetwork])
@pytest.mark.parametrize("suffix", ["pt", "pt2", "onnx"])
def test_on_a_cpu_tiles_go_one_by_one_whatever_the_batch_size(suffix, network, load):
    torch.manual_seed(3)
    network, batch = network().eval(), tiles(count=16)
    with torch.inference_mode():
        alone = torch.cat([network(each[None]) for each in stacked(batch)])
        together = network(stacked(batch))
    scores = []
    for size in (1, 2, 4, 16):
        runner = load(network, suffix=suffix, arguments={"batch_size": str(size)}, GeodlDask={"output": "logits"})
        assert runner.batch_size == 1  # on a CPU; a GPU is asked for more
        parts = [slice(tile, tile + 1) for tile in range(16)]
        batches = (Batch(tuple(i[at] for i in batch.images), batch.valid[at], batch.origins[at]) for at in parts)
        scores.append(np.concatenate([runner.predict(each) for each in batches]))
    assert all(np.array_equal(scores[0], each) for each in scores)
    np.testing.assert_allclose(scores[0], alone.numpy(), atol=1e-4)
    assert not torch.equal(alone, together) or isinstance(network, ToyNetwork), "torch rounds alike, so no test"


class Normalised(torch.nn.Module):
    """A convolution and a normalisation of which much is left, as after training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolve, self.normalise = torch.nn.Conv2d(6, 2, 3, padding=1), torch.nn.BatchNorm2d(2)
        for values in (self.normalise.running_mean, self.normalise.running_var, self.normalise.weight.data):
            values.uniform_(0.5, 2)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return self.normalise(self.convolve(stack / 255))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("can_be_frozen", [True, False])
def test_a_normalisation_after_a_convolution_costs_nothing_and_changes_nothing(can_be_frozen, load, monkeypatch):
    """That torch refuses to freeze a script is made up here: none was found that it refuses."""

    def refuse(module):
        raise RuntimeError("attempted to freeze a module that changes itself")

    if not can_be_frozen:
        monkeypatch.setattr(torch.jit, "freeze", refuse)
    network, batch = Normalised().eval(), tiles(count=1)
    runner = load(network, GeodlDask={"output": "logits"})
    with torch.inference_mode():
        np.testing.assert_allclose(runner.predict(batch), network(stacked(batch)).numpy(), atol=1e-5)
        with torch.profiler.profile() as ran:
            runner.predict(batch)
    operators = " ".join(each.key for each in ran.key_averages())
    assert "aten::_convolution" in operators
    assert ("batch_norm" in operators) is not can_be_frozen


class Viewing(torch.nn.Module):
    """Takes the features of a convolution for one piece of memory, band after band, which channels last are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolve = torch.nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        found = self.convolve(stack / 255)
        return found.view(found.shape[0], -1).view(found.shape)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_a_network_that_counts_on_the_order_of_its_features_gets_that_order(suffix, load):
    network, batch = Viewing().eval(), tiles(count=1)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        network.to(memory_format=torch.channels_last)(stacked(batch).contiguous(memory_format=torch.channels_last))
    network.to(memory_format=torch.contiguous_format)
    runner = load(network, suffix=suffix, GeodlDask={"output": "logits"})
    with torch.inference_mode():
        np.testing.assert_allclose(runner.predict(batch), network(stacked(batch)).numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("size", "is_large"), [(512, True), (64, False)])
def test_a_large_prediction_runs_where_freed_memory_is_kept(size, is_large, load, monkeypatch):
    """A small one does not: to hand it over would cost more than that saves."""
    kept = []
    plain = pytorch.with_kept_memory
    monkeypatch.setattr(pytorch, "with_kept_memory", lambda *given: kept.append(given) or plain(*given))
    runner = load(ToyNetwork(), GeodlDask={"output": "logits"}, ImageHeight=size, ImageWidth=size)
    runner.predict(tiles(count=1, size=size))
    assert bool(kept) is is_large


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_that_was_traced_for_its_batch_gets_that_batch(load, tmp_path):
    network = PerPixel(lambda stack: stack.reshape(4, 2, 3, 16, 16).sum(2) - 99)
    path = tmp_path / "network.pt"
    torch.jit.trace(network, torch.zeros(4, 6, 16, 16)).save(path)
    batch = tiles()
    np.testing.assert_array_equal(load(None).predict(batch), network(stacked(batch)).numpy())
    with pytest.raises(ModelFileError, match="does not take"):
        load(None, arguments={"batch_size": "3"})


def test_a_network_with_a_fixed_batch_axis_is_given_just_that(tmp_path, caplog):
    program = torch.export.export(ToyNetwork().eval(), (torch.zeros(3, 6, 16, 16),))
    torch.export.save(program, tmp_path / "fixed.pt2")
    definition = load_definition(write_definition(tmp_path / "model.emd", ModelFile="fixed.pt2"))
    runner = load_runner(RunnerSpec(definition, "native", 3, "uint8", (("batch_size", "8"),)))
    assert runner.batch_size == 3
    assert "batch_size 8 was asked for; the model's network takes 3" in caplog.text
    caplog.clear()
    load_runner(RunnerSpec(definition, "native", 3, "uint8"))
    assert not caplog.records, "nobody asked for a batch size"


def stats(low, high, mean=None, std=None) -> dict:
    keys = ("band_min_values", "band_max_values", "scaled_mean_values", "scaled_std_values")
    given = zip(keys, (low, high, mean, std), strict=True)
    return {"NormalizationStats": {key: value for key, value in given if value is not None}}


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"arguments": {"padding": "8"}}, TileGeometryError, "leaves nothing"),
        ({"arguments": {"padding": "-1"}}, ModelArgumentError, "at least 0"),
        ({"arguments": {"batch_size": "0"}}, ModelArgumentError, "at least 1"),
        ({"arguments": {"paddin": "1"}}, ModelArgumentError, "Did you mean padding"),
        ({"arguments": {"padding": "1"}, "ModelPadding": 2}, ModelArgumentError, "padding"),
        ({"bands": 4, "network_bands": 6, "ExtractBands": [0, 1, 2, 3, 4, 5]}, BandCountError, "takes 3 of each date"),
        ({"ExtractBands": [0, 1, 9]}, BandCountError, "takes 10 bands"),
        ({"ModelPadding": 2}, ModelFileError, r"answered with shape \(1, 2, 16, 16\)"),
        ({"Classes": [*CLASSES, {"Value": 9, "Name": "x", "Color": [0, 0, 0]}]}, ModelFileError, "2 scores per pixel"),
        ({"GeodlDask": {"input": "pair"}}, ModelFileError, "does not take"),
        ({"GeodlDask": {"mean": [1, 2], "std": [1, 1]}}, BandCountError, "normalises 2 band"),
        (stats([5], [5]), ModelDefinitionError, "min below max"),
        (stats(["a"] * 3, ["b"] * 3), ModelDefinitionError, "band_min_values is 'a'; a finite number"),
        (stats(5, 6), ModelDefinitionError, "band_min_values is 5; a list of numbers"),
        (stats([0] * 3, [1] * 3, [0.5] * 2, [0.5] * 2), ModelDefinitionError, "one number per band"),
        (stats([0] * 3, [1] * 3, [0.5] * 3, [0.5, 0, 1]), ModelDefinitionError, "scaled_std_values.*above 0"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_any_work(load, keys, error, message):
    with pytest.raises(error, match=message):
        load(ToyNetwork(), **keys)


def test_a_state_dict_is_refused_with_what_to_do(load, tmp_path):
    torch.save(ToyNetwork().state_dict(), tmp_path / "network.pt")
    with pytest.raises(ModelFileError, match=r"torch\.export\.save"):
        load(None)


def test_a_file_that_is_no_network_is_refused(load, tmp_path):
    for suffix in ("pt", "pt2", "onnx"):
        (tmp_path / f"network.{suffix}").write_bytes(b"not a network" * 9)
        with pytest.raises(ModelFileError, match="cannot be loaded"):
            load(None, suffix=suffix)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter warns of itself
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_tile_that_nobody_states_is_the_networks_or_256(load, tmp_path):
    nobody = {"ImageHeight": None, "ImageWidth": None, "Padding": None}
    assert load(ToyNetwork(), **nobody).tile == TileSpec((256, 256), 64)
    torch.onnx.export(ToyNetwork().eval(), (torch.zeros(1, 6, 24, 32),), tmp_path / "network.onnx", verbose=False)
    runner = load(None, suffix="onnx", **nobody)
    assert (runner.tile, runner.batch_size) == (TileSpec((24, 32), 6), 1)


def test_an_index_without_a_class_is_refused(load):
    with pytest.raises(ModelFileError, match="class index 2 to 2"):
        load(PerPixel(lambda stack: stack[:, :3].argmax(1)), GeodlDask={"output": "classes"}).predict(tiles())


def test_the_case_of_a_suffix_does_not_matter(load, tmp_path):
    save_network(ToyNetwork(), tmp_path / "network.pt2").rename(tmp_path / "MODEL.PT2")
    batch = tiles()
    scores = load(None, ModelFile="MODEL.PT2").predict(batch)
    np.testing.assert_array_equal(scores, load(ToyNetwork(), suffix="pt2").predict(batch))


@pytest.mark.parametrize("shape", [None, []])
def test_an_onnx_network_without_images_is_refused(shape, load, tmp_path):
    taken = [] if shape is None else [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)]
    given = [helper.make_tensor_value_info("b", TensorProto.FLOAT, [])]
    value = helper.make_tensor("c", TensorProto.FLOAT, [], [1.0])
    node = helper.make_node("Identity", ["a"], ["b"]) if taken else helper.make_node("Constant", [], ["b"], value=value)
    graph = helper.make_graph([node], "g", taken, given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "network.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"takes \[(\[\])?\]; one stack or a pair"):
        load(None, suffix="onnx")
