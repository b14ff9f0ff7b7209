"""What can be said of a model without rasters, and without running its code."""

import json
import zipfile

import pytest
from click.testing import CliRunner
from conftest import write_definition
from raster_functions.hosting import write_model

import geodl_dask as gd
from geodl_dask.cli import cli

FUNCTION = """
class Function:
    def getParameterInfo(self):
        return []

    def updatePixels(self, tlc, shape, props, **blocks):
        pass
"""
WITNESS = "import pathlib\npathlib.Path({path!r}).write_text('ran')\n"


def run(*words) -> str:
    done = CliRunner().invoke(cli, ["model-info", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def package(tmp_path):
    """An untrusted .dlpk whose every Python file leaves a witness when it is imported."""
    code = WITNESS.format(path=str(tmp_path / "ran"))
    path = tmp_path / "model.dlpk"
    emd = write_definition(tmp_path / "m.emd", InferenceFunction="Function.py", ModelFile="weights.pth", BatchSize=9)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(emd, "model.emd")
        archive.writestr("weights.pth", b"\x80\x02cos\nsystem\n")
        for name in ("Function.py", "__init__.py", "conftest.py", "sitecustomize.py", "json.py"):
            archive.writestr(name, code + FUNCTION)
    return path


def test_an_untrusted_package_is_described_and_none_of_its_code_runs(package, tmp_path):
    info = gd.model_info(package)
    assert (info.carries_code, info.runner, info.arguments_are_all) == (True, "raster-function", False)
    assert [(each.name, each.default) for each in info.arguments] == [("padding", "4"), ("batch_size", "9")]
    assert [file.key for file in info.files] == ["ModelFile", "InferenceFunction"]
    text, parsed = run(package), json.loads(run(package, "--json"))
    assert "only with --trust-code" in text
    assert parsed["carries_code"] is True
    assert not (tmp_path / "ran").exists()
    gd.model_info(package, trust_code=True)
    assert (tmp_path / "ran").exists()  # so the check above could have failed


def test_trust_adds_the_arguments_of_the_raster_function(tmp_path):
    model = write_model(tmp_path, "ThresholdedPair")
    assert gd.model_info(model).arguments == ()
    trusted = {each.name: each.default for each in gd.model_info(model, trust_code=True).arguments}
    assert trusted == {"padding": "0", "score_threshold": "0.9", "batch_size": "1"}
    assert "score_threshold" in run(model, "--trust-code")
    assert "score_threshold" not in run(model)


def test_a_native_model_says_all_without_trust(models):
    info = gd.model_info(models["onnx"])
    assert (info.carries_code, info.runner, info.arguments_are_all) == (False, "native", True)
    assert [(each.name, each.default) for each in info.arguments] == [
        ("padding", "4"), ("batch_size", "4"), ("return_probability_raster", "False"),
    ]  # fmt: skip
    assert info.files[0].size_bytes == models["onnx"].with_name("toy.onnx").stat().st_size
    assert info.tile_yx == (16, 16)


def test_the_text_shows_what_a_person_asks_for(models):
    text = run(models["pt2"])
    for fact in ("ImageClassification", "PyTorch", "16 x 16", "toy.pt2", "No change", "padding", "0, 1, 2, 3, 4, 5"):
        assert fact in text


def test_the_json_is_the_info(models):
    parsed = json.loads(run(models["pt2"], "--json"))
    assert parsed["digest"] == gd.model_info(models["pt2"]).digest
    assert parsed["classes"][1] == {"value": 7, "name": "Change", "color": [200, 30, 30]}


def test_what_the_function_prints_is_not_in_the_json(tmp_path):
    (tmp_path / "Function.py").write_text("print('hello')\n" + FUNCTION)
    model = write_definition(tmp_path / "m.emd", InferenceFunction="Function.py", ModelFile=None)
    done = CliRunner().invoke(cli, ["model-info", str(model), "--trust-code", "--json"])
    assert json.loads(done.stdout)["runner"] == "raster-function"
    assert "hello" in done.stderr


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    printed = run(write_definition(tmp_path / "m.emd", ModelFile="gone.pt"))
    assert "gone.pt (not found)" in printed
    assert "nobody here: it names the ModelFile 'gone.pt'" in printed


def test_a_broken_definition_ends_in_one_message(tmp_path):
    (tmp_path / "broken.emd").write_text('{"ModelFile": "weights\\toy.pth",')
    done = CliRunner().invoke(cli, ["model-info", str(tmp_path / "broken.emd")])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.output


def test_model_that_nobody_can_run_says_why(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"weights")
    info = gd.model_info(write_definition(tmp_path / "model.emd", ModelFile="weights.npz"))
    assert "a TorchScript (.pt), torch.export" in info.obstacle
    printed = CliRunner().invoke(cli, ["model-info", str(tmp_path / "model.emd")]).stdout
    assert "nobody here: it names no InferenceFunction, and its ModelFile is 'weights.npz'" in printed
