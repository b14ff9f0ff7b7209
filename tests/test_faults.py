"""What goes wrong in mid-run: the message, what is kept, and that the run is finished once it is mended."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from click.testing import CliRunner
from test_resume import (  # noqa: F401
    BLOCKS,
    OUTPUTS,
    by_files,
    computed,
    parts_of,
    place,
    read,
    result_of,
    stop_after,
    write,
)

from geodl_dask import writing
from geodl_dask.cli import cli
from geodl_dask.errors import BlockFailedError, OutputError, RunError
from geodl_dask.growth import partial_of
from geodl_dask.manifest import FailedBlock, Manifest
from geodl_dask.outputs import manifest_of

# A block whose input cannot be decoded


@pytest.fixture
def corrupt(place) -> Iterator[tuple[str, str]]:  # noqa: F811
    """The pair, of which the later raster has a tile that does not inflate: at row 32, column 64, 32 pixels a side."""
    path = Path(place[1])
    with rasterio.open(path) as dataset:
        pixels, profile = dataset.read(), dataset.profile
    profile |= {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate", "interleave": "pixel"}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    whole = path.read_bytes()
    path.with_name("whole").write_bytes(whole)
    path.write_bytes(whole[:offset] + b"\0" * 20 + whole[offset + 20 :])
    return place


def touched_by(row_off: int, col_off: int, side: int, padding: int) -> set[tuple[int, int]]:
    """Blocks of 24 pixels whose haloed window meets a square."""
    return {
        (row, col)
        for row, col in BLOCKS
        if row * 24 - padding < row_off + side and (row + 1) * 24 + padding > row_off
        and col * 24 - padding < col_off + side and (col + 1) * 24 + padding > col_off
    }  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS)
def test_input_that_cannot_be_decoded_costs_its_blocks_alone(output, corrupt, models, tmp_path, computed):  # noqa: F811
    out, broken = tmp_path / output, touched_by(32, 64, 32, padding=4)
    with pytest.raises(BlockFailedError) as raised:
        write(by_files(corrupt, models), out)
    says = f"{len(broken)} of 20 blocks failed; all others are done. At row 24, column 48: "
    assert str(raised.value).startswith(says)
    assert "to.tif" in str(raised.value)
    assert "--resume" in raised.value.__notes__[0]
    assert set(parts_of(out)) == BLOCKS - broken
    assert not out.exists()
    shutil.copy(Path(corrupt[1]).with_name("whole"), corrupt[1])
    computed.clear()
    write(by_files(corrupt, models), out, resume=True, same_pixels=True)
    assert computed == dict.fromkeys(broken, 1)
    undisturbed = write(by_files(corrupt, models), tmp_path / f"undisturbed{output[6:]}")
    np.testing.assert_array_equal(read(out), read(undisturbed.path))


@pytest.mark.parametrize("output", OUTPUTS)
def test_on_request_failed_blocks_become_nodata_and_are_listed(output, corrupt, models, tmp_path):
    out, broken = tmp_path / output, touched_by(32, 64, 32, padding=4)
    words = [*corrupt, str(out), str(models["pt"]), "--chunks", "24", "--keep-going"]
    result = CliRunner().invoke(cli, ["detect-change", *words])
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(manifest_of(out))
    assert {(block.row_off // 24, block.col_off // 24) for block in manifest.failed_blocks} == broken
    assert manifest.computed_blocks == len(BLOCKS - broken)
    first = manifest.failed_blocks[0]
    assert first == FailedBlock(24, 48, 24, 24, first.cause)
    assert f"Failed, and nodata: 24 x 24 pixels at row 24, column 48: {first.cause}" in result.stdout
    assert f"{len(broken)} blocks failed; {manifest_of(out)} lists them." in result.stdout
    shutil.copy(Path(corrupt[1]).with_name("whole"), corrupt[1])
    expected = read(write(by_files(corrupt, models), tmp_path / f"undisturbed{output[6:]}").path)
    for block in manifest.failed_blocks:
        window = np.s_[block.row_off :, block.col_off :]
        expected[window][: block.height, : block.width] = 255
    np.testing.assert_array_equal(read(out), expected)
    values, counts = np.unique(expected, return_counts=True)
    assert manifest.pixels == dict(zip(values, counts, strict=True))
    windows = [[block.row_off, block.col_off, block.height, block.width] for block in manifest.failed_blocks]
    assert _attributes(out)["failed_blocks"] == windows
    assert not partial_of(out).exists()


@pytest.mark.parametrize("confidence", [None, "uint8"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_blocks_that_failed_are_computed_alone_once_their_input_is_mended(
    output, confidence, corrupt, models, tmp_path, computed  # noqa: F811
):  # fmt: skip
    out, broken = tmp_path / output, touched_by(32, 64, 32, padding=4)

    def change():
        return by_files(corrupt, models, confidence=confidence)

    write(change(), out, keep_going=True)
    computed.clear()
    again = write(change(), out, keep_going=True, resume=True)  # not mended yet: as it was
    assert (again.computed_blocks, len(again.failed_blocks)) == (0, len(broken))
    assert set(computed) == broken
    shutil.copy(Path(corrupt[1]).with_name("whole"), corrupt[1])
    computed.clear()
    with pytest.raises(KeyboardInterrupt):
        write(change(), out, resume=True, same_pixels=True, progress=stop_after(3))
    assert len(_attributes(out)["failed_blocks"]) == len(broken)  # what stands there stays meanwhile
    written = write(change(), out, resume=True, same_pixels=True)
    assert computed == dict.fromkeys(broken, 1)
    assert written.failed_blocks == ()
    undisturbed = write(change(), tmp_path / f"undisturbed{output[6:]}").path
    assert result_of(out) == result_of(undisturbed)
    assert Manifest.read(manifest_of(out)).pixels == Manifest.read(manifest_of(undisturbed)).pixels
    assert not partial_of(out).exists()


class EndedError(BaseException):
    """What a kill does, but for this process."""


@pytest.mark.parametrize("output", OUTPUTS)
def test_finished_result_with_holes_is_not_given_out_where_holes_were_not_asked_for(
    output, corrupt, models, tmp_path, monkeypatch, computed  # noqa: F811
):  # fmt: skip
    out, broken = tmp_path / output, touched_by(32, 64, 32, padding=4)
    options = {"pyramid": True} if output == "change.zarr" else {}

    def end(*given, **options):
        raise EndedError

    with monkeypatch.context() as patch, pytest.raises(EndedError):
        patch.setattr(writing, "publish", end)
        write(by_files(corrupt, models), out, keep_going=True, **options)
    shutil.copy(Path(corrupt[1]).with_name("whole"), corrupt[1])
    computed.clear()
    assert write(by_files(corrupt, models), out, resume=True, same_pixels=True, **options).failed_blocks == ()
    assert computed == dict.fromkeys(broken, 1)
    assert result_of(out) == result_of(
        write(by_files(corrupt, models), tmp_path / f"whole{output[6:]}", **options).path
    )


def _attributes(out: Path) -> dict:
    if out.suffix == ".zarr":
        with xr.open_zarr(out) as store:
            return store["change"].attrs
    with rasterio.open(out) as dataset:
        return {"failed_blocks": json.loads(dataset.tags()["failed_blocks"])}


def test_raster_without_nodata_has_nothing_to_leave_in_the_place_of_a_block(place, models, tmp_path):  # noqa: F811
    change = by_files(place, models)
    del change.attrs["_FillValue"]
    with pytest.raises(OutputError, match="has no _FillValue"):
        write(change, tmp_path / "change.tif", keep_going=True)


# A disk that fills


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of its own, of 300 kB, in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount a disk: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def speckled(chunks: int = 128) -> xr.DataArray:
    """A raster that hardly compresses, 1,024 pixels a side."""
    noise = np.random.default_rng(8).integers(0, 200, (1024, 1024), np.uint8)
    change = xr.DataArray(noise, dims=("y", "x"), name="change", attrs={"_FillValue": 255}).chunk(chunks)
    change["y"], change["x"] = 1024 - np.arange(1024.0), np.arange(1024.0)
    return change.rio.write_crs("EPSG:32633")


@pytest.mark.parametrize("output", OUTPUTS)
def test_full_disk_ends_the_run_which_goes_on_when_there_is_room(output, small_disk, tmp_path):
    out = small_disk / output
    with pytest.raises(
        BlockFailedError, match=r"The block at row \d+, column \d+ could not be kept: .*([Ff]ull|space)"
    ) as raised:
        write(speckled(), out)
    kept = parts_of(out)
    assert 5 < len(kept) < 64
    assert f"What is finished is kept in {partial_of(out)}; --resume" in raised.value.__notes__[0]
    assert not out.exists()
    subprocess.run(["mount", "-o", "remount,size=20M", str(small_disk)], check=True)
    written = write(speckled(), out, resume=True)
    assert written.computed_blocks == 64 - len(kept)
    assert result_of(out) == result_of(write(speckled(), tmp_path / output).path)


def test_disk_that_fills_in_the_last_pass_ends_the_run_which_goes_on_when_there_is_room(small_disk, tmp_path):
    out = small_disk / "change.tif"
    subprocess.run(["mount", "-o", "remount,size=1500k", str(small_disk)], check=True)
    with pytest.raises(RunError, match=r"could not be put together from its blocks: .* Is the disk full") as raised:
        write(speckled(), out)
    assert "--resume" in raised.value.__notes__[0]
    assert len(parts_of(out)) == 64
    subprocess.run(["mount", "-o", "remount,size=20M", str(small_disk)], check=True)
    assert write(speckled(), out, resume=True).computed_blocks == 0
    assert result_of(out) == result_of(write(speckled(), tmp_path / "change.tif").path)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("output", OUTPUTS)
def test_disk_that_cannot_hold_the_result_is_refused_before_any_work(
    output, place, models, tmp_path, monkeypatch, computed  # noqa: F811
):  # fmt: skip
    change = by_files(place, models)
    computed.clear()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**6, 10**6, 100))
    with pytest.raises(OutputError, match=r"The disk of .* has 0.000 GB free; at least 0.000 GB are needed"):
        write(change, tmp_path / output)
    assert computed == {}
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(("free", "warns"), [(400, True), (2000, False)])
def test_disk_that_may_be_too_small_is_warned_of(place, models, tmp_path, monkeypatch, caplog, free, warns):  # noqa: F811
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**6, 10**6, free))
    write(by_files(place, models), tmp_path / "change.zarr")
    assert ("may be needed" in caplog.text) == warns


# What the record of a run tells


def test_record_tells_what_ran_when_and_over_what(place, models, tmp_path):  # noqa: F811
    out = tmp_path / "change.zarr"
    written = write(by_files(place, models, arguments="batch_size 2"), out)
    record = json.loads(manifest_of(out).read_text())
    assert record["model"].endswith(".emd")
    assert record["model_name"] == Path(record["model"]).stem
    assert {"python", "gdal", "geodl_dask", "torch", "dask", "zarr"} <= record["software"].keys()
    assert record["begun"] < record["ended"]
    assert 0 < record["seconds"] == written.seconds
    assert (record["computed_blocks"], record["kept_blocks"], record["failed_blocks"]) == (20, 0, [])
    asked = record["asked"]
    assert (asked["arguments"], asked["blocks"], asked["shape"]) == ("batch_size 2", [24, 24], [83, 109])
    assert f"{Path(place[0]).stat().st_size:,} bytes" in asked["raster_states"][0]
    assert sum(record["pixels"].values()) == 83 * 109
