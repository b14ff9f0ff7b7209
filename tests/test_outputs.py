"""Where a result may be written, and that nothing but a whole result ever bears its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from geodl_dask.errors import OutputError, OutputExistsError
from geodl_dask.outputs import check_output, growing_output, partial_of, publish

TIF = (".tif", ".tiff")


def make(path: Path, kind: str, content: str) -> Path:
    if kind == "file":
        path.write_text(content)
    else:
        path.mkdir()
        (path / "content").write_text(content)
    return path


def content_of(path: Path) -> str:
    return (path if path.is_file() else path / "content").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["change.tif", "change.TIFF", "my.change.tif"])
def test_free_name_is_given_back_absolute(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert check_output(name, TIF, overwrite=False) == tmp_path / name
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["change.png", "change", "tif", "change.tif.gz", ".tif"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(OutputError, match=r"\.tif or \.tiff"):
        check_output(tmp_path / name, TIF, overwrite=True)


def test_missing_folder_is_refused_and_not_made(tmp_path):
    with pytest.raises(OutputError, match="does not exist; make it first"):
        check_output(tmp_path / "none" / "change.tif", TIF, overwrite=True)
    assert names(tmp_path) == []


def test_file_in_the_place_of_the_folder_is_refused(tmp_path):
    make(tmp_path / "file", "file", "")
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "file" / "change.tif", TIF, overwrite=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to any folder")
def test_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="cannot be written to"):
            check_output(tmp_path / "change.tif", TIF, overwrite=True)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_standing_output_or_part_is_refused_unless_overwriting(tmp_path, kind, suffix):
    standing = make(tmp_path / f"change.tif{suffix}", kind, "old")
    with pytest.raises(OutputExistsError, match=f"{standing.name} .*--overwrite"):
        check_output(tmp_path / "change.tif", TIF, overwrite=False)
    assert check_output(tmp_path / "change.tif", TIF, overwrite=True) == tmp_path / "change.tif"
    assert content_of(standing) == "old"


def test_output_grows_in_an_empty_folder_beside_it(tmp_path):
    out = tmp_path / "change.tif"
    make(partial_of(out), "folder", "of an interrupted run")
    with growing_output(out) as partial:
        assert partial.parent == out.parent
        assert names(partial) == []
        assert not out.exists()
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception_but_what_was_there(tmp_path, error):
    out = make(tmp_path / "change.tif", "file", "old")
    with pytest.raises(error), growing_output(out) as partial:
        make(partial / "half", "folder", "half")
        raise error
    assert names(tmp_path) == ["change.tif"]
    assert content_of(out) == "old"


@pytest.mark.parametrize("new", ["file", "folder"])
@pytest.mark.parametrize("old", [None, "file", "folder", "link", "broken link"])
def test_result_takes_the_place_of_whatever_stood_there(tmp_path, new, old):
    folder = tmp_path / "results"
    folder.mkdir()
    out = folder / "change.zarr"
    if old in ("file", "folder"):
        make(out, old, "old")
    elif old:
        target = tmp_path / "target"
        out.symlink_to(make(target, "folder", "old") if old == "link" else target)
    with growing_output(out) as partial:
        finished = make(partial / "finished", new, "new")
        if old in ("file", "folder", "link"):
            assert content_of(out) == "old"
        publish(finished, out)
    assert content_of(out) == "new"
    assert not out.is_symlink()
    assert names(folder) == ["change.zarr"]
    if old == "link":
        assert content_of(target) == "old"
