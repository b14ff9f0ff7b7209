"""What a run says beforehand: counted by hand, and with nothing read, computed or written for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import rioxarray
from dask_processes import dask_processes
from distributed import Client
from test_cli import check_refusal, detect, inputs, listing, settings_of_the_command_end_with_it  # noqa: F401
from test_resume import by_files, computed, parts_of, place, stop_after, write  # noqa: F401

from geodl_dask.change import detect_change
from geodl_dask.forecast import Forecast, Room, forecast
from geodl_dask.shards import Shard


def told_by(change, **options) -> Forecast:
    return forecast(change, **{"chunks": 24, "shard": Shard(), **options})


def test_blocks_tiles_and_bytes_are_counted(place, models):  # noqa: F811
    told = told_by(by_files(place, models))  # 83 x 109 pixels, blocks of 24, tiles of 16 with a padding of 4
    assert (told.blocks_yx, told.block_yx, told.shard_blocks) == ((4, 5), (24, 24), 20)
    assert (told.tasks, told.blocks_per_task) == (20, 1)
    assert told.tiles == 11 * 14
    haloed = (28 + 32 + 32 + 15) * (28 + 32 + 32 + 32 + 17)
    assert (told.pixel_bytes, told.read_bytes, told.block_bytes) == (6, haloed * 6, 32 * 32 * 6)
    assert told.result_bytes == 83 * 109
    assert told.grid.startswith("83 x 109 pixels (rows x columns) of 0.5 x 0.5, EPSG:32633")
    assert told.block_why == "--chunks 24, rounded down to whole strides of 8 x 8 pixels"


def test_share_is_that_of_the_shard(place, models):  # noqa: F811
    whole, told = (told_by(by_files(place, models), shard=shard) for shard in (Shard(), Shard(1, 4)))
    assert (told.shard, told.shard_blocks, told.tasks) == ("1/4", 5, 5)
    assert told.read_bytes == whole.read_bytes // 4


def test_many_blocks_make_few_tasks(place, models, monkeypatch):  # noqa: F811
    monkeypatch.setattr("geodl_dask.dispatch.MOST_TASKS", 6)
    told = told_by(by_files(place, models))
    assert (told.tasks, told.blocks_per_task) == (5, 4)


def test_rasters_that_are_no_files_are_not_known(place, models):  # noqa: F811
    with rioxarray.open_rasterio(place[0], chunks=50) as before, rioxarray.open_rasterio(place[1], chunks=50) as after:
        told = told_by(detect_change(before, after, models["pt"], chunks=24))
    assert (told.read_bytes, told.block_bytes, told.prediction_bytes) == (None, None, None)
    assert told.shard_blocks == 20


def test_memory_of_a_prediction_is_what_the_probe_measured(tmp_path, models, inputs):  # noqa: F811
    change = detect_change(inputs["large"], inputs["large"], models["pt"])
    told = told_by(change, chunks="auto")
    assert told.prediction_bytes is None or told.prediction_bytes > 10_000_000
    assert "--chunks sets another" in told.block_why


def test_blocks_that_do_not_fit_a_worker_are_warned_of_with_those_that_do(place, models):  # noqa: F811
    told = told_by(by_files(place, models))
    assert told.warnings(Room(1, 2, 10**9)) == told.warnings(Room(1, 2, 0)) == []
    (warning,) = told.warnings(Room(1, 2, 20_000))
    assert re.search(r"2 blocks at once take 12\.00 kiB as pixels alone, and a worker has 19\.53 kiB", warning)
    fitting = int(re.search(r"--chunks (\d+) would leave half", warning)[1])
    assert 2 * (fitting + 8) ** 2 * 6 <= 10_000


def test_fewer_blocks_than_workers_are_warned_of_with_those_that_suffice(place, models):  # noqa: F811
    told = told_by(by_files(place, models))
    assert told.warnings(Room(20, 1, 10**9)) == []
    (warning,) = told.warnings(Room(60, 1, 10**9))
    smaller = int(re.search(r"There are 20 blocks for 60 workers.* --chunks (\d+) would", warning)[1])
    change = detect_change(*place, models["pt"], chunks=smaller)
    assert told_by(change).shard_blocks >= 60


# The command


@pytest.mark.parametrize("output", ["change.tif", "change.zarr"])
def test_dry_run_computes_and_writes_nothing(output, inputs, tmp_path, computed):  # noqa: F811
    before = listing(tmp_path), listing(Path(inputs["from"]).parent)
    result = detect(inputs, tmp_path / output, "--chunks", "24", "--dry-run", "--shard", "2/3")
    assert result.exit_code == 0, result.output
    assert (listing(tmp_path), listing(Path(inputs["from"]).parent)) == before
    assert computed == {}
    said = " ".join(result.stdout.split())
    for words in ("7 of 7 blocks of shard 2/3; 0 are kept already", "4 x 5 of up to 24 x 24 pixels: --chunks 24"):
        assert words in said
    assert result.stdout.splitlines()[-1] == "Nothing was computed or written."


@pytest.mark.parametrize("output", ["change.tif", "change.zarr"])
def test_dry_run_says_what_is_kept(output, place, models, inputs, tmp_path, computed):  # noqa: F811
    out = tmp_path / output
    words = {**inputs, "from": str(place[0]), "to": str(place[1])}
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, progress=stop_after(5))
    kept = len(parts_of(out))
    before = listing(tmp_path)
    computed.clear()
    said = " ".join(detect(words, out, "--chunks", "24", "--dry-run", "--resume").stdout.split())
    assert f"{20 - kept} of 20 blocks; {kept} are kept already" in said
    assert listing(tmp_path) == before
    check_refusal(detect(words, out, "--chunks", "24", "--dry-run"), "--resume")
    result = detect(words, out, "--chunks", "48", "--dry-run", "--resume")
    assert (result.exit_code, "blocks was [24, 24], is [48, 48]" in result.stderr) == (2, True)
    write(by_files(place, models), out, resume=True)
    said = " ".join(detect(words, out, "--chunks", "24", "--dry-run", "--resume").stdout.split())
    assert "0 of 20 blocks; 20 are kept" in said


def test_dry_run_says_where_memory_was_not_probed(inputs, tmp_path):  # noqa: F811
    said = " ".join(detect(inputs, tmp_path / "c.tif", "--tile-size", "model", "--dry-run").stdout.split())
    assert "what a prediction takes was not probed" in said


def test_dry_run_refuses_what_a_run_would_refuse(inputs, tmp_path):  # noqa: F811
    check_refusal(detect(inputs, tmp_path / "nowhere" / "c.tif", "--dry-run"), "make it first")


def test_run_warns_of_blocks_that_do_not_fit_its_workers(inputs, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Room, "of_client", classmethod(lambda room, client: Room(60, 1, 10**9)))
    result = detect(inputs, tmp_path / "change.tif", "--chunks", "24", "--quiet")
    assert "There are 20 blocks for 60 workers" in " ".join(result.stderr.split())


def test_room_of_a_client_is_that_of_its_workers():
    from geodl_dask.cluster import connect

    with connect() as client:
        room = Room.of_client(client)
    assert (room.workers, room.threads) == (1, Room.here(None).threads)


def test_dry_run_names_the_workers_of_a_scheduler(inputs, tmp_path):  # noqa: F811
    with dask_processes(workers=2) as (address, _), Client(address) as client:
        client.wait_for_workers(2)
        told = detect(inputs, tmp_path / "c.zarr", "--dry-run", "--cluster", address)
    assert re.search(r"Workers +2 with 1 thread\(s\)", told.stdout), told.output


def test_dry_run_names_the_workers_that_jobs_would_have(inputs, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    command = tmp_path / "sbatch"  # a stand-in that nothing calls: the command has to be there
    command.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    asked = "--cluster", "slurm", "--workers", "8", "--gpus-per-node", "4", "--cores", "16", "--memory", "64GB"
    told = detect(inputs, tmp_path / "c.zarr", "--dry-run", "--processor-type", "cpu", *asked)
    assert re.search(r"Workers +8 with 3 thread\(s\) and 14\.90 GiB each", told.stdout), told.output
