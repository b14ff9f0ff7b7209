"""The command: what it answers, what it prints where, and what it leaves behind."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from click.testing import CliRunner
from conftest import CLASSES, TRANSFORM, write_definition, write_raster
from dask_processes import dask_processes

from geodl_dask.cli import cli
from geodl_dask.cluster import connect
from geodl_dask.outputs import manifest_of, side_file_of
from geodl_dask.stac_item import item_of

COMMAND = str(Path(sys.executable).with_name("geodl-dask"))
OUTPUTS = ("change.tif", "change.zarr")
ESCAPE = "\x1b"


@pytest.fixture(autouse=True)
def settings_of_the_command_end_with_it(monkeypatch):
    """The command owns its process: it sets up logging, and how loud Dask is, which Dask reads when it is imported."""
    root, loud = logging.getLogger(), logging.getLogger("distributed")
    handlers, levels = root.handlers[:], (root.level, loud.level)
    loud.setLevel(logging.CRITICAL)
    monkeypatch.setenv("DASK_LOGGING__DISTRIBUTED", "warning")  # so that it is as it was afterwards
    monkeypatch.delenv("DASK_LOGGING__DISTRIBUTED")
    with dask.config.set(logging={}):
        yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    loud.setLevel(levels[1])
    logging.getLogger("geodl_dask").setLevel(logging.NOTSET)


@pytest.fixture
def heeding_interrupts():
    """Tests that run in the background, or under nohup, are started deaf, and so would be what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGHUP), before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, pair, models, pixels) -> dict[str, str]:
    """Good and bad inputs by name, as the command line has them."""
    folder = tmp_path_factory.mktemp("inputs")
    half = folder / "half.tif"
    whole = write_raster(folder / "whole.tif", np.tile(pixels[0], (1, 4, 4)), compress="deflate")
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for name in ("empty.tif", "function.py"):
        (folder / name).touch()
    (folder / "broken.emd").write_text('{"ImageHeight": 16,')
    return {
        "from": str(pair[0]),
        "to": str(pair[1]),
        "model": str(models["pt"]),
        "whole": str(whole),
        "half": str(half),
        "empty": str(folder / "empty.tif"),
        "large": sparse_raster(folder / "large.tif", 8192),
        "no-crs": str(write_raster(folder / "no_crs.tif", pixels[0], crs=None)),
        "two-bands": str(write_raster(folder / "two_bands.tif", pixels[0][:2])),
        "five-bands": str(write_raster(folder / "five_bands.tif", np.concatenate([pixels[0], pixels[1][:2]]))),
        "code": str(write_definition(folder / "code.emd", InferenceFunction="function.py")),
        "broken": str(folder / "broken.emd"),
        "no-file": str(write_definition(folder / "no_file.emd", ModelFile="gone.pt2")),
        "folder": str(folder),
    }


def sparse_raster(path: Path, size: int) -> str:
    """A large raster of zeros that takes no space on disk."""
    profile = {"width": size, "height": size, "crs": "EPSG:32633", "transform": TRANSFORM, "sparse_ok": True}
    with rasterio.open(path, "w", driver="GTiff", count=3, dtype="uint8", tiled=True, **profile):
        return str(path)


def ask(*words: str):
    return CliRunner().invoke(cli, list(words))


def detect(inputs, output, *options, from_raster="from", to_raster="to", model="model"):
    return ask("detect-change", inputs[from_raster], inputs[to_raster], str(output), inputs[model], *options)


def run_command(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=180, **options)


def listing(folder: str | Path) -> dict[str, int]:
    """Everything below a folder, and when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


def read(output: Path) -> np.ndarray:
    if output.suffix == ".zarr":
        with xr.open_zarr(output, mask_and_scale=False) as store:
            return store["change"].values
    with rasterio.open(output) as dataset:
        return dataset.read(1)


# Asked wrongly: status 2, one message, nothing done

ASKED_WRONGLY = {
    "missing from raster": ({"from_raster": "nowhere.tif"}, (), "from_raster nowhere.tif does not exist"),
    "missing to raster": ({"to_raster": "nowhere.tif"}, (), "to_raster nowhere.tif does not exist"),
    "not a raster": ({"from_raster": "empty"}, (), "cannot be opened as a raster"),
    "raster without CRS": ({"from_raster": "no-crs"}, (), "has no CRS"),
    "too few bands": ({"from_raster": "two-bands", "to_raster": "two-bands"}, (), "takes 3 of each date"),
    "too many bands": ({"from_raster": "five-bands", "to_raster": "five-bands"}, (), "takes 3 of each date"),
    "dates of different bands": ({"to_raster": "two-bands"}, (), "both dates need the same bands"),
    "dates of different grids, strictly": (
        {},
        ("--output-crs", "EPSG:32634", "--align", "strict"),
        "and align is strict",
    ),
    "no overlap": ({}, ("--extent", "0", "0", "9", "9"), "does not overlap the output"),
    "extent inside out": ({}, ("--extent", "9", "0", "0", "9"), "each min below its max"),
    "unknown resampling": ({}, ("--resampling", "blinear"), "one of nearest, bilinear"),
    "unknown CRS": ({}, ("--output-crs", "EPSG:123456789"), "not one that PROJ knows"),
    "unknown band": ({}, ("--from-bands", "1,2,nir"), "has the bands 1"),
    "no such mask": ({}, ("--mask", "none.gpkg"), "none.gpkg does not exist"),
    "padding without core": ({}, ("--arguments", "padding 8"), "padding"),
    "negative padding": ({}, ("--arguments", "padding -1"), "padding is '-1'"),
    "unknown argument": ({}, ("--arguments", "paddign 4"), "Did you mean padding?"),
    "argument without value": ({}, ("--arguments", "padding"), "has no value"),
    "code without trust": ({"model": "code"}, (), "--trust-code"),
    "no function to run": ({}, ("--runner", "raster-function"), "names no InferenceFunction"),
    "missing model": ({"model": "nowhere.emd"}, (), "nowhere.emd"),
    "missing model file": ({"model": "no-file"}, (), "names the ModelFile 'gone.pt2', and "),
    "broken .emd": ({"model": "broken"}, (), "broken.emd"),
    "broken JSON text": ({"model": '{"ImageHeight": 16,'}, (), "JSON"),
    "chunks of nothing": ({}, ("--chunks", "0"), "chunks"),
    "chunks of no number": ({}, ("--chunks", "big"), "'big' is neither a number of pixels above 0 nor auto"),
    "no workers": ({}, ("--workers", "0"), "workers is '0'; a number, at least 1, is needed"),
    "range of local workers": ({}, ("--workers", "2:4"), "workers is 2 to 4; that is for job queues"),
    "job of no queue": (
        {},
        ("--walltime", "01:00:00", "--gpus-per-node", "2"),
        "gpus_per_node and walltime can be said",
    ),
    "no options of a cluster": ({}, ("--cluster-config", "nowhere.yaml"), "cannot be read from nowhere.yaml"),
    "cluster of no kind": ({}, ("--cluster", "slrum"), "cluster is 'slrum', and no such file is there; local, cuda"),
    "unknown runner": ({}, ("--runner", "arcgis"), "'arcgis' is not one of"),
    "unknown option": ({}, ("--tile", "512"), "No such option"),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("case", ASKED_WRONGLY)
def test_wrong_request_ends_in_one_message_and_leaves_nothing(case, output, inputs, tmp_path):
    rasters, options, says = ASKED_WRONGLY[case]
    before = listing(inputs["folder"]), listing(Path(inputs["from"]).parent)
    as_they_are = {each: each for each in rasters.values()}
    result = detect({**as_they_are, **inputs}, tmp_path / output, *options, **rasters)
    check_refusal(result, says)
    assert listing(tmp_path) == {}
    assert (listing(inputs["folder"]), listing(Path(inputs["from"]).parent)) == before


def check_refusal(result, says: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("Error:") == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("Error:") :]
    assert message.count("\n") == 1  # what is before it is click's usage line
    assert message == result.stderr or result.stderr.startswith("Usage: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize("output", OUTPUTS)
def test_gpu_that_is_not_there_is_refused(output, inputs, tmp_path):
    check_refusal(detect(inputs, tmp_path / output, "--processor-type", "gpu"), "A GPU was asked for")
    assert listing(tmp_path) == {}


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("nowhere/change.tif", "does not exist; make it first"),
        ("nowhere/change.zarr", "does not exist; make it first"),
        ("change.png", "does not end in .tif or .tiff or .zarr"),
        ("change", "does not end in .tif or .tiff or .zarr"),
    ],
)
def test_output_that_cannot_be_written_is_refused(output, says, inputs, tmp_path):
    check_refusal(detect(inputs, tmp_path / output), says)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("standing", ["", ".partial"])
def test_existing_output_is_refused_and_stays(output, standing, inputs, tmp_path):
    (tmp_path / (output + standing)).mkdir()
    (tmp_path / (output + standing) / "mine").write_text("kept")
    before = listing(tmp_path)
    check_refusal(detect(inputs, tmp_path / output), "--overwrite")
    assert listing(tmp_path) == before


def test_input_is_never_overwritten(inputs, tmp_path):
    mine = tmp_path / "mine.tif"
    mine.write_bytes(Path(inputs["from"]).read_bytes())
    before = listing(tmp_path)
    words = ("detect-change", str(mine), inputs["to"], os.path.relpath(mine), inputs["model"], "--overwrite")
    check_refusal(ask(*words), "is one of the inputs")
    check_refusal(detect(inputs, mine, "--overwrite", "--mask", str(mine)), "is one of the inputs")
    assert listing(tmp_path) == before


def test_installed_command_refuses_without_traceback(inputs, tmp_path):
    done = run_command("detect-change", "nowhere.tif", inputs["to"], str(tmp_path / "change.tif"), inputs["model"])
    assert done.returncode == 2
    assert done.stdout == ""
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"Error: from_raster nowhere.tif does not exist (looked in {Path.cwd()}). Give its path")


def sides_of(result: Path) -> list[Path]:
    """What stands beside a result."""
    of_gdal = [side_file_of(result)] if result.suffix == ".tif" else []
    return [*of_gdal, manifest_of(result), item_of(result)]


# The run failed: status 1


@pytest.mark.parametrize(("output", "workers"), [("change.tif", ()), ("change.zarr", ("--workers", "2"))])
def test_failed_block_ends_the_run_and_the_old_output_stays(output, workers, inputs, tmp_path):
    (tmp_path / output).write_text("kept")
    before = listing(tmp_path)
    words = (inputs["half"], inputs["whole"], str(tmp_path / output), inputs["model"])
    done = run_command("detect-change", *words, "--overwrite", "--quiet", "--chunks", "64", *workers)
    assert done.returncode == 1
    assert done.stdout == ""
    (message,) = done.stderr.splitlines()
    says = (
        r"Error: \d+ of 42 blocks failed; all others are done\. At row \d+, column \d+: "
        r"RasterReadError: .*half\.tif cannot be read at row"
    )
    assert re.match(says, message)
    partial = tmp_path / f"{output}.partial"
    assert message.endswith(f" What is finished is kept in {partial}; --resume (resume=True) goes on with it.")
    assert partial.is_dir()
    assert {path: at for path, at in listing(tmp_path).items() if not path.startswith(str(partial))} == before


# Stopped: status 130


def start_and_wait_for_blocks(output: Path, inputs, *options: str) -> subprocess.Popen:
    words = (inputs["large"], inputs["large"], str(output), inputs["model"], "--chunks", "256", *options)
    running = subprocess.Popen(
        [COMMAND, "detect-change", *words, "--quiet"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    kept = {".tif": "*.partial/*/*.tif", ".zarr": "*.partial/*/*/change/c/*/*[0-9]"}[output.suffix]
    until = time.monotonic() + 180
    while not any(output.parent.glob(kept)):
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    return running


@pytest.mark.parametrize(
    ("number", "says"),
    [(signal.SIGINT, "Stopped."), (signal.SIGTERM, "Stopped by SIGTERM."), (signal.SIGHUP, "Stopped by SIGHUP.")],
)
@pytest.mark.parametrize(("output", "workers"), [("change.tif", ()), ("change.zarr", ("--workers", "2"))])
def test_stop_ends_in_one_line_and_keeps_what_is_finished(
    output, workers, number, says, inputs, tmp_path, heeding_interrupts
):
    running = start_and_wait_for_blocks(tmp_path / output, inputs, *workers)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # as a terminal does, worker processes too
    else:
        running.send_signal(number)
    _, stderr = running.communicate(timeout=180)
    assert running.returncode == 128 + number
    partial = tmp_path / f"{output}.partial"
    kept = f"What is finished is kept in {partial}; --resume (resume=True) goes on with it."
    assert stderr.splitlines() == [f"{says} {kept}"]
    assert list(tmp_path.iterdir()) == [partial]
    assert "owner" not in [path.name for path in partial.iterdir()]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_second_interrupt_does_not_wait(workers, inputs, tmp_path, heeding_interrupts):
    running = start_and_wait_for_blocks(tmp_path / "change.tif", inputs, *workers)
    os.killpg(running.pid, signal.SIGINT)
    time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=180)
    assert running.returncode in (130, -signal.SIGINT)  # which Python itself takes up at its very end
    assert "Traceback" not in stderr
    assert "Stopped" in stderr
    assert not (tmp_path / "change.tif").exists()


def test_scheduler_that_is_lost_is_told_in_one_line(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "5s")
    with dask_processes() as (address, scheduler):
        running = start_and_wait_for_blocks(tmp_path / "change.tif", inputs, "--cluster", address)
        scheduler.kill()
        _, stderr = running.communicate(timeout=180)
    assert running.returncode == 1
    (line,) = stderr.splitlines()
    assert line.startswith(f"Error: The Dask scheduler at {address} was lost. Start it again")


def test_signal_of_a_batch_system_that_comes_again_and_again_is_heeded_once(inputs, tmp_path, heeding_interrupts):
    out = tmp_path / "change.tif"
    running = start_and_wait_for_blocks(out, inputs, "--workers", "2")
    while running.poll() is None:
        running.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    _, stderr = running.communicate(timeout=180)
    kept = f"What is finished is kept in {out}.partial; --resume (resume=True) goes on with it."
    assert (running.returncode, stderr.splitlines()) == (143, [f"Stopped by SIGTERM. {kept}"])
    assert "owner" not in [path.name for path in Path(f"{out}.partial").iterdir()]


SWALLOWS = """
import signal, time, weakref
from geodl_dask.terminal import manners
class Thing: pass
with manners(0):
    for _ in range(3):  # times in which it comes where Python drops whatever is raised
        thing = Thing()
        end = time.monotonic() + 60
        gone = weakref.ref(thing, lambda _: [signal.raise_signal(signal.SIGTERM), time.sleep(0.1)])
        del thing
    while time.monotonic() < end:
        time.sleep(0.05)
"""


def test_signal_that_comes_where_nothing_can_be_raised_is_heeded_afterwards():
    done = subprocess.run([sys.executable, "-c", SWALLOWS], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr.splitlines()) == (143, ["Stopped by SIGTERM."])


def test_nohup_is_respected(inputs, tmp_path, heeding_interrupts):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = start_and_wait_for_blocks(tmp_path / "change.tif", inputs)
    finally:
        signal.signal(signal.SIGHUP, before)
    running.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=2)
    running.terminate()
    assert running.communicate(timeout=180)[1].startswith("Stopped by SIGTERM")


# Done: status 0


@pytest.mark.parametrize("output", OUTPUTS)
def test_summary_says_where_how_long_and_how_much(output, inputs, pixels, tmp_path):
    path = tmp_path / output
    result = detect(inputs, path)
    assert result.exit_code == 0, result.output
    assert ESCAPE not in result.output
    values = read(path)
    assert values.shape == pixels[0].shape[1:]
    *table, last = result.stdout.splitlines()
    assert last.startswith(f"{path}: 109 x 83 pixels in ")
    assert last.endswith(" s")
    assert 0 < float(last.split()[-2]) < 60
    assert table[0].split() == ["value", "class", "area", "share"]
    for line, each in zip(table[1:], CLASSES, strict=True):
        share = (values == each["Value"]).mean()
        assert line.split()[1:] == [
            str(each["Value"]), *each["Name"].split(), f"{share * values.size * 0.25 / 1e4:.2f}", "ha", f"{share:.2%}",
        ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == sorted([path, *sides_of(path)])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_summary_is_printed_in_any_encoding(encoding, inputs, tmp_path):
    words = [COMMAND, "detect-change", inputs["from"], inputs["to"], str(tmp_path / "change.tif"), inputs["model"]]
    done = subprocess.run(words, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=True)
    assert b"No change" in done.stdout
    assert b"109 x 83 pixels" in done.stdout


def test_quiet_prints_nothing(inputs, tmp_path):
    result = detect(inputs, tmp_path / "change.tif", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "change.tif").exists()


def test_verbose_logs_the_plan(inputs, tmp_path):
    plain = detect(inputs, tmp_path / "plain.tif", "--chunks", "40")
    told = " ".join(detect(inputs, tmp_path / "told.tif", "--chunks", "40", "-v").stderr.split())
    assert "tiles of 16 x 16" in told
    assert "padding 4" in told
    assert "3 x 3 blocks of up to 40 x 40 pixels" in told
    assert "INFO" not in plain.stderr


def test_verbose_shows_where_an_error_comes_from(inputs, tmp_path):
    result = detect(inputs, tmp_path / "change.tif", "-v", from_raster="no-crs")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: from_raster")


def test_overwrite_replaces_the_output(inputs, tmp_path):
    for output in OUTPUTS:
        (tmp_path / output).write_text("gone")
        assert detect(inputs, tmp_path / output, "--overwrite").exit_code == 0
        assert detect(inputs, tmp_path / output, "--overwrite").exit_code == 0
    np.testing.assert_array_equal(*(read(tmp_path / output) for output in OUTPUTS))
    results = [tmp_path / output for output in OUTPUTS]
    assert set(tmp_path.iterdir()) == {*results, *(side for path in results for side in sides_of(path))}


def test_names_are_printed_as_they_are(inputs, models, pixels, tmp_path):
    folder = tmp_path / "[bold]:smile:"
    folder.mkdir()
    classes = [{**CLASSES[0], "Name": "[red]none[/x]"}, {**CLASSES[1], "Name": ":house: gone"}]
    network = str(models["pt"].with_name("toy.pt"))
    model = write_definition(folder / "named.emd", ModelFile=network, Classes=classes)
    output = folder / "[link]change.tif"
    result = ask("detect-change", inputs["from"], inputs["to"], str(output), str(model))
    assert result.exit_code == 0, result.output
    for name in ("[red]none[/x]", ":house: gone", f"{output}: "):
        assert name in result.stdout
    assert "[link]change.tif" in result.stderr


def test_worker_processes_give_the_same_pixels(inputs, tmp_path, monkeypatch):
    inside, outside = tmp_path / "inside.zarr", tmp_path / "outside.tif"
    asked = []

    def connect_and_look(*words, **options):
        client = connect(*words, **options)
        asked.append(set(client.run(os.getpid).values()) - {os.getpid()})
        return client

    monkeypatch.setattr("geodl_dask.cluster.connect", connect_and_look)
    assert detect(inputs, inside, "--chunks", "40").exit_code == 0
    assert detect(inputs, outside, "--chunks", "48", "--workers", "2").exit_code == 0
    assert [len(processes) for processes in asked] == [0, 2]
    np.testing.assert_array_equal(read(inside), read(outside))


def test_help_tells_each_command_whole_and_words_as_they_are_to_be_written():
    listed = CliRunner().invoke(cli, ["--help"], terminal_width=80).stdout
    assert "detect-change" in listed
    assert "..." not in listed.partition("Commands:")[2]
    told = CliRunner().invoke(cli, ["detect-change", "--help"]).stdout
    assert "--tile-size PX|auto|model" in told
    assert "--chunks PX|auto" in told


def test_model_as_json_text_and_arguments_are_obeyed(inputs, models, tmp_path):
    text = json.loads(models["pt"].read_text())
    text["ModelFile"] = str(models["pt"].with_name("toy.pt"))
    output = tmp_path / "change.zarr"
    result = detect({**inputs, "text": json.dumps(text)}, output, "--arguments", "padding 2;batch_size 3", model="text")
    assert result.exit_code == 0, result.output
    with xr.open_zarr(output) as store:
        assert store["change"].attrs["padding"] == 2
        assert store["change"].attrs["arguments"] == "padding 2;batch_size 3"


def test_terminal_shows_progress_with_rate_and_a_pipe_beside_it_stays_plain(inputs, tmp_path):
    ours, theirs = pty.openpty()
    words = (inputs["whole"], inputs["whole"], str(tmp_path / "change.tif"), inputs["model"], "--chunks", "24")
    running = subprocess.Popen(
        [COMMAND, "detect-change", *words], stdout=subprocess.PIPE, stderr=theirs, text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while chunk := read_terminal(ours):
        shown += chunk
    stdout, _ = running.communicate(timeout=180)
    os.close(ours)
    assert running.returncode == 0, shown
    assert ESCAPE.encode() in shown
    assert b"change.tif" in shown
    assert re.search(rb"[0-9] Mpx/s(?!,)", shown)  # while it works, and not only when it is done
    assert b"100%" in shown
    assert ESCAPE not in stdout
    assert stdout.count(" pixels in ") == 1


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux: the other end is closed
        return b""


def test_file_in_the_place_of_a_terminal_gets_a_line_now_and_then(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("geodl_dask.terminal.LINE_EVERY_S", 0)
    often = detect(inputs, tmp_path / "often.tif", "--chunks", "24").stderr
    lines = [line for line in often.splitlines() if " often.tif: " in line]
    assert len(lines) == 21
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d often\.tif: ", line) for line in lines)
    assert re.search(r"often\.tif: 5\d%, \d+\.\d\d Mpx/s, \d+ min \d\d s left", often)
    assert lines[-1].endswith(": done")
    monkeypatch.setattr("geodl_dask.terminal.LINE_EVERY_S", 60)
    seldom = detect(inputs, tmp_path / "seldom.tif", "--chunks", "24").stderr
    assert [line[20:] for line in seldom.splitlines() if " seldom.tif: " in line] == ["seldom.tif: done"]


def test_color_that_is_forced_makes_no_terminal_of_a_pipe(inputs, tmp_path):
    words = (inputs["whole"], inputs["whole"], str(tmp_path / "change.tif"), inputs["model"])
    forced = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run(
        [COMMAND, "detect-change", *words], capture_output=True, text=True, timeout=180, env=forced, check=True
    )
    assert ESCAPE not in done.stderr
    assert done.stderr.endswith("change.tif: done\n")


def test_performance_report_is_written(inputs, tmp_path):
    pytest.importorskip("bokeh")
    report = tmp_path / "report.html"
    result = detect(inputs, tmp_path / "change.tif", "--chunks", "24", "--performance-report", str(report))
    assert result.exit_code == 0, result.output
    assert re.search(r"number of tasks: [1-9]", report.read_text())


def test_performance_report_that_cannot_be_written_is_refused_before_any_work(inputs, tmp_path, monkeypatch):
    words = ("--performance-report", str(tmp_path / "nowhere" / "report.html"))
    check_refusal(detect(inputs, tmp_path / "change.tif", *words), "of the performance report does not exist")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ("--performance-report", str(tmp_path / "report.html"))
    check_refusal(detect(inputs, tmp_path / "change.tif", *words), 'pip install "geodl_dask[dashboard]"')
    assert listing(tmp_path) == {}
