"""Runs that each compute a shard, side by side and however they end, and `finalize`: the same result as of one run."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from filelock import FileLock
from test_cli import COMMAND, heeding_interrupts, settings_of_the_command_end_with_it  # noqa: F401
from test_resume import (  # noqa: F401
    BLOCKS,
    OUTPUTS,
    EndedError,
    by_files,
    computed,
    end,
    files_in,
    large,
    part,
    parts_of,
    place,
    read,
    result_of,
    sides_of,
    start,
    stop_after,
    undisturbed,
    wait_for_blocks,
    write,
)

from geodl_dask import change as change_module
from geodl_dask import cog, finishing, growth, locks, outputs, writing
from geodl_dask.change import detect_change
from geodl_dask.cli import cli
from geodl_dask.errors import BlockFailedError, OutputError, OutputExistsError, RunError
from geodl_dask.finishing import finalize, left_result
from geodl_dask.growth import growing_output, partial_of
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import manifest_of
from geodl_dask.shards import Shard
from geodl_dask.stac_item import item_of

STARTED = Manifest({"padding": 4}, "", shards=3)


def compute(change: xr.DataArray, out: Path, shards, count: int = 3, **options):
    return [write(change, out, shard=(number, count), **options) for number in shards]


def run_command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, timeout=120)


# Processes


@pytest.mark.parametrize("output", OUTPUTS)
def test_shards_that_begin_at_once_and_of_which_one_is_killed_and_begun_again_make_the_result_of_one_run(
    output, large, undisturbed, tmp_path, heeding_interrupts  # noqa: F811
):  # fmt: skip
    out = tmp_path / output
    running = {number: start(large, out, "--shard", f"{number}/4") for number in (1, 2, 3)}  # 4 has not begun
    until = time.monotonic() + 180
    own = set(Shard(2, 4).indices((12, 16)))
    while not own & set(parts_of(out)):
        assert time.monotonic() < until and running[2].poll() is None, running[2].communicate()
        time.sleep(0.01)
    end(running.pop(2), signal.SIGKILL)
    assert (partial_of(out) / "shard-2.owner").exists()
    early = run_command("finalize", out)
    assert early.returncode in (1, 2)  # blocks are missing, or the others are at work yet
    running |= {number: start(large, out, "--shard", f"{number}/4") for number in (2, 4)}
    for each in running.values():
        assert (each.communicate(timeout=120)[1], each.returncode) == ("", 0)
    assert len(list(partial_of(out).glob("parts-*"))) == 1
    assert not out.exists()
    assert len(parts_of(out)) == 192
    done = run_command("finalize", out)
    assert done.returncode == 0, done.stderr
    assert result_of(out) == result_of(undisturbed[out.suffix])
    ours, theirs = (Manifest.read(manifest_of(each)) for each in (out, undisturbed[out.suffix]))
    assert (ours.asked, ours.pixels, ours.tiles, ours.parts, ours.shards, ours.form) == (
        theirs.asked, theirs.pixels, theirs.tiles, "", 0, {},
    )  # fmt: skip
    assert sorted(tmp_path.iterdir()) == sorted([out, *sides_of(out), manifest_of(out)])
    assert done.stdout.splitlines()[-1].startswith(f"{out}: 981 x 747 pixels in ")


def test_finalize_that_is_asked_for_twice_at_once_makes_one_result(large, undisturbed, tmp_path):  # noqa: F811
    out = tmp_path / "change.tif"
    compute(detect_change(large["from"], large["to"], large["model"], chunks=64), out, (1, 2), count=2)
    words = [COMMAND, "finalize", str(out)]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [(*each.communicate(timeout=120), each.returncode) for each in both]
    assert 0 in [status for _, _, status in told], told
    for stdout, stderr, status in told:
        assert status == 0 or "Another run" in stderr, (stdout, stderr)
    assert result_of(out) == result_of(undisturbed[".tif"])
    assert not partial_of(out).exists()


@pytest.mark.parametrize("step", ["_result_of", "join_result"])
def test_finalize_that_another_one_overtakes_returns_its_result(step, place, models, tmp_path, monkeypatch):  # noqa: F811
    out, go_on = tmp_path / "change.tif", getattr(finishing, step)
    compute(detect_change(*place, models["pt"], chunks=24), out, (1, 2), count=2)

    def be_overtaken(*given):
        with monkeypatch.context() as patch:
            patch.setattr(finishing, step, go_on)
            finalize(out)
        return go_on(*given)

    monkeypatch.setattr(finishing, step, be_overtaken)
    written = finalize(out)
    assert (written.path, sum(written.pixels.values())) == (out, 83 * 109)
    assert Manifest.read(manifest_of(out)).is_complete
    assert not partial_of(out).exists()


def test_blocks_without_a_manifest_are_not_taken_for_finished(place, models, tmp_path):  # noqa: F811
    """The result that stands there is an earlier one."""
    out, change = tmp_path / "change.tif", detect_change(*place, models["pt"], chunks=24)
    write(change, out)
    before = out.read_bytes()
    compute(change, out, (1, 2), count=2, overwrite=True)
    (partial_of(out) / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match="has no manifest that says what the result is to be"):
        finalize(out)
    assert out.read_bytes() == before


# What finalize needs, and says


@pytest.mark.parametrize(
    ("output", "plan", "options"),
    [
        ("change.tif", {}, {}),
        ("change.zarr", {}, {}),
        ("change.zarr", {}, {"zarr_format": 2}),
        ("change.tif", {"confidence": "uint16"}, {}),
        ("change.zarr", {"confidence": "float32"}, {}),
        ("change.tif", {"output_crs": "EPSG:3857"}, {}),
        ("change.zarr", {"output_crs": "EPSG:4326"}, {}),
    ],
)
def test_finalize_needs_neither_model_nor_rasters_and_makes_the_same_result(
    output, plan, options, place, models, tmp_path  # noqa: F811
):  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(models["pt"].parent, model)
    change = detect_change(*place, model / models["pt"].name, chunks=24, **plan)
    alone = write(change, tmp_path / f"alone{output[6:]}", **options)
    out = tmp_path / output
    assert [written.shards_left for written in compute(change, out, (3, 1, 2), **options)] == [(1, 2), (2,), ()]
    shutil.rmtree(model)
    shutil.rmtree(tmp_path / "in")
    described = left_result(out)
    assert described.attrs == change.attrs if isinstance(change, xr.DataArray) else list(described) == list(change)
    joined = finalize(out)
    assert result_of(out) == result_of(alone.path)
    assert (joined.pixels, joined.tiles, joined.empty_tiles) == (alone.pixels, alone.tiles, alone.empty_tiles)
    assert joined.computed_blocks == alone.computed_blocks  # by which a pyramid is made anew
    ours, theirs = (item_of(each).read_text().replace(each.name, "OUT") for each in (out, alone.path))
    assert without_times(ours) == without_times(theirs)


def without_times(item: str) -> list[str]:
    """The lines of a STAC Item of a result that is called OUT."""
    times = ("datetime", "created", '"id"', "lineage")
    return [line for line in item.splitlines() if not any(name in line for name in times)]


def test_pyramid_is_made_of_what_the_shards_have(tmp_path):
    pytest.importorskip("xarray_multiscale")
    rng = np.random.default_rng(3)
    change = xr.DataArray(
        rng.integers(0, 9, (600, 700), np.uint8), dims=("y", "x"), name="change", attrs={"_FillValue": 255}
    ).chunk(100)
    change["y"], change["x"] = 600 - np.arange(600.0), np.arange(700.0)
    change = change.rio.write_crs("EPSG:32633")
    alone = write(change, tmp_path / "alone.zarr", pyramid=True)
    compute(change, tmp_path / "change.zarr", (1, 2, 3), pyramid=True)
    finalize(tmp_path / "change.zarr")
    assert result_of(tmp_path / "change.zarr") == result_of(alone.path)


@pytest.mark.parametrize("output", OUTPUTS)
def test_missing_blocks_are_named_by_shard_and_nothing_is_lost(output, place, models, tmp_path):  # noqa: F811
    out = tmp_path / output
    with pytest.raises(KeyboardInterrupt):
        compute(by_files(place, models), out, (1,), progress=stop_after(3))
    compute(by_files(place, models), out, (2,))
    own = len(set(Shard(1, 3).indices((4, 5))) - set(parts_of(out)))
    before = files_in(tmp_path)
    result = CliRunner().invoke(cli, ["finalize", str(out)])
    assert result.exit_code == 1
    said = f"{own + 6} of 20 blocks are missing: {own} of shard 1/3, 6 of shard 3/3." if own else "6 of 20 blocks"
    assert said in result.stderr
    assert f"kept in {partial_of(out)}; the same command goes on" in result.stderr
    assert files_in(tmp_path) == before
    compute(by_files(place, models), out, (1, 3))
    assert CliRunner().invoke(cli, ["finalize", str(out)]).exit_code == 0


def test_finalize_of_nothing_is_refused(tmp_path):
    result = CliRunner().invoke(cli, ["finalize", str(tmp_path / "change.tif")])
    assert (result.exit_code, result.stderr.count("Error: There is nothing to finalize")) == (2, 1)
    partial_of(tmp_path / "change.tif").mkdir()
    with pytest.raises(OutputError, match="nothing to finalize"):
        finalize(tmp_path / "change.tif")


def test_finalize_of_what_is_finished_says_so(place, models, tmp_path):  # noqa: F811
    out = tmp_path / "change.tif"
    compute(by_files(place, models), out, (1, 2, 3))
    first = finalize(out)
    before = files_in(tmp_path)
    assert finalize(out) == first
    assert "is finished already" in CliRunner().invoke(cli, ["finalize", str(out)]).stdout
    assert files_in(tmp_path) == before
    (again,) = compute(by_files(place, models), out, (2,))  # and so does a shard that comes late
    assert (again.computed_blocks, again.shards_left) == (0, None)
    assert files_in(tmp_path) == before


def test_what_one_run_left_whole_is_finalized_too(place, models, tmp_path, monkeypatch):  # noqa: F811
    out, alone = tmp_path / "change.tif", write(by_files(place, models), tmp_path / "alone.tif")
    with monkeypatch.context() as patch, pytest.raises(EndedError):
        patch.setattr(cog, "_translate", ended)
        write(by_files(place, models), out)
    finalize(out)
    assert result_of(out) == result_of(alone.path)


def ended(*given, **options):
    raise EndedError


@pytest.mark.parametrize(
    ("moment", "of"),
    [("_finish", writing), ("write_item", writing), ("publish", writing), ("_name_sides", outputs), ("shutil", growth)],
)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_finalize_that_was_killed_is_asked_for_again(
    output, overwrite, moment, of, place, models, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    out, alone = tmp_path / output, write(by_files(place, models), tmp_path / f"alone{output[6:]}")
    if overwrite:
        write(by_files(place, models), out)  # of the same words
    old = result_of(out) if overwrite else None
    compute(by_files(place, models), out, (1, 2, 3), overwrite=overwrite)
    assert (result_of(out) if overwrite else None) == old
    with monkeypatch.context() as patch, pytest.raises(EndedError):
        patch.setattr(of, moment, SimpleNamespace(rmtree=ended) if moment == "shutil" else ended)
        finalize(out)
    assert partial_of(out).exists()
    again = finalize(out)
    assert result_of(out) == result_of(alone.path)
    assert again.pixels == alone.pixels
    assert Manifest.read(manifest_of(out)).is_complete
    assert not partial_of(out).exists()


def test_shard_that_comes_when_the_result_is_taking_its_name_computes_nothing(
    place, models, tmp_path, monkeypatch, computed  # noqa: F811
):  # fmt: skip
    out = tmp_path / "change.zarr"
    compute(by_files(place, models), out, (1, 2, 3))
    with monkeypatch.context() as patch, pytest.raises(EndedError):
        patch.setattr(outputs, "_name_sides", ended)
        finalize(out)
    computed.clear()
    (late,) = compute(by_files(place, models), out, (2,))
    assert (computed, late.shards_left) == ({}, ())
    assert finalize(out).path == out


# Faults


@pytest.mark.parametrize("output", OUTPUTS)
def test_shards_compute_each_block_once_and_go_on_where_they_were(output, place, models, tmp_path, computed):  # noqa: F811
    out, change = tmp_path / output, by_files(place, models)
    computed.clear()
    with pytest.raises(KeyboardInterrupt) as stopped:
        compute(change, out, (1,), progress=stop_after(2))
    assert "the same command goes on" in stopped.value.__notes__[0]
    kept = set(parts_of(out))
    assert kept <= set(Shard(1, 3).indices((4, 5)))
    computed.clear()
    compute(change, out, (1, 2, 3))
    assert computed == dict.fromkeys(BLOCKS - kept, 1)


def test_there_may_be_more_shards_than_blocks(place, models, tmp_path):  # noqa: F811
    out = tmp_path / "change.tif"
    (nothing,) = compute(by_files(place, models), out, (25,), count=25)
    assert (nothing.computed_blocks, nothing.pixels, len(nothing.shards_left)) == (0, {}, 24)
    compute(by_files(place, models), out, range(1, 25), count=25)
    assert sum(finalize(out).pixels.values()) == 83 * 109


def test_progress_of_a_shard_is_of_its_own_pixels(place, models, tmp_path):  # noqa: F811
    seen = []
    compute(by_files(place, models), tmp_path / "change.tif", (2,), progress=lambda *pixels: seen.append(pixels))
    assert set(parts_of(tmp_path / "change.tif")) == set(Shard(2, 3).indices((4, 5)))
    total = Shard(2, 3).pixel_count(by_files(place, models).chunks)
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("output", OUTPUTS)
def test_block_that_a_shard_gave_up_is_nodata_in_the_result_and_listed(
    output, place, models, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    out, infer = tmp_path / output, change_module.infer_windowed_block

    def fail(inference, rasters, mask, block_id):
        if tuple(block_id) == (3, 4):
            raise OSError("unplugged")
        return infer(inference, rasters, mask, block_id)

    with monkeypatch.context() as patch:
        patch.setattr(change_module, "infer_windowed_block", fail)
        alone = write(by_files(place, models), tmp_path / f"alone{output[6:]}", keep_going=True)
        written = compute(by_files(place, models), out, (1, 2, 3), keep_going=True)
    assert [len(each.failed_blocks) for each in written].count(1) == 1
    joined = finalize(out)
    assert result_of(out) == result_of(alone.path)
    assert (joined.failed_blocks, joined.pixels) == (alone.failed_blocks, alone.pixels)
    with pytest.raises(OutputExistsError, match="is there but for 1 blocks"):
        compute(by_files(place, models), out, (1,))
    assert write(by_files(place, models), out, resume=True).computed_blocks == 1
    assert 255 not in np.unique(read(out)[72:, 96:])


def test_block_that_failed_is_missing_until_its_shard_runs_again(place, models, tmp_path, monkeypatch):  # noqa: F811
    out, infer = tmp_path / "change.tif", change_module.infer_windowed_block

    def fail(inference, rasters, mask, block_id):
        if tuple(block_id) == (0, 0):
            raise OSError("unplugged")
        return infer(inference, rasters, mask, block_id)

    with monkeypatch.context() as patch, pytest.raises(BlockFailedError, match="unplugged"):
        patch.setattr(change_module, "infer_windowed_block", fail)
        compute(by_files(place, models), out, (1,))
    assert compute(by_files(place, models), out, (2, 3))[-1].shards_left == (1,)
    with pytest.raises(RunError, match="1 of 20 blocks are missing: 1 of shard 1/3"):
        finalize(out)
    assert compute(by_files(place, models), out, (1,))[0].computed_blocks == 1
    assert finalize(out).failed_blocks == ()


@pytest.mark.parametrize("output", OUTPUTS)
def test_block_that_cannot_be_read_is_named_and_computed_by_its_shard_again(
    output, place, models, tmp_path  # noqa: F811
):  # fmt: skip
    out, change = tmp_path / output, by_files(place, models)
    compute(change, out, (1, 2, 3))
    broken = next(Shard(2, 3).indices((4, 5)))
    part(out, *broken).write_bytes(b"broken")
    with pytest.raises(RunError, match="1 of 20 blocks are there, but cannot be read: 1 of shard 2/3"):
        finalize(out)
    assert compute(change, out, (2,))[0].computed_blocks == 1
    finalize(out)
    assert result_of(out) == result_of(write(change, tmp_path / f"alone{output[6:]}").path)


# Who may be at work beside whom


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (Shard(2, 3), Shard(2, 3), "Another run .process .* is computing shard 2/3"),
        (Shard(2, 3), None, "Another run .process .* is computing shard 2"),
        (None, Shard(2, 3), "Another run .process .* is writing"),
    ],
)
def test_two_runs_of_the_same_blocks_are_refused(first, second, says, tmp_path):
    out = tmp_path / "change.tif"
    with growing_output(out, STARTED, shard=first, resume=True) as working:
        (working.folder / "part").touch()
        with pytest.raises(OutputExistsError, match=says), growing_output(out, STARTED, shard=second, resume=True):
            pass
        with growing_output(out, STARTED, shard=Shard(3, 3)) if first else pytest.raises(OutputExistsError):
            if first is None:
                raise OutputExistsError
        assert (working.folder / "part").exists()


def test_finalize_is_refused_while_a_shard_is_at_work(place, models, tmp_path):  # noqa: F811
    out = tmp_path / "change.tif"
    compute(by_files(place, models), out, (1, 2, 3))
    left = Manifest.read(partial_of(out) / "manifest.json")
    with (
        growing_output(out, left, shard=Shard(2, 3)),
        pytest.raises(OutputExistsError, match="is computing shard 2"),
    ):
        finalize(out)
    assert finalize(out).path == out


@pytest.mark.parametrize("has_locks", [True, False])
def test_shards_that_begin_in_the_same_moment_share_one_folder(has_locks, tmp_path, monkeypatch):
    if not has_locks:

        def refuse(lock, timeout):
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(FileLock, "acquire", refuse)
    for attempt in range(10):
        out, folders, ready = tmp_path / f"{attempt}.tif", [], threading.Barrier(8)

        def begin(number, out=out, folders=folders, ready=ready):
            ready.wait()
            with growing_output(out, Manifest({"padding": 4}, "", shards=8), shard=Shard(number, 8)) as growing:
                (growing.folder / f"{number}").touch()
                folders.append(growing.folder)

        threads = [threading.Thread(target=begin, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(folders) == 8
        assert set(folders) == set(partial_of(out).glob("parts-*"))
        assert len(list(folders[0].iterdir())) == 8


def test_zarr_store_is_begun_by_one_of_those_that_come_at_once(place, models, tmp_path):  # noqa: F811
    out, change = tmp_path / "change.zarr", by_files(place, models)
    with growing_output(out, STARTED, shard=Shard(1, 3)) as growing:
        form, ready, failures = finishing.result_format(change, out), threading.Barrier(4), []

        def begin():
            ready.wait()
            try:
                form.begin(growing.folder)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert [path.name for path in growing.folder.iterdir()] == ["store.zarr"]


@pytest.mark.parametrize(
    ("asked", "shard", "says"),
    [
        (STARTED, Shard(1, 4), r"was begun in 3 shards, and this is shard 1/4"),
        (Manifest({"padding": 8}, ""), Shard(1, 3), r"padding was 4, is 8\. .*or remove .*change\.tif\.partial"),
    ],
)
def test_shards_of_other_words_are_refused(asked, shard, says, tmp_path):
    out = tmp_path / "change.tif"
    with growing_output(out, STARTED, shard=Shard(2, 3)):
        pass
    with pytest.raises(OutputExistsError, match=says), growing_output(out, asked, shard=shard):
        pass
    assert Manifest.read(partial_of(out) / "manifest.json").asked == STARTED.asked


def test_shard_does_not_go_on_with_what_a_run_of_all_has_left(place, models, tmp_path):  # noqa: F811
    out = tmp_path / "change.tif"
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, progress=stop_after(2))
    with pytest.raises(OutputExistsError, match="was begun by a run without shards, and this is shard 1/3"):
        compute(by_files(place, models), out, (1,))
    assert write(by_files(place, models), out, resume=True).path == out


def test_run_of_all_may_finish_what_shards_have_left(place, models, tmp_path, computed):  # noqa: F811
    out = tmp_path / "change.tif"
    compute(by_files(place, models), out, (2,))
    computed.clear()
    write(by_files(place, models), out, resume=True)
    assert computed == dict.fromkeys(BLOCKS - set(Shard(2, 3).indices((4, 5))), 1)
    assert not partial_of(out).exists()


def owner_elsewhere(out: Path, number: int) -> Path:
    owner = partial_of(out) / f"shard-{number}.owner"
    owner.write_text("elsewhere 4711")
    (partial_of(out) / f"shard-{number}.lock").touch()
    return owner


def test_shard_of_another_machine_that_has_died_is_waited_for_and_then_begun_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_SILENT_AFTER_S", 3)
    out = tmp_path / "change.tif"
    with growing_output(out, STARTED, shard=Shard(1, 3)):
        pass
    began = time.monotonic()
    owner_elsewhere(out, 2)
    with growing_output(out, STARTED, shard=Shard(2, 3)):
        assert time.monotonic() - began > 2.9
        assert "Process 4711 on elsewhere was computing shard 2/3" in caplog.text


def test_shard_is_refused_beside_a_run_of_all_on_another_machine(tmp_path):
    out = tmp_path / "change.tif"
    with growing_output(out, STARTED, shard=Shard(1, 3)):
        pass
    (partial_of(out) / "owner").write_text("elsewhere 4711")
    with pytest.raises(OutputExistsError, match="Process 4711 on elsewhere is writing"):
        growing_output(out, STARTED, shard=Shard(1, 3)).__enter__()
    assert not (partial_of(out) / "shard-1.owner").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("shard", [Shard(2, 3), None])
def test_shard_of_another_machine_that_lives_is_left_alone(shard, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_SILENT_AFTER_S", 10)
    out = tmp_path / "change.tif"
    with growing_output(out, STARTED, shard=Shard(1, 3)):
        pass
    owner, ended_ = owner_elsewhere(out, 2), threading.Event()

    def beat():
        while not ended_.wait(0.2):
            owner.touch()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(OutputExistsError, match="Process 4711 on elsewhere is computing shard 2"):
            growing_output(out, STARTED, shard=shard, resume=True).__enter__()
    finally:
        ended_.set()
        thread.join()
    assert owner.read_text() == "elsewhere 4711"


# The command


def test_shard_ends_with_one_line_that_says_what_is_missing_and_how_to_finish(place, models, tmp_path):  # noqa: F811
    out, words = tmp_path / "change.tif", []
    for number in (2, 1):
        result = CliRunner().invoke(
            cli,
            [
                "detect-change",
                *map(str, place),
                str(out),
                str(models["pt"]),
                "--chunks",
                "24",
                "--shard",
                f"{number}/2",
            ],
        )
        assert result.exit_code == 0, result.output
        words.append(result.stdout)
    assert words == [
        "Shard 2/2 is done: 10 blocks, 10 of them computed now; up to 10 of 20 blocks are missing, of the shards 1; "
        f"then geodl-dask finalize {out}\n",
        f"Shard 1/2 is done: 10 blocks, 10 of them computed now; now geodl-dask finalize {out}\n",
    ]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0", "1/2/3", "-1/3"])
def test_what_is_no_shard_is_refused_by_the_command(shard, place, models, tmp_path):  # noqa: F811
    result = CliRunner().invoke(
        cli, ["detect-change", *map(str, place), str(tmp_path / "c.tif"), str(models["pt"]), "--shard", shard]
    )
    assert result.exit_code == 2
    assert "I/N with I from 1 to N is needed" in result.stderr
