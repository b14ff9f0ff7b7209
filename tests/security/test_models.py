"""A model from a stranger: its definition, its code, its weights."""

from __future__ import annotations

import json
import os
import pickle
import re
import runpy
import subprocess
import sys
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import save_network, write_definition

from geodl_dask.cli import cli
from geodl_dask.definition import load_definition

COMMAND = str(Path(sys.executable).with_name("geodl-dask"))
NAMES_THAT_PYTHON_LOOKS_FOR = (
    "sitecustomize", "usercustomize", "conftest", "__init__", "__main__", "torch", "numpy", "rasterio", "geodl_dask",
    "onnxruntime", "py7zr", "json",
)  # fmt: skip


@pytest.mark.attack("Python in a model: function", "an .emd names a .py that acts when it is imported")
@pytest.mark.parametrize("written", ["evil.py", "./evil.py", "[Functions]\\\\evil.py", "{folder}/evil.py"])
def test_function_of_a_definition_does_not_run_unasked(attack, detect, tmp_path, written):
    (tmp_path / "evil.py").write_text(attack.canary.payload)
    name = written.replace("\\\\", "\\").format(folder=tmp_path)
    model = write_definition(tmp_path / "m.emd", InferenceFunction=name, ModelFile="m.pth")
    assert CliRunner().invoke(cli, ["model-info", str(model)]).exit_code == 0
    attack.refused_by_command("brings its own code.*--trust-code", *detect(model))
    runpy.run_path(str(tmp_path / "evil.py"))
    attack.proves_real()


COMMANDS = {
    "detect-change": ["detect-change", "{from_}", "{to}", "{out}", "toy_pt.emd", "--workers", "1"],
    "classify": ["classify", "{from_}", "{out}", "toy_pt.emd", "--bands", "1,2,3,1,2,3"],
    "model-info": ["model-info", "toy_pt.emd"],
    "pack-model": ["pack-model", "toy.pt", "o.dlpk", "--classes", "0 No;1 Yes", "--bands", "6", "--tile-size", "16",
                   "--rasters", "1"],
    "demo": ["demo", "demo"],
}  # fmt: skip
is_long = os.environ.get("GEODL_LONG") == "1"


@pytest.mark.attack("Python in a model: side files", "names that Python imports by itself, in the working folder")
@pytest.mark.parametrize("command", COMMANDS if is_long else ["detect-change"])
def test_files_beside_a_model_are_not_imported(attack, models, pair, tmp_path, command):
    """By one command; GEODL_LONG=1 tries all that load something."""
    folder = tmp_path / "package"
    folder.mkdir()
    for name in NAMES_THAT_PYTHON_LOOKS_FOR:
        (folder / f"{name}.py").write_text(attack.canary.payload)
    (folder / "evil.pth").write_text(f"import os; {attack.canary.payload}\n")
    for name in ("toy.pt", "toy_pt.emd"):
        (folder / name).write_bytes((models["pt"].parent / name).read_bytes())
    subprocess.run([sys.executable, "-c", ""], env={**os.environ, "PYTHONPATH": str(folder)}, check=False)
    attack.proves_real()
    places = {"from_": pair[0], "to": pair[1], "out": tmp_path / "out.tif"}
    words = [word.format(**places) for word in COMMANDS[command]]
    done = subprocess.run([COMMAND, *words], cwd=folder, capture_output=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    attack.harmless(done.stdout, done.stderr)


class Payload:
    """What acts when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


WAYS = {"bare": lambda payload, path: path.write_bytes(pickle.dumps(payload)), "torch.save": torch.save}
for _protocol in (0, 4):
    WAYS[f"state dict, protocol {_protocol}"] = lambda payload, path, protocol=_protocol: torch.save(
        {"weight": torch.ones(2), "evil": payload}, path, pickle_protocol=protocol or 2
    )
WAYS["older torch.save"] = lambda payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False)


@pytest.mark.attack("pickled weights", "an object that acts when it is unpickled, under every suffix that is run")
@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx", ".bin"])
@pytest.mark.parametrize("way", WAYS)
def test_pickled_weights_do_not_act(attack, detect, tmp_path, suffix, way):
    WAYS[way](Payload(attack.canary.witness), tmp_path / f"evil{suffix}")
    model = write_definition(tmp_path / "m.emd", ModelFile=f"evil{suffix}")
    assert CliRunner().invoke(cli, ["model-info", str(model)]).exit_code == 0
    attack.refused_by_command(r"cannot be|is needed|may be code|not on the list|not loaded", *detect(model))
    if way == "bare":
        pickle.loads((tmp_path / f"evil{suffix}").read_bytes())
    else:
        torch.load(tmp_path / f"evil{suffix}", weights_only=False)
    attack.proves_real()


@pytest.mark.attack("Keras file with Python", "a Lambda layer; Keras 3 and HDF5, also called .onnx and .pt")
@pytest.mark.skipif(not find_spec("keras"), reason="keras is not installed")
@pytest.mark.parametrize("name", ["evil.keras", "evil.h5", "evil.onnx", "evil.pt"])
def test_keras_file_is_not_opened_unasked(attack, detect, tmp_path, monkeypatch, name):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras

        act = f"lambda x: (x, __import__('os').makedirs({str(attack.canary.witness)!r}, exist_ok=True))[0]"
        layer = keras.layers.Lambda(eval(act), output_shape=(16, 16, 6))
        inputs = keras.Input((16, 16, 6))
        evil = keras.Model(inputs, layer(inputs))
        attack.canary.sings()  # building it has called the lambda
        stored = tmp_path / ("stored.h5" if name == "evil.h5" else "stored.keras")
        evil.save(stored)
    (tmp_path / name).write_bytes(stored.read_bytes())
    model = write_definition(tmp_path / "m.emd", ModelFile=name)
    attack.refused_by_command("brings its own code|cannot be loaded|not loaded", *detect(model))
    keras.saving.load_model(stored, safe_mode=False, compile=False)(np.zeros((1, 16, 16, 6), np.float32))
    attack.proves_real()


@pytest.mark.attack(
    "ONNX with external data", "weights in a file outside of the model's folder: ../, absolute, by a link"
)
@pytest.mark.skipif(not find_spec("onnxruntime") or not find_spec("onnx"), reason="onnxruntime, onnx are not installed")
@pytest.mark.parametrize(
    "location", ["../canary/secret.key", "{canary}/secret.key", "link.bin", "x/../../canary/secret.key"]
)
def test_onnx_reads_nothing_outside_of_the_folder(attack, detect, tmp_path, location):
    onnx = pytest.importorskip("onnx")
    folder, canary = tmp_path / "model", attack.canary
    folder.mkdir()
    (folder / "link.bin").symlink_to(canary.secret_file)
    weight = onnx.TensorProto(name="w", data_type=1, dims=[2, 6, 1, 1], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location.format(canary=canary.folder), "offset": "0", "length": "48"}.items():
        weight.external_data.add(key=key, value=value)
    shapes = (("x", ["n", 6, 16, 16]), ("y", ["n", 2, 16, 16]))
    given, answer = (onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "w"], ["y"])], "g", [given], [answer], [weight])
    network = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (folder / "evil.onnx").write_bytes(network.SerializeToString())
    model = write_definition(folder / "m.emd", ModelFile="evil.onnx")
    attack.refused_by_command("cannot be loaded by ONNX Runtime", *detect(model))


ELSEWHERE = [
    "/vsicurl/{url}/m.pt", "{url}/m.pt", "s3://bucket/m.pt", "file://{secret}", "/vsizip/{secret}/m.pt",
    "WMS:{url}/?LAYERS=x", "\\\\\\\\{host}\\\\share\\\\m.pt", "//./pipe/m.pt", "/dev/stdin", "/proc/self/environ",
    "<VRTDataset><VRTRasterBand><SourceFilename>{url}</SourceFilename></VRTRasterBand></VRTDataset>",
]  # fmt: skip


@pytest.mark.attack(
    "addresses in an .emd", "/vsicurl, http, WMS, a VRT's XML, file://, shares, devices as ModelFile or function"
)
@pytest.mark.parametrize("key", ["ModelFile", "InferenceFunction", "ModelFiles"])
@pytest.mark.parametrize("written", ELSEWHERE)
def test_addresses_of_a_definition_are_not_followed(attack, detect, tmp_path, key, written):
    canary = attack.canary
    text = written.replace("\\\\", "\\").format(url=canary.url, secret=canary.secret_file, host=canary.url[7:])
    keys = {"ModelFile": "toy.pt", key: [text] if key == "ModelFiles" else text}
    model = write_definition(tmp_path / "m.emd", **keys)
    attack.refused_by_command(
        r"is needed|brings its own code|not there|No such file|cannot be read|a device", *detect(model)
    )


BOMBS = {
    "deep lists": '{"Classes": ' + "[" * 200_000,
    "deep objects": '{"a":' * 200_000,
    "closed and deep": "[" * 900 + "]" * 900,
    "long number": '{"Padding": ' + "9" * 1_000_000 + "}",
    "large exponent": '{"Classes": [{"Value": 1e999999}]}',
    "100,000 classes": json.dumps({"Classes": [{"Value": each, "Name": "x"} for each in range(100_000)]}),
    "5 MB of text": '{"a": "' + "x" * 5_000_000 + '"}',
    "tile of 2^31": json.dumps({"ImageHeight": 2**31 - 1, "Classes": [{"Value": 1}], "ModelFile": "m.pt"}),
}


@pytest.mark.attack("JSON bombs", "nesting, numbers, lists and texts of great length, in an .emd")
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_of_json_are_refused(attack, detect, tmp_path, bomb):
    (tmp_path / "m.emd").write_text(BOMBS[bomb])
    said = attack.refused_by_command("m.emd", *detect(tmp_path / "m.emd"))
    assert len(said) < 2_000


ALIASES = "a0: &a0 [x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.attack(
    "YAML bombs", "aliases of aliases, nesting, tags of Python, in a definition and in options of a cluster"
)
@pytest.mark.parametrize(
    "bomb",
    [ALIASES + "directives: *a11\nclasses: *a11\n", "a: " + "[" * 20_000, "a: !!python/object/apply:os.mkdir [{}]"],
)
def test_bombs_of_yaml_are_refused(attack, models, pair, tmp_path, bomb):
    (tmp_path / "bomb.yaml").write_text(bomb.replace("{}", str(attack.canary.witness)))
    network, yaml = str(models["pt"].parent / "toy.pt"), str(tmp_path / "bomb.yaml")
    said = attack.refused_by_command("bomb.yaml", "pack-model", network, str(tmp_path / "o.dlpk"), "--definition", yaml)
    assert len(said) < 2_000
    said = attack.refused_by_command(
        "a0 and|no YAML|nested too deep|no such option", "cluster-script", "--cluster-config", yaml
    )
    assert len(said) < 2_000


@pytest.mark.attack("zip bomb", "300 MiB of zeros in 300 kB, whole and with a table of contents that lies")
@pytest.mark.parametrize("claims", ["the truth", "a small size"])
def test_bomb_of_zip_is_not_inflated(attack, detect, tmp_path, monkeypatch, claims):
    size = 300 * 2**20
    with zipfile.ZipFile(tmp_path / "m.dlpk", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("m.emd", "{}")
        with archive.open("m.pt", "w") as out:
            for _ in range(size // 2**20):
                out.write(bytes(2**20))
    if claims != "the truth":
        content = (tmp_path / "m.dlpk").read_bytes()
        (tmp_path / "m.dlpk").write_bytes(content.replace(size.to_bytes(4, "little"), (999).to_bytes(4, "little")))
    attack.refused_by_command("unpacks to more than|is damaged", *detect(tmp_path / "m.dlpk"))
    unpacked = Path(os.environ["GEODL_DASK_CACHE"]) / "packages"
    assert sum(each.stat().st_size for each in unpacked.rglob("m.pt") if each.stat().st_size >= 999) == 0


@pytest.mark.attack(
    "names that fool the eye", "control characters and right-to-left marks in class names and the model's name"
)
def test_names_of_a_model_cannot_rewrite_the_terminal(attack, models, tmp_path):
    evil = "ok\x1b[2J\x1b]0;owned\x07\u202egpj.exe\r\n"
    definition = json.loads(models["pt"].read_text())
    definition |= {"ModelName": evil, "Classes": [{"Value": 0, "Name": evil}, {"Value": 1, "Name": evil}]}
    definition["ModelFile"] = str(models["pt"].parent / "toy.pt")
    done = CliRunner().invoke(cli, ["model-info", json.dumps(definition)])
    assert done.exit_code == 0
    assert not re.search("[\x1b\x07\u202e\r]", done.output)
    attack.harmless(done.output.encode())


def test_a_model_that_is_none_of_these_is_loaded(tmp_path, toy_network):
    """So that what is refused above is refused for its sake."""
    save_network(toy_network, tmp_path / "toy.pt")
    assert load_definition(write_definition(tmp_path / "m.emd", ModelFile="toy.pt")).model_file
