"""How raster functions fail, and how they live beside others in one process."""

import importlib
import importlib.util
import logging
import os
import pickle
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from raster_functions.hosting import FUNCTIONS, check_against_network, load, one_tile, predict_whole, write_model

from geodl_dask.definition import load_definition
from geodl_dask.errors import (
    DeviceError,
    InferenceError,
    MissingDependencyError,
    ModelDefinitionError,
    ModelFileError,
)
from geodl_dask.runners import RunnerSpec, load_runner


@pytest.fixture
def model(tmp_path):
    """Write a definition: model("Recorder") or model("PairClassifier", BatchSize=4)."""
    return partial(write_model, tmp_path)


# Where functions fail


def test_an_error_in_the_function_tells_where_what_and_the_functions_own_lines(model):
    runner = load(model("Raises"), statement="raise ValueError('out of cheese')")
    with pytest.raises(InferenceError) as caught:
        runner.predict(one_tile(runner))
    text = str(caught.value)
    where = "Predicting the 16 x 12 pixels from row 160, column 480 on"
    assert text.startswith(f"{where}, Raises.py raised ValueError: out of cheese\nThe cause is in the function")
    assert "in go_deeper" in text
    assert "raster_function_loading" not in text
    assert caught.value.args == (text,)
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


@pytest.mark.parametrize(
    ("statement", "cause"),
    [
        ("import segment_nothing", "nor installed. If it is a library: pip install segment_nothing"),
        ("import GPUtil", "It needs GPUtil: pip install gputil"),
        ("np.broadcast_to(np.zeros(1), 3)[0] = 1", "an array that may not be written"),
        ("int('8.0')", "write it without a point"),
        ("float('many')", "as a number and got 'many'"),
        ("np.float", "written for an older numpy"),
        ("{}['threshhold']", "It looks for 'threshhold'"),
        ("open('.' + chr(92) + 'a.txt')", "Windows separators"),
        ("raise RuntimeError('CUDA out of memory')", "a smaller batch_size"),
        ("import torch; torch.zeros(1).cuda()", "processor type gpu"),
        ("import arcpy; arcpy.Raster('a')", "It needs arcpy's Raster, which only ArcGIS has"),
        ("import json; json.loads('{')", "A JSON file that it reads is broken"),
        ("1 / 0", "It divided by 0"),
        ("raise SystemExit(3)", "The cause is in the function"),
    ],
)
def test_the_likely_cause_is_named(model, statement, cause):
    runner = load(model("Raises"), statement=statement)
    with pytest.raises(InferenceError, match=cause):
        runner.predict(one_tile(runner))


def test_the_cause_is_found_behind_the_error_that_the_function_made_of_it(model):
    statement = "try: np.float\nexcept AttributeError: raise RuntimeError('Inferencing was not successful.')"
    runner = load(model("Raises"), statement=statement)
    with pytest.raises(InferenceError, match=r"(?s)not successful.*older numpy.*During handling"):
        runner.predict(one_tile(runner))


@pytest.mark.parametrize(
    ("statement", "error", "cause"),
    [
        ("raise RuntimeError('odd')", ModelFileError, "RuntimeError: odd"),
        ("import tensorflow_of_old", MissingDependencyError, "pip install tensorflow_of_old"),
        ("import arcpy.sa", MissingDependencyError, r"arcpy\.sa, which only ArcGIS has"),
        ("from json import no_such_name", MissingDependencyError, "json is installed in a version that does not fit"),
        ("open('/no/such/weights.pth')", ModelFileError, "belongs to the model and is not there"),
        ("raise KeyError('ImageSpaceUsed')", ModelFileError, "It looks for 'ImageSpaceUsed'"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_before_any_pixel_is_read(model, statement, error, cause):
    with pytest.raises(error, match=rf"(?s)Loading .*Raises\.emd, Raises\.py raised.*{cause}"):
        load(model("Raises", Statement=statement))


def test_framework_folder_that_is_not_there_is_named(model):
    with pytest.raises(ModelDefinitionError, match="The definition's Framework is 'Nettworks', and there is no folder"):
        load(model("PairClassifier", Framework="Nettworks"))


def test_missing_key_of_the_definition_is_named(model):
    with pytest.raises(ModelFileError, match="'ModelConfiguration': a key that the definition lacks"):
        load(model("PairClassifier", ModelConfiguration=None))


def test_weights_of_another_network_are_named_as_such(model):
    path = model("PairClassifier", ModelConfiguration="TorchDifference", ModelFile="other.pth")
    torch.save({"some.weight": torch.zeros(1)}, path.with_name("other.pth"))
    with pytest.raises(ModelFileError, match="The weights do not belong to the network"):
        load(path)


@pytest.mark.parametrize(
    ("function", "source", "message"),
    [
        ("TwoClasses", None, "TwoClasses.py defines First, Second; a class named TwoClasses"),
        ("Empty", "x = 1", "Empty.py defines no class"),
        ("Detector", "class Detector:\n getParameterInfo = vectorize = print", "no updatePixels.*an object detector"),
        ("Broken", "def broken(:", "Broken.py raised.*SyntaxError"),
    ],
)
def test_a_file_without_a_usable_class_is_refused(model, function, source, message):
    path = model(function)
    if source is not None:
        path.with_suffix(".py").write_text(source)
    with pytest.raises(ModelDefinitionError, match=f"(?s){message}"):
        load(path)


def test_three_rasters_are_refused(model):
    path = model("TwoRasters")
    file = path.with_suffix(".py")
    file.write_text(file.read_text().replace("rasters = [", 'rasters = [{"name": "third", "dataType": "raster"}, '))
    with pytest.raises(ModelDefinitionError, match="declares the raster parameters"):
        load(path)


def test_a_function_that_is_not_there_says_where_it_was_looked_for(model):
    name = "[Functions]System\\DeepLearning\\ArcGISLearn\\NoSuchFunction.py"
    with pytest.raises(ModelDefinitionError, match=r"(?s)GEODL_DASK_FUNCTIONS.*beside the definition.*arcgis"):
        load(model("FileName", InferenceFunction=name))


# Living beside others


def test_two_packages_with_files_of_the_same_names_do_not_disturb_each_other(model):
    path_before = list(sys.path)
    assert {"plain", "values"}.isdisjoint(sys.modules)
    runners = []
    for number in (1, 2):
        path = model("Answers", folder=f"model{number}")
        (path.parent / "values.py").write_text(f"value = {number}")
        runners.append(load(path, answer="{'output_pixels': np.full(shape, __import__('values').value)}"))
    for _ in range(2):
        for number, runner in enumerate(runners, start=1):
            assert (runner.predict(one_tile(runner)) == number).all()
    assert sys.path == path_before
    assert {"plain", "values", "Answers", "arcpy"}.isdisjoint(sys.modules)


def test_packages_that_predict_in_threads_wait_for_each_other(model, pixels):
    runners = [load(model("FileName", folder=f"model{number}")) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda runner: predict_whole(runner, *pixels), runners))
    for answer in answers:
        np.testing.assert_array_equal(answer, np.where(pixels[1][0] > pixels[0][0], 7, 0))


def test_a_module_of_the_user_with_the_name_of_a_sibling_is_neither_used_nor_lost(model, tmp_path, monkeypatch):
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "plain.py").write_text("mine = True")
    monkeypatch.syspath_prepend(tmp_path / "user")
    mine = importlib.import_module("plain")
    try:
        runner = load(model("FileName"))
        assert (runner.predict(one_tile(runner)) == 7).all()
        assert sys.modules["plain"] is mine
    finally:
        del sys.modules["plain"]


def test_a_function_in_the_folder_of_the_users_script_leaves_the_users_modules_alone(model, monkeypatch):
    path = model("FileName")
    path.with_name("users_own.py").write_text("")
    monkeypatch.syspath_prepend(path.parent)
    users_own = importlib.import_module("users_own")
    try:
        runner = load(path)
        assert (runner.predict(one_tile(runner)) == 7).all()
        assert sys.modules["users_own"] is users_own
        assert str(path.parent) in sys.path
    finally:
        for name in ("users_own", "plain"):
            sys.modules.pop(name, None)


def test_a_function_file_named_like_a_library_does_not_replace_it(model):
    path = model("FileName")
    path.with_suffix(".py").rename(path.with_name("numpy.py"))
    path.write_text(path.read_text().replace("FileName.py", "numpy.py"))
    path.with_name("plain.py").write_text("class Plain:\n    getParameterInfo = updatePixels = lambda *_, **__: []\n")
    with pytest.raises(ModelDefinitionError, match="declares the raster parameters"):
        load(path)
    assert sys.modules["numpy"] is np


def test_libraries_that_a_function_imports_stay_imported(model):
    sys.modules.pop("colorsys", None)
    runner = load(model("Raises"), statement="import colorsys")
    runner.predict(one_tile(runner))
    assert "colorsys" in sys.modules


def test_the_same_model_loaded_twice_runs_its_module_once_unless_a_file_has_changed(model):
    path = model("FileName")
    first, second = load(path), load(path)
    assert type(first._function._object) is type(second._function._object)
    assert first._function._object is not second._function._object
    sibling = path.with_name("plain.py")
    sibling.write_text(sibling.read_text().replace("before, 7, 0", "before, 42, 0"))
    third = load(path)
    assert (third.predict(one_tile(third)) == 42).all()
    assert (first.predict(one_tile(first)) == 7).all()


def test_device_variables_are_the_functions_own(model, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    statement = "assert os.environ['CUDA_VISIBLE_DEVICES'] == '-1'"
    runner = load(model("Raises", Statement="os.environ['CUDA_VISIBLE_DEVICES'] = '-1'"), statement=statement)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    runner.predict(one_tile(runner))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_warnings_of_a_function_are_shown_once_and_are_no_errors(model, recwarn):
    runner = load(model("Warns"))
    for _ in range(5):
        assert (runner.predict(one_tile(runner)) == 7).all()
    assert [str(each.message) for each in recwarn] == ["invalid value encountered in divide"]


# What stands in for arcpy, arcgis and GPUs


def test_arcpy_stands_in_only_while_a_function_runs(model, caplog):
    caplog.set_level(logging.INFO)
    runner = load(model("Arcpy"))
    assert (runner.predict(one_tile(runner)) == 7).all()
    assert "on the CPU" in caplog.text
    assert "arcpy" not in sys.modules
    assert importlib.util.find_spec("arcpy") is None


def test_a_real_arcpy_is_left_alone(model, tmp_path, monkeypatch):
    real = tmp_path / "arcgis" / "arcpy"
    real.mkdir(parents=True)
    (real / "__init__.py").write_text("from types import SimpleNamespace\nenv = SimpleNamespace(processorType='CPU')\n")
    monkeypatch.syspath_prepend(real.parent)
    path = model("FileName")
    file = path.with_suffix(".py")
    file.write_text(f"import arcpy\n{file.read_text()}")
    load(path)
    try:
        assert Path(sys.modules["arcpy"].__file__).parent == real
    finally:
        del sys.modules["arcpy"]


def test_a_gpu_that_is_not_there_is_refused(model):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="torch sees none"):
        load_runner(RunnerSpec(load_definition(model("FileName")), "raster-function", 3, "uint8", (), None, "cuda"))


def test_weights_saved_on_a_gpu_load_where_there_is_none(model, pixels, toy_network):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    path = model("PairClassifier", ModelConfiguration="TorchDifference", ModelFile="toy.pth")
    torch.save(toy_network.state_dict(), path.with_name("cpu.pth"))
    tag_for_cuda(path.with_name("cpu.pth"), path.with_name("toy.pth"))
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(path.with_name("toy.pth"))
    runner = load(path, padding=2)
    check_against_network(predict_whole(runner, *pixels), toy_network, pixels)
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(path.with_name("toy.pth"))


def tag_for_cuda(source: Path, target: Path) -> None:
    """Rewrite a file of torch.save as if its tensors had lain on the first GPU: the tag is a text in its pickle."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            after.writestr(name, content)


def test_a_function_of_arcgis_learn_is_written_from_the_users_own_arcgis(model, tmp_path, monkeypatch, pixels):
    templates = tmp_path / "site" / "arcgis" / "learn" / "models"
    templates.mkdir(parents=True)
    source = (FUNCTIONS / "single" / "NoConfiguration.py").read_text()
    text = source.replace("class NoConfiguration", "class ArcGISImageClassifier")
    (templates / "_codetemplate.py").write_text(f"raise SystemError('run')\nimage_classifier_prf = {text!r}\n")
    (tmp_path / "site" / "arcgis" / "__init__.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    name = "[Functions]System\\DeepLearning\\ArcGISLearn\\ArcGISImageClassifier.py"
    runner = load(model("FileName", InferenceFunction=name))
    np.testing.assert_array_equal(predict_whole(runner, *pixels), np.where(pixels[1][0] > pixels[0][0], 7, 0))
