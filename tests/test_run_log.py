"""The log of a run as JSON lines: whole lines, in order, what happens and how it ends, nothing secret."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import (  # noqa: F401
    detect,
    heeding_interrupts,
    inputs,
    run_command,
    settings_of_the_command_end_with_it,
    start_and_wait_for_blocks,
)
from test_resume import computed  # noqa: F401

from geodl_dask import change as change_module
from geodl_dask import run_log
from geodl_dask.errors import OutputError
from geodl_dask.run_log import Rate, RunLog


def lines_of(path: Path) -> list[dict]:
    content = path.read_text(encoding="utf-8")
    assert content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


def events_of(path: Path) -> list[str]:
    return [line["event"] for line in lines_of(path)]


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_run_says_what_it_is_to_do_how_far_it_is_and_that_it_is_done(quiet, inputs, tmp_path, log, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run_log, "PROGRESS_EVERY_S", 0)
    result = detect(inputs, tmp_path / "change.tif", "--chunks", "24", "--log-json", str(log), *quiet)
    assert result.exit_code == 0, result.output
    started, plan, *progress, finished = lines_of(log)
    assert (started["event"], plan["event"], finished["event"]) == ("started", "plan", "finished")
    assert {each["event"] for each in progress} == {"progress"}
    assert (plan["blocks_yx"], plan["shard_blocks"], plan["tile_yx"]) == ([4, 5], 20, [16, 16])
    assert [each["blocks_done"] for each in progress] == list(range(1, 21))
    assert {(each["blocks"], each["pixels"]) for each in progress} == {(20, 83 * 109)}
    assert progress[-1]["pixels_done"] == 83 * 109
    assert (finished["status"], finished["computed_blocks"]) == (0, 20)
    assert sum(finished["pixels"].values()) == 83 * 109
    times = [datetime.fromisoformat(each["time"]) for each in (started, plan, *progress, finished)]
    assert times == sorted(times)
    assert all(each.utcoffset() == timedelta(0) for each in times)
    assert abs(datetime.now(UTC) - times[-1]) < timedelta(minutes=1)


def test_lines_of_progress_are_seconds_apart_but_for_the_last(inputs, tmp_path, log):  # noqa: F811
    assert detect(inputs, tmp_path / "change.tif", "--chunks", "24", "--log-json", str(log)).exit_code == 0
    progress = [line for line in lines_of(log) if line["event"] == "progress"]
    assert len(progress) < 5
    assert progress[-1]["blocks_done"] == 20


def test_next_run_is_appended(inputs, tmp_path, log):  # noqa: F811
    log.write_text('{"event": "of before"}\n')
    detect(inputs, tmp_path / "change.tif", "--log-json", str(log))
    assert events_of(log)[:2] == ["of before", "started"]


def test_failed_and_repeated_blocks_and_the_end_are_told(inputs, tmp_path, log, monkeypatch):  # noqa: F811
    infer = change_module.infer_windowed_block

    def fail(inference, rasters, mask, block_id):
        if tuple(block_id) == (3, 4):
            raise OSError("https://user:secret@host/a.tif?token=secret is unplugged")
        return infer(inference, rasters, mask, block_id)

    monkeypatch.setattr(change_module, "infer_windowed_block", fail)
    result = detect(inputs, tmp_path / "change.tif", "--chunks", "24", "--log-json", str(log))
    assert result.exit_code == 1
    told = [line for line in lines_of(log) if line["event"].startswith("block_")]
    assert [line["event"] for line in told] == ["block_retried", "block_retried", "block_failed"]
    assert {tuple(line["block"]) for line in told} == {(3, 4)}
    assert all("unplugged" in line["cause"] for line in told)
    last = lines_of(log)[-1]
    assert (last["event"], last["status"], last["kind"]) == ("failed", 1, "BlockFailedError")
    assert "--resume" in last["message"]
    assert "secret" not in log.read_text()


def test_wrong_request_is_told_with_its_status(inputs, tmp_path, log):  # noqa: F811
    result = detect(inputs, tmp_path / "change.tif", "--arguments", "padding 8", "--log-json", str(log))
    assert result.exit_code == 2
    last = lines_of(log)[-1]
    assert (last["event"], last["status"]) == ("failed", 2)
    assert last["message"] in result.stderr


def test_mistake_of_ours_is_told_too(inputs, tmp_path, log, monkeypatch):  # noqa: F811
    monkeypatch.setattr("geodl_dask.cli._introduce", lambda *given, **options: 1 / 0)
    assert isinstance(detect(inputs, tmp_path / "change.tif", "--log-json", str(log)).exception, ZeroDivisionError)
    assert lines_of(log)[-1]["kind"] == "ZeroDivisionError"


def test_signal_is_told(inputs, tmp_path, log, heeding_interrupts):  # noqa: F811
    running = start_and_wait_for_blocks(tmp_path / "change.tif", inputs, "--log-json", str(log))
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=180)
    last = lines_of(log)[-1]
    assert (last["event"], last["signal"], last["status"]) == ("stopped", "SIGTERM", 143)
    assert "--resume" in last["message"]


def test_warnings_are_told_and_the_terminal_is_as_loud_as_before(inputs, tmp_path, log, monkeypatch):  # noqa: F811
    def warn(*given, **options):
        logging.getLogger("geodl_dask.any").warning("The disk of %s is slow", "https://me:secret@host")
        logging.getLogger("geodl_dask.any").info("an aside")

    monkeypatch.setattr("geodl_dask.cli._introduce", warn)
    result = detect(inputs, tmp_path / "change.tif", "--log-json", str(log))
    (warned,) = [line for line in lines_of(log) if line["event"] == "warning"]
    assert warned["message"] == "The disk of https://host is slow"
    assert "an aside" not in log.read_text() + result.stderr
    assert "blocks are done" not in result.stderr
    assert "is slow" in result.stderr


def test_command_is_told_without_keys(tmp_path, log):
    url = "https://me:secret@host/a.tif?sig=secret"
    done = run_command("detect-change", url, "b.tif", str(tmp_path / "nowhere/c.tif"), "m.emd", "--log-json", str(log))
    assert done.returncode == 2
    assert "https://host/a.tif?sig=..." in lines_of(log)[0]["command"]
    assert "secret" not in log.read_text()


def test_log_that_cannot_be_written_is_refused_before_any_work(inputs, tmp_path):  # noqa: F811
    result = detect(inputs, tmp_path / "change.tif", "--log-json", str(tmp_path / "nowhere" / "log"))
    assert result.exit_code == 2
    assert "cannot be written: No such file or directory" in result.stderr
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError):
        RunLog(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize(("words", "status"), [((), 0), (("--arguments", "padding 8"), 2)])
def test_log_on_a_full_disk_changes_nothing_but_a_warning(words, status, inputs, tmp_path):  # noqa: F811
    result = detect(inputs, tmp_path / "change.tif", *words, "--log-json", "/dev/full")
    assert result.exit_code == status
    assert " ".join(result.stderr.split()).count("No space left on device") == 1
    assert (tmp_path / "change.tif").exists() == (status == 0)


def test_lines_of_several_processes_do_not_mix(log):
    logs = [RunLog(log) for _ in range(8)]

    def say_much(log):
        for _ in range(50):
            log.say("much", text="x" * 5000)

    threads = [threading.Thread(target=say_much, args=(each,)) for each in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in logs:
        each.close()
    assert events_of(log) == ["much"] * 400


def test_rate_is_that_of_late(monkeypatch):
    now = iter([0.0, 10.0, 200.0, 210.0])
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: next(now)))  # other threads have theirs
    rate = Rate()
    assert [rate.note(done) for done in (500, 1500, 1500, 2500)] == [0, 100, 0, 100]


def test_any_path_is_told(tmp_path, log):
    name = os.fsdecode(b"caf\xe9.tif")
    record = RunLog(log)
    record.say("finished", path=tmp_path / name, numbers=(1, 2))
    record.close()
    assert lines_of(log)[0]["numbers"] == [1, 2]
