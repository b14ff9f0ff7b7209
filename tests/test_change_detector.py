"""Change detectors of arcgis.learn, run natively, against what arcgis.learn itself answered (tests/recordings)."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import torch
import xarray as xr
from click.testing import CliRunner
from recordings.detectors import DETECTORS, RECORDED, STEP, Detector
from recordings.seeded import seeded_state

import geodl_dask as gd
from geodl_dask.cli import cli
from geodl_dask.definition import load_definition
from geodl_dask.errors import (
    BandCountError,
    ModelArgumentError,
    ModelDefinitionError,
    ModelFileError,
    TileGeometryError,
    UntrustedCodeError,
)
from geodl_dask.runners import RunnerSpec, change_detector, choose_kind, load_runner
from geodl_dask.runners.stanet import takes_tile

# Of 1 to 67, and some more, the sizes on which arcgis.learn 2.4.4 answered with PAM; on the others it raised.
TAKEN = {29, 30, 31, 32, 61, 62, 63, 64, 65, 66, 67, 96, 100, 104, 128, 130, 132, 160, 200, 224, 256, 300}
TRIED = {*range(1, 68), 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 116, 120, 124, 128, 130, 132, 144, 150, 160,
         200, 224, 250, 256, 300}  # fmt: skip
SMALL = DETECTORS[0]


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as file:
        return dict(file)


@pytest.fixture(scope="module")
def package(recorded, tmp_path_factory):
    """package(detector): its definition beside its seeded weights, as arcgis.learn wrote them."""
    made = {}

    def make(detector: Detector) -> Path:
        if detector.name not in made:
            about = json.loads(str(recorded[f"{detector.name}/about"]))
            folder = tmp_path_factory.mktemp(detector.name)
            torch.save(seeded_state(about["shapes"], about["seed"], detector.contrast), folder / f"{detector.name}.pth")
            made[detector.name] = folder / f"{detector.name}.emd"
            made[detector.name].write_text(json.dumps(about["definition"]))
        return made[detector.name]

    return make


@pytest.fixture
def model(package, tmp_path):
    """model(weights, Key=...): a small model, with its weights passed through a function, any key replaced."""

    def make(weights=None, **keys) -> Path:
        source = package(SMALL)
        definition = {**json.loads(source.read_text()), "ImageHeight": 32, "ImageWidth": 32, **keys}
        state = torch.load(source.with_suffix(".pth"), weights_only=True)
        torch.save(state if weights is None else weights(state), tmp_path / definition.get("ModelFile", "none"))
        path = tmp_path / "model.emd"
        path.write_text(json.dumps({key: value for key, value in definition.items() if value is not None}))
        return path

    return make


def rasters(pair: np.ndarray) -> list[xr.DataArray]:
    height, width = pair.shape[2:]
    coords = {"y": height - 0.5 - np.arange(height), "x": np.arange(width) + 0.5}
    return [xr.DataArray(each, coords, ("band", "y", "x")).rio.write_crs("EPSG:32633") for each in pair]


def load(path: Path, bands=3, pixel_type="uint8", **arguments):
    definition = load_definition(path)
    given = tuple((name, str(value)) for name, value in arguments.items())
    return load_runner(RunnerSpec(definition, choose_kind(definition), bands, pixel_type, given))


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda each: each.name)
def test_classes_and_distances_are_those_of_arcgis_learn(detector, package, recorded):
    path = package(detector)
    for kind in detector.kinds:
        arguments = {**detector.arguments, "return_probability_raster": "True"}
        found = gd.detect_change(*rasters(detector.pair(kind)), path, arguments=arguments, processor="cpu").compute()
        distances, values = found.confidence.values, found.change.values
        bits = np.unpackbits(recorded[f"{detector.name}/{kind}/changed"], count=values.size)
        changed = bits.reshape(values.shape).astype(bool)
        wanted = recorded[f"{detector.name}/{kind}/distances"]
        # Where the dates hardly differ, float32 rounds the small difference of large features, theirs as ours (against
        # float64 by up to 5e-4 of it): there a hundred-thousandth of the threshold is asked for.
        # The sums of the deepest are the longest, and channels last adds them up in another order.
        rtol = 3e-4 if detector.backbone == "resnet152" else 1e-4
        np.testing.assert_allclose(distances[::STEP, ::STEP], wanted, rtol=rtol, atol=1e-5)
        assert distances.dtype == np.float32
        assert (values.dtype, found.change.attrs["_FillValue"]) == (np.uint8, 254)
        clear = np.abs(distances - 1) > 1e-4  # on another processor a pixel on the threshold may fall the other way
        np.testing.assert_array_equal(values[clear], np.where(changed, 255, 0)[clear])
        assert clear.mean() > 0.99


def test_the_names_and_shapes_of_every_backbone_are_known(recorded):
    assert {each.backbone for each in DETECTORS} == {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
    assert {each.attention for each in DETECTORS} == {"PAM", "BAM"}


def test_it_is_run_natively_unless_its_own_function_is_asked_for(model):
    path = model()
    definition = load_definition(path)
    assert definition.inference_function_name == "ArcGISImageClassifier.py"
    assert [choose_kind(definition, runner) for runner in ("auto", "native")] == ["native", "native"]
    assert choose_kind(definition, "raster-function") == "raster-function"
    with pytest.raises(UntrustedCodeError, match="ArcGISImageClassifier"):
        gd.detect_change(*rasters(SMALL.pair("noise")), path, runner="raster-function")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"ModelName": None}, "native"),
        ({"ModelName": None, "InferenceFunction": None}, "native"),
        ({"InferenceFunction": "[Functions]System\\DeepLearning\\ArcGISLearn\\ArcGISImageClassifier.py"}, "native"),
        ({"InferenceFunction": "Mine.py"}, "raster-function"),
        ({"ModelParameters": {"backbone": "vgg16", "attention_type": "PAM"}}, "raster-function"),
        ({"ModelName": "UnetClassifier", "ModelConfiguration": "_unet"}, "raster-function"),
        ({"ModelName": None, "Framework": "PyTorch"}, "raster-function"),
        ({"ModelFile": "whole.pt"}, "raster-function"),
    ],
    ids=str,
)
def test_only_what_arcgis_learn_trained_for_change_detection_is_taken(model, keys, kind):
    assert choose_kind(load_definition(model(**keys))) == kind


def test_padding_batch_size_and_threshold_have_the_references_defaults_and_its_square_rule(model):
    runner = load(model())
    assert (runner.tile.size_yx, runner.tile.padding, runner.batch_size) == ((32, 32), 8, 1)  # on a CPU one by one
    assert (runner.output, runner.returns, runner.threshold) == ("distance", "scores", 1.0)
    for asked, given in ((1, 1), (3, 1), (5, 4), (15, 9), (16, 16)):
        assert change_detector._square_batch(load_definition(model()), {"batch_size": str(asked)}) == given
    assert load(model(ImageWidth=64)).tile.size_yx == (32, 32), "arcgis.learn's function reads ImageHeight alone"


def test_the_threshold_can_be_set_by_argument_and_by_the_definition(model):
    pair = rasters(SMALL.pair("changed"))
    asked = {"return_probability_raster": "True", "threshold": "0.5"}
    found = gd.detect_change(*pair, model(), arguments=asked, processor="cpu").compute()
    np.testing.assert_array_equal(found.change == 255, found.confidence > 0.5)
    assert found.confidence.attrs["long_name"] == "distance of the class"
    assert load(model(GeodlDask={"threshold": 2.5})).threshold == 2.5
    assert load(model(GeodlDask={"threshold": 2.5}), threshold="3").threshold == 3


def test_the_class_of_change_is_the_first_that_is_not_0(model):
    classes = [{"Value": value, "Name": str(value), "Color": [value, 0, 0]} for value in (0, 9)]
    found = gd.detect_change(*rasters(SMALL.pair("changed")), model(Classes=classes), processor="cpu").compute()
    assert set(np.unique(found)) == {0, 9}


def test_statistics_say_what_becomes_minus_1_to_1(model):
    pair = SMALL.pair("texture")[:, :, :192, :224]  # whole tiles, since what lies outside is 0 as stored
    low, high = np.array([10.0, 0, 100]), np.array([20.0, 4000, 300])
    spread = (pair / 255 * (high - low)[:, None, None] + low[:, None, None]).astype(np.float32)
    stats = {"band_min_values": [*low], "band_max_values": [*high], "scaled_mean_values": [9] * 3}
    asked = {"return_probability_raster": "True", "padding": 0}
    plain = gd.detect_change(*rasters(pair), model(), arguments=asked, processor="cpu").compute()
    scaled = gd.detect_change(*rasters(spread), model(NormalizationStats=stats), arguments=asked, processor="cpu")
    np.testing.assert_allclose(scaled.confidence, plain.confidence, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beside", [{"opt": {}}, {}], ids=["opt", "nothing"])
def test_weights_may_lie_in_model_beside_opt(model, beside):
    load(model(lambda state: {"model": state, **beside}))


def test_the_steps_of_data_parallel_may_be_there_or_not(model):
    load(model(lambda state: {name.replace(".module.", "."): tensor for name, tensor in state.items()}))
    load(model(lambda state: {f"module.{name}": tensor for name, tensor in state.items()}))


def without(name):
    return lambda state: {each: tensor for each, tensor in state.items() if each != name}


def with_tensor(name, tensor):
    return lambda state: {**state, name: tensor}


KEY = "netA.Self_Att.stages.3.f_key.0.weight"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without(KEY), rf"missing: {KEY}\."),
        (with_tensor("netF.module.decoder.dr6.conv1.weight", torch.zeros(2)), r"not known: netF.*dr6\.conv1\.weight\."),
        (with_tensor(KEY, torch.zeros(8, 64, 3, 3)), rf"{KEY} is \(8, 64, 3, 3\) float32 where \(8, 64, 1, 1\)"),
        (with_tensor(KEY, torch.zeros(8, 64, 1, 1, dtype=torch.int64)), "int64 where"),
        (with_tensor(KEY, torch.zeros(8, 64, 1, 1).to_sparse()), "is no plain tensor"),
        (with_tensor(KEY, "text"), "is no plain tensor"),
        (lambda state: [*state.values()], "holds a list"),
        (lambda state: {}, "holds a dict"),
        (lambda state: dict(list(state.items())[:40]), r"missing: (\S+, ){7}\S+ and \d+ more"),
    ],
)
def test_weights_of_another_network_are_refused_and_each_difference_named(model, weights, message):
    with pytest.raises(ModelFileError, match=message):
        load(model(weights))


def test_weights_of_another_backbone_or_attention_are_refused(model):
    with pytest.raises(ModelFileError, match=r"missing: .*layer1\.2\.conv1\.weight"):
        load(model(ModelParameters={"backbone": "resnet34", "attention_type": "PAM"}))
    with pytest.raises(ModelFileError, match=r"query_conv\.weight.*not known: .*stages\.0"):
        load(model(ModelParameters={"backbone": "resnet18", "attention_type": "BAM"}))


class Witness:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.attack("pickled weights", "an object that acts when it is unpickled, under every suffix that is run")
def test_a_pickled_payload_is_refused_and_does_not_run(model, tmp_path):
    witness = tmp_path / "ran"
    path = model(lambda state: {**state, KEY: Witness(witness)})
    with pytest.raises(ModelFileError, match="anything else in the file may be code"):
        load(path)
    path.with_name("resnet18_pam.pth").write_bytes(pickle.dumps(Witness(witness)))
    with pytest.raises(ModelFileError, match="cannot be loaded as weights alone"):
        load(path)
    assert not witness.exists()
    pickle.loads(path.with_name("resnet18_pam.pth").read_bytes())
    assert witness.exists(), "so the check above could have failed"


def test_a_file_that_is_damaged_unpacks_to_much_or_is_missing_is_refused(model):
    path = model()
    weights = path.with_name("resnet18_pam.pth")
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ModelFileError, match="cannot be loaded as weights alone"):
        load(path)
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(20_000_000))
    with pytest.raises(ModelFileError, match="unpacks to 20,000,000 bytes"):
        load(path)
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"names the ModelFile .*resnet18_pam\.pth is not there"):
        load(path)


def test_the_tiles_that_the_attention_takes_are_those_that_arcgis_learn_answered_on():
    assert {size for size in TRIED if takes_tile("PAM", size)} == TAKEN
    assert all(takes_tile("BAM", size) for size in TRIED)


def test_a_tile_that_the_attention_refuses_is_refused_before_any_work(model):
    path = model(ImageHeight=48, ImageWidth=48)
    path.with_name("resnet18_pam.pth").write_bytes(b"")  # so not even the weights are read
    message = "tiles of 48 pixels .*12 x 12 features.*32 and 64 pixels work"
    with pytest.raises(ModelDefinitionError, match=message):
        gd.detect_change(*rasters(SMALL.pair("noise")), path)
    assert "tiles of 48 pixels" in gd.model_info(path).obstacle


@pytest.mark.parametrize(
    ("keys", "arguments", "error", "message"),
    [
        ({"ImageHeight": None, "ImageWidth": None}, {}, ModelDefinitionError, "no ImageHeight"),
        ({"ModelParameters": {"backbone": "vgg16"}, "InferenceFunction": None}, {}, ModelDefinitionError, "known are"),
        ({"ModelParameters": "PAM", "InferenceFunction": None}, {}, ModelDefinitionError, "an object is needed"),
        ({"GeodlDask": {"output": "logits"}}, {}, ModelDefinitionError, "answers with distances"),
        ({"NormalizationStats": [1]}, {}, ModelDefinitionError, "NormalizationStats is"),
        ({"NormalizationStats": {"band_min_values": [0], "band_max_values": [0]}}, {}, ModelDefinitionError, "by zero"),
        ({"NormalizationStats": {"band_min_values": None}}, {}, ModelDefinitionError, "a list of numbers"),
        ({"ExtractBands": [*range(8)]}, {}, BandCountError, r"take 3 band\(s\) of each date, and they are given 4"),
        ({}, {"threshold": "-1"}, ModelArgumentError, "threshold is '-1'; a number of at least 0"),
        ({}, {"threshold": "nan"}, ModelArgumentError, "threshold is 'nan'"),
        ({}, {"score_threshold": "0.6"}, ModelArgumentError, "score_threshold"),
        ({}, {"batch_size": "0"}, ModelArgumentError, "at least 1"),
        ({}, {"padding": "16"}, TileGeometryError, "leaves nothing"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(model, keys, arguments, error, message):
    with pytest.raises(error, match=message):
        load(model(**keys), **arguments)


def test_rasters_with_another_number_of_bands_are_refused(model):
    with pytest.raises(BandCountError, match="takes 3 of each date"):
        load(model(), bands=4)


def test_model_info_shows_who_runs_it_and_reads_no_weights(model):
    path = model()
    path.with_name("resnet18_pam.pth").write_bytes(b"\x80\x02cos\nsystem\n")
    info = gd.model_info(path)
    assert (info.carries_code, info.runner, info.arguments_are_all, info.obstacle) == (False, "native", True, None)
    shown = {each.name: each.default for each in info.arguments}
    assert shown == {"padding": "8", "batch_size": "4", "return_probability_raster": "False", "threshold": "1"}
    text = CliRunner().invoke(cli, ["model-info", str(path)]).stdout
    assert (
        " ".join(next(line for line in text.splitlines() if line.startswith("Run by")).split()) == "Run by geodl-dask"
    )
