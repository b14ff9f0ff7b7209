"""Tests of geodl_dask.ecd."""

import ast
import base64
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geodl_dask import ecd
from geodl_dask.definition import load_definition
from geodl_dask.ecd import EcdError, deep_learning_model_to_ecd, extract, main, read_ecd, sniff_model

# The example of the reference tool's documentation, as it stands there.
SAMPLE = """{  
   "ImportDeepLearningModelToEsriExtraInfo":0,
   "Version":1,
   "Classifier":"CNTK",
   "NumberRasterBands":4,
   "MiniBatchSize":16,
   "Classes":[  
      {  
         "Value":100,
         "Name":"Impervious",
         "Color":[204, 204, 204]
      },
      {  
         "Value":200,
         "Name":" Other (Pervious)",
         "Color":[56, 168, 0]
      }
   ]
}
"""  # noqa: W291
CNTK = b"\x08\x01\x12\x10\x0a\x04type\x12\x08\x08\x01\x10\x01\x42\x02ab" + bytes(range(256))
SIZE = b'"Size": %d' % len(CNTK)
SAVED_MODEL = b"\x08\x01\x12\x8c\xb5\x01\x0a\x81\x11\x12\xd1\x10\x0a^\x0a\x10AssignVariableOp\x12\x0c"
GRAPH = b"\x0a:\x0a\x01x\x12\x0bPlaceholder*\x0b\x0a\x05dtype\x12\x020\x01"
EXPORT = {
    "Framework": "Keras",
    "ModelFile": "e.g. model.h5",
    "ImageHeight": 256,
    "ImageWidth": "e.g. 256",
    "BatchSize": "e.g. 8",
    "MetaDataMode": "Classified_Tiles",
    "AllTilesStats": [{"Min": 0, "Max": 255, "Mean": 90.5, "StdDev": float("nan")}] * 5,
    "Classes": [
        {"Value": 1, "Name": "1", "Color": [-1, -1, -1]},
        {"Value": 2, "Name": 2, "Color": [1, 2, 3]},
        {"ClassValue": 3, "ClassName": "Roof"},
    ],
}


def write_torch(path: Path) -> None:
    torch.save(torch.nn.Conv2d(3, 2, 1).state_dict(), path)


def write_old_torch(path: Path) -> None:
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def write_torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 2, 1)), str(path))


def write_exported(path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Conv2d(3, 2, 1), (torch.zeros(1, 3, 4, 4),)), path)


def write_onnx(path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [other])
    onnx.save(onnx.helper.make_model(graph), path)


def write_keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", bytes(100))


def write_saved_model(path: Path) -> None:
    for name, content in {"saved_model.pb": SAVED_MODEL, "variables/variables.index": b"", "variables/v": b"1"}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


MODELS = {
    "state.pth": ("PyTorch", write_torch),
    "old.pth": ("PyTorch", write_old_torch),
    "script.pt": ("PyTorch", write_torchscript),
    "exported.pt2": ("PyTorch", write_exported),
    "net.onnx": ("ONNX", write_onnx),
    "net.keras": ("Keras", write_keras),
    "net.h5": ("Keras", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))),
    "frozen.pb": ("TensorFlow", lambda path: path.write_bytes(GRAPH)),
    "cntk.model": ("CNTK", lambda path: path.write_bytes(CNTK)),
    "v1.dnn": ("CNTK", lambda path: path.write_bytes("BCN\0".encode("utf-16-le"))),
    "text.bin": ("unknown", lambda path: path.write_bytes(b"hello")),
    "saved model": ("TensorFlow", write_saved_model),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a CNTK model and the sample."""
    (tmp_path / "cntk.model").write_bytes(CNTK)
    (tmp_path / "classInfo.json").write_text(SAMPLE, newline="")
    return tmp_path


def convert(folder: Path, **options) -> ecd.Ecd:
    return deep_learning_model_to_ecd(folder / "cntk.model", folder / "classInfo.json", folder / "out.ecd", **options)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Name -> content of all files, None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def change_info(folder: Path, change) -> None:
    record = json.loads(SAMPLE)
    change(record)
    (folder / "classInfo.json").write_text(json.dumps(record))


def test_sample_of_the_reference_becomes_classic_records_and_an_embedded_model(folder):
    convert(folder)
    assert json.loads((folder / "out.ecd").read_text("ascii")) == {
        "EsriClassifierDefinitionFile": 0,
        "FileVersion": 1,
        "NumberDefinitions": 1,
        "Generator": "geodl_dask; the layout for deep learning models is our own, not ArcGIS's",
        "Definitions": [
            {
                "Classifier": "CNTK",
                "NumberClasses": 2,
                "RasterIsSegmented": False,
                "NumberBands": 4,
                "MiniBatchSize": 16,
                "Classes": [
                    {"ClassValue": 100, "ClassName": "Impervious", "Red": 204, "Green": 204, "Blue": 204},
                    {"ClassValue": 200, "ClassName": " Other (Pervious)", "Red": 56, "Green": 168, "Blue": 0},
                ],
                "ExtraInfo": {"FileName": "classInfo.json", "Text": SAMPLE},
                "DeepLearningModel": {
                    "Kind": "CNTK",
                    "Files": [
                        {
                            "FileName": "cntk.model",
                            "Size": len(CNTK),
                            "Encoding": "base64",
                            "Data": base64.b64encode(CNTK).decode(),
                            "SHA256": hashlib.sha256(CNTK).hexdigest(),
                        }
                    ],
                },
            }
        ],
    }


def test_read_ecd_gives_all_of_it_back(folder):
    written = convert(folder)
    read = read_ecd(folder / "out.ecd")
    assert read == written
    assert (read.classifier, read.number_bands, read.mini_batch_size, read.kind) == ("CNTK", 4, 16, "CNTK")
    assert read.classes == ((100, "Impervious", (204, 204, 204)), (200, " Other (Pervious)", (56, 168, 0)))
    assert read.extra_info == json.loads(SAMPLE)
    assert (read.model_name, read.files[0].size_bytes) == ("cntk.model", len(CNTK))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_comes_back_byte_for_byte(folder, name, reference):
    kind, write = MODELS[name]
    write(folder / name)
    out = deep_learning_model_to_ecd(folder / name, folder / "classInfo.json", folder / "o.ecd", reference=reference)
    assert out.kind == sniff_model(folder / name) == kind
    model, info = extract(folder / "o.ecd", folder / "back")
    assert (model, info) == (folder / "back" / name, folder / "back" / "classInfo.json")
    assert info.read_bytes() == SAMPLE.encode()
    if model.is_dir():
        assert tree(model) == tree(folder / name)
    else:
        assert model.read_bytes() == (folder / name).read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.integers(-5, 5), st.integers(0, 2), st.sampled_from([None, 0, 4]))
def test_models_of_any_length_come_back_after_other_json_tools_too(tmp_path_factory, more, chunks, indent):
    folder = tmp_path_factory.mktemp("length")
    content = random.Random(more).randbytes(max(1, chunks * ecd._CHUNK + more))
    (folder / "cntk.model").write_bytes(content)
    (folder / "classInfo.json").write_text(SAMPLE)
    convert(folder)
    envelope = json.loads((folder / "out.ecd").read_text())
    (folder / "out.ecd").write_text(json.dumps(envelope, indent=indent))
    assert extract(folder / "out.ecd", folder / "back")[0].read_bytes() == content


@pytest.mark.parametrize("size", [1000, 2 * ecd._CHUNK])
def test_data_is_found_wherever_the_reader_cuts_the_file(folder, size):
    (folder / "cntk.model").write_bytes(bytes(size))
    for pad in range(ecd._CHUNK - 1600, ecd._CHUNK - 900, 23):
        change_info(folder, lambda record, pad=pad: record.update(Note="x" * pad))
        out = convert(folder, overwrite=True)
        offset, length = out.files[0].span
        assert (folder / "out.ecd").read_bytes()[offset : offset + length] == base64.b64encode(bytes(size))


def test_byte_order_mark_line_ends_and_unknown_keys_survive(folder):
    given_bytes = (
        b"\xef\xbb\xbf"
        + SAMPLE.replace('"Version"', '"Who": "m\u00fc \U0001f600", "Version"').replace("\n", "\r\n").encode()
    )
    (folder / "classInfo.json").write_bytes(given_bytes)
    assert convert(folder).extra_info["Who"] == "m\u00fc \U0001f600"
    assert extract(folder / "out.ecd", folder / "back")[1].read_bytes() == given_bytes


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (
            lambda r: r.pop("ImportDeepLearningModelToEsriExtraInfo"),
            "ImportDeepLearningModelToEsriExtraInfo is missing",
        ),
        (lambda r: r.pop("Version"), "Version is missing"),
        (lambda r: r.update(Version=2), "Version is 2"),
        (lambda r: r.update(Version=True), "Version is True"),
        (lambda r: r.update(Classifier=""), "Classifier is ''"),
        (lambda r: r.update(Classifier=7), "Classifier is 7"),
        (lambda r: r.update(NumberRasterBands=0), "NumberRasterBands is 0"),
        (lambda r: r.update(NumberRasterBands=65_536), "NumberRasterBands is 65536"),
        (lambda r: r.update(NumberRasterBands=4.0), "NumberRasterBands is 4.0"),
        (lambda r: r.update(MiniBatchSize=0), "MiniBatchSize is 0"),
        (lambda r: r.pop("MiniBatchSize"), "MiniBatchSize is missing"),
        (lambda r: r.pop("Classes"), "Classes is missing"),
        (lambda r: r["Classes"].clear(), "Classes is []"),
        (lambda r: r["Classes"].append(3), "Classes[2] is 3"),
        (lambda r: r["Classes"][1].update(Value=100), "Classes[1].Value is 100, as in Classes[0]"),
        (lambda r: r["Classes"][1].update(Value="200"), "Classes[1].Value is '200'"),
        (lambda r: r["Classes"][1].pop("Name"), "Classes[1].Name is missing"),
        (lambda r: r["Classes"][0].update(Name="\ud800"), "Classes[0].Name is"),
        (lambda r: r["Classes"][1]["Color"].append(1), "Classes[1].Color is [56, 168, 0, 1]"),
        (lambda r: r["Classes"][1].update(Color=[0, 0, 256]), "Classes[1].Color is [0, 0, 256]"),
        (lambda r: r["Classes"][1].update(Color=[0, -1, 0]), "Classes[1].Color is [0, -1, 0]"),
        (lambda r: r["Classes"][1].update(Color=[0, True, 0]), "Classes[1].Color is [0, True, 0]"),
        (lambda r: r["Classes"][1].update(Color="#38a800"), "Classes[1].Color is '#38a800'"),
        (lambda r: r["Classes"][1].pop("Color"), "Classes[1].Color is [None, None, None]"),
    ],
)
def test_wrong_class_information_is_refused_by_its_place(folder, change, place):
    change_info(folder, change)
    before = tree(folder)
    with pytest.raises(EcdError) as caught:
        convert(folder)
    assert str(folder / "classInfo.json") in str(caught.value)
    assert place in str(caught.value)
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"[1]", "needed: an object"),
        (SAMPLE.replace("4,", "4,,").encode(), "line 5 column"),
        (b'{"a": "\xff"}', "byte 0xff in position 7"),
        (SAMPLE.replace('"Version":1', '"Version":1, "Version":1').encode(), "stands twice"),
        (b'{"a":' * 100_000, "recursion"),
        (b"9" * 5000, "not JSON"),
        (b" " * (ecd._LONGEST_INFO + 1), "larger than"),
    ],
)
def test_what_is_no_json_is_refused(folder, content, words):
    (folder / "classInfo.json").write_bytes(content)
    with pytest.raises(EcdError, match=words):
        convert(folder)


def test_a_contradiction_is_reported_and_the_model_converted(folder, caplog):
    change_info(folder, lambda record: record.update(Classifier="tensorflow"))
    assert convert(folder).contradiction
    assert [record.getMessage() for record in caplog.records] == [
        "Classifier is tensorflow, but cntk.model looks like CNTK; is it the right file?"
    ]


@pytest.mark.parametrize(
    ("classifier", "name"), [("CNTK", "cntk.model"), ("TensorFlow", "net.keras"), ("Own", "net.h5"), ("X", "text.bin")]
)
def test_where_classifier_and_model_may_agree_nothing_is_reported(folder, caplog, classifier, name):
    MODELS[name][1](folder / name)
    change_info(folder, lambda record: record.update(Classifier=classifier))
    deep_learning_model_to_ecd(folder / name, folder / "classInfo.json", folder / "out.ecd")
    assert not caplog.records


def test_nothing_is_overwritten_unasked(folder):
    convert(folder, emd=True)
    (folder / "out.emd").unlink()
    (folder / "cntk.model").write_bytes(b"other")
    before = tree(folder)
    with pytest.raises(EcdError, match=r"out\.ecd exists"):
        convert(folder)
    (folder / "new").mkdir()
    with pytest.raises(EcdError, match="new exists"):
        extract(folder / "out.ecd", folder / "new")
    assert tree(folder) == before | {"new": None}
    assert convert(folder, overwrite=True).files[0].size_bytes == 5
    (folder / "out.ecd").unlink()
    (folder / "out.emd").write_text("mine")
    with pytest.raises(EcdError, match=r"out\.emd exists"):
        convert(folder, emd=True)
    assert not (folder / "out.ecd").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_overwritten(folder, monkeypatch, links):
    def late(descriptor: int) -> None:
        (folder / "out.ecd").write_text("theirs")

    def no_links(path: Path, target: Path) -> None:
        raise OSError(95, "no hard links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
        convert(folder)
        (folder / "out.ecd").unlink()
    monkeypatch.setattr(os, "fsync", late)
    with pytest.raises(EcdError, match="exists"):
        convert(folder)
    assert tree(folder).keys() == {"cntk.model", "classInfo.json", "out.ecd"}
    assert (folder / "out.ecd").read_text() == "theirs"


def test_an_input_is_never_the_output(folder):
    shutil.copy(folder / "cntk.model", folder / "out.ecd")
    (folder / "out.emd").write_text(json.dumps(EXPORT))
    before = tree(folder)
    for model, info in [("out.ecd", "classInfo.json"), ("cntk.model", "out.emd")]:
        with pytest.raises(EcdError, match="is an input and an output"):
            deep_learning_model_to_ecd(folder / model, folder / info, folder / "out.ecd", emd=True, overwrite=True)
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["out.txt", "out.emd", "out", ".ecd"])
def test_an_output_that_does_not_end_in_ecd_is_refused(folder, name):
    before = tree(folder)
    for options in ({}, {"emd": True}, {"emd": True, "overwrite": True}):
        with pytest.raises(EcdError, match=r"does not end in \.ecd"):
            deep_learning_model_to_ecd(folder / "cntk.model", folder / "classInfo.json", folder / name, **options)
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["out.ecd", "out.emd"])
def test_a_folder_in_the_place_of_either_output_stops_both(folder, name):
    for each in {"out.ecd", "out.emd"} - {name}:
        (folder / each).write_text("old")
    (folder / name).mkdir()
    before = tree(folder)
    with pytest.raises(EcdError, match=f"{name} exists and is a folder"):
        convert(folder, emd=True, overwrite=True)
    assert tree(folder) == before


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("fails", ["out.ecd", "out.emd"])
def test_both_outputs_are_new_or_none(folder, monkeypatch, fails, old):
    def fail(source: Path, target: Path) -> Path:
        if target.name == fails and source.name == fails:
            raise OSError(13, "Permission denied")
        return replace(source, target)

    if old:
        (folder / "out.ecd").write_text("old")
        (folder / "out.emd").write_text("old")
    before, replace = tree(folder), Path.replace
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(EcdError, match="Permission denied"):
        convert(folder, emd=True, overwrite=True)
    assert tree(folder) == before


@pytest.mark.parametrize("value", [-1, 2**32 - 1])
def test_class_values_that_a_result_cannot_hold_are_refused(folder, value):
    change_info(folder, lambda record: record["Classes"][0].update(Value=value))
    with pytest.raises(EcdError, match=rf"Classes\[0\].Value is {value}; needed: a whole number from 0 to 4294967294"):
        convert(folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_run_that_fails_leaves_no_trace(folder, monkeypatch, error):
    def fail(descriptor: int) -> None:
        raise error

    convert(folder)
    before = tree(folder)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EcdError if isinstance(error, OSError) else KeyboardInterrupt):
        convert(folder, overwrite=True, emd=True)
    assert tree(folder) == before


@pytest.mark.parametrize("count", [1, 900])
def test_a_model_that_changes_while_it_is_read_is_refused(folder, monkeypatch, count):
    chunks = itertools.repeat(b"a piece", count)
    monkeypatch.setattr(ecd, "_chunks", lambda path: chunks)
    with pytest.raises(EcdError, match="changing"):
        convert(folder)
    assert tree(folder).keys() == {"cntk.model", "classInfo.json"}
    assert len(list(chunks)) == max(0, count - len(CNTK) // 7 - 1)  # what grows without end is not read without end


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"CAESEAoE", b"CAESEAoF", "SHA256"),
        (b"CAESEAoE", b"CAESEA!!", "not base64"),
        (b"CAESEAoE", b"CAES", "not JSON|base64"),
        (SIZE, b'"Size": %d' % (len(CNTK) - 1), "does not have|base64"),
        (SIZE, b'"Size": 28', "base64"),
        (SIZE, b'"Size": 9999999999999999', "not JSON|Invalid argument"),
        (SIZE, b'"Size": -1', "Size is -1"),
        (b'"Encoding": "base64",', b"", "Encoding is missing"),
        (b'"base64"', b'"rot13"', "Encoding is 'rot13'"),
        (b'"base64"', b'"reference"', "Path is missing"),
        (b'"Data"', b'"Daten"', "Data is missing"),
        (b'"FileVersion": 1', b'"FileVersion": 3', "FileVersion is 3"),
        (b'"NumberClasses": 2', b'"NumberClasses": 3', "NumberClasses is 3"),
        (b"EsriClassifierDefinitionFile", b"EsriEndmemberDefinitionFile", "EsriClassifierDefinitionFile is missing"),
        (b'"DeepLearningModel"', b'"Other"', "DeepLearningModel is missing"),
        (b'"Red": 56', b'"Red": 560', r"Definitions\[0\].Classes\[1\].Color"),
        (b'"cntk.model"', b'"../cntk.model"', r"Files\[0\].FileName"),
        (b'"cntk.model"', b'"/cntk.model"', r"Files\[0\].FileName"),
        (b'"cntk.model"', b'"a\\\\cntk.model"', r"Files\[0\].FileName"),
        (b'"cntk.model"', b'"c:model"', r"Files\[0\].FileName"),
        (b'"cntk.model"', b'"classInfo.json"', "exists"),
        (b'"classInfo.json"', b'".."', "ExtraInfo.FileName"),
        (b'"classInfo.json"', b'"a/b"', "ExtraInfo.FileName"),
    ],
)
def test_a_damaged_ecd_is_refused_and_nothing_extracted(folder, old, new, words):
    convert(folder)
    content = (folder / "out.ecd").read_bytes()
    assert old in content
    (folder / "out.ecd").write_bytes(content.replace(old, new, 1))
    before = tree(folder)
    with pytest.raises(EcdError, match=words):
        extract(folder / "out.ecd", folder / "back")
    assert tree(folder) == before


def test_an_ecd_cut_short_anywhere_is_refused(folder):
    convert(folder)
    content = (folder / "out.ecd").read_bytes()
    for length in range(0, len(content) - 2, 7):
        (folder / "out.ecd").write_bytes(content[:length])
        with pytest.raises(EcdError):
            read_ecd(folder / "out.ecd")


def test_files_of_a_folder_stay_in_one_folder(folder):
    write_saved_model(folder / "sm")
    deep_learning_model_to_ecd(folder / "sm", folder / "classInfo.json", folder / "sm.ecd")
    content = (folder / "sm.ecd").read_bytes()
    for name in (b"other/saved_model.pb", b"sm"):
        (folder / "sm.ecd").write_bytes(content.replace(b"sm/saved_model.pb", name))
        with pytest.raises(EcdError, match="not in one folder"):
            read_ecd(folder / "sm.ecd")


def test_a_reference_is_relative_and_its_model_verified(folder):
    (folder / "deep").mkdir()
    out = deep_learning_model_to_ecd(
        folder / "cntk.model", folder / "classInfo.json", folder / "deep" / "out.ecd", reference=True
    )
    assert (
        json.loads(out.path.read_text())["Definitions"][0]["DeepLearningModel"]["Files"][0]["Path"] == "../cntk.model"
    )
    shutil.move(folder, folder.with_name("moved"))
    moved = folder.with_name("moved")
    assert extract(moved / "deep" / "out.ecd", moved / "back")[0].read_bytes() == CNTK
    (moved / "cntk.model").write_bytes(CNTK[::-1])
    with pytest.raises(EcdError, match="SHA256"):
        extract(moved / "deep" / "out.ecd", moved / "again")
    (moved / "cntk.model").unlink()
    with pytest.raises(EcdError, match=r"cntk\.model is no file of"):
        extract(moved / "deep" / "out.ecd", moved / "again")
    assert not (moved / "again").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such files")
@pytest.mark.parametrize(
    ("place", "size"),
    [
        ("/proc/self/pagemap", 2**49),
        ("/dev/zero", 10),
        ("/dev/zero", 0),
        ("pipe", 10),
        ("cntk.model", 2**49),
        ("cntk.model", len(CNTK) - 1),
        ("..", 4096),
        ("none", 5),
    ],
)
def test_only_an_ordinary_file_of_the_stated_size_is_followed(folder, monkeypatch, place, size):
    convert(folder, reference=True)
    os.mkfifo(folder / "pipe")
    envelope = json.loads((folder / "out.ecd").read_text())
    envelope["Definitions"][0]["DeepLearningModel"]["Files"][0].update(Path=place, Size=size)
    (folder / "out.ecd").write_text(json.dumps(envelope))
    before = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(ecd, "_chunks", lambda path: pytest.fail("was read"))
    with pytest.raises(EcdError, match=f"is no file of {size} bytes"):
        extract(folder / "out.ecd", folder / "back")
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["missing.pb", "empty.pb", "folder"])
def test_what_is_no_model_is_refused(folder, name):
    (folder / "empty.pb").touch()
    (folder / "folder").mkdir()
    with pytest.raises(EcdError, match=f"{name} is (no file|empty|a folder)"):
        deep_learning_model_to_ecd(folder / name, folder / "classInfo.json", folder / "out.ecd")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize(
    "name", ["a:b.pb", "a\\b.pb", "a\nb.pb", "a\udcff.pb", "con", "AUX.onnx", "nul .pb", "x.", "x ", "a<b", "a?"]
)
def test_a_name_that_not_every_system_has_is_refused(folder, name):
    shutil.copy(folder / "cntk.model", folder / name)
    with pytest.raises(EcdError) as caught:
        deep_learning_model_to_ecd(folder / name, folder / "classInfo.json", folder / "out.ecd")
    assert str(caught.value).startswith(f"{folder / name} is ")


def test_model_and_class_information_of_one_name_are_refused(folder):
    (folder / "other").mkdir()
    shutil.copy(folder / "cntk.model", folder / "other" / "classInfo.json")
    with pytest.raises(EcdError, match="are both called"):
        deep_learning_model_to_ecd(folder / "other" / "classInfo.json", folder / "classInfo.json", folder / "out.ecd")


def test_a_file_of_any_size_that_is_no_ecd_is_not_read_whole(folder):
    (folder / "big.ecd").write_bytes(b" " * (ecd._LONGEST_HEAD + ecd._CHUNK))
    with pytest.raises(EcdError, match="too much beside"):
        read_ecd(folder / "big.ecd")


def test_a_link_to_a_folder_in_a_saved_model_is_refused_not_dropped(folder):
    write_saved_model(folder / "sm")
    (folder / "sm" / "assets").symlink_to(folder / "sm" / "variables", target_is_directory=True)
    with pytest.raises(EcdError, match="assets is no file"):
        deep_learning_model_to_ecd(folder / "sm", folder / "classInfo.json", folder / "out.ecd")


def test_class_data_of_an_export_folder_is_class_information(folder):
    export = folder / "export"
    (export / "images").mkdir(parents=True)
    (export / "esri_model_definition.emd").write_text(json.dumps(EXPORT))
    out = deep_learning_model_to_ecd(folder / "cntk.model", export, folder / "out.ecd", emd=True)
    assert (out.classifier, out.number_bands, out.mini_batch_size) == ("CNTK", 5, 4)
    assert [each.value for each in out.classes] == [1, 2, 3]
    assert [each.name for each in out.classes] == ["1", "2", "Roof"]
    assert out.classes[1].color == (1, 2, 3)
    assert len({each.color for each in out.classes}) == 3
    written = json.loads((folder / "out.emd").read_text())
    assert (written["ImageHeight"], written["BatchSize"], written["ModelFile"]) == (256, 4, "cntk.model")
    assert written["Framework"] == "CNTK"
    assert "ImageWidth" not in written
    assert extract(out.path, folder / "b")[1].read_bytes() == (export / "esri_model_definition.emd").read_bytes()


@pytest.mark.parametrize(
    ("change", "place"),
    [({"AllTilesStats": None}, "ExtractBands is missing"), ({"Framework": None}, "Framework is missing")],
)
def test_an_export_that_does_not_tell_is_refused_by_its_place(folder, change, place):
    (folder / "cntk.model").write_bytes(b"unknown")
    (folder / "x.emd").write_text(json.dumps(EXPORT | change))
    with pytest.raises(EcdError, match=place):
        deep_learning_model_to_ecd(folder / "cntk.model", folder / "x.emd", folder / "out.ecd")


def test_companion_is_a_model_definition_of_the_same_model(folder):
    write_onnx(folder / "net.onnx")
    (folder / "out").mkdir()
    out = deep_learning_model_to_ecd(
        folder / "net.onnx", folder / "classInfo.json", folder / "out" / "net.ecd", emd=True
    )
    definition = load_definition(folder / "out" / "net.emd")
    assert Path(definition.model_file).resolve() == folder / "net.onnx"
    assert definition.extract_bands == (0, 1, 2, 3)
    assert definition.batch_size == 16
    assert tuple((each.value, each.name, each.color) for each in definition.classes.classes) == out.classes


def test_a_definition_nested_too_deeply_to_be_written_is_refused(folder, monkeypatch):
    # The parsers of newer Pythons take more depth than the writer does.
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    monkeypatch.setattr(ecd, "model_definition", lambda *arguments: {"DataRange": nested})
    with pytest.raises(EcdError, match="too deeply"):
        convert(folder, emd=True)
    assert tree(folder).keys() == {"cntk.model", "classInfo.json"}


def test_data_in_another_order_is_refused(folder):
    convert(folder)
    envelope = json.loads((folder / "out.ecd").read_text())
    [record] = envelope["Definitions"][0]["DeepLearningModel"]["Files"]
    for data in (record["Data"], "0", "7"):
        record.update(Data=data, Encoding=record.pop("Encoding"))
        (folder / "out.ecd").write_text(json.dumps(envelope))
        with pytest.raises(EcdError, match=r"Files\[0\]\.Data is"):
            read_ecd(folder / "out.ecd")


def test_a_large_model_needs_little_memory(folder):
    with (folder / "cntk.model").open("wb") as file:
        file.truncate(40_000_000)
    tracemalloc.start()
    convert(folder)
    extract(folder / "out.ecd", folder / "back")
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert (folder / "back" / "cntk.model").stat().st_size == 40_000_000


def test_module_imports_the_standard_library_only():
    nodes = list(ast.walk(ast.parse(Path(ecd.__file__).read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {"." * node.level + (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_a_copy_of_the_file_alone_works(folder):
    shutil.copy(ecd.__file__, folder / "ecd.py")
    python = [sys.executable, "-I", "-S", "ecd.py"]
    for arguments in (["cntk.model", "classInfo.json", "out.ecd"], ["--extract", "out.ecd", "back"]):
        done = subprocess.run([*python, *arguments], cwd=folder, capture_output=True, text=True, check=True)
        assert (done.stdout.startswith("wrote "), done.stderr) == (True, "")
    assert (folder / "back" / "cntk.model").read_bytes() == CNTK


def test_the_module_runs_by_its_name(folder):
    command = [sys.executable, "-m", "geodl_dask.ecd"]
    inputs = [str(folder / "cntk.model"), str(folder / "classInfo.json")]
    done = subprocess.run([*command, *inputs, str(folder / "out.ecd"), "--emd"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "out.ecd").exists() and (folder / "out.emd").exists()
    again = subprocess.run([*command, *inputs, str(folder / "out.ecd")], capture_output=True, text=True)
    assert (again.returncode, again.stdout, len(again.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["cntk.model"],
        ["cntk.model", "classInfo.json", "out.ecd", "more"],
        ["cntk.model", "classInfo.json", "out.ecd", "--nonsense"],
        ["cntk.model", "classInfo.json", "none/out.ecd"],
        ["cntk.model", "classInfo.json", "cntk.model"],
        ["cntk.model", "classInfo.json", "x" * 300 + ".ecd"],
        ["cntk.model", "cntk.model", "out.ecd"],
        ["none", "classInfo.json", "out.ecd"],
        ["cntk.model", "line\nbreak", "out.ecd"],
        ["cntk.model", "no\udcffne", "out.ecd"],
        [".", "classInfo.json", "out.ecd"],
        ["--extract", "classInfo.json", "back"],
        ["--extract", "none.ecd", "back"],
        ["--extract", "none.ecd"],
        ["--extract", "good.ecd", "cntk.model"],
        ["--extract", "good.ecd", "none/back"],
        ["--extract", "good.ecd", "back", "--emd"],
    ],
)
def test_every_mistake_is_one_line_and_status_2(folder, monkeypatch, capsys, arguments):
    deep_learning_model_to_ecd(folder / "cntk.model", folder / "classInfo.json", folder / "good.ecd")
    monkeypatch.chdir(folder)
    before = tree(folder)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1
    assert tree(folder) == before


def test_stopping_by_hand_is_status_130(folder, monkeypatch, capsys):
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ecd, "deep_learning_model_to_ecd", stop)
    assert main(["a", "b", "c"]) == 130
    assert capsys.readouterr().err == "stopped; nothing was written\n"
