"""What ``cluster/`` holds, as far as it can be tried without the system it is for; see ``test_slurm`` for Slurm."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jsonschema
import psutil
import pytest
import yaml
from distributed import Client
from test_resume import result_of

from geodl_dask.change import detect_change
from geodl_dask.cluster_config import read_cluster_config
from geodl_dask.demo import Demo, prepare_demo
from geodl_dask.zarr_store import write_zarr

FOLDER = Path(__file__).parent.parent / "cluster"
SHELL_SCRIPTS = sorted(FOLDER.glob("*.sh"))


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda script: script.name)
def test_shell_scripts_are_shell(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert os.access(script, os.X_OK) == script.read_text().startswith("#!")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_has_nothing_to_say(script):
    # SC2317: it does not see that a function is called by a trap.
    checked = subprocess.run(["shellcheck", "--exclude=SC2317", script], capture_output=True, text=True, check=False)
    assert checked.stdout == ""


def test_example_of_options_is_taken():
    config = read_cluster_config(FOLDER / "cluster.yaml")
    assert (config.cluster, config.workers, config.gpus_per_node, config.walltime) == ("slurm", 8, 4, "02:00:00")


def test_readme_names_every_file_and_no_other():
    named = set(re.findall(r"^\| `([\w-]+\.\w+)`", (FOLDER / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in FOLDER.iterdir() if path.is_file()} - {"README.md"}


@pytest.mark.parametrize(("statuses", "tries"), [((1, 0), 2), ((2, 0), 1), ((143, 0), 1), ((1, 1, 1, 0), 3)])
def test_single_node_tries_again_what_failed_and_no_more(statuses, tries, tmp_path):
    """The command is a stand-in, which fails when it is told to."""
    command = tmp_path / "geodl-dask"
    command.write_text('#!/bin/bash\necho "$@" >>tried\nstatuses=($STATUSES)\nexit ${statuses[$(wc -l <tried) - 1]}\n')
    command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PAUSE_S": "0", "STATUSES": " ".join(map(str, statuses))}
    ended = subprocess.run([FOLDER / "single-node-gpus.sh", "a b.tif"], cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == statuses[tries - 1]
    assert (tmp_path / "tried").read_text().splitlines() == ["detect-change a b.tif --resume"] * tries


# Kubernetes


def documents() -> list[dict]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def test_client_calls_the_cluster_that_the_manifest_makes_and_goes_on():
    cluster, job = documents()
    (client,) = job["spec"]["template"]["spec"]["containers"]
    assert (cluster["kind"], job["kind"]) == ("DaskCluster", "Job")
    assert f"tcp://{cluster['metadata']['name']}-scheduler:8786" in client["args"]
    assert "--resume" in client["args"]
    (worker,) = cluster["spec"]["worker"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def operator_definition() -> Path | None:
    found = importlib.util.find_spec("dask_kubernetes")
    folder = Path(found.origin).parent if found and found.origin else Path("nowhere")
    definition = folder / "operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    return definition if definition.exists() else None


@pytest.mark.skipif(operator_definition() is None, reason="dask-kubernetes is not installed")
def test_manifest_is_what_the_operator_defines():
    (version,) = yaml.safe_load(operator_definition().read_text())["spec"]["versions"]
    schema = _without_unknown_names(version["schema"]["openAPIV3Schema"])
    cluster, _ = documents()
    jsonschema.validate(cluster, {**schema, "properties": {**schema["properties"], **_of_every_object()}})


def _of_every_object() -> dict[str, dict]:
    return {"apiVersion": {"const": "kubernetes.dask.org/v1"}, "kind": {"const": "DaskCluster"}, "metadata": {}}


def _without_unknown_names(schema):
    """Kubernetes drops a name that is not in the schema, without a word; here it is an error."""
    if isinstance(schema, list):
        return [_without_unknown_names(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _without_unknown_names(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    if closed.get("x-kubernetes-int-or-string"):
        closed = {"type": ["integer", "string"]}
    return closed


# PBS is not packaged for Debian: these stand in for its commands, and do what its manual says of them


PBS_COMMANDS = {
    "qsub": 'echo "$@" >>"$PBS_O_WORKDIR/qsub.log"; echo "2[].here"',
    # One node, which gets nothing of the job's environment but its GPUs, by their full names.
    "pbsdsh": 'shift; exec env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH" CUDA_VISIBLE_DEVICES=GPU-a,GPU-b "$@"',
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Demo:
    demo = prepare_demo(tmp_path_factory.mktemp("demo"))
    write_zarr(detect_change(demo.from_raster, demo.to_raster, demo.model), demo.zarr)
    return demo


@pytest.fixture
def pbs(demo, tmp_path) -> dict[str, str]:
    """The environment of a PBS job."""
    (tmp_path / "bin").mkdir()
    for name, text in PBS_COMMANDS.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    asked = {"FROM": demo.from_raster, "TO": demo.to_raster, "OUT": tmp_path / "change.zarr", "MODEL": demo.model}
    of_job = {"PBS_O_WORKDIR": tmp_path, "PBS_JOBID": "1.here", "PATH": path, "WORKERS": 2, "SHARDS": 2}
    return {"PYTHONPATH": "", **os.environ, **{name: str(value) for name, value in {**asked, **of_job}.items()}}


@contextmanager
def job(script: str, environment: dict[str, str], **more: str) -> Iterator[subprocess.Popen]:
    """As PBS does: a copy of the script, and an end to whatever is left of it when the script has ended."""
    folder = Path(environment["PBS_O_WORKDIR"])
    copy = shutil.copy(FOLDER / script, folder / "spooled")
    started = {"env": {**environment, **more}, "start_new_session": True}
    with (folder / "job.err").open("w") as said, subprocess.Popen(["bash", copy], stderr=said, **started) as running:
        try:
            yield running
            running.wait(timeout=240)
        finally:
            for pid in psutil.pids():
                with suppress(ProcessLookupError):
                    if os.getsid(pid) == running.pid:
                        os.kill(pid, signal.SIGKILL)


def run_job(script: str, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess:
    with job(script, environment, **more) as running:
        pass
    return subprocess.CompletedProcess(running.args, running.returncode, stderr=said_in(environment))


def said_in(environment: dict[str, str]) -> str:
    return Path(environment["PBS_O_WORKDIR"], "job.err").read_text()


def devices_of_workers(folder: Path) -> list[str]:
    """The GPU that each of the two workers sees."""
    until = time.monotonic() + 180
    while not any(each.stat().st_size for each in folder.glob(".geodl-dask-*.json")):
        assert time.monotonic() < until
        time.sleep(0.1)
    (scheduler_file,) = folder.glob(".geodl-dask-*.json")
    with Client(scheduler_file=str(scheduler_file)) as client:
        client.wait_for_workers(2, timeout=180)
        return sorted(client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values())


def submitted(environment: dict[str, str]) -> list[str]:
    log = Path(environment["PBS_O_WORKDIR"], "qsub.log")
    return log.read_text().splitlines() if log.exists() else []


def test_pbs_job_whose_time_is_over_submits_the_next_one_which_ends(demo, pbs, tmp_path):
    script = str(FOLDER / "pbs-batch.sh")
    stopped = run_job("pbs-batch.sh", pbs, SCRIPT=script, STOP_AFTER="2s")
    assert stopped.returncode == 124, stopped.stderr
    asked = ",".join(f"{name}={pbs[name]}" for name in ("FROM", "TO", "OUT", "MODEL"))
    assert submitted(pbs) == [f"-v {asked},SCRIPT={script},ROUNDS=99 {script}"]
    with job("pbs-batch.sh", pbs, SCRIPT=script) as running:
        devices = devices_of_workers(tmp_path)
    assert running.returncode == 0, said_in(pbs)
    assert devices == ["GPU-a", "GPU-b"]
    assert len(submitted(pbs)) == 1
    assert result_of(tmp_path / "change.zarr") == result_of(demo.zarr)
    assert not list(tmp_path.glob(".geodl-dask-*"))


def test_pbs_array_of_which_a_share_is_missing_is_submitted_again(demo, pbs, tmp_path):
    first = run_job("pbs-array.sh", pbs, PBS_ARRAY_INDEX="1")
    assert first.returncode == 0, first.stderr
    missing = run_job("pbs-finalize.sh", pbs)
    array, finalize = submitted(pbs)
    assert missing.returncode == 0
    assert array.endswith("cluster/pbs-array.sh")
    assert finalize.startswith("-W depend=afterany:2[].here ")
    assert ",ROUNDS=9 " in finalize
    assert run_job("pbs-finalize.sh", pbs, ROUNDS="1").returncode == 1
    second = run_job("pbs-array.sh", pbs, PBS_ARRAY_INDEX="2")
    assert second.returncode == 0, second.stderr
    done = run_job("pbs-finalize.sh", pbs)
    assert done.returncode == 0, done.stderr
    assert len(submitted(pbs)) == 2
    assert result_of(tmp_path / "change.zarr") == result_of(demo.zarr)
