"""One's own network as a package: what is written, what is refused, and who runs it."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import CLASSES, ToyNetwork, save_network
from onnx import load_model, save_model

import geodl_dask as gd
from geodl_dask.cli import cli
from geodl_dask.definition import load_definition
from geodl_dask.errors import (
    BandCountError,
    ModelDefinitionError,
    ModelFileError,
    OutputError,
    OutputExistsError,
    RequestError,
    TileGeometryError,
    UntrustedCodeError,
)

SAID = {"classes": CLASSES, "bands": 3, "tile_size": 16, "padding": 4}


class Pair(torch.nn.Module):
    """The toy network with batch norm, for two inputs."""

    def __init__(self, answer=lambda scores: scores) -> None:
        super().__init__()
        self.toy, self.norm, self.answer = ToyNetwork(), torch.nn.BatchNorm2d(2), answer

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return self.answer(self.norm(self.toy(torch.cat([before, after], 1))))


@pytest.fixture(scope="module")
def network_file(models):
    return models["pt2"].with_name("toy.pt2")


@pytest.fixture
def pack(tmp_path, network_file):
    """pack(model, keywords...): the package of the toy network, or of another."""

    def pack_one(model=None, out="model.dlpk", **said):
        return gd.pack_model(network_file if model is None else model, tmp_path / out, **{**SAID, **said})

    return pack_one


def keys_of(package) -> dict:
    return load_definition(package).keys


def classes_of(model, pair, **options) -> np.ndarray:
    return np.asarray(gd.detect_change(*pair, model, processor="cpu", tile_size="model", **options))


def test_package_gives_the_classes_of_the_definition_that_it_was_made_of(pack, models, pair):
    packed = pack()
    assert packed.path.name == "model.dlpk"
    np.testing.assert_array_equal(classes_of(packed.path, pair), classes_of(models["pt2"], pair))


def test_package_says_what_the_network_answered(pack, network_file, toy_network):
    packed = pack()
    noise = np.random.default_rng(0).random((2, 1, 3, 16, 16), dtype=np.float32) * 255
    with torch.inference_mode():
        scores = toy_network(torch.from_numpy(np.concatenate(noise.astype(np.uint8), axis=1)).float())
    assert (packed.input_shape, packed.answer_shape) == ((1, 6, 16, 16), (1, 2, 16, 16))
    assert packed.answer_range == pytest.approx((float(scores.min()), float(scores.max())), abs=1e-4)
    assert (packed.output, packed.was_said) == ("logits", False)
    seen = {each.value: share for each, share in packed.classes_seen.items()}
    assert seen[7] == pytest.approx(float((scores[:, 1] > scores[:, 0]).float().mean()), abs=0.01)
    assert sum(seen.values()) == pytest.approx(1)
    assert packed.size_bytes == packed.path.stat().st_size > network_file.stat().st_size
    assert packed.digest == gd.model_info(packed.path).digest


def test_package_has_everything_at_its_root_and_says_all_that_was_read_off(pack):
    packed = pack(classes="0 No change;7 Change #c81e1e", name="Roads", description="New roads", mean=100, std=[50.0])
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.namelist() == ["model.emd", "toy.pt2", "GeodlDaskFunction.py"]
    keys = keys_of(packed.path)
    assert keys["ModelName"] == "Roads"
    assert keys["Description"] == "New roads"
    assert keys["ExtractBands"] == [0, 1, 2, 3, 4, 5]
    assert (keys["ImageHeight"], keys["ImageWidth"], keys["Padding"]) == (16, 16, 4)
    assert [each["Color"] for each in keys["Classes"]] == [[227, 227, 223], [200, 30, 30]]
    assert keys["GeodlDask"] == {"input": "stack", "mean": [100.0], "std": [50.0], "output": "logits"}


def test_bytes_of_a_package_do_not_depend_on_the_time(pack, network_file):
    first = pack()
    content = first.path.read_bytes()
    os.utime(network_file, (1e9, 1e9))
    second = pack(overwrite=True)
    assert second.path.read_bytes() == content
    assert second.digest == first.digest
    with zipfile.ZipFile(second.path) as archive:
        assert {each.date_time for each in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


WITNESS = "import pathlib\npathlib.Path({path!r}).write_text('ran')\nclass GeodlDaskFunction: pass\n"


def with_function(package, code: str, name: str):
    """The package with another raster function in it."""
    other = package.with_name("other.dlpk")
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(other, "w") as target:
        for member in source.namelist():
            if member.endswith(".emd"):
                target.writestr(member, json.dumps({**json.loads(source.read(member)), "InferenceFunction": name}))
            elif not member.endswith(".py"):
                target.writestr(member, source.read(member))
        target.writestr(name, code)
    return other


def test_package_runs_without_trust_and_none_of_its_code_does(pack, pair, tmp_path):
    code = WITNESS.format(path=str(tmp_path / "ran"))
    disguised = with_function(pack().path, code, "GeodlDaskFunction.py")
    classes_of(disguised, pair)
    info = gd.model_info(disguised)
    assert (info.runner, info.carries_code) == ("native", False)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UntrustedCodeError, match=r"GeodlDaskFunction\.py"):
        classes_of(disguised, pair, runner="raster-function")
    assert not (tmp_path / "ran").exists()


def test_package_with_a_function_of_another_name_needs_trust(pack, pair):
    other = with_function(pack().path, "class Other: pass\n", "Other.py")
    with pytest.raises(UntrustedCodeError, match=r"Other\.py"):
        classes_of(other, pair)


def test_definition_with_our_function_and_weights_that_are_no_network_is_run_by_the_function(pack, tmp_path):
    keys = keys_of(pack().path)
    for change in ({"ModelFile": "weights.pth"}, {"GeodlDask": None}):
        text = json.dumps({key: value for key, value in {**keys, **change}.items() if value is not None})
        (tmp_path / "model.emd").write_text(text)
        assert gd.model_info(tmp_path / "model.emd").runner == "raster-function"


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"classes": None}, ModelDefinitionError, r"the classes \(--classes"),
        ({"bands": None, "tile_size": None}, ModelDefinitionError, r"number of bands .*; the size of a tile"),
        ({"classes": "0 No change;Change"}, ModelDefinitionError, "The class 'Change' is not"),
        ({"classes": "0 a;1 b;2 c"}, ModelFileError, "2 scores per pixel, and Classes lists 3"),
        ({"bands": 2}, ModelFileError, r"does not take \(4, 4, 16, 16\)"),
        ({"bands": [0, 1, 2]}, BandCountError, "cannot have as many each"),
        ({"padding": 8}, TileGeometryError, "padding 8 leaves nothing"),
        ({"model_padding": 2}, ModelFileError, r"\(1, classes, 12, 12\) is needed"),
        ({"output": "probabilities"}, ModelFileError, "is said to give probabilities"),
        ({"output": "classes"}, ModelFileError, "answers with 2 scores per pixel"),
        ({"input": "pair"}, ModelFileError, "does not take"),
        ({"mean": [1, 2]}, BandCountError, "normalises 2"),
        ({"std": 0}, ModelDefinitionError, "numbers above 0"),
        ({"minimum": 3, "maximum": 3}, ModelDefinitionError, "each minimum below its maximum"),
        ({"minimum": 3}, ModelDefinitionError, "both of the pair"),
        ({"mean": 1, "minimum": 0, "maximum": 1}, ModelDefinitionError, "one pair of them"),
        ({"pixel_type": "byte8"}, RequestError, "pixel_type is 'byte8'"),
        *(
            ({"pixel_type": name}, RequestError, r"pixel_type is '.*'; a type of numpy, such as uint8")
            for name in ("S3", "object", "datetime64[s]", "complex64", "bool", "(2,)u1", "(2,", "(9999999999999999,)u1")
        ),
        ({"definition": {"Pading": 4}}, ModelDefinitionError, "Did you mean Padding"),
        ({"definition": {"GeodlDask": {"means": [1]}}}, ModelDefinitionError, "unknown key 'means'"),
        ({"definition": {"Classes": {1, 2}}}, ModelDefinitionError, "what JSON has no word for"),
        ({"definition": "gone.json"}, ModelDefinitionError, r"gone\.json cannot be read"),
        ({"out": "model.zip"}, OutputError, r"does not end in \.dlpk"),
        ({"out": "gone/model.dlpk"}, OutputError, "does not exist"),
        ({"model": "gone.pt2"}, ModelFileError, "is no file"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(pack, tmp_path, said, error, message):
    with pytest.raises(error, match=message):
        pack(**said)
    assert list(tmp_path.iterdir()) == []


def test_misspelt_keyword_is_an_error(pack):
    with pytest.raises(TypeError, match="treshold is not known; known are classes,"):
        pack(treshold=0.3)


def test_url_is_no_place_for_a_package(network_file):
    with pytest.raises(OutputError, match="is a URL"):
        gd.pack_model(network_file, "s3://bucket/model.dlpk", **SAID)


@pytest.mark.parametrize("name", ["weights.pth", "model.h5"])
def test_files_that_are_no_plain_network_are_refused(pack, tmp_path, name):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(ModelFileError, match=r"does not end in \.pt, \.pt2, \.onnx.*state dict"):
        pack(tmp_path / name)


def test_state_dict_under_the_suffix_of_torchscript_is_refused(pack, tmp_path, toy_network):
    torch.save(toy_network.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelFileError, match="state dict"):
        pack(tmp_path / "weights.pt")


def test_package_is_replaced_only_when_asked_and_kept_when_the_new_one_fails(pack):
    before = pack().path.read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        pack(name="other")
    with pytest.raises(ModelFileError):
        pack(classes="0 a;1 b;2 c", overwrite=True)
    assert pack(overwrite=True).path.read_bytes() == before
    assert keys_of(pack(name="other", overwrite=True).path)["ModelName"] == "other"


@pytest.mark.parametrize(("exporter", "suffix"), [("torch.export", ".pt2"), ("torch.jit", ".pt")])
def test_module_is_exported_in_eval_mode_and_left_as_it_was(pack, pair, exporter, suffix):
    module = Pair().train()
    module.norm.running_mean += 0.5
    packed = pack(module, input="pair", exporter=exporter)
    assert module.training and module.norm.num_batches_tracked == 0
    assert keys_of(packed.path)["ModelFile"] == f"model{suffix}"
    plain = save_network(torch.nn.Sequential(Stacked(module)), packed.path.with_name("plain.pt"))
    expected = pack(plain, out="plain.dlpk")
    np.testing.assert_array_equal(classes_of(packed.path, pair), classes_of(expected.path, pair))


class Stacked(torch.nn.Module):
    """Gives a stack to a network that takes a pair."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return self.network(stack[:, :3], stack[:, 3:])


def test_exported_module_takes_tiles_of_any_size_where_the_network_does(pack, pair):
    packed = pack(ToyNetwork())
    told = gd.detect_change(*pair, packed.path, processor="cpu", tile_size=96).attrs["prediction"]
    assert "as one of" in told


def test_refusal_of_a_module_names_no_folder_that_is_gone_by_then(pack):
    with pytest.raises(ModelFileError, match=r"^model\.pt2 answers with 2 scores per pixel, and Classes lists 3"):
        pack(ToyNetwork(), classes="0 a;1 b;2 c")


def test_module_without_an_export_is_refused_with_another_way(pack, tmp_path):
    class Undecided(torch.nn.Module):
        def forward(self, stack):
            return stack[:, :2] if stack.sum() > 0 else stack[:, 2:4]

    with pytest.raises(ModelFileError, match=r"Undecided cannot be exported by torch\.export .*exporter='torch\.jit'"):
        pack(Undecided())
    with pytest.raises(ModelFileError, match=r"torch\.export or torch\.jit is needed"):
        pack(ToyNetwork(), exporter="onnx")
    assert list(tmp_path.iterdir()) == []


CLASS_INFORMATION = {
    "ImportDeepLearningModelToEsriExtraInfo": 0, "Version": 1, "Classifier": "PyTorch", "NumberRasterBands": 6,
    "MiniBatchSize": 9, "Classes": CLASSES, "ImageHeight": 16, "ImageWidth": 16,
}  # fmt: skip


@pytest.mark.parametrize("form", ["definition.yaml", "definition.json", "classInfo.json", "a dict"])
def test_description_is_read_from_a_file_of_any_form(network_file, tmp_path, form):
    keys = {"Classes": CLASSES, "ExtractBands": [0, 1, 2, 3, 4, 5], "ImageHeight": 16, "BatchSize": 9}
    keys = CLASS_INFORMATION if form == "classInfo.json" else {**keys, "ModelFile": "other.pt", "Extra": {"kept": 1}}
    if form != "a dict":
        (tmp_path / form).write_text(yaml.safe_dump(keys) if form.endswith("yaml") else json.dumps(keys))
    given = keys if form == "a dict" else tmp_path / form
    packed = gd.pack_model(network_file, tmp_path / "model.dlpk", definition=given, padding=2)
    written = keys_of(packed.path)
    assert written["ExtractBands"] == [0, 1, 2, 3, 4, 5]
    assert (written["BatchSize"], written["Padding"], written["ModelFile"]) == (9, 2, "toy.pt2")
    assert [each["Name"] for each in written["Classes"]] == ["No change", "Change"]
    assert "Version" not in written
    assert ("Extra" in written) == (form != "classInfo.json")


def test_keywords_win_over_the_file_also_one_by_one_in_the_object_of_ours(pack):
    native = {"mean": [1, 2, 3], "std": [4, 5, 6], "output": "logits"}
    packed = pack(definition={"Padding": 1, "GeodlDask": native}, mean=[0.0, 0.0, 0.0])
    keys = keys_of(packed.path)
    assert keys["Padding"] == 4
    assert keys["GeodlDask"] == {"input": "stack", "mean": [0, 0, 0], "std": [4, 5, 6], "output": "logits"}
    assert packed.was_said


def test_bad_yaml_is_named_with_its_place(pack, tmp_path):
    (tmp_path / "model.yml").write_text("Classes: [\nPadding: 4")
    with pytest.raises(ModelDefinitionError, match=r"model\.yml is not YAML: .*line 2"):
        pack(definition=tmp_path / "model.yml")


def test_minimum_and_maximum_are_what_statistics_of_a_definition_are(pack, pair):
    by_keyword = pack(out="a.dlpk", minimum=[0, 10, 20], maximum=[255, 200, 100])
    stats = {"band_min_values": [0, 10, 20], "band_max_values": [255, 200, 100]}
    by_statistics = pack(out="b.dlpk", definition={"NormalizationStats": stats})
    for packed in (by_keyword, by_statistics):
        native = keys_of(packed.path)["GeodlDask"]
        assert (native["mean"], native["std"]) == ([0, 10, 20], [255, 190, 80])
        assert "NormalizationStats" not in keys_of(packed.path)
    np.testing.assert_array_equal(classes_of(by_keyword.path, pair), classes_of(by_statistics.path, pair))


def test_network_with_a_fixed_batch_says_so(pack, tmp_path, toy_network):
    program = torch.export.export(toy_network, (torch.zeros(3, 6, 16, 16),))
    torch.export.save(program, tmp_path / "fixed.pt2")
    packed = pack(tmp_path / "fixed.pt2", batch_size=4)
    assert keys_of(packed.path)["BatchSize"] == 3
    assert packed.input_shape == (3, 6, 16, 16)


def test_tensors_beside_an_onnx_file_come_along(pack, models, pair, tmp_path):
    model = load_model(models["onnx"].with_name("toy.onnx"))
    save_model(model, tmp_path / "toy.onnx", save_as_external_data=True, location="tensors.bin", size_threshold=0)
    packed = pack(tmp_path / "toy.onnx")
    with zipfile.ZipFile(packed.path) as archive:
        assert "tensors.bin" in archive.namelist()
    (tmp_path / "tensors.bin").unlink()
    np.testing.assert_array_equal(classes_of(packed.path, pair), classes_of(models["onnx"], pair))


def test_network_of_one_raster_is_packed_for_classify(pack, pair, tmp_path):
    file = save_network(ToyNetwork(bands=3), tmp_path / "single.pt2", bands=3)
    packed = pack(file, rasters=1)
    assert keys_of(packed.path)["ExtractBands"] == [0, 1, 2]
    assert packed.input_shape == (1, 3, 16, 16)
    assert set(np.unique(gd.classify_raster(pair[0], packed.path, processor="cpu"))) == {0, 7}


def test_command_packs_and_says_what_it_saw(network_file, tmp_path):
    words = [
        "--classes",
        "0 No change;7 Change",
        "--bands",
        "3",
        "--tile-size",
        "16",
        "--mean",
        "1,2,3",
        "--padding",
        4,
    ]
    done = CliRunner().invoke(cli, ["pack-model", str(network_file), str(tmp_path / "m.dlpk"), *map(str, words)])
    assert done.exit_code == 0, done.output
    assert "Noise of 1 x 6 x 16 x 16 (tile, band, y, x) was answered with 1 x 2 x 16 x 16" in done.stdout
    assert "That is logits, read off the answer; if that is wrong, say --output." in done.stdout
    assert "7 Change" in done.stdout
    assert gd.model_info(tmp_path / "m.dlpk").digest in done.stdout
    assert keys_of(tmp_path / "m.dlpk")["GeodlDask"]["mean"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--bands", "three"], "is not a number"), ([], "Not said of the model"), (["--rasters", "3"], "1<=x<=2")],
)
def test_command_that_asks_wrongly_ends_with_status_2(network_file, tmp_path, words, message):
    done = CliRunner().invoke(cli, ["pack-model", str(network_file), str(tmp_path / "m.dlpk"), *words])
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []
