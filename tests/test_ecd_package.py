"""A classifier definition as a model: what is taken out, what is used where it lies, and what is neither."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from test_ecd import CNTK, SAMPLE, tree, write_saved_model

from geodl_dask import ecd_package
from geodl_dask.definition import load_definition
from geodl_dask.ecd import deep_learning_model_to_ecd
from geodl_dask.errors import ModelDefinitionError, ModelPackageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GEODL_DASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a model and its class information."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "cntk.model").write_bytes(CNTK)
    (tmp_path / "models" / "classInfo.json").write_text(SAMPLE)
    return tmp_path / "models"


def convert(folder: Path, out: str = "out.ecd", model: str = "cntk.model", **options) -> Path:
    return deep_learning_model_to_ecd(folder / model, folder / "classInfo.json", folder / out, **options).path


def change_file(path: Path, **keys) -> Path:
    """Change the record of an .ecd's first file."""
    envelope = json.loads(path.read_text())
    envelope["Definitions"][0]["DeepLearningModel"]["Files"][0].update(keys)
    path.write_text(json.dumps(envelope))
    return path


def test_an_embedded_model_is_taken_out_once(folder, cache):
    model = Path(load_definition(convert(folder)).model_file)
    assert cache in model.parents
    assert model.read_bytes() == CNTK
    model.with_name("left").write_text("by somebody")
    assert Path(load_definition(folder / "out.ecd").model_file) == model
    assert model.with_name("left").exists()


def test_a_file_that_a_cleaner_took_from_the_cache_comes_back(folder):
    model = Path(load_definition(convert(folder)).model_file)
    model.unlink()
    assert Path(load_definition(folder / "out.ecd").model_file) == model
    assert model.read_bytes() == CNTK


def test_what_was_left_half_written_a_day_ago_is_swept(folder, cache):
    old, young = cache / "ecd" / "a.partial-old", cache / "ecd" / "b.partial-young"
    for path in (old, young):
        path.mkdir(parents=True)
    os.utime(old, (time.time() - 90_000,) * 2)
    load_definition(convert(folder))
    assert (old.exists(), young.exists()) == (False, True)


def test_a_failure_leaves_nothing_in_the_cache(folder, cache):
    convert(folder)
    change_file(folder / "out.ecd", SHA256="0" * 64)
    with pytest.raises(ModelDefinitionError, match="SHA256"):
        load_definition(folder / "out.ecd")
    assert list((cache / "ecd").iterdir()) == []


def test_an_embedded_model_larger_than_the_limit_is_not_taken_out(folder, cache, monkeypatch):
    monkeypatch.setenv("GEODL_DASK_PACKAGE_MAX_BYTES", str(len(CNTK) - 1))
    with pytest.raises(ModelPackageError, match=rf"model of {len(CNTK)} bytes.*GEODL_DASK_PACKAGE_MAX_BYTES"):
        load_definition(convert(folder))
    assert not cache.exists()
    monkeypatch.setenv("GEODL_DASK_PACKAGE_MAX_BYTES", str(len(CNTK)))
    load_definition(folder / "out.ecd")


@pytest.mark.parametrize("place", ["cntk.model", "below/it/cntk.model"])
def test_a_referenced_model_is_used_where_it_lies_and_never_copied(folder, cache, monkeypatch, place):
    (folder / "below" / "it").mkdir(parents=True)
    if place != "cntk.model":
        shutil.move(folder / "cntk.model", folder / place)
    path, before = convert(folder, model=place, reference=True), tree(folder)
    embedded = convert(folder, "embedded.ecd", model=place)
    definition = load_definition(path)
    assert Path(definition.model_file) == folder / place
    assert not cache.exists()
    assert before.items() <= tree(folder).items()
    monkeypatch.chdir(folder / "below")
    assert load_definition("../out.ecd").model_file == definition.model_file
    assert load_definition(embedded).digest == definition.digest


def test_a_referenced_folder_is_used_where_it_lies(folder):
    write_saved_model(folder / "sm")
    assert Path(load_definition(convert(folder, model="sm", reference=True)).model_file) == folder / "sm"


@pytest.mark.attack(".ecd that refers elsewhere", "../, absolute, by a link; another file than it says")
@pytest.mark.parametrize(
    "place",
    ["/etc/passwd", "/proc/self/pagemap", "../cntk.model", "down/../cntk.model", "link/cntk.model", "down\\\\x"],
)
@pytest.mark.parametrize("size", [None, 2**49])
def test_a_reference_that_leads_out_of_the_folder_is_not_followed(folder, cache, place, size):
    for name in ("cntk.model", "down/cntk.model"):
        target = folder.parent / name if name == "cntk.model" else folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(folder / "cntk.model", target)
    (folder / "link").symlink_to(folder.parent)
    path = convert(folder, reference=True)
    at = folder / place
    size = size or (at.stat().st_size if at.exists() else 5)
    content = at.read_bytes() if at.exists() and 0 < size < 2**20 else b""
    change_file(
        path, Path=place, Size=size, SHA256=hashlib.sha256(content).hexdigest(), FileName=at.name.split("\\")[-1]
    )
    with pytest.raises(ModelDefinitionError, match="which is not in its folder"):
        load_definition(path)
    assert not cache.exists()


@pytest.mark.attack(".ecd that refers elsewhere", "../, absolute, by a link; another file than it says")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"SHA256": "0" * 64}, "does not fit the SHA256"),
        ({"Size": 2**49}, "is no file of 562949953421312 bytes"),
        ({"Path": "gone/cntk.model"}, "is no file of"),
        ({"Path": "folder/cntk.model"}, "is no file of"),
        ({"Path": "pipe/cntk.model"}, "is no file of"),
        ({"FileName": "other.model"}, "should be called other.model"),
        ({"FileName": "folder/cntk.model"}, "should be called folder/cntk.model"),
    ],
)
def test_a_referenced_model_is_the_one_that_was_referred_to(folder, cache, change, says):
    (folder / "folder" / "cntk.model").mkdir(parents=True)
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / "cntk.model")
    path = change_file(convert(folder, reference=True), **change)
    with pytest.raises(ModelDefinitionError, match=says):
        load_definition(path)
    assert not cache.exists()


def test_a_model_partly_within_and_partly_outside_is_refused(folder, cache):
    write_saved_model(folder / "sm")
    path = convert(folder, model="sm")
    change_file(path, Encoding="reference", Path="sm/saved_model.pb")
    envelope = json.loads(path.read_text())
    del envelope["Definitions"][0]["DeepLearningModel"]["Files"][0]["Data"]
    path.write_text(json.dumps(envelope))
    with pytest.raises(ModelDefinitionError, match="refers to"):
        load_definition(path)
    assert not cache.exists()


def test_the_folder_of_an_ecd_may_be_a_link(folder):
    path = convert(folder, reference=True)
    (folder.parent / "linked").symlink_to(folder)
    assert Path(load_definition(folder.parent / "linked" / path.name).model_file) == folder / "cntk.model"
    assert ecd_package.open_ecd(path)[1] == folder
