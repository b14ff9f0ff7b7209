"""The digest notices all that may change the answer, at little cost; a model that changes under a run is refused."""

import hashlib
import os

import onnx
import pytest
from conftest import ToyNetwork, save_network, write_definition

from geodl_dask.definition import load_definition
from geodl_dask.digest import MOST_CODE_FILES, MOST_CODE_FOLDERS
from geodl_dask.errors import ModelFileError
from geodl_dask.model_files import require_unchanged
from geodl_dask.runners import RunnerSpec, load_runner


@pytest.fixture
def digest(tmp_path):
    """digest(Key=...): that of a definition with a raster function in the folder ``model``."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "Fn.py").write_text("import helper")

    def digest_one(**keys) -> str:
        path = write_definition(folder / "m.emd", **{"ModelFile": "w.pt", "InferenceFunction": "Fn.py", **keys})
        return load_definition(path).digest

    return digest_one


def test_code_beside_a_raster_function_is_part_of_its_model(digest, tmp_path):
    digests = [digest()]
    (tmp_path / "model" / "networks").mkdir()
    for name, text in (("helper.py", "1"), ("helper.py", "2"), ("networks/unet.py", "1"), ("networks/unet.py", "2")):
        (tmp_path / "model" / name).write_text(text)
        digests.append(digest())
    assert len(set(digests)) == len(digests)
    for name in ("notes.txt", ".git/hook.py", "__pycache__/x.py", "../above.py"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text("else")
    (tmp_path / "model" / "loop").symlink_to(tmp_path / "model", target_is_directory=True)
    assert digest() == digests[-1]


def test_code_is_looked_for_within_limits(digest, tmp_path):
    for number in range(MOST_CODE_FOLDERS + 30):
        folder = tmp_path / "model" / f"f{number:04}"
        folder.mkdir()
        for name in range(MOST_CODE_FILES // MOST_CODE_FOLDERS + 1):
            (folder / f"{name}.py").touch()
    before = digest()
    (tmp_path / "model" / f"f{MOST_CODE_FOLDERS + 20:04}" / "0.py").write_text("changed")
    assert digest() == before
    (tmp_path / "model" / "f0001" / "0.py").write_text("changed")
    assert digest() != before


@pytest.fixture
def external(tmp_path):
    """An ONNX network whose tensors stand in a file of their own, in a folder of their own."""
    save_network(ToyNetwork(), tmp_path / "inside.onnx")
    (tmp_path / "data").mkdir()
    onnx.save(
        onnx.load(tmp_path / "inside.onnx"), tmp_path / "toy.onnx", save_as_external_data=True, size_threshold=0,
        location=f"data/{'w' * 150}.bin",
    )  # fmt: skip
    return write_definition(tmp_path / "m.emd", ModelFile="toy.onnx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensors_beside_an_onnx_model_are_part_of_it(external, tmp_path):
    definition = load_definition(external)
    load_runner(RunnerSpec(definition, "native", 3, "uint8"))
    (data,) = (tmp_path / "data").iterdir()
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_definition(external).digest != definition.digest
    with pytest.raises(
        ModelFileError, match=r"m\.emd are not those that the run was planned with.*Start the run again"
    ):
        load_runner(RunnerSpec(definition, "native", 3, "uint8"))


@pytest.mark.parametrize("location", ["/etc/hostname", "../outside.bin", "a\0b", "\udcff", "x" * 5000])
def test_tensors_elsewhere_are_not_looked_for(location, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "outside.bin").write_text("1")
    name = os.fsencode(location)
    length = bytes([len(name)]) if len(name) < 128 else bytes([len(name) & 127 | 128, len(name) >> 7])
    (tmp_path / "model" / "w.onnx").write_bytes(b"\n\x08location\x12" + length + name)
    path = write_definition(tmp_path / "model" / "m.emd", ModelFile="w.onnx")
    before = load_definition(path).digest
    (tmp_path / "outside.bin").write_text("2")
    assert load_definition(path).digest == before


def test_weights_that_change_after_planning_are_refused_by_whoever_loads_them(tmp_path):
    save_network(ToyNetwork(), tmp_path / "toy.pt2")
    definition = load_definition(write_definition(tmp_path / "m.emd", ModelFile="toy.pt2"))
    require_unchanged(definition)
    save_network(ToyNetwork(classes=1), tmp_path / "toy.pt2")
    with pytest.raises(ModelFileError, match="not those that the run was planned with"):
        load_runner(RunnerSpec(definition, "native", 3, "uint8"))


def test_large_weights_are_read_once(tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"weights")
    long_ago = (tmp_path / "w.pt").stat().st_mtime - 100
    path = write_definition(tmp_path / "m.emd", ModelFile="w.pt")
    read, digest_file = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest_file(file, name))
    monkeypatch.setattr("geodl_dask.digest._JUST_NOW_NS", -(10**12))
    first = load_definition(path)
    for _ in range(3):
        require_unchanged(first)
    assert len(read) == 1
    (tmp_path / "w.pt").write_bytes(b"WEIGHTS")
    os.utime(tmp_path / "w.pt", (long_ago, long_ago))
    assert load_definition(path).digest != first.digest
    assert len(read) == 2
