"""Model definitions: every form that is read, every value that is refused, and that reading runs nothing."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest

from geodl_dask.classes import ModelClass
from geodl_dask.definition import ModelDefinition, NativeOptions, load_definition, normalise_definition
from geodl_dask.errors import ModelDefinitionError, ModelPackageError

CLASSES = [
    {"Value": 0, "Name": "NoChange", "Color": [0, 0, 0]},
    {"Value": 255, "Name": "Change", "Color": [255, 255, 255]},
]
# As the vendor's training code writes it for a four-band change detector; NaN is what it makes of a missing metric.
TRAINED = """{
    "DataAttributes": {"chip_size": 64, "_is_multispectral": true, "class_mapping": {"0": "NoChange", "255": "Change"}},
    "Framework": "arcgis.learn.models._inferencing",
    "ModelConfiguration": "change_detection",
    "ModelType": "ImageClassification",
    "InferenceFunction": "ArcGISImageClassifier.py",
    "ExtractBands": [0, 1, 2, 3, 4, 5, 6, 7],
    "Classes": [{"Value": 0, "Name": "NoChange", "Color": [0, 0, 0]},
                {"Value": 255, "Name": "Change", "Color": [255, 255, 255]}],
    "SupportsVariableTileSize": false,
    "ModelFile": "tiny_cd.pth",
    "ImageHeight": 64,
    "ImageWidth": 64,
    "LearningRate": "None",
    "ModelName": "ChangeDetector",
    "resize_to": null,
    "f1": NaN,
    "NormalizationStats": {"band_min_values": [0.0, 0.0, 0.0, 0.0], "band_std_values": null}
}"""


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("GEODL_DASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GEODL_DASK_FUNCTIONS", raising=False)


def emd(folder: Path, name: str = "m.emd", **keys) -> Path:
    """A definition of two classes, with any key added, replaced or (None) set to null."""
    path = folder / name
    path.write_text(json.dumps({"Classes": CLASSES, "ModelFile": "w.pt", **keys}), encoding="utf-8")
    return path


def dlpk(folder: Path, files: dict[str, str | bytes], name: str = "m.dlpk") -> Path:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return folder / name


def refusal(model) -> str:
    with pytest.raises(ModelDefinitionError) as caught:
        load_definition(model)
    return str(caught.value)


def test_a_definition_as_the_vendor_writes_it(tmp_path):
    path = tmp_path / "cd.emd"
    path.write_text(TRAINED)
    (tmp_path / "tiny_cd.pth").write_bytes(b"weights")
    (tmp_path / "ArcGISImageClassifier.py").write_text("raise SystemExit")
    definition = load_definition(path)
    assert definition == ModelDefinition(
        text=TRAINED,
        source=str(path),
        folder=tmp_path.as_posix(),
        model_file=f"{tmp_path.as_posix()}/tiny_cd.pth",
        inference_function_name="ArcGISImageClassifier.py",
        inference_function=f"{tmp_path.as_posix()}/ArcGISImageClassifier.py",
        classes=definition.classes,
        extract_bands=(0, 1, 2, 3, 4, 5, 6, 7),
        tile_yx=(64, 64),
        batch_size=None,
        padding=None,
        model_padding=None,
        data_range=None,
        native=NativeOptions(),
        digest=definition.digest,
    )
    assert definition.classes.classes == (
        ModelClass(0, "NoChange", (0, 0, 0)),
        ModelClass(255, "Change", (255, 255, 255)),
    )
    assert definition.keys["DataAttributes"]["chip_size"] == 64
    assert definition.name == "cd"


def test_keys_that_are_not_known_are_kept_in_order(tmp_path):
    definition = load_definition(emd(tmp_path, Zooms=[1, 2], ExpMap={"b": 1, "a": 2}))
    assert list(definition.keys) == ["Classes", "ModelFile", "Zooms", "ExpMap"]
    assert list(definition.keys["ExpMap"]) == ["b", "a"]


def test_numbers_of_the_definition(tmp_path):
    keys = {
        "ImageHeight": 256,
        "ImageWidth": 128.0,
        "BatchSize": 9,
        "Padding": 0,
        "ModelPadding": 64,
        "DataRange": [0.1, 1],
    }
    definition = load_definition(emd(tmp_path, **keys))
    assert definition.tile_yx == (256, 128)
    assert (definition.batch_size, definition.padding, definition.model_padding) == (9, 0, 64)
    assert definition.data_range == (0.1, 1.0)


def test_one_side_alone_makes_a_square_tile(tmp_path):
    assert load_definition(emd(tmp_path, ImageWidth=96)).tile_yx == (96, 96)


def test_keys_that_are_null_are_as_if_absent(tmp_path):
    nothing = dict.fromkeys(
        ["ImageHeight", "ExtractBands", "BatchSize", "Padding", "ModelPadding", "DataRange", "GeodlDask", "ModelFile",
         "InferenceFunction", "ModelFiles"]
    )  # fmt: skip
    definition = load_definition(emd(tmp_path, **nothing))
    assert definition.tile_yx is definition.extract_bands is definition.data_range is definition.model_file is None
    assert definition.native == NativeOptions()


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: b"\r\n " + text.replace("\n", "\r\n").encode(),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16", "utf-16 big-endian", "blank lines first"],
)
def test_an_emd_may_be_encoded_as_windows_programs_do(tmp_path, encode):
    (tmp_path / "m.emd").write_bytes(encode(TRAINED.replace("NoChange", "Keine Änderung 変化")))
    assert load_definition(tmp_path / "m.emd").classes.names[0] == "Keine Änderung 変化"


def test_text_a_file_a_package_and_a_folder_are_all_taken(tmp_path):
    text = json.dumps({"Classes": CLASSES, "ModelFile": "w.pt"})
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked/m.emd").write_text(text)
    (tmp_path / "unpacked/w.pt").write_bytes(b"weights")
    shutil.copytree(tmp_path / "unpacked", tmp_path / "elsewhere")
    package = dlpk(tmp_path, {"m.emd": text, "w.pt": b"weights"}, "m.zip")
    absolute = json.dumps({"Classes": CLASSES, "ModelFile": f"{tmp_path.as_posix()}/unpacked/w.pt"})
    given = [tmp_path / "unpacked", str(tmp_path / "elsewhere/m.emd"), package, f"\ufeff \n{absolute}"]
    definitions = [load_definition(each) for each in given]
    assert len({each.digest for each in definitions}) == 1
    assert all(Path(each.model_file).read_bytes() == b"weights" for each in definitions)
    assert [each.name for each in definitions] == ["unpacked", "m", "m", "model"]
    assert definitions[3].source == "JSON text"
    assert definitions[3].folder is None
    assert load_definition('{"ModelName": " Roads ", "Classes": [{"Value": 1}]}').name == "Roads"


def test_a_definition_is_small_and_travels(tmp_path):
    definition = load_definition(emd(tmp_path))
    assert pickle.loads(pickle.dumps(definition)) == definition
    assert hash(pickle.loads(pickle.dumps(definition))) == hash(definition)


@pytest.mark.parametrize("written", ["w.pt", "./w.pt", ".\\w.pt", " w.pt ", "sub\\..\\w.pt", "W.PT"])
def test_a_model_file_is_found_however_its_path_is_written(tmp_path, written):
    (tmp_path / "w.pt").write_bytes(b"weights")
    assert Path(load_definition(emd(tmp_path, ModelFile=written)).model_file).samefile(tmp_path / "w.pt")


def test_a_model_file_may_lie_anywhere_on_disk_for_a_plain_emd(tmp_path):
    (tmp_path / "here").mkdir()
    assert load_definition(emd(tmp_path / "here", ModelFile="..\\w.pt")).model_file == f"{tmp_path.as_posix()}/w.pt"
    assert load_definition(emd(tmp_path / "here", ModelFile="/models/w.pt")).model_file == "/models/w.pt"
    assert load_definition(emd(tmp_path / "here", ModelFile="C:\\models\\w.pt")).model_file == "C:/models/w.pt"


def test_a_missing_model_file_keeps_its_path(tmp_path):
    assert load_definition(emd(tmp_path)).model_file == f"{tmp_path.as_posix()}/w.pt"


@pytest.mark.parametrize("written", [".", "", " ", "./", ".\\", None])
def test_a_definition_may_name_no_model_file(tmp_path, written):
    assert load_definition(emd(tmp_path, ModelFile=written)).model_file is None


def test_a_missing_function_is_no_error(tmp_path):
    definition = load_definition(emd(tmp_path, InferenceFunction=".\\Gone.py"))
    assert definition.inference_function_name == ".\\Gone.py"
    assert definition.inference_function is None


WRITTEN = ["[Functions]System\\DeepLearning\\ArcGISLearn\\Fn.py", "[functions]system/deeplearning/arcgislearn/fn.py"]


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize(
    "place",
    ["System/DeepLearning/ArcGISLearn/Fn.py", "DeepLearning/ArcGISLearn/Fn.py", "ArcGISLearn/Fn.py", "Fn.py", "FN.PY"],
)
@pytest.mark.parametrize("configured", [True, False], ids=["configured folder", "model's folder"])
def test_a_function_of_arcgis_is_looked_for_by_the_tail_of_its_path(tmp_path, monkeypatch, written, place, configured):
    (tmp_path / "model").mkdir()
    base = tmp_path / "functions" if configured else tmp_path / "model"
    (base / place).parent.mkdir(parents=True, exist_ok=True)
    (base / place).write_text("")
    if configured:
        monkeypatch.setenv("GEODL_DASK_FUNCTIONS", str(base))
    definition = load_definition(emd(tmp_path / "model", InferenceFunction=written))
    assert definition.inference_function == (base / place).as_posix()
    assert definition.inference_function_name == written


def test_the_configured_folder_of_functions_goes_before_the_models_own(tmp_path, monkeypatch):
    for folder in ("functions", "model"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Fn.py").write_text("")
    path = emd(tmp_path / "model", InferenceFunction="[Functions]System\\DeepLearning\\Fn.py")
    assert load_definition(path).inference_function == f"{tmp_path.as_posix()}/model/Fn.py"
    monkeypatch.setenv("GEODL_DASK_FUNCTIONS", str(tmp_path / "functions"))
    assert load_definition(path).inference_function == f"{tmp_path.as_posix()}/functions/Fn.py"
    monkeypatch.setenv("GEODL_DASK_FUNCTIONS", str(tmp_path / "nowhere"))
    assert load_definition(path).inference_function == f"{tmp_path.as_posix()}/model/Fn.py"


@pytest.mark.parametrize("written", ["[Functions]..\\..\\evil.py", "[Functions]a/../../evil.py", "[Functions]a\tb.py"])
def test_a_function_of_arcgis_cannot_lead_elsewhere(tmp_path, written):
    assert "which is no path below a folder" in refusal(emd(tmp_path, InferenceFunction=written))


def test_a_function_may_stand_in_json_text_by_its_arcgis_name(tmp_path, monkeypatch):
    (tmp_path / "Fn.py").write_text("")
    monkeypatch.setenv("GEODL_DASK_FUNCTIONS", str(tmp_path))
    text = json.dumps({"Classes": CLASSES, "InferenceFunction": "[Functions]System\\Fn.py"})
    assert load_definition(text).inference_function == f"{tmp_path.as_posix()}/Fn.py"


@pytest.mark.parametrize("key", ["ModelFile", "InferenceFunction"])
def test_a_relative_path_in_json_text_is_refused(key):
    message = refusal(json.dumps({"Classes": CLASSES, key: "sub\\w.py"}))
    assert message == (
        f"JSON text: {key} is 'sub\\\\w.py', a relative path, and JSON text has no folder to start from. "
        "Write an absolute path, or save the text as an .emd beside the file."
    )


@pytest.mark.parametrize("key", ["ModelFile", "InferenceFunction"])
@pytest.mark.parametrize(
    "path",
    ["https://x.org/w.pt", "HTTP://x/w", "s3://b/w.pt", "file:///w.pt", "/vsicurl/https://x/w.pt", "\\vsizip\\a.zip\\w",
     "\\\\.\\PhysicalDrive0", "\\\\?\\C:\\w.pt"],
)  # fmt: skip
def test_urls_virtual_paths_and_devices_are_refused(tmp_path, key, path):
    message = refusal(emd(tmp_path, **{key: path}))
    assert f"{key} is " in message
    assert "; the path of a file on disk is needed." in message


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/tmp/../dev/stdin", "//proc/kmsg"])
def test_devices_that_would_be_read_for_ever_are_refused(tmp_path, path):
    assert "a device; the path of a file is needed" in refusal(emd(tmp_path, ModelFile=path))


@pytest.mark.parametrize("key", ["ModelFile", "InferenceFunction", "ModelFiles"])
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "..\\evil.py", "a/../../evil.py", "C:\\evil.py", "\\\\server\\share\\w"]
)
def test_a_package_cannot_name_files_outside_itself(tmp_path, key, path):
    value = {"a": [path]} if key == "ModelFiles" else path
    package = dlpk(tmp_path, {"sub/m.emd": json.dumps({"Classes": CLASSES, key: value})})
    if ".." in path:
        assert load_definition(package).name == "m"  # still inside: the .emd lies in a sub-folder
        package = dlpk(tmp_path, {"m.emd": json.dumps({"Classes": CLASSES, key: value})})
    assert refusal(package).endswith(f"{key} is {path!r}, which leads out of the package.")


def test_paths_of_a_package_start_at_the_folder_of_its_definition(tmp_path):
    text = json.dumps({"Classes": CLASSES, "ModelFile": "..\\w.pt", "InferenceFunction": "fn\\Fn.py"})
    definition = load_definition(dlpk(tmp_path, {"p20/m.emd": text, "w.pt": b"w", "p20/fn/Fn.py": ""}))
    assert Path(definition.model_file).read_bytes() == b"w"
    assert definition.inference_function == f"{definition.folder}/fn/Fn.py"


def test_loading_a_package_does_not_run_its_code(tmp_path):
    evil = f"open({str(tmp_path / 'was_here')!r}, 'w').close()\n"
    malicious = b"cos\nsystem\n(S'touch " + str(tmp_path / "was_here").encode() + b"'\ntR."
    text = json.dumps({"Classes": CLASSES, "ModelFile": "w.pth", "InferenceFunction": "Fn.py", "Framework": "Fn"})
    members = {"m.emd": text, "w.pth": malicious, "__init__.py": evil, "sitecustomize.py": evil}
    definition = load_definition(
        dlpk(tmp_path, {**members, "Fn.py": evil, "arcpy.py": evil, "x.pth": f"import os;{evil}"})
    )
    assert definition.inference_function is not None
    assert definition.name == "m"
    assert not (tmp_path / "was_here").exists()


def test_several_definitions_in_a_package_are_listed(tmp_path):
    package = dlpk(tmp_path, {"a.emd": "{}", "b.emd": "{}"})
    with pytest.raises(
        ModelPackageError, match=r"m\.dlpk: .*holds several model definitions: a\.emd, b\.emd\. Give the path"
    ):
        load_definition(package)


def test_the_digest_does_not_depend_on_the_folder_or_the_spelling_of_paths(tmp_path):
    digests = set()
    for folder, model_file in (("a", "w.pt"), ("b", ".\\w.pt"), ("c", f"{tmp_path.as_posix()}/c/w.pt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.pt").write_bytes(b"weights")
        digests.add(load_definition(emd(tmp_path / folder, ModelFile=model_file)).digest)
    assert len(digests) == 1


def test_names_are_fit_for_a_terminal_and_a_file(tmp_path):
    names = ["\x1b[31mred", "half \ud800 of it", "two\nlines", "\u202eback", "caf\u00e9 \u6c34"]
    classes = [{"Value": value, "Name": name} for value, name in enumerate(names)]
    definition = load_definition(emd(tmp_path, Classes=classes, ModelType="\x1b]0;title\x07", Notes="a\nb"))
    assert definition.classes.names == (
        "\ufffd[31mred",
        "half \ufffd of it",
        "two lines",
        "\ufffdback",
        "caf\u00e9 \u6c34",
    )
    assert definition.keys["ModelType"] == "\ufffd]0;title\ufffd"
    assert definition.keys["Notes"] == "a\nb"
    assert load_definition(json.dumps({"Classes": CLASSES, "ModelName": "\x9b1m"})).name == "\ufffd1m"


def test_text_with_half_of_a_character_is_refused():
    text = json.dumps({"Classes": [{"Value": 0, "Name": "\ud800"}]}, ensure_ascii=False)
    with pytest.raises(ModelDefinitionError, match="half of a character"):
        load_definition(text)


def test_the_digest_does_not_depend_on_how_the_json_is_laid_out(tmp_path):
    path = emd(tmp_path, f1=0.5)
    first = load_definition(path).digest
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=3))
    assert load_definition(path).digest == first


def test_the_digest_changes_with_all_that_may_change_the_answer(tmp_path):
    def digest(**keys) -> str:
        return load_definition(emd(tmp_path, InferenceFunction="Fn.py", ModelFiles={"b": "b.bin"}, **keys)).digest

    digests = [digest(), digest(ImageHeight=64), digest(ModelFile="v.pt")]
    for name, content in (
        ("w.pt", b"1"),
        ("w.pt", b"2"),
        ("Fn.py", b"1"),
        ("Fn.py", b"2"),
        ("b.bin", b"1"),
        ("b.bin", b"2"),
    ):
        (tmp_path / name).write_bytes(content)
        digests.append(digest())
    assert len(set(digests)) == len(digests)


def test_the_native_options_are_read(tmp_path):
    given = {"input": "pair", "output": "distance", "threshold": 1, "mean": [1, 2.5, 3], "std": [1, 2, 3]}
    definition = load_definition(emd(tmp_path, GeodlDask=given))
    assert definition.native == NativeOptions("pair", "distance", 1.0, (1.0, 2.5, 3.0), (1.0, 2.0, 3.0))
    assert load_definition(emd(tmp_path, GeodlDask={"input": None})).native == NativeOptions()


@pytest.mark.parametrize(
    "given, reason",
    [
        ({"inputs": "pair"}, "GeodlDask has an unknown key 'inputs'; known are input, output, threshold, mean, std."),
        ({"input": "both"}, "GeodlDask.input is 'both'; one of stack, pair is needed."),
        ({"input": ["pair"]}, "GeodlDask.input is ['pair']; one of stack, pair is needed."),
        (
            {"output": "softmax"},
            "GeodlDask.output is 'softmax'; one of logits, probabilities, distance, classes is needed.",
        ),
        ({"threshold": "0.5"}, "GeodlDask.threshold is '0.5'; a finite number is needed."),
        ({"threshold": float("nan")}, "GeodlDask.threshold is nan; a finite number is needed."),
        ({"threshold": True}, "GeodlDask.threshold is True; a finite number is needed."),
        ({"mean": []}, "GeodlDask.mean is []; a list of numbers is needed."),
        ({"mean": 3}, "GeodlDask.mean is 3; a list of numbers is needed."),
        ({"mean": [1, None]}, "GeodlDask.mean is None; a finite number is needed."),
        ({"std": [1, 0]}, "GeodlDask.std is [1.0, 0.0]; numbers above 0 are needed."),
        (
            {"mean": [1, 2], "std": [1]},
            "GeodlDask.mean has 2 numbers and GeodlDask.std 1; one per band of one date is needed.",
        ),
        ("pair", "GeodlDask is 'pair'; an object is needed."),
    ],
)
def test_native_options_that_mean_nothing_are_refused(tmp_path, given, reason):
    path = emd(tmp_path, GeodlDask=given)
    assert refusal(path) == f"{path}: {reason}"


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("ModelFile", 3, "ModelFile is 3; text of at most 4096 characters is needed."),
        ("ModelFile", ["w.pt"], "ModelFile is ['w.pt']; text of at most 4096 characters is needed."),
        ("ModelFile", "a" * 4097, "; text of at most 4096 characters is needed."),
        ("ModelFiles", ["a"] * 1001, "ModelFiles names 1001 files; at most 1000 are read."),
        ("InferenceFunction", "[Functions]" + "a/" * 20, ", which is no path below a folder."),
        ("ModelFile", "a\tiny.pt", "ModelFile is 'a\\tiny.pt', with control characters. An unescaped backslash?"),
        ("ModelFile", "\ud800", "ModelFile is '\\ud800', with control characters."),
        ("InferenceFunction", {}, "InferenceFunction is {}; text of at most"),
        ("ImageHeight", "256", "ImageHeight is '256'; a whole number from 1 to 65536 is needed."),
        ("ImageHeight", 0, "ImageHeight is 0; a whole number from 1 to 65536 is needed."),
        ("ImageHeight", 10**400, "; a whole number from 1 to 65536 is needed."),
        ("ImageWidth", 25.5, "ImageWidth is 25.5; a whole number from 1 to 65536 is needed."),
        ("ImageWidth", float("nan"), "ImageWidth is nan; a whole number"),
        ("ImageWidth", float("inf"), "ImageWidth is inf; a whole number"),
        ("ImageWidth", True, "ImageWidth is True; a whole number"),
        ("ImageWidth", [256], "ImageWidth is [256]; a whole number"),
        ("BatchSize", 0, "BatchSize is 0; a whole number from 1 to 2147483647 is needed."),
        ("Padding", -1, "Padding is -1; a whole number from 0 to 2147483647 is needed."),
        ("ModelPadding", "64", "ModelPadding is '64'; a whole number"),
        ("DataRange", [0], "DataRange is [0]; [lowest, highest] is needed."),
        ("DataRange", [1, 0], "DataRange is [1, 0]; [lowest, highest] is needed."),
        ("DataRange", [0, 10**400], "; a finite number is needed."),
        ("DataRange", "0-1", "DataRange is '0-1'; [lowest, highest] is needed."),
        (
            "ExtractBands",
            ["Red"],
            "ExtractBands is ['Red']; a list of band numbers, from 0, over both rasters stacked,",
        ),
        ("ExtractBands", 3, "ExtractBands is 3; a list of band numbers"),
        ("ExtractBands", [0, -1], "ExtractBands is -1; a whole number from 0"),
        ("ExtractBands", [[0]], "ExtractBands is [0]; a whole number from 0"),
        ("Classes", {}, "Classes is {}; a list of objects with Value and Name is needed."),
        ("Classes", [1], "Classes is [1]; a list of objects with Value and Name is needed."),
        ("Classes", [], "Classes is empty; at least one class with a Value and a Name is needed."),
        ("Classes", [{"Name": "a"}], "Value of a class is None; a whole number from 0 to 4294967294 is needed."),
        ("Classes", [{"Value": "1"}], "Value of a class is '1'; a whole number"),
        ("Classes", [{"Value": -1}], "Value of a class is -1; a whole number"),
        ("Classes", [{"Value": 2**32}], "Value of a class is 4294967296; a whole number"),
        ("Classes", [{"Value": 1, "Name": ["a"]}], "Name of a class is ['a']; text is needed."),
        ("Classes", [{"Value": 1}, {"Value": 1}], "Class value 1 stands twice in Classes; values must be unique."),
        ("Classes", [{"Value": 1, "Color": [1, 2]}], "Color of a class is [1, 2]; [red, green, blue], each 0 to 255,"),
        ("Classes", [{"Value": 1, "Color": [1, 2, 256]}], "Color of a class is 256; a whole number from 0 to 255"),
        ("Classes", [{"Value": 1, "Color": "red"}], "Color of a class is 'red'; [red, green, blue]"),
        (
            "Classes",
            [{"Value": index} for index in range(4097)],
            "Classes lists 4097 classes; at most 4096 can be read.",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(tmp_path, key, value, reason):
    path = emd(tmp_path, **{key: value})
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_missing_classes_are_refused_with_what_to_add(tmp_path):
    path = emd(tmp_path, Classes=None)
    assert refusal(path) == (
        f'{path}: Classes is missing. Add one entry per class, for example "Classes": '
        '[{"Value": 0, "Name": "No change"}, {"Value": 1, "Name": "Change", "Color": [255, 0, 0]}].'
    )


def test_classes_may_be_written_as_training_exports_do(tmp_path):
    listed = [{"ClassValue": 5, "ClassName": "Road", "Color": "#FF8000"}, {"Value": 1.0, "Name": 1, "Color": "00ff00"}]
    assert load_definition(emd(tmp_path, Classes=listed)).classes.classes == (
        ModelClass(5, "Road", (255, 128, 0)),
        ModelClass(1, "1", (0, 255, 0)),
    )


def test_classes_without_names_are_called_by_their_value(tmp_path):
    assert load_definition(emd(tmp_path, Classes=[{"Value": 7}])).classes.names == ("7",)


def test_colours_that_are_missing_are_distinct_and_always_the_same(tmp_path):
    listed = [{"Value": index, "Color": [230, 159, 0] if index == 9 else None} for index in range(4096)]
    colors = [each.color for each in load_definition(emd(tmp_path, Classes=listed)).classes.classes]
    assert len(set(colors)) == 4096
    assert colors[9] == (230, 159, 0)
    assert colors[:3] == [(227, 227, 223), (86, 180, 233), (0, 158, 115)]


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            '{\n "ModelFile": "C:\\models\\w.pt"}',
            r'Invalid \escape at line 2, column 18: "ModelFile": "C:\models\w.pt"}. An',
        ),
        ('{"ModelFile": "C:\\users\\w.pt"}', r"Invalid \uXXXX escape at line 1, column 19"),
        ('{"ModelFile": "models\\",\n "A": 1}', "not JSON: "),
    ],
)
def test_an_unescaped_backslash_is_named_as_the_likely_cause(tmp_path, text, reason):
    (tmp_path / "m.emd").write_text(text)
    message = refusal(tmp_path / "m.emd")
    assert reason in message
    assert message.endswith('An unescaped backslash? Write "\\\\" or "/" in paths.')


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"A": 1\n "B": 2}', "not JSON: Expecting ',' delimiter at line 2, column 2: \"B\": 2}."),
        ('{"A": 1,}', "not JSON: "),
        ("", "not JSON: Expecting value at line 1, column 1."),
        ("ModelFile: w.pt", "not JSON: Expecting value at line 1, column 1: ModelFile: w.pt."),
        ('{"A": 1} {}', "not JSON: Extra data at line 1, column 10"),
        ("[1]", 'the JSON is [1]; an object, {"ModelFile": ...}, is needed.'),
        ("3", 'the JSON is 3; an object, {"ModelFile": ...}, is needed.'),
        ('{"A": 1, "B": {"C": 1, "C": 2}}', "the key 'C' stands twice in one object; keep one."),
        ('{"A": ' + "[" * 100_000 + "]" * 100_000 + "}", "the JSON is nested more than 64 deep."),
        ('{"A": ' + "[" * 64 + "]" * 64 + "}", "the JSON is nested more than 64 deep."),
        ('{"A": ' + "9" * 5000 + "}", "a number cannot be read: Exceeds the limit"),
        ("<!DOCTYPE html><html>", "the file is a web page or XML, not a model. Download the model again, signed in."),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "Fetch the model with: git lfs pull"),
        ('{"A": "' + "x" * 2**22 + '"}', "the file is larger than 4 MiB, so it is no model definition."),
        ('{"EsriClassifierDefinitionFile": 0}', "this is a classifier definition (.ecd)"),
        (
            '{"MetaDataMode": "x", "AllTilesStats": [], "InputRastersProps": {}, "Classes": []}',
            "this .emd describes training chips (AllTilesStats, InputRastersProps, MetaDataMode; no ModelFile), not a "
            "trained model. Give the .emd that training wrote beside the model file.",
        ),
    ],
    ids=lambda value: value[:20],
)
def test_text_that_is_no_definition_is_refused_with_the_cause(tmp_path, text, reason):
    path = tmp_path / "m.emd"
    path.write_text(text)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "backslash" not in message
    assert len(message) < 400 + len(str(path))


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n\0")
    assert "neither a package (zip or 7-Zip) nor UTF-8 text (see byte 0)" in refusal(tmp_path / "w.h5")


def test_a_model_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "w.pt")

    (tmp_path / "w.pt").write_bytes(b"weights")
    monkeypatch.setattr(hashlib, "file_digest", forbidden)
    assert "m.emd names a file that cannot be read: [Errno 13] Permission denied: 'w.pt'" in refusal(emd(tmp_path))


@pytest.mark.parametrize("model", ["", None, 3, b"m.emd", "https://x.org/m.dlpk", "a\0b", ["m.emd"]])
def test_a_model_that_is_no_path_is_refused(model):
    assert refusal(model).endswith("; the path of an .emd or .dlpk on disk, or the text of an .emd, is needed.")


@pytest.mark.parametrize("model", ["nowhere/m.emd", "x" * 5000, "\ud800"])
def test_a_model_that_is_not_there_is_refused(model):
    assert refusal(model).startswith(model)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX's pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.emd")
    os.mkfifo(tmp_path / "w.pt")
    assert "m.emd is not there" in refusal(str(tmp_path / "m.emd"))
    assert load_definition(emd(tmp_path, "n.emd")).model_file == f"{tmp_path.as_posix()}/w.pt"


def test_a_raster_function_gets_forward_slashes_and_an_absolute_model_file(tmp_path):
    (tmp_path / "b.bin").write_bytes(b"")
    keys = {
        "ModelFile": ".\\w.pt",
        "InferenceFunction": ".\\fn\\Fn.py",
        "ModelFiles": {"b": ".\\b.bin", "c": "none.bin"},
    }
    path = emd(tmp_path, **keys, Note="C:\\as it was", f1=float("nan"))
    copy = normalise_definition(load_definition(path), tmp_path / "private")
    read = json.loads(copy.read_text())
    assert copy == tmp_path / "private/m.emd"
    assert list(read) == list(json.loads(path.read_text()))
    assert read["ModelFile"] == f"{tmp_path.as_posix()}/w.pt"
    assert read["InferenceFunction"] == "./fn/Fn.py"
    assert read["ModelFiles"] == {"b": f"{tmp_path.as_posix()}/b.bin", "c": "none.bin"}
    assert read["Note"] == "C:\\as it was"
    assert read["Classes"] == CLASSES


def test_a_model_file_that_is_a_dot_stays_one(tmp_path):
    copy = normalise_definition(load_definition(emd(tmp_path, ModelFile=".")), tmp_path / "private")
    assert json.loads(copy.read_text())["ModelFile"] == "."


def test_a_name_from_json_text_cannot_lead_elsewhere(tmp_path):
    text = json.dumps({"Classes": CLASSES, "ModelName": "../../evil\0" + "x" * 500})
    copy = normalise_definition(load_definition(text), tmp_path / "private")
    assert copy.parent == tmp_path / "private"
    assert copy.is_file()
