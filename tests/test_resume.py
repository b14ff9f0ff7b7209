"""A run that ended early, however it did, is gone on with: the same result, and no finished block computed again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
import rioxarray
import xarray as xr
from click.testing import CliRunner
from conftest import parts_in, write_definition, write_raster
from test_cli import COMMAND, heeding_interrupts, settings_of_the_command_end_with_it  # noqa: F401

from geodl_dask import change as change_module
from geodl_dask import cog, outputs, writing
from geodl_dask.change import detect_change
from geodl_dask.cli import cli
from geodl_dask.cog import write_cog
from geodl_dask.errors import BlockFailedError, OutputError, OutputExistsError, RunError
from geodl_dask.growth import partial_of
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import manifest_of, side_file_of
from geodl_dask.stac_item import item_of
from geodl_dask.zarr_store import write_zarr

OUTPUTS = ("change.tif", "change.zarr")
BLOCKS = {(row, col) for row in range(4) for col in range(5)}
"""Of the small pair in blocks of 24 pixels; of the large one there are 192."""


def write(change: xr.DataArray, out: Path, **options):
    return (write_zarr if out.suffix == ".zarr" else write_cog)(change, out, **options)


def read(out: Path) -> np.ndarray:
    if out.suffix == ".zarr":
        with xr.open_zarr(out, mask_and_scale=False) as store:
            return store["change"].values
    with rasterio.open(out) as dataset:
        return dataset.read(1)


def result_of(out: Path) -> dict[str, bytes]:
    """A COG as its pixels, tags and side file, a store as all of its files."""
    if out.suffix == ".zarr":
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with rasterio.open(out) as dataset:
        tags = str(sorted(dataset.tags().items()) + sorted(dataset.tags(1).items()))
        pixels = dataset.read().tobytes()
    side = side_file_of(out).read_bytes() if side_file_of(out).exists() else b""
    return {"pixels": pixels, "tags": tags.encode(), "side": side}


def sides_of(out: Path) -> list[Path]:
    """What stands beside a result and belongs to it, but for its manifest."""
    return [item_of(out), *([side_file_of(out)] if out.suffix == ".tif" else [])]


def parts_of(out: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """The finished blocks of a run, by what tells whether a file was written anew."""
    if out.suffix == ".zarr":
        files = {
            (int(path.parent.name), int(path.name)): path
            for path in partial_of(out).glob("parts-*/store.zarr/*/c/*/*[0-9]")  # so named once it is whole
        }
    else:
        files = {tuple(map(int, path.stem.split("_"))): path for path in partial_of(out).glob("parts-*/*_*.tif")}
    parts = {}
    for index, path in files.items():
        with suppress(FileNotFoundError):  # its run has just ended, and removes them
            found = path.stat()
            parts[index] = found.st_ino, found.st_mtime_ns
    return parts


def part(out: Path, row: int, col: int) -> Path:
    place = f"store.zarr/change/c/{row}/{col}" if out.suffix == ".zarr" else f"{row}_{col}.tif"
    return parts_in(out) / place


def files_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files but locks and halves of chunks, which Zarr writes beside them, and when they were written."""
    files = (
        path
        for path in folder.rglob("*")
        if path.name != "lock" and not path.name.endswith(".partial") and path.is_file()
    )
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def computed(monkeypatch) -> Counter[tuple[int, int]]:
    """How often the model has run on each block (row, column) of 24 or 64 pixels, in this process."""
    calls: Counter[tuple[int, int]] = Counter()
    of_window, of_arrays = change_module.infer_windowed_block, change_module.infer_block

    def count_window(inference, rasters, mask, block_id):
        calls[tuple(block_id)] += 1
        return of_window(inference, rasters, mask, block_id)

    def count_arrays(inference, core, *rest):
        side = inference.plan.chunks[0][0]
        calls[core.row_off // side, core.col_off // side] += 1
        return of_arrays(inference, core, *rest)

    monkeypatch.setattr(change_module, "infer_windowed_block", count_window)
    monkeypatch.setattr(change_module, "infer_block", count_arrays)
    return calls


def stop_after(blocks: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[int, int], None]:
    """A progress that ends the run."""
    calls = []

    def progress(done_px: int, all_px: int) -> None:
        calls.append(done_px)
        if len(calls) == blocks:
            raise error

    return progress


@pytest.fixture
def place(tmp_path, pair) -> tuple[str, str]:
    """The small pair as files of this test alone."""
    (tmp_path / "in").mkdir()
    return tuple(shutil.copy2(path, tmp_path / "in") for path in pair)


def by_files(place, models, **options) -> xr.DataArray:
    return detect_change(*place, models["pt"], chunks=24, **options)


def by_arrays(place, models, **options) -> xr.DataArray:
    with rioxarray.open_rasterio(place[0], chunks=50) as before, rioxarray.open_rasterio(place[1], chunks=50) as after:
        return detect_change(before, after, models["pt"], chunks=24, **options)


def stand_there_meanwhile(out: Path) -> Callable[[int, int], None]:
    """A progress in which somebody else writes to where the result is to be."""

    def progress(done_px: int, all_px: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "theirs").touch()

    return progress


# Within this process


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_comes_there_meanwhile_stays_and_the_result_is_beside_it(output, place, models, tmp_path):
    out = tmp_path / output
    with pytest.raises(RunError, match=rf"{output} has come there since the run began, .* The result is .*change\.2\."):
        write(by_files(place, models), out, progress=stand_there_meanwhile(out))
    beside = out.with_name(f"{out.stem}.2{out.suffix}")
    assert read(beside).shape == (83, 109)
    assert Manifest.read(manifest_of(beside)).is_complete
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert not partial_of(out).exists()


@pytest.mark.parametrize("door", [by_files, by_arrays])
@pytest.mark.parametrize("output", OUTPUTS)
def test_each_missing_block_is_computed_once_and_no_other(door, output, place, models, tmp_path, computed):
    undisturbed = write(door(place, models), tmp_path / f"undisturbed{output[6:]}")
    out = tmp_path / output
    with pytest.raises(KeyboardInterrupt):
        write(door(place, models), out, progress=stop_after(5))
    kept = parts_of(out)
    assert 5 <= len(kept) < len(BLOCKS)
    assert not out.exists()
    computed.clear()
    seen, found = [], []

    def look(done_px, all_px):
        seen.append(done_px)
        found.append({index: state for index, state in parts_of(out).items() if index in kept})

    written = write(door(place, models), out, resume=True, progress=look)
    assert computed == dict.fromkeys(BLOCKS - set(kept), 1)
    assert all(each == kept for each in found)
    assert (seen[-1], len(seen)) == (83 * 109, len(BLOCKS))
    assert result_of(out) == result_of(undisturbed.path)
    assert (written.path, written.pixels, written.tiles, written.empty_tiles) == (
        out, undisturbed.pixels, undisturbed.tiles, undisturbed.empty_tiles,
    )  # fmt: skip
    assert sum(written.pixels.values()) == 83 * 109
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("change")} == {
        output, f"{output}.manifest.json", *(path.name for path in sides_of(out)),
    }  # fmt: skip


@pytest.mark.parametrize("door", [by_files, by_arrays])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("left", [0, 1, 0.5])
def test_kept_block_that_is_broken_is_computed_again(door, output, left, place, models, tmp_path, computed):
    undisturbed = write(door(place, models), tmp_path / f"undisturbed{output[6:]}")
    out = tmp_path / output
    with pytest.raises(KeyboardInterrupt):
        write(door(place, models), out, progress=stop_after(5))
    kept = set(parts_of(out))
    broken = sorted(kept)[1]
    whole = part(out, *broken).read_bytes()
    part(out, *broken).write_bytes(whole[: int(len(whole) * left) if left != 1 else 1])
    computed.clear()
    written = write(door(place, models), out, resume=True)
    assert computed == dict.fromkeys(BLOCKS - kept | {broken}, 1)
    assert result_of(out) == result_of(undisturbed.path)
    assert written.pixels == undisturbed.pixels


def test_what_zarr_left_half_written_is_not_in_the_result(place, models, tmp_path):
    undisturbed = write_zarr(by_files(place, models), tmp_path / "undisturbed.zarr")
    out = tmp_path / "change.zarr"
    with pytest.raises(KeyboardInterrupt):
        write_zarr(by_files(place, models), out, progress=stop_after(5))
    (part(out, 0, 0).parent / "1.0123456789abcdef.partial").write_bytes(b"half")
    write_zarr(by_files(place, models), out, resume=True)
    assert result_of(out) == result_of(undisturbed.path)


def test_run_that_ended_in_the_last_pass_goes_on_there(place, models, tmp_path, monkeypatch, computed):
    undisturbed = write_cog(by_files(place, models), tmp_path / "undisturbed.tif")
    out, translate = tmp_path / "change.tif", cog._translate

    def die_half_way(mosaic, finished):
        translate(mosaic, finished)
        finished.write_bytes(finished.read_bytes()[:500])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cog, "_translate", die_half_way)
        write_cog(by_files(place, models), out)
    assert (parts_in(out) / "finished.tif").stat().st_size == 500
    assert not out.exists()
    computed.clear()
    written = write_cog(by_files(place, models), out, resume=True)
    assert computed == {}
    assert result_of(out) == result_of(undisturbed.path)
    assert written.pixels == undisturbed.pixels


@pytest.mark.parametrize("output", OUTPUTS)
def test_failed_run_goes_on_once_its_cause_is_gone(output, place, models, tmp_path, monkeypatch, computed):
    out, infer = tmp_path / output, change_module.infer_windowed_block

    def fail(inference, rasters, mask, block_id):
        if tuple(block_id) == (3, 4):
            raise OSError("unplugged")
        return infer(inference, rasters, mask, block_id)

    with monkeypatch.context() as patch, pytest.raises(BlockFailedError, match="unplugged") as raised:
        patch.setattr(change_module, "infer_windowed_block", fail)
        write(by_files(place, models), out)
    kept = set(parts_of(out))
    assert f"kept in {partial_of(out)}; --resume" in raised.value.__notes__[0]
    computed.clear()
    write(by_files(place, models), out, resume=True)
    assert computed == dict.fromkeys(BLOCKS - kept, 1)


@pytest.mark.parametrize("output", OUTPUTS)
def test_old_result_stays_until_the_run_that_was_to_replace_it_is_resumed(output, place, models, tmp_path, computed):
    out = tmp_path / output
    write(by_files(place, models, arguments="padding 2"), out)
    old = result_of(out), manifest_of(out).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, overwrite=True, progress=stop_after(5))
    kept = set(parts_of(out))
    assert (result_of(out), manifest_of(out).read_bytes()) == old
    with pytest.raises(KeyboardInterrupt):  # and again, now by the run that goes on
        write(by_files(place, models), out, resume=True, progress=stop_after(1))
    assert (result_of(out), manifest_of(out).read_bytes()) == old
    kept |= set(parts_of(out))
    computed.clear()
    written = write(by_files(place, models), out, resume=True)
    assert computed == dict.fromkeys(BLOCKS - kept, 1)
    undisturbed = write(by_files(place, models), tmp_path / f"undisturbed{output[6:]}")
    assert result_of(out) == result_of(undisturbed.path)
    assert Manifest.read(manifest_of(out)).pixels == written.pixels == undisturbed.pixels
    assert not partial_of(out).exists()


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_came_there_meanwhile_is_not_replaced_by_a_resumed_run(output, place, models, tmp_path):
    out = tmp_path / output
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, progress=stop_after(5))
    write(by_files(place, models, arguments="padding 2"), tmp_path / f"theirs{output[6:]}").path.rename(out)
    before = files_in(tmp_path)
    with pytest.raises(OutputExistsError, match="has no manifest"):
        write(by_files(place, models), out, resume=True)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("output", OUTPUTS)
def test_resuming_begins_anew_where_nothing_is_left(output, place, models, tmp_path):
    out = tmp_path / output
    written = write(by_files(place, models), out, resume=True)
    assert written.pixels == write(by_files(place, models), tmp_path / f"undisturbed{output[6:]}").pixels


@pytest.mark.parametrize("step", ["write_first", "hardlink_to"])
def test_run_that_ended_before_its_manifest_had_a_name_is_begun_anew(step, place, models, tmp_path, monkeypatch):
    out = tmp_path / "change.zarr"

    def end_here(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Manifest if step == "write_first" else Path, step, end_here)
        if step == "hardlink_to":  # a kill leaves what an interrupt takes away
            patch.setattr(Path, "unlink", lambda *given, **options: None)
        write(by_files(place, models), out)
    assert list(partial_of(out).glob("parts-*"))
    assert bool(list(partial_of(out).glob("manifest.json.*"))) == (step == "hardlink_to")
    assert write(by_files(place, models), out, resume=True).computed_blocks == len(BLOCKS)


@pytest.mark.parametrize("output", OUTPUTS)
def test_whole_result_is_left_as_it_is_and_its_record_returned(output, place, models, tmp_path, computed):
    first = write(by_files(place, models), tmp_path / output)
    before = files_in(tmp_path)
    computed.clear()
    again = write(by_files(place, models), tmp_path / output, resume=True)
    assert again == replace(first, computed_blocks=0)
    assert computed == {}
    assert files_in(tmp_path) == before


class EndedError(BaseException):
    """What a kill does, but for this process."""


@pytest.mark.parametrize("moment", ["publish", "_name_sides"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_run_that_was_killed_while_its_result_took_its_name_needs_only_that(
    output, overwrite, moment, place, models, tmp_path, monkeypatch, computed
):
    """Before the result has its name, and between that and its manifest's."""
    out, undisturbed = tmp_path / output, write(by_files(place, models), tmp_path / f"undisturbed{output[6:]}")
    if overwrite:
        write(by_files(place, models, arguments="padding 2"), out)

    def end(*given, **options):
        raise EndedError

    with monkeypatch.context() as patch, pytest.raises(EndedError):
        patch.setattr(writing if moment == "publish" else outputs, moment, end)
        write(by_files(place, models), out, overwrite=overwrite)
    assert out.exists() == (overwrite or moment == "_name_sides")
    computed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(cog, "_translate", end)
        written = write(by_files(place, models), out, resume=True)
    assert computed == {}
    assert result_of(out) == result_of(undisturbed.path)
    assert written == replace(undisturbed, path=out, seconds=written.seconds)
    assert Manifest.read(manifest_of(out)).pixels == undisturbed.pixels
    assert not partial_of(out).exists()


def test_what_was_finished_and_is_gone_is_made_again(place, models, tmp_path, monkeypatch):
    out = tmp_path / "change.zarr"

    def end(*given, **options):
        raise EndedError

    with monkeypatch.context() as patch, pytest.raises(EndedError):
        patch.setattr(outputs, "_name_sides", end)
        write(by_files(place, models), out)
    shutil.rmtree(out)
    written = write(by_files(place, models), out, resume=True)
    assert written.computed_blocks == len(BLOCKS)
    assert read(out).shape == (83, 109)


def test_beginning_anew_and_going_on_are_not_asked_for_at_once(place, models, tmp_path):
    with pytest.raises(OutputError, match="both asked for"):
        write_cog(by_files(place, models), tmp_path / "change.tif", overwrite=True, resume=True)


@pytest.mark.parametrize("output", OUTPUTS)
def test_rasters_that_were_copied_are_the_same_on_the_users_word(output, place, models, tmp_path, computed):
    out = tmp_path / output
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, progress=stop_after(5))
    kept = set(parts_of(out))
    (tmp_path / "copies").mkdir()
    copies = [shutil.copy(path, tmp_path / "copies") for path in place]
    with pytest.raises(OutputExistsError, match=r"from_raster was .*say --same-pixels"):
        write(by_files(copies, models), out, resume=True)
    with pytest.raises(OutputExistsError, match="arguments was nothing, is padding 2"):
        write(by_files(copies, models, arguments="padding 2"), out, resume=True, same_pixels=True)
    computed.clear()
    written = write(by_files(copies, models), out, resume=True, same_pixels=True)
    assert computed == dict.fromkeys(BLOCKS - kept, 1)
    assert Manifest.read(manifest_of(out)).asked["from_raster"] == str(copies[0])
    assert (written.computed_blocks, Manifest.read(manifest_of(out)).kept_blocks) == (len(BLOCKS - kept), len(kept))
    again = write(by_files(place, models), out, resume=True, same_pixels=True)  # and so for the whole result
    assert again.computed_blocks == 0


# What differs is named, and nothing is changed


def another_model(place, models, folder: Path) -> Path:
    network = str(models["pt"].with_name("toy.pt"))
    return write_definition(folder / "another.emd", ModelFile=network, Padding=2)


DIFFERENCES = {
    "arguments": (("--arguments", "padding 2"), "arguments was nothing, is padding 2"),
    "batch size": (("--arguments", "batch_size 3"), "arguments was nothing, is batch_size 3"),
    "chunks": (("--chunks", "32"), r"blocks was \[24, 24\], is \[32, 32\]"),
    "extent": (("--extent", "500000", "5399980", "500030", "5400000"), r"shape was \[83, 109\], is \[40, 60\]"),
    "cell size": (("--cell-size", "1"), r"transform was \["),
    "CRS": (("--output-crs", "EPSG:25833"), "crs was WGS 84 / UTM zone 33N, is ETRS89 / UTM zone 33N"),
    "bands": (("--from-bands", "3,2,1"), r"raster_states was \['bands 1,2,3 of .*, is \['bands 3,2,1 of"),
    "mask": (("--mask", "FROM"), "mask was nothing, is "),
    "from raster": ({"from": "to"}, "from_raster was .*from.tif, is .*to.tif"),
    "model": ({"model": another_model}, "model_digest was "),
}


@pytest.fixture
def request_words(place, models) -> dict[str, str]:
    return {"from": place[0], "to": place[1], "model": str(models["pt"])}


def ask(words: dict[str, str], out: Path, *options: str):
    options = [words["from"] if each == "FROM" else each for each in options]
    chunks = () if "--chunks" in options else ("--chunks", "24")
    return CliRunner().invoke(
        cli, ["detect-change", words["from"], words["to"], str(out), words["model"], *chunks, *options]
    )


def check_refusal(result, says: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *_, message = result.stderr.splitlines()
    assert message.startswith("Error: ")
    with pytest.raises(OutputExistsError, match=says):
        raise OutputExistsError(message)
    assert "--overwrite" in message


@pytest.mark.parametrize("standing", ["parts", "result"])
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_another_run_is_refused_with_the_difference(
    difference, standing, place, request_words, models, tmp_path, computed
):
    out = tmp_path / "change.tif"
    if standing == "result":
        write_cog(by_files(place, models), out)
    else:
        with pytest.raises(KeyboardInterrupt):
            write_cog(by_files(place, models), out, progress=stop_after(2))
    options, says = DIFFERENCES[difference]
    words = dict(request_words)
    if isinstance(options, dict):
        (changed, other), options = next(iter(options.items())), ()
        words[changed] = words[other] if isinstance(other, str) else str(other(place, models, tmp_path))
    before = files_in(tmp_path)
    computed.clear()
    check_refusal(ask(words, out, "--resume", *options), f"is from another run.*{says}")
    assert files_in(tmp_path) == before
    assert computed == {}


@pytest.mark.parametrize("output", OUTPUTS)
def test_raster_that_was_changed_meanwhile_is_noticed(output, place, request_words, models, pixels, tmp_path):
    out = tmp_path / output
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, progress=stop_after(2))
    write_raster(Path(place[1]), pixels[0])
    before = files_in(tmp_path)
    check_refusal(ask(request_words, out, "--resume"), r"raster_states was \['bands 1,2,3 of [\d,]+ bytes of 20")
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("manifest", [None, "", '{"format": 1, "asked": {"pad'])
@pytest.mark.parametrize("standing", ["parts", "result"])
def test_without_a_manifest_that_can_be_read_nothing_is_gone_on_with(
    manifest, standing, place, request_words, models, tmp_path
):
    out = tmp_path / "change.tif"
    if standing == "result":
        write_cog(by_files(place, models), out)
    else:
        with pytest.raises(KeyboardInterrupt):
            write_cog(by_files(place, models), out, progress=stop_after(2))
    record = manifest_of(out) if standing == "result" else partial_of(out) / "manifest.json"
    record.unlink() if manifest is None else record.write_text(manifest)
    before = files_in(tmp_path)
    check_refusal(ask(request_words, out, "--resume"), "has no manifest that says which run it is from")
    assert files_in(tmp_path) == before
    assert ask(request_words, out, "--overwrite").exit_code == 0


def test_command_refuses_to_begin_anew_and_go_on_at_once(request_words, tmp_path):
    result = ask(request_words, tmp_path / "change.tif", "--resume", "--overwrite")
    assert result.exit_code == 2
    assert "overwrite and resume were both asked for" in result.stderr


def test_command_says_where_the_whole_result_is(place, request_words, models, tmp_path, computed):
    out = tmp_path / "change.tif"
    first = ask(request_words, out, "--resume")  # there is nothing: it begins
    before = files_in(tmp_path)
    computed.clear()
    again = ask(request_words, out, "--resume")
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert again.stdout.splitlines()[-1].startswith(f"{out}: 109 x 83 pixels in ")
    assert again.stdout.splitlines()[-2] == "Nothing had to be computed."
    assert again.stdout.splitlines()[:-2] == first.stdout.splitlines()[:-1]  # the areas
    assert computed == {}
    assert files_in(tmp_path) == before


# Runs of their own process, ended from outside


@pytest.fixture(scope="module")
def large(tmp_path_factory, pixels, models) -> dict[str, str]:
    """Rasters of 747 x 981 pixels, 192 blocks of 64."""
    folder = tmp_path_factory.mktemp("large")
    images = (write_raster(folder / name, np.tile(each, (1, 9, 9))) for name, each in zip("ab", pixels, strict=True))
    before, after = (str(each) for each in images)
    return {"from": before, "to": after, "model": str(models["pt"])}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, large) -> dict[str, Path]:
    """What comes out where nothing happens, by ending."""
    folder = tmp_path_factory.mktemp("undisturbed")
    outs = {Path(name).suffix: folder / name for name in OUTPUTS}
    change = detect_change(large["from"], large["to"], large["model"], chunks=64)
    for out in outs.values():
        write(change, out)
    return outs


def start(words: dict[str, str], out: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [COMMAND, "detect-change", words["from"], words["to"], str(out), words["model"], "--chunks", "64", "-q",
         *options],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_blocks(running: subprocess.Popen, out: Path, blocks: int) -> None:
    until = time.monotonic() + 180
    while len(parts_of(out)) < blocks:
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


def end(running: subprocess.Popen, number: int) -> str:
    """Signal the command alone, and wait until all that it started is gone."""
    others = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=180)
    _, alive = psutil.wait_procs(others, timeout=180)
    assert not alive
    return stderr


def check_resumed(words: dict[str, str], out: Path, undisturbed: dict[str, Path], computed: Counter) -> None:
    """Go on in this process, where each call of the model is counted."""
    kept = parts_of(out)
    assert 0 < len(kept) < 192
    result = ask(words, out, "--resume", "--chunks", "64")
    assert result.exit_code == 0, result.output
    every = {(row, col) for row in range(12) for col in range(16)}
    assert computed == dict.fromkeys(every - set(kept), 1)
    expected = undisturbed[out.suffix]
    assert result_of(out) == result_of(expected)
    ours, theirs = (Manifest.read(manifest_of(each)) for each in (out, expected))
    assert (ours.asked, ours.pixels, ours.tiles) == (theirs.asked, theirs.pixels, theirs.tiles)
    assert sorted(out.parent.iterdir()) == sorted([out, *sides_of(out), manifest_of(out)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("output", OUTPUTS)
def test_ended_process_is_gone_on_with(
    output, number, large, undisturbed, tmp_path, computed, heeding_interrupts  # noqa: F811
):  # fmt: skip
    out = tmp_path / output
    for _ in range(5):
        running = start(large, out)
        wait_for_blocks(running, out, 20)
        end(running, number)
        if not out.exists() and len(parts_of(out)) < 192:
            break
        for left in (out, *tmp_path.glob(f"{out.name}.*")):  # on a busy machine it may have been whole before
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert not out.exists()
    assert (partial_of(out) / "owner").exists() == (number == signal.SIGKILL)
    check_resumed(large, out, undisturbed, computed)


def workers_of(running: subprocess.Popen) -> list[psutil.Process]:
    started = psutil.Process(running.pid).children(recursive=True)
    return [each for each in started if "spawn_main" in " ".join(each.cmdline())]


@pytest.mark.parametrize("output", OUTPUTS)
def test_killed_worker_and_then_killed_client_are_gone_on_with(output, large, undisturbed, tmp_path, computed):
    out = tmp_path / output
    running = start(large, out, "--workers", "2")
    wait_for_blocks(running, out, 10)
    workers = [
        each
        for each in psutil.Process(running.pid).children(recursive=True)
        if "spawn_main" in " ".join(each.cmdline())
    ]
    assert len(workers) == 2
    before = parts_of(out)
    os.kill(workers[0].pid, signal.SIGKILL)
    wait_for_blocks(running, out, len(parts_of(out)) + 5)
    end(running, signal.SIGKILL)
    assert {index: state for index, state in parts_of(out).items() if index in before} == before
    check_resumed(large, out, undisturbed, computed)


@pytest.mark.parametrize("output", OUTPUTS)
def test_killed_worker_alone_is_made_up_for_within_the_run(output, large, undisturbed, tmp_path):
    out = tmp_path / output
    running = start(large, out, "--workers", "2")
    wait_for_blocks(running, out, 10)
    workers = [
        each
        for each in psutil.Process(running.pid).children(recursive=True)
        if "spawn_main" in " ".join(each.cmdline())
    ]
    os.kill(workers[0].pid, signal.SIGKILL)
    _, stderr = running.communicate(timeout=120)
    assert running.returncode == 0, stderr
    assert result_of(out) == result_of(undisturbed[out.suffix])
    assert Manifest.read(manifest_of(out)).pixels == Manifest.read(manifest_of(undisturbed[out.suffix])).pixels
