"""Runs at the same time: into one output, out of one package, with one name for two models."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ToyNetwork, save_network, write_definition
from distributed import Client, LocalCluster
from test_cli import COMMAND
from test_resume import OUTPUTS, end, large, parts_of, read, result_of, start, undisturbed, wait_for_blocks  # noqa: F401

import geodl_dask as gd
from geodl_dask.growth import partial_of
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import manifest_of

from .conftest import budget, chance

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP and SIGKILL")


def stalled(words: dict[str, str], out: Path) -> subprocess.Popen:
    """A run that has done some blocks, holds its output, and does not get on."""
    for _ in range(5):
        running = start(words, out)
        wait_for_blocks(running, out, 10)
        running.send_signal(signal.SIGSTOP)
        # Until it has stopped a block may be half way to its name.
        has_stopped = running.poll() is None and os.WIFSTOPPED(os.waitpid(running.pid, os.WUNTRACED)[1])
        if has_stopped and not out.exists():
            return running
        running.kill()  # it was too fast
        running.communicate()
        for left in out.parent.glob(f"{out.name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    raise AssertionError("it was too fast five times")


@pytest.mark.parametrize("output", OUTPUTS)
def test_second_run_into_one_output_is_refused_by_name_and_the_lock_ends_with_a_kill(
    output, large, undisturbed, tmp_path, counted  # noqa: F811
):  # fmt: skip
    out = tmp_path / output
    first = stalled(large, out)
    kept = parts_of(out)
    others = [start(large, out, option) for option in ("--resume", "--overwrite")]
    said = [other.communicate(timeout=300)[1] for other in others]
    tried, refused = len(others), 0
    for other, told in zip(others, said, strict=True):
        refused += other.returncode == 2 and f"process {first.pid} on" in told and parts_of(out) == kept
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start(large, out, "--resume")
    _, told = third.communicate(timeout=300)
    goes_on = third.returncode == 0 and result_of(out) == result_of(undisturbed[out.suffix])
    counted(f"two runs into {output}, SIGKILL", tried + 1, tried + 1, refused + goes_on, f"{refused} refused")
    assert (refused, goes_on) == (tried, True), [*said, told]


@pytest.mark.parametrize("output", OUTPUTS)
def test_runs_that_end_at_once_leave_one_whole_result(output, pair, models, tmp_path, counted):
    """Each replaces the other's; pixels, manifest and what stands beside are of one run, whichever came last."""
    paddings, outcomes = (2, 4), {0: 0, 2: 0}
    alone = {padding: lone_run(pair, models, tmp_path / f"{padding}{output[6:]}", padding) for padding in paddings}
    expected = {padding: result_of(path) for padding, path in alone.items()}
    out, rounds, whole = tmp_path / output, budget(1, 40), 0
    for _ in range(rounds):
        runs = [begin(pair, models, out, padding) for padding in paddings]
        told = [run.communicate(timeout=300)[1] for run in runs]
        for run, said in zip(runs, told, strict=True):
            outcomes[run.returncode] = outcomes.get(run.returncode, 0) + 1
            assert run.returncode == 0 or re.search(r"Another run( .*)? is writing", said), said
        asked = Manifest.read(manifest_of(out)).asked
        whole += result_of(out) == expected[asked["padding"]] and not partial_of(out).exists()
    told = f"{outcomes[0]} done, {outcomes[2]} refused"
    counted(f"two runs replace {output} at once", 2 * rounds, rounds, whole, told)
    assert whole == rounds
    assert outcomes[0] >= rounds


def words_of(pair, models, out: Path, padding: int) -> list[str]:
    options = ["--arguments", f"padding {padding}", "--chunks", "24", "--overwrite", "-q"]
    return [COMMAND, "detect-change", *map(str, pair), str(out), str(models["pt"]), *options]


def begin(pair, models, out: Path, padding: int) -> subprocess.Popen:
    return subprocess.Popen(words_of(pair, models, out, padding), stderr=subprocess.PIPE, text=True)


def lone_run(pair, models, out: Path, padding: int) -> Path:
    subprocess.run(words_of(pair, models, out, padding), check=True, timeout=300)
    return out


REPLACE = """
import sys, time
from pathlib import Path
from geodl_dask.errors import OutputExistsError
from geodl_dask.growth import growing_output
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import manifest_of, publish
out, name, rounds, done, refused = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), 0, 0
print("ready", flush=True)
sys.stdin.readline()
while done < rounds:
    try:
        with growing_output(out, Manifest({}, name, replaces=True)) as growth:
            for part in range(10):
                (growth.folder / f"{part}.bin").write_text(name)
            parts = sorted(growth.folder.iterdir())
            finished = growth.folder / "finished.tif"
            finished.write_text("".join(part.read_text() for part in parts))
            Manifest({}, name, is_complete=True).write(manifest_of(finished))
            publish(finished, out, overwrite=True)
        done += 1
    except OutputExistsError:
        refused += 1
print(done, refused)
"""


def test_output_that_four_processes_replace_all_the_time_is_always_of_one_of_them(tmp_path, counted):
    """The way of a result to its name alone, without the work before it, so that they meet often."""
    out, names, rounds = tmp_path / "change.tif", "abcd", budget(25, 2000)
    words = [sys.executable, "-c", REPLACE, str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([*words, name, str(rounds)], **pipes) for name in names]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * len(runs)
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    told = [run.communicate(timeout=600) for run in runs]
    assert "".join(error for _, error in told) == ""
    done, refused = (sum(int(said.split()[number]) for said, _ in told) for number in (0, 1))
    last = Manifest.read(manifest_of(out)).model
    is_whole = out.read_text() == last * 10 and sorted(tmp_path.iterdir()) == [out, manifest_of(out)]
    counted("four processes replace one output", done + refused, refused, refused if is_whole else 0, f"{done} done")
    assert is_whole
    assert min(done, refused) > 10


# One cache


UNPACK = """
import sys, time
from pathlib import Path
from geodl_dask.package import open_package
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
content = open_package(sys.argv[1])
print(content, sum(path.stat().st_size for path in content.rglob("*") if path.is_file()))
"""


def test_processes_unpack_one_package_at_once_though_some_are_killed(tmp_path, monkeypatch, counted):
    cache, package, go = tmp_path / "cache", tmp_path / "m.dlpk", tmp_path / "go"
    monkeypatch.setenv("GEODL_DASK_CACHE", str(cache))
    size, files, rounds, survived, kills = 300_000, 60, budget(2, 40), 0, 0
    for number in range(rounds):
        rng = chance("unpack", number)
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr("m.emd", "{}")
            for index in range(files):
                archive.writestr(f"{index}.bin", rng.randbytes(size))
        go.unlink(missing_ok=True)
        words = [sys.executable, "-c", UNPACK, str(package), str(go)]
        runs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(6)]
        assert [run.stdout.readline() for run in runs] == ["ready\n"] * len(runs)
        go.touch()
        time.sleep(rng.uniform(0, 0.1))
        victims = rng.sample(runs, 2)
        for victim in victims:
            victim.kill()
            kills += 1
        told = [run.communicate(timeout=300)[0] for run in runs]
        answers = {said for run, said in zip(runs, told, strict=True) if run not in victims}
        (place,) = {Path(answer.split()[0]) for answer in answers}
        total = {int(answer.split()[1]) for answer in answers}
        survived += total == {files * size + 2} and (place.parent / "complete.json").is_file()
    counted("6 processes unpack one package, 2 killed", 6 * rounds, kills, kills if survived == rounds else 0)
    assert survived == rounds


def test_two_runs_share_a_cache_that_is_empty(tmp_path, pair, models, monkeypatch, counted):
    monkeypatch.setenv("GEODL_DASK_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "toy.dlpk"
    with zipfile.ZipFile(package, "w") as archive:
        archive.write(models["pt"], "toy.emd")
        archive.write(models["pt"].with_name("toy.pt"), "toy.pt")
    outs = [tmp_path / f"{number}.tif" for number in range(2)]
    runs = [begin(pair, {"pt": package}, out, 4) for out in outs]
    told = [run.communicate(timeout=300)[1] for run in runs]
    expected = gd.detect_change(*pair, package, chunks=24, arguments="padding 4").compute().values
    equal = sum(out.exists() and np.array_equal(read(out), expected) for out in outs)
    counted("two runs unpack one package", 2, 2, equal)
    assert equal == 2, told


# One name, two models


def other_network(path: Path) -> None:
    """The toy network with its two classes the other way round, under the same name."""
    network = ToyNetwork().eval()
    with torch.no_grad():
        network.second.weight.copy_(network.second.weight.flip(0))
        network.second.bias.copy_(network.second.bias.flip(0))
    save_network(network, path)


def pack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "toy.emd", "toy.emd")
        archive.write(folder / "toy.pt", "toy.pt")
    return path


@pytest.mark.parametrize("kind", ["definition", "package"])
def test_two_models_of_one_name_are_never_taken_for_each_other(kind, tmp_path, pair, counted):
    """One client, whose workers have each of them loaded, and one name; each time its content is the other one's."""
    folder = tmp_path / "model"
    folder.mkdir()
    model = write_definition(folder / "toy.emd", ModelFile="toy.pt")
    versions: list[bytes] = []
    for make in (lambda path: save_network(ToyNetwork(), path), other_network):
        make(folder / "toy.pt")
        versions.append((folder / "toy.pt").read_bytes())
    expected, digests, right, rounds = {}, set(), 0, budget(6, 40)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
        for number in range(rounds + 2):
            version = number % 2
            (folder / "toy.pt").write_bytes(versions[version])
            os.utime(folder / "toy.pt", (1e9, 1e9))  # nothing but the content tells them apart
            given = model if kind == "definition" else pack(tmp_path / "toy.dlpk", folder)
            change = gd.detect_change(*pair, given, chunks=48)
            digests.add(change.attrs["model_digest"])
            found = read(gd.write_zarr(change, tmp_path / "change.zarr", overwrite=True).path)
            if number < 2:
                expected[version] = found
            else:
                right += np.array_equal(found, expected[version])
    assert not np.array_equal(expected[0], expected[1])
    counted(f"two models of one name, as {kind}", rounds, rounds, right, f"{len(digests)} digests")
    assert (right, len(digests)) == (rounds, 2)


def test_model_that_is_replaced_between_plan_and_run_is_refused_and_not_run(tmp_path, pair, counted):
    model = write_definition(tmp_path / "toy.emd", ModelFile="toy.pt")
    save_network(ToyNetwork(), tmp_path / "toy.pt")
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
        change = gd.detect_change(*pair, model, chunks=48)
        other_network(tmp_path / "toy.pt")
        with pytest.raises(gd.GeodlError, match="are not those that the run was planned with"):
            gd.write_zarr(change, tmp_path / "change.zarr")
    refused = not (tmp_path / "change.zarr").exists()
    counted("model replaced between plan and run", 1, 1, int(refused))
    assert refused
