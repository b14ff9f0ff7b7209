"""Where a result may be written, and that nothing but a whole result ever bears its name."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import parts_in
from filelock import FileLock

from geodl_dask import locks
from geodl_dask.errors import OutputError, OutputExistsError
from geodl_dask.growth import growing_output, partial_of
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import check_output, publish
from geodl_dask.shards import Shard

TIF = (".tif", ".tiff")
NOBODY = 65534
ASKED = {"padding": 4}
STARTED, REPLACING = Manifest(ASKED, ""), Manifest(ASKED, "", replaces=True)


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


def test_name_that_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"caf\\udce9\.tif' has a name that is not UTF-8"):
        check_output(tmp_path / "caf\udce9.tif", TIF, overwrite=True)


def test_missing_folder_is_refused_and_not_made(tmp_path):
    with pytest.raises(OutputError, match="does not exist; make it first"):
        check_output(tmp_path / "none" / "change.tif", TIF, overwrite=True)
    assert names(tmp_path) == []


def test_file_in_the_place_of_the_folder_is_refused(tmp_path):
    make(tmp_path / "file", "file", "")
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "file" / "change.tif", TIF, overwrite=True)


@contextmanager
def not_as_root():
    """As somebody else while the block lasts, for root may write to any folder."""
    if os.geteuid():
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a folder has no such mode here")
def test_read_only_folder_is_refused():
    with tempfile.TemporaryDirectory() as name:  # into pytest's own nobody but who runs it may look
        folder = Path(name)
        folder.chmod(0o555)
        with not_as_root(), pytest.raises(OutputError, match="cannot be written to"):
            check_output(folder / "change.tif", TIF, overwrite=True)
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_standing_output_or_part_is_refused_unless_overwriting(tmp_path, kind, suffix):
    standing = make(tmp_path / f"change.tif{suffix}", kind, "old")
    with pytest.raises(OutputExistsError, match=f"{standing.name} .*--overwrite"):
        check_output(tmp_path / "change.tif", TIF, overwrite=False)
    if (kind, suffix) != ("folder", ""):
        assert check_output(tmp_path / "change.tif", TIF, overwrite=True) == tmp_path / "change.tif"
    assert content_of(standing) == "old"


@pytest.mark.parametrize("name", ["change.tif", "change.zarr"])
def test_folder_of_the_users_is_never_replaced(tmp_path, name):
    make(tmp_path / name, "folder", "precious")
    with pytest.raises(OutputExistsError, match="is a folder, and not a Zarr store"):
        check_output(tmp_path / name, (".tif", ".zarr"), overwrite=True)
    assert content_of(tmp_path / name) == "precious"


@pytest.mark.parametrize("record", ["zarr.json", ".zgroup", None])
def test_zarr_store_and_empty_folder_may_be_replaced_by_a_store_alone(tmp_path, record):
    for name in ("change.zarr", "change.tif"):
        (tmp_path / name).mkdir()
        if record:
            (tmp_path / name / record).write_text("{}")
    assert check_output(tmp_path / "change.zarr", (".zarr",), overwrite=True)
    with pytest.raises(OutputExistsError, match="is a folder"):
        check_output(tmp_path / "change.tif", TIF, overwrite=True)


@pytest.mark.parametrize("key", ["from_raster", "to_raster", "raster", "model", "mask", "like", "snap_raster"])
def test_input_is_never_the_output_by_whatever_name(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    mine = make(tmp_path / "folder" / "mine.tif", "file", "mine")
    (tmp_path / "link.tif").symlink_to(mine)
    (tmp_path / "hard.tif").hardlink_to(mine)
    make(tmp_path / "other.tif", "file", "other")
    for given in ("folder/mine.tif", "link.tif", "hard.tif", "folder/../hard.tif", str(mine), "folder"):
        with pytest.raises(OutputExistsError, match="is one of the inputs"):
            check_output(mine, TIF, overwrite=True, provenance={key: given})
    for given in ("other.tif", "nothing.tif", "http://host/folder/mine.tif", "<VRTDataset>" * 1000, "\0", "change"):
        check_output(mine, TIF, overwrite=True, provenance={key: given, "long_name": "folder/mine.tif"})


def test_store_that_holds_an_input_is_never_the_output(tmp_path):
    store = make(tmp_path / "image.zarr", "folder", "pixels")
    (store / "zarr.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="holds one"):
        check_output(store, (".zarr",), overwrite=True, provenance={"from_raster": str(store / "content")})


def test_output_grows_in_a_folder_beside_it_without_what_an_earlier_run_left(tmp_path):
    out = tmp_path / "change.tif"
    make(partial_of(out), "folder", "of an interrupted run")
    make(partial_of(out) / "folder", "folder", "of an interrupted run")
    (partial_of(out) / "lock").touch()
    with growing_output(out, REPLACING) as growth:
        assert growth.folder.parent == partial_of(out)
        assert names(growth.folder) == []
        assert names(partial_of(out)) == sorted(["lock", "manifest.json", "owner", growth.folder.name])
        assert not out.exists()
    assert names(tmp_path) == []


def test_part_of_an_earlier_run_is_not_removed_unasked(tmp_path):
    out = tmp_path / "change.tif"
    make(partial_of(out), "folder", "of an interrupted run")
    with (
        pytest.raises(OutputExistsError, match=r"change\.tif\.partial is there already"),
        growing_output(out, STARTED),
    ):
        pass
    assert content_of(partial_of(out)) == "of an interrupted run"


@pytest.mark.parametrize(("overwrite", "resume"), [(False, False), (True, False), (False, True)])
def test_second_run_to_one_output_is_refused_while_the_first_lives(tmp_path, overwrite, resume):
    out, who = tmp_path / "change.tif", f"process {os.getpid()} on {socket.gethostname()}"
    with growing_output(out, STARTED) as growth:
        make(growth.folder / "half", "file", "half")
        with (
            pytest.raises(OutputExistsError, match=who),
            growing_output(out, Manifest(ASKED, "", replaces=overwrite), resume=resume),
        ):
            pass
        with pytest.raises(OutputExistsError, match=who):
            check_output(out, TIF, overwrite=False)
        assert content_of(growth.folder / "half") == "half"
    with growing_output(out, STARTED):
        pass
    assert names(tmp_path) == []


HOLD = """
import sys, time
from pathlib import Path
from geodl_dask.manifest import Manifest
from geodl_dask.growth import growing_output
with growing_output(Path(sys.argv[1]), Manifest({}, "")):
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_lock_ends_with_the_process_that_held_it(tmp_path):
    out = tmp_path / "change.tif"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "holding\n"
        with pytest.raises(OutputExistsError, match=f"Another run .process {other.pid} on .* is writing {out}"):
            growing_output(out, REPLACING).__enter__()
        other.send_signal(signal.SIGKILL)
        other.wait()
    with pytest.raises(OutputExistsError, match=f"interrupted run left, .*process {other.pid} on .*--overwrite"):
        check_output(out, TIF, overwrite=False)
    with growing_output(out, REPLACING):
        pass
    assert names(tmp_path) == []


def test_file_system_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(number):
        def acquire(lock, timeout):
            raise OSError(number, "No locks available")

        monkeypatch.setattr(FileLock, "acquire", acquire)

    refuse(errno.ENOLCK)
    with growing_output(tmp_path / "change.tif", STARTED) as growth:
        assert growth.folder.is_dir()
    assert "no locks on the file system" in caplog.text
    refuse(errno.EACCES)
    with pytest.raises(OSError, match="No locks"):
        growing_output(tmp_path / "change.tif", STARTED).__enter__()


def left_by_another_machine(out: Path, silent_s: float) -> Path:
    """The parts of a run whose owner was last heard of so long ago."""
    partial = partial_of(out)
    partial.mkdir()
    Manifest(ASKED, "toy.emd").write(partial / "manifest.json")
    (partial / "0_0.tif").write_text("finished")
    (partial / "owner").write_text("elsewhere 4711")
    then = time.time() - silent_s
    os.utime(partial / "owner", (then, then))
    return partial


@pytest.mark.parametrize("silent_s", [0, 60])
def test_run_on_another_machine_is_named_and_left_alone(tmp_path, silent_s):
    out = tmp_path / "change.tif"
    partial = left_by_another_machine(out, silent_s)
    with pytest.raises(OutputExistsError, match=r"Process 4711 on elsewhere is writing .*if it has died, go on 120 s"):
        growing_output(out, REPLACING).__enter__()
    assert names(partial) == ["0_0.tif", "manifest.json", "owner"]
    assert content_of(partial / "owner") == "elsewhere 4711"


@pytest.mark.timeout(60)
def test_run_on_another_machine_that_lives_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_SILENT_AFTER_S", 20)
    out = tmp_path / "change.tif"
    partial = left_by_another_machine(out, silent_s=10)
    ended = threading.Event()

    def go_on_beating() -> None:
        while not ended.wait(0.5):
            (partial / "owner").touch()

    beat = threading.Thread(target=go_on_beating, daemon=True)
    beat.start()
    with pytest.raises(OutputExistsError, match="Process 4711 on elsewhere is writing"):
        growing_output(out, STARTED, resume=True).__enter__()
    ended.set()
    beat.join()
    assert names(partial) == ["0_0.tif", "manifest.json", "owner"]


@pytest.mark.parametrize("look", ["is_dir", "iterdir"])
def test_store_that_another_run_replaces_meanwhile_may_be_replaced(look, tmp_path, monkeypatch):
    """It is gone after the first look at it."""
    out, see = tmp_path / "change.zarr", getattr(Path, look)
    out.mkdir()
    (out / "zarr.json").touch()

    def look_and_lose(folder):
        seen = see(folder)
        if folder == out and out.exists():
            out.rename(tmp_path / "old")
        return seen

    monkeypatch.setattr(Path, look, look_and_lose)
    check_output(out, (".zarr",), overwrite=True, resume=False, provenance={})


def test_holder_that_is_just_writing_its_name_is_not_taken_for_one_of_another_machine(tmp_path):
    (tmp_path / "owner").touch()
    post = locks.Post(tmp_path)
    post.require_vacant_elsewhere("writing")
    with post.locked("writing"), pytest.raises(OutputExistsError, match=r"^Another run is writing"):
        post.locked("writing")


def test_block_that_is_late_does_not_keep_the_folder_of_a_run_that_is_over(tmp_path, monkeypatch):
    """It comes into a folder that has been gone through."""
    out, remove = tmp_path / "change.zarr", shutil.rmtree

    def remove_and_be_late(folder, **options):
        remove(folder, **options)
        monkeypatch.undo()
        late.mkdir(parents=True)

    with growing_output(out, STARTED) as growth:
        late = growth.folder / "store.zarr" / "c"
        monkeypatch.setattr(shutil, "rmtree", remove_and_be_late)
    assert list(tmp_path.iterdir()) == []


def test_run_on_another_machine_that_was_just_killed_is_waited_for_and_gone_on_with(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_SILENT_AFTER_S", 3)
    out = tmp_path / "change.tif"
    began = time.monotonic()
    left_by_another_machine(out, silent_s=0)
    with growing_output(out, STARTED, resume=True) as growth:
        assert time.monotonic() - began > 2.9
        assert content_of(growth.folder / "0_0.tif") == "finished"
        assert "Process 4711 on elsewhere was writing" in caplog.text


def test_run_on_another_machine_that_is_silent_is_taken_for_dead(tmp_path):
    out = tmp_path / "change.tif"
    partial = left_by_another_machine(out, 130)
    with pytest.raises(OutputExistsError, match=r"interrupted run left, .*process 4711 on elsewhere"):
        check_output(out, TIF, overwrite=False)
    with growing_output(out, STARTED, resume=True) as growth:
        assert content_of(growth.folder / "0_0.tif") == "finished"
        assert content_of(growth.folder / "owner") == f"{socket.gethostname()} {os.getpid()}"
    assert not partial.exists()


def test_run_that_is_at_work_says_so_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT_EVERY_S", 0.05)
    with growing_output(tmp_path / "change.tif", STARTED) as growth:
        owner = growth.folder.parent / "owner"
        os.utime(owner, (1, 1))
        until = time.monotonic() + 10
        while owner.stat().st_mtime < time.time() - 60:
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("has_finished", [False, True])
def test_parts_stay_after_an_exception_where_something_is_finished(tmp_path, error, has_finished):
    out = make(tmp_path / "change.tif", "file", "old")
    with pytest.raises(error) as raised, growing_output(out, REPLACING) as growth:
        make(growth.folder / "part", "folder", "part")
        growth.has_finished = lambda: has_finished
        raise error
    assert content_of(out) == "old"
    if has_finished:
        assert names(tmp_path) == ["change.tif", "change.tif.partial"]
        assert content_of(parts_in(out) / "part") == "part"
        assert raised.value.__notes__ == [
            f"What is finished is kept in {partial_of(out)}; --resume (resume=True) goes on with it."
        ]
        assert "owner" not in names(partial_of(out))
    else:
        assert names(tmp_path) == ["change.tif"]
        assert not hasattr(raised.value, "__notes__")


def test_kept_parts_stay_whenever_the_run_that_goes_on_with_them_ends(tmp_path):
    """Also where it ends before it has looked at them."""
    out = tmp_path / "change.tif"
    left_by_another_machine(out, 130)
    with pytest.raises(OSError, match="full"), growing_output(out, STARTED, resume=True):
        raise OSError("the disk is full")
    assert content_of(partial_of(out) / "0_0.tif") == "finished"


@pytest.mark.parametrize("left", [None, "folder", "lock"])
def test_resuming_begins_anew_where_nothing_was_left(tmp_path, left):
    out = tmp_path / "change.tif"
    if left:
        partial_of(out).mkdir()
    if left == "lock":
        (partial_of(out) / "lock").touch()
        (partial_of(out) / "owner").write_text(f"{socket.gethostname()} 4711")
    with growing_output(out, STARTED, resume=True) as growth:
        assert Manifest.read(partial_of(out) / "manifest.json") == replace(STARTED, parts=growth.folder.name)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (None, "has no manifest"),
        ("", "has no manifest"),
        ('{"format": 1, "asked":', "has no manifest"),
        ('{"format": 99, "asked": {"padding": 4}}', "has no manifest"),
        ("[]", "has no manifest"),
        ("other", "padding was 8, is 4"),
    ],
)
def test_parts_of_another_run_are_refused_and_stay(tmp_path, manifest, says):
    out = tmp_path / "change.tif"
    partial = make(partial_of(out), "folder", "finished")
    (partial / "lock").touch()
    if manifest == "other":
        Manifest({"padding": 8}, "toy.emd").write(partial / "manifest.json")
    elif manifest is not None:
        (partial / "manifest.json").write_text(manifest)
    before = {path: path.read_bytes() for path in partial.iterdir() if path.name != "lock"}
    with pytest.raises(OutputExistsError, match=f"{says}.*--overwrite"), growing_output(out, STARTED, resume=True):
        pass
    assert {path: path.read_bytes() for path in partial.iterdir() if path.name != "lock"} == before
    with growing_output(out, REPLACING) as growth:
        assert not (growth.folder / "content").exists()


@pytest.mark.parametrize("shard", [None, Shard(1, 2)])
def test_parts_that_are_not_where_their_manifest_says_are_refused_and_stay(tmp_path, shard):
    out = tmp_path / "change.tif"
    partial = partial_of(out)
    (partial / "parts-01234567").mkdir(parents=True)
    (partial / "parts-01234567/0_0.tif").write_text("finished")
    replace(STARTED, parts="parts-89abcdef", shards=2 if shard else 0).write(partial / "manifest.json")
    says = "finished blocks in parts-01234567, and its manifest says 'parts-89abcdef'"
    with pytest.raises(OutputExistsError, match=says), growing_output(out, STARTED, resume=True, shard=shard):
        pass
    assert (partial / "parts-01234567/0_0.tif").read_text() == "finished"


def test_what_a_run_before_may_still_write_does_not_come_in(tmp_path):
    out = tmp_path / "change.tif"
    with pytest.raises(KeyboardInterrupt), growing_output(out, STARTED) as growth:
        growth.has_finished = lambda: True
        raise KeyboardInterrupt
    late = growth.folder / "0_0.tif"
    with growing_output(out, REPLACING) as growth:
        with pytest.raises(FileNotFoundError):
            late.write_text("of the run before")
        assert names(growth.folder) == []


@pytest.mark.parametrize("options", [{"started": REPLACING}, {"started": STARTED, "resume": True}])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_folder_of_the_users_is_no_folder_of_parts(tmp_path, kind, options):
    out, theirs = tmp_path / "change.tif", tmp_path / "photos"
    make(theirs if kind == "link" else partial_of(out), "folder", "theirs")
    if kind == "link":
        partial_of(out).symlink_to(theirs)
    with pytest.raises(OutputExistsError, match="is not what an interrupted run left"):
        growing_output(out, **options).__enter__()
    assert content_of(partial_of(out)) == "theirs"
    assert names(partial_of(out)) == ["content"]


def test_old_result_is_put_back_where_a_run_was_killed_in_the_very_moment_of_replacing_it(tmp_path):
    out = make(tmp_path / "change.zarr", "folder", "old")
    with pytest.raises(KeyboardInterrupt), growing_output(out, REPLACING) as growth:
        growth.has_finished = lambda: True
        out.replace(growth.folder / "old")
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="full"), growing_output(out, REPLACING):
        raise OSError("the disk is full")
    assert content_of(out) == "old"


@pytest.mark.parametrize("side", [".aux.xml", ".msk", ".ovr"])
def test_what_would_be_read_with_a_new_result_is_refused_and_not_removed_unasked(tmp_path, side):
    (tmp_path / f"change.tif{side}").write_text("theirs")
    with pytest.raises(OutputExistsError, match=rf"change\.tif\{side} would be read with"):
        check_output(tmp_path / "change.tif", TIF, overwrite=False)
    assert names(tmp_path) == [f"change.tif{side}"]
    check_output(tmp_path / "change.tif", TIF, overwrite=True)


@pytest.mark.parametrize("given", ["a.zarr#red,green", "*.zarr", "**/*.zarr", "./[ab].zarr"])
def test_input_is_never_the_output_where_a_part_or_a_pattern_was_asked_for(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (make(tmp_path / "a.zarr", "folder", "input") / "zarr.json").touch()
    with pytest.raises(OutputExistsError, match="is one of the inputs"):
        check_output("a.zarr", (".zarr",), overwrite=True, provenance={"from_raster": given})


def test_beginning_anew_and_going_on_are_not_asked_for_at_once(tmp_path):
    with pytest.raises(OutputError, match="overwrite and resume were both asked for"):
        check_output(tmp_path / "change.tif", TIF, overwrite=True, resume=True)


@pytest.mark.parametrize("new", ["file", "folder"])
@pytest.mark.parametrize("old", [None, "file", "store", "link", "broken link"])
def test_result_takes_the_place_of_what_may_be_replaced(tmp_path, new, old):
    folder = tmp_path / "results"
    folder.mkdir()
    out, target = folder / "change.zarr", tmp_path / "target"
    if old == "file":
        make(out, "file", "old")
    elif old:
        place = out if old == "store" else target
        if old != "broken link":
            (make(place, "folder", "old") / "zarr.json").touch()
        if old != "store":
            out.symlink_to(target)
    with growing_output(out, REPLACING) as growth:
        finished = make(growth.folder / "finished", new, "new")
        if old in ("file", "store", "link"):
            assert content_of(out) == "old"
        publish(finished, out, overwrite=True)
    assert content_of(out) == "new"
    assert not out.is_symlink()
    assert names(folder) == ["change.zarr"]
    if old == "link":
        assert content_of(target) == "old"


@pytest.mark.parametrize("new", ["file", "folder"])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("late", ["file", "folder", "empty folder", "broken link"])
def test_what_appears_meanwhile_stays_and_the_result_gets_a_name_beside_it(tmp_path, monkeypatch, new, links, late):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *paths: (_ for _ in ()).throw(OSError(95, "no hard links")))
    out = tmp_path / "change.tif"
    make(tmp_path / "change.2.tif", "file", "another")
    with growing_output(out, STARTED) as growth:
        finished = make(growth.folder / "finished", new, "new")
        if late in ("file", "folder"):
            make(out, late, "theirs")
        else:
            out.mkdir() if late == "empty folder" else out.symlink_to("nowhere")
        assert publish(finished, out, overwrite=False) == tmp_path / "change.3.tif"
    assert names(tmp_path) == ["change.2.tif", "change.3.tif", "change.tif"]
    assert content_of(tmp_path / "change.3.tif") == "new"
    if late in ("file", "folder"):
        assert content_of(out) == "theirs"


def test_folder_that_appears_meanwhile_stays_even_where_overwriting_was_asked_for(tmp_path):
    out = tmp_path / "change.tif"
    with growing_output(out, REPLACING) as growth:
        finished = make(growth.folder / "finished", "file", "new")
        make(out, "folder", "theirs")
        assert publish(finished, out, overwrite=True) == tmp_path / "change.2.tif"
    assert (content_of(out), content_of(tmp_path / "change.2.tif")) == ("theirs", "new")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_result_takes_a_free_name(tmp_path, monkeypatch, new, links):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *paths: (_ for _ in ()).throw(OSError(95, "no hard links")))
    out = tmp_path / "change.tif"
    with growing_output(out, STARTED) as growth:
        publish(make(growth.folder / "finished", new, "new"), out, overwrite=False)
    assert names(tmp_path) == ["change.tif"]
    assert content_of(out) == "new"


# What stands beside a result


def beside(path: Path, **contents: str) -> None:
    """Files beside ``path``: ``aux_xml="..."``."""
    for name, content in contents.items():
        path.with_name(f"{path.name}.{name.replace('_', '.')}").write_text(content)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_side_file_takes_its_name_with_the_result(tmp_path, monkeypatch, overwrite, links):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *paths: (_ for _ in ()).throw(OSError(95, "no hard links")))
    out = tmp_path / "change.tif"
    with growing_output(out, Manifest(ASKED, "", replaces=overwrite)) as growth:
        finished = make(growth.folder / "finished.tif", "file", "new")
        beside(finished, aux_xml="new", other="no side file")
        publish(finished, out, overwrite=overwrite)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "change.tif": "new",
        "change.tif.aux.xml": "new",
    }


@pytest.mark.parametrize("new", ["file", "folder"])
@pytest.mark.parametrize("old", [None, "file"])
def test_side_files_of_an_earlier_result_go_with_it(tmp_path, new, old):
    """Also GDAL's own, and where the result itself was removed: they would be read with the new one."""
    out = tmp_path / "change.zarr"
    if old:
        make(out, old, "old")
    beside(out, aux_xml="old", msk="old", ovr="old", txt="mine")
    with growing_output(out, Manifest(ASKED, "", replaces=bool(old))) as growth:
        publish(make(growth.folder / "finished", new, "new"), out, overwrite=bool(old))
    assert content_of(out) == "new"
    assert names(tmp_path) == ["change.zarr", "change.zarr.txt"]


def test_result_beside_takes_its_side_file_along_and_leaves_theirs(tmp_path):
    out = tmp_path / "change.tif"
    beside(tmp_path / "change.2.tif", aux_xml="of one that was removed")
    with growing_output(out, STARTED) as growth:
        finished = make(growth.folder / "finished.tif", "file", "new")
        beside(finished, aux_xml="new")
        make(out, "file", "theirs")
        beside(out, aux_xml="theirs")
        assert publish(finished, out, overwrite=False) == tmp_path / "change.2.tif"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "change.tif": "theirs",
        "change.tif.aux.xml": "theirs",
        "change.2.tif": "new",
        "change.2.tif.aux.xml": "new",
    }


@pytest.mark.parametrize("overwrite", [False, True])
def test_whenever_publishing_ends_no_result_has_the_side_file_of_another(tmp_path, monkeypatch, overwrite):
    """Stop before each rename, link and removal in turn."""
    for stop_at in range(12):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        out, finished = folder / "change.tif", make(folder / "finished.tif", "file", "new")
        beside(finished, aux_xml="new")
        beside(out, aux_xml="old")
        if overwrite:
            make(out, "file", "old")
        steps = iter(range(20))

        def stopping(step, steps=steps, stop_at=stop_at):
            def take(*arguments, **options):
                if next(steps) == stop_at:
                    raise KeyboardInterrupt
                return step(*arguments, **options)

            return take

        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "hardlink_to", "unlink"):
                patch.setattr(Path, name, stopping(getattr(Path, name)))
            with suppress(KeyboardInterrupt):
                publish(finished, out, overwrite=overwrite)
        side = folder / "change.tif.aux.xml"
        if out.exists() and side.exists():
            assert out.read_text() == side.read_text()
    assert (out.read_text(), side.read_text()) == ("new", "new")
