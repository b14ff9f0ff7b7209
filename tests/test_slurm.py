"""The scripts of ``cluster/`` as they stand, and ``--cluster slurm``, on a real Slurm, with jobs that are ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from distributed import Client, Security
from slurm import facts_of, obstacle, slurm, submit
from test_resume import parts_of, result_of

from geodl_dask.change import detect_change
from geodl_dask.cog import write_cog
from geodl_dask.demo import Demo, prepare_demo
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import manifest_of
from geodl_dask.zarr_store import write_zarr

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"No Slurm here: {obstacle()}")

SCRIPTS = Path(__file__).parent.parent / "cluster"
SMALL = "--cpus-per-task=1", "--mem-per-cpu=1500M"
BLOCKS = 48
"""Some of them are left to do whenever we have seen ten."""


@pytest.fixture(scope="module", autouse=True)
def jobs_find_slurm_and_us() -> Iterator[None]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with slurm(gpus=2) as configuration, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        patch.setenv("PATH", path)
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    wait_until(lambda: not processes_of_jobs(), limit_s=60)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Demo:
    return prepare_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def local(demo) -> dict[str, dict[str, bytes]]:
    """What a run in this process writes, by ending."""
    change = detect_change(demo.from_raster, demo.to_raster, demo.model, chunks=128, tile_size="model")
    write_cog(change, demo.cog)
    write_zarr(change, demo.zarr)
    return {out.suffix: result_of(out) for out in (demo.cog, demo.zarr)}


def words_of(demo: Demo, out: Path) -> list[str]:
    words = demo.from_raster, demo.to_raster, out, demo.model
    return [*map(str, words), "--chunks", "128", "--tile-size", "model"]


def wait_until(is_so: Callable[[], bool], *, log: Path | None = None, limit_s: float = 240) -> None:
    until = time.monotonic() + limit_s
    while not is_so():
        said = log.read_text() if log and log.exists() else ""
        assert time.monotonic() < until, said
        time.sleep(0.2)


def wait_for_end(job: str, log: Path | None = None) -> str:
    """The state that a job ends in."""
    wait_until(lambda: facts_of(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), log=log)
    return facts_of(job)["JobState"]


def started(job: str) -> float:
    return datetime.fromisoformat(facts_of(job)["StartTime"]).timestamp()


def give_time(job: str, *, minutes: int) -> None:
    """All in all, from the job's start."""
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True)


def devices_of_workers(folder: Path) -> list[str]:
    """The GPUs that the workers of a batch job see, by a scheduler that asks for our key."""
    (scheduler_file,), (key,) = folder.glob(".geodl-dask-*.json"), map(str, folder.glob(".geodl-dask-tls-*.pem"))
    assert '"tls://' in scheduler_file.read_text()
    ours = Security(tls_ca_file=key, tls_client_cert=key, tls_client_key=key, require_encryption=True)
    with Client(scheduler_file=str(scheduler_file), security=ours) as client:
        client.wait_for_workers(2, timeout=180)
        return sorted(client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values())


def environment_of_tls(folder: Path) -> dict[str, str]:
    """What ``tls.sh`` puts into the environment of a shell."""
    sourced = subprocess.run(
        ["bash", "-c", f"source {SCRIPTS}/tls.sh && env --null"], cwd=folder, check=True, capture_output=True, text=True
    )
    return dict(line.split("=", 1) for line in sourced.stdout.split("\0") if line.startswith("DASK_DISTRIBUTED__"))


def test_batch_job_goes_on_after_its_time_was_over(demo, local, tmp_path, monkeypatch):
    """Its workers are halted, so that it cannot end before its time does. Among themselves all speak TLS."""
    out = tmp_path / "change.tif"
    for name, value in environment_of_tls(tmp_path).items():
        monkeypatch.setenv(name, value)
    job = submit("--ntasks=2", *SMALL, str(SCRIPTS / "slurm-batch.sh"), *words_of(demo, out), folder=tmp_path)
    log = tmp_path / f"geodl-dask-{job}.log"
    wait_until(lambda: len(parts_of(out)) > 9, log=log)
    assert devices_of_workers(tmp_path) == ["0", "1"]
    subprocess.run(["scancel", "--signal=STOP", job], check=True)
    give_time(job, minutes=2 + int(time.time() - started(job)) // 60)
    wait_until(lambda: facts_of(job)["Restarts"] == "1", log=log)
    kept = len(parts_of(out))
    give_time(job, minutes=120)
    assert wait_for_end(job, log) == "COMPLETED", log.read_text()
    assert result_of(out) == local[".tif"]
    assert 9 < kept <= Manifest.read(manifest_of(out)).kept_blocks < BLOCKS
    assert not list(tmp_path.glob(".geodl-dask-*.json"))


def test_batch_job_that_is_cancelled_does_not_come_back_and_keeps_what_is_finished(demo, tmp_path):
    out = tmp_path / "change.tif"
    job = submit("--ntasks=1", *SMALL, str(SCRIPTS / "slurm-batch.sh"), *words_of(demo, out), folder=tmp_path)
    log = tmp_path / f"geodl-dask-{job}.log"
    wait_until(lambda: len(parts_of(out)) > 9, log=log)
    subprocess.run(["scancel", job], check=True)
    assert wait_for_end(job, log) == "CANCELLED"
    assert facts_of(job)["Restarts"] == "0"
    wait_until(lambda: "--resume (resume=True) goes on with it" in log.read_text(), log=log, limit_s=60)
    # As a traceback has it; a worker may say in a line that it was cut off.
    assert "exceptions.CancelledError" not in log.read_text()


def test_batch_job_whose_workers_have_ended_does_not_wait_for_its_time(demo, tmp_path):
    out = tmp_path / "change.tif"
    job = submit("--ntasks=1", *SMALL, str(SCRIPTS / "slurm-batch.sh"), *words_of(demo, out), folder=tmp_path)
    log = tmp_path / f"geodl-dask-{job}.log"
    wait_until(lambda: len(parts_of(out)) > 0, log=log)
    subprocess.run(["scancel", "--signal=KILL", f"{job}.0"], check=True)
    assert wait_for_end(job, log) == "FAILED"
    assert "All workers have ended" in log.read_text()


def test_job_array_whose_job_was_requeued_makes_the_same_result(demo, local, tmp_path):
    out = tmp_path / "change.zarr"
    script = str(SCRIPTS / "slurm-array.sh")
    jobs = submit("--array=1-2", *SMALL, script, *words_of(demo, out), folder=tmp_path)
    finalize = submit(f"--dependency=afterok:{jobs}", f"--wrap=geodl-dask finalize {out}", folder=tmp_path)
    log = tmp_path / f"geodl-dask-{jobs}_2.log"
    wait_until(lambda: len(parts_of(out)) > 9, log=log)
    subprocess.run(["scontrol", "requeue", f"{jobs}_2"], check=True)
    wait_until(lambda: facts_of(f"{jobs}_2")["Restarts"] == "1")
    assert wait_for_end(finalize, log) == "COMPLETED", log.read_text()
    assert result_of(out) == local[".zarr"]


def test_workers_that_are_jobs_have_a_gpu_each_and_one_may_be_lost(demo, local, tmp_path):
    out = tmp_path / "change.zarr"
    command = [Path(sys.executable).with_name("geodl-dask"), "detect-change", *words_of(demo, out)]
    wanted = ["--cluster", "slurm", "--workers", "2", "--gpus-per-node", "1", "--cores", "1", "--memory", "1500MB"]
    wanted += ["--processor-type", "cpu"]  # the GPUs are none
    with subprocess.Popen([*command, *wanted], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        try:
            wait_until(lambda: running.poll() is not None or len(parts_of(out)) > 9)
            assert running.poll() is None, running.stderr.read()
            workers = workers_of_jobs()
            assert sorted(workers.values()) == ["0", "1"]
            subprocess.run(["scancel", min(workers)], check=True)
            _, said = running.communicate(timeout=240)
        finally:
            running.kill()
    assert running.returncode == 0, said
    assert result_of(out) == local[".zarr"]


def workers_of_jobs() -> dict[str, str]:
    """The GPU of each worker that is a job, by the job."""
    found = {}
    for process in processes_of_jobs():
        with suppress(psutil.Error):
            if "distributed.cli.dask_worker" in process.cmdline():
                environment = process.environ()
                found[environment["SLURM_JOB_ID"]] = environment["CUDA_VISIBLE_DEVICES"]
    return found


def processes_of_jobs() -> list[psutil.Process]:
    """Of all jobs of our Slurm."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get("SLURM_CONF") == os.environ["SLURM_CONF"] and "SLURM_JOB_ID" in environment:
                found.append(process)
    return found
