"""Workers as jobs: the scripts as text; jobs as local processes, and of a real Slurm where one runs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import psutil
import pytest
from click.testing import CliRunner
from distributed.core import Status
from slurm import obstacle, slurm

import geodl_dask as gd
from geodl_dask import job_queue
from geodl_dask.cli import cli
from geodl_dask.cluster_config import read_cluster_config
from geodl_dask.errors import MissingDependencyError, RequestError
from geodl_dask.workers import worker_info

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None, reason="jobs need dask-jobqueue (the extra hpc)"
)

WORKER = f"{sys.executable} -m distributed.cli.dask_worker tcp://SCHEDULER:PORT --name geodl-dask"
LIMITS = "--death-timeout 60 --no-dashboard --lifetime 6900s --lifetime-stagger 60s"
ASKED = {
    "workers": 8, "gpus_per_node": 4, "walltime": "02:00:00", "queue": "gpu", "account": "forests", "memory": "64GiB",
    "cores": 16, "directives": ["-x one"], "setup_lines": ["module load cuda", "export A=1"],
}  # fmt: skip
HEADERS = {
    "slurm": """\
#SBATCH -J geodl-dask
#SBATCH -p gpu
#SBATCH -A forests
#SBATCH -n 1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH -t 02:00:00
#SBATCH --gres=gpu:4
#SBATCH -x one""",
    "pbs": """\
#PBS -N geodl-dask
#PBS -q gpu
#PBS -A forests
#PBS -l select=1:ncpus=16:mem=64GB:ngpus=4
#PBS -l walltime=02:00:00
#PBS -x one""",
    "lsf": """\
#BSUB -J geodl-dask
#BSUB -q gpu
#BSUB -P "forests"
#BSUB -n 16
#BSUB -R "span[hosts=1]"
#BSUB -M 68719477
#BSUB -W 02:00
#BSUB -gpu "num=4"
#BSUB -x one""",
    "sge": """\
#$ -N geodl-dask
#$ -q gpu
#$ -P forests
#$ -l h_rt=02:00:00
#$ -cwd
#$ -j y
#$ -l gpu=4
#$ -x one""",
}


@pytest.mark.parametrize("cluster", HEADERS)
def test_script_asks_the_queue_for_all_that_was_said_and_starts_a_worker_for_each_gpu(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("LSF_ENVDIR", str(tmp_path))  # where a site says its units; without, LSF's are kB
    assert job_queue.job_script(read_cluster_config({"cluster": cluster, **ASKED})) == (
        f"#!/usr/bin/env bash\n\n{HEADERS[cluster]}\nmodule load cuda\nexport A=1\n"
        f"export MALLOC_ARENA_MAX=1\n{WORKER} --nthreads 3 --memory-limit 16.00GiB --nworkers 4 --nanny {LIMITS}\n"
    )


def test_script_of_a_job_of_which_nothing_is_said_has_defaults():
    assert job_queue.job_script(read_cluster_config({"cluster": "slurm"})) == (
        "#!/usr/bin/env bash\n\n#SBATCH -J geodl-dask\n#SBATCH -n 1\n#SBATCH --cpus-per-task=4\n#SBATCH --mem=16G\n"
        f"#SBATCH -t 00:30:00\nexport MALLOC_ARENA_MAX=1\n{WORKER} --nthreads 4 --memory-limit 16.00GiB --nanny "
        "--death-timeout 60 --no-dashboard --lifetime 1500s --lifetime-stagger 60s\n"
    )


def test_cpu_job_of_pbs_books_its_cores_and_memory_and_network():
    options = {"cluster": "pbs", "cores": 8, "memory": "20GiB", "interface": "lo"}
    script = job_queue.job_script(read_cluster_config(options))
    assert "#PBS -l select=1:ncpus=8:mem=20GB\n" in script
    assert "--nthreads 8 " in script
    assert "--interface lo" in script
    assert "ngpus" not in script


@pytest.fixture
def settings():
    """dask-jobqueue's own, which Dask would lose with one that is set for a while before it has heard of them."""
    importlib.import_module("dask_jobqueue")


@pytest.mark.usefixtures("settings")
def test_what_the_site_has_settled_for_dask_is_kept_unless_said_otherwise():
    site = {
        "cores": 7, "memory": "70GiB", "walltime": "10:00:00", "queue": "site",
        "worker-extra-args": ["--resources", "a=1"], "job-extra-directives": ["--qos=low"],
        "job-script-prologue": ["source /site.sh"],
    }  # fmt: skip
    with dask.config.set({"jobqueue.slurm": {**dask.config.get("jobqueue.slurm"), **site}}):
        script = job_queue.job_script(read_cluster_config({"cluster": "slurm", "directives": ["--nice"]}))
        said = job_queue.job_script(read_cluster_config({"cluster": "slurm", "cores": 2, "setup_lines": ["here"]}))
    for line in ("--cpus-per-task=7\n", "--mem=70G\n", "-t 10:00:00\n", "-p site\n", "--qos=low\n#SBATCH --nice\n"):
        assert f"#SBATCH {line}" in script
    assert "\nsource /site.sh\nexport MALLOC_ARENA_MAX=1\n" in script
    assert "--resources a=1 --lifetime 35700s" in script
    assert "--cpus-per-task=2\n" in said
    assert "\nhere\n" in said


@pytest.mark.parametrize("walltime", ["00:00:10", "00:01:00", "00:05:00", "00:30:00", "04:00:00", "100:00:00"])
def test_workers_leave_before_the_walltime_and_not_all_at_once(walltime):
    script = job_queue.job_script(read_cluster_config({"cluster": "slurm", "walltime": walltime}))
    lifetime, stagger = map(int, re.search(r"--lifetime (\d+)s --lifetime-stagger (\d+)s", script).groups())
    hours, minutes, seconds = map(int, walltime.split(":"))
    length_s = hours * 3600 + minutes * 60 + seconds
    assert lifetime + stagger < length_s
    assert lifetime >= 0.8 * length_s
    assert length_s - lifetime <= 300
    assert stagger > 0 or length_s < 25


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("walltime", [None, "1-00:00:00", 3600])
def test_walltime_of_the_site_that_is_not_understood_is_left_as_it_is(walltime):
    with dask.config.set({"jobqueue.slurm.walltime": walltime}):
        script = job_queue.job_script(read_cluster_config({"cluster": "slurm"}))
    assert "--lifetime" not in script
    assert ("#SBATCH -t" in script) == (walltime is not None)


def test_lsf_gets_whole_minutes():
    assert "#BSUB -W 01:01\n" in job_queue.job_script(read_cluster_config({"cluster": "lsf", "walltime": "01:00:01"}))
    script = job_queue.job_script(read_cluster_config({"cluster": "lsf"}))
    assert "#BSUB -W 00:30\n" in script
    assert "--lifetime 1500s" in script


def run_cli(*words: str):
    return CliRunner().invoke(cli, words)


def test_command_prints_the_script_where_there_is_no_queue(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "slurm.yaml"
    config.write_text("cluster: slurm\nworkers: 8\ngpus_per_node: 4\nqueue: gpu\nwalltime: 12:00:00\n")
    done = run_cli("cluster-script", "--cluster-config", str(config), "--queue", "night", "--directive", "--exclusive")
    assert done.exit_code == 0
    options = {
        "workers": 8,
        "gpus_per_node": 4,
        "queue": "night",
        "walltime": "12:00:00",
        "directives": ["--exclusive"],
    }
    assert done.stdout == job_queue.job_script(read_cluster_config({"cluster": "slurm", **options}))
    assert "Nothing was submitted. Jobs like this: 2; workers in each: 4." in done.stderr
    assert "Jobs like this: 1 to 3" in run_cli("cluster-script", "--cluster", "pbs", "--workers", "1:3").stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "cluster is local; a job queue (slurm, pbs, lsf, sge) is needed"),
        (("--cluster", "tcp://127.0.0.1:8786"), "cluster is tcp://127.0.0.1:8786; a job queue"),
        (("--cluster", "slurm", "--walltime", "soon"), "walltime is 'soon'"),
        (("--cluster", "slurm", "--queue", ""), "queue is ''"),
        (("--cluster", "slurm", "--workers", "4:2"), "workers is '4:2'"),
    ],
)
def test_command_refuses_what_is_no_job(words, says):
    done = run_cli("cluster-script", *words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("cluster", "command"), [("slurm", "sbatch"), ("pbs", "qsub"), ("lsf", "bsub"), ("sge", "qsub")]
)
def test_queue_that_cannot_be_reached_from_here_is_refused_before_any_work(cluster, command, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    says = f"cluster is {cluster}, and its command {command} is not on this machine"
    with pytest.raises(RequestError, match=says):
        gd.connect(cluster)
    done = run_cli("detect-change", "no.tif", "no.tif", str(tmp_path / "out.tif"), "no.emd", "--cluster", cluster)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())


def test_missing_library_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(MissingDependencyError, match=re.escape('pip install "geodl_dask[hpc]"')):
        gd.connect("slurm")


def test_interrupts_are_heeded_as_before():
    # In a Python of its own: importing dask-jobqueue is what once changed it.
    code = (
        "import signal\n"
        "from geodl_dask.cluster_config import ClusterConfig\n"
        "from geodl_dask.job_queue import job_script\n"
        "job_script(ClusterConfig('slurm'))\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True, preexec_fn=heed_interrupts)


SBATCH = """\
#!/bin/sh
cp "$1" {folder}/job-$$.sh
setsid bash {folder}/job-$$.sh > {folder}/job-$$.out 2>&1 &
echo "Submitted batch job $!"
"""


@pytest.fixture
def local_jobs(monkeypatch, tmp_path):
    """Stand-ins for sbatch and scancel, where no Slurm is: each job is a group of processes. All else is real."""
    for name, text in {"sbatch": SBATCH.format(folder=tmp_path), "scancel": '#!/bin/bash\nkill -9 -- "-$1"\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "2s"}):
        yield {"cluster": "slurm", "cores": 1, "memory": "1GiB", "interface": "lo"}


def names_and_addresses(client) -> dict[str, str]:
    return {worker["name"]: address for address, worker in worker_info(client).items()}


def is_running(job: str) -> bool:
    """Of a job that is a group of processes."""
    return any(process.info["status"] != "zombie" for process in psutil.process_iter(["status"]) if is_of(process, job))


def is_of(process: psutil.Process, job: str) -> bool:
    try:
        return os.getpgid(process.pid) == int(job)
    except ProcessLookupError:
        return False


def wait_until(is_so, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_jobs_compute_and_end_with_the_client(local_jobs):
    with gd.connect(config=local_jobs, workers=2) as client:
        client.wait_for_workers(2, timeout=180)
        processes = client.run(os.getpid)
        assert len(set(processes.values()) - {os.getpid()}) == 2
        assert client.submit(sum, [1, 2]).result() == 3
        cluster = client.cluster
        jobs = job_queue.jobs_of(client)
        assert len(jobs) == 2
        cluster._update_worker_status("remove", "tcp://127.0.0.1:1")  # a scheduler may tell of one twice, seen once
    assert cluster.status.name == "closed"
    wait_until(lambda: not any(map(is_running, jobs)), seconds=10)


def test_stop_while_jobs_are_being_submitted_cancels_them(local_jobs, tmp_path):
    sbatch, numbers = tmp_path / "sbatch", tmp_path / "numbers"
    begun, answer = sbatch.read_text().split("echo")
    once_told = f"until [ -e {tmp_path}/stopped ]; do sleep 0.1; done\nsleep 1"
    sbatch.write_text(f"{begun}touch {tmp_path}/asked\n{once_told}\necho $! >>{numbers}\necho{answer}")

    def stop() -> None:
        wait_until(lambda: (tmp_path / "asked").exists())
        os.kill(os.getpid(), signal.SIGINT)
        (tmp_path / "stopped").touch()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=stop).start()
        with pytest.raises(KeyboardInterrupt):
            gd.connect(config=local_jobs, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    jobs = numbers.read_text().split()
    assert len(jobs) == 2
    wait_until(lambda: not any(map(is_running, jobs)), seconds=10)  # a worker without a scheduler gives up after 30


def test_answer_of_the_queue_that_is_not_understood_is_told(local_jobs, tmp_path):
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho Welcome\n")
    with pytest.raises(RequestError, match=r"slurm took no job: Could not parse job id .* Welcome"):
        gd.connect(config=local_jobs)


@pytest.mark.parametrize("away", [True, False])
def test_job_is_submitted_again_once_the_queue_takes_jobs_again(away, local_jobs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(job_queue, "TRY_AGAIN_S", 1)
    sbatch, aside = tmp_path / "sbatch", tmp_path / "aside"
    with gd.connect(config={**local_jobs, "walltime": "00:00:10"}) as client, pytest.MonkeyPatch.context() as patch:
        client.wait_for_workers(1, timeout=180)
        patch.setenv("PATH", str(tmp_path))  # where no other sbatch is
        sbatch.rename(aside)
        if not away:
            sbatch.write_text("#!/bin/sh\necho down for maintenance >&2\nexit 1\n")
            sbatch.chmod(0o755)
        wait_until(lambda: "tried again in a while" in caplog.text)
        patch.undo()
        aside.replace(sbatch)
        wait_until(lambda: not names_and_addresses(client))
        client.wait_for_workers(1, timeout=60)
    assert ("No such file" if away else "down for maintenance") in caplog.text


@pytest.mark.parametrize("gpus", [None, 2])
def test_job_whose_workers_have_left_is_submitted_again_and_once(gpus, local_jobs):
    options = {**local_jobs, "walltime": "00:00:10", **({"gpus_per_node": gpus} if gpus else {})}
    with gd.connect(config=options) as client:
        count = gpus or 1
        client.wait_for_workers(count, timeout=180)
        before, jobs = names_and_addresses(client), job_queue.jobs_of(client)
        wait_until(lambda: not names_and_addresses(client))
        client.wait_for_workers(count, timeout=180)
        after = names_and_addresses(client)
        assert set(after) == set(before)
        assert not set(after.values()) & set(before.values())
        again = job_queue.jobs_of(client)
        assert len(again) == 1
        assert again != jobs
        time.sleep(4)  # longer than lost workers are waited for
        assert job_queue.jobs_of(client) == again


def nanny_states(client) -> list[Status]:
    return list(client.run(lambda dask_worker: dask_worker.status, nanny=True).values())


def test_worker_process_that_dies_is_not_a_job_that_has_ended(local_jobs):
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "8s"}), gd.connect(config=local_jobs) as client:
        client.wait_for_workers(1, timeout=180)
        # A process that dies before its nanny has done with starting it ends the nanny, and so the job.
        wait_until(lambda: nanny_states(client) == [Status.running])
        jobs, (pid,) = job_queue.jobs_of(client), client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in client.run(os.getpid, on_error="ignore").values() and client.nthreads())
        time.sleep(9)  # longer than lost workers are waited for
        assert job_queue.jobs_of(client) == jobs


def test_range_of_workers_follows_the_work(local_jobs):
    with gd.connect(config=local_jobs, workers=(1, 2)) as client:
        client.wait_for_workers(1, timeout=180)
        assert len(names_and_addresses(client)) == 1
        futures = client.map(time.sleep, [3] * 12, pure=False)
        wait_until(lambda: len(names_and_addresses(client)) == 2)
        client.cancel(futures)
        del futures
        wait_until(lambda: len(names_and_addresses(client)) == 1)


def heed_interrupts() -> None:
    """What is started in the background of a shell is deaf to them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def a_slurm():
    if why := obstacle():
        pytest.skip(f"No Slurm here: {why}")
    with slurm() as configuration, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        yield


needs_slurm = pytest.mark.usefixtures("a_slurm")


def state_of(job: str) -> str:
    return subprocess.run(["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True).stdout.strip()


@needs_slurm
def test_slurm_runs_the_workers_and_cancels_them_with_the_client(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with gd.connect("slurm", config={"cores": 1, "memory": "1GB", "walltime": "00:10:00"}) as client:
        job_queue.await_worker(client, read_cluster_config({"cluster": "slurm"}))
        (job,) = job_queue.jobs_of(client)
        assert set(client.run(os.getenv, "SLURM_JOB_ID").values()) == {job}
        assert state_of(job) == "RUNNING"
    wait_until(lambda: state_of(job) in ("", "COMPLETING"))


@needs_slurm
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queue": "nowhere"}, "slurm took no job: sbatch: error: invalid partition specified: nowhere"),
        ({"interface": "nowhere"}, "slurm took no job: .*'nowhere' is not a valid network interface"),
    ],
)
def test_job_that_slurm_does_not_take_is_refused_in_its_words(options, says):
    with pytest.raises(RequestError, match=says):
        gd.connect("slurm", config=options)


@needs_slurm
def test_jobs_that_end_before_a_worker_comes_are_an_error_that_says_where_to_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_queue, "LOOK_EVERY_S", 1)
    config = read_cluster_config({"cluster": "slurm", "cores": 1, "memory": "1GB", "setup_lines": ["exit 3"]})
    with (
        gd.connect(config=config) as client,
        pytest.raises(RequestError, match=r"ended before a worker.*slurm-\d+.out"),
    ):
        job_queue.await_worker(client, config)


@needs_slurm
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_that_is_stopped_while_its_jobs_wait_cancels_them(number, models, pair, tmp_path):
    words = [*map(str, pair), str(tmp_path / "change.tif"), str(models["pt2"]), "--cluster", "slurm", "--memory", "1GB"]
    running = subprocess.Popen(
        [Path(sys.executable).with_name("geodl-dask"), "detect-change", *words, "--directive=--begin=now+3600"],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=heed_interrupts,
    )  # fmt: skip
    said = next(line for line in running.stderr if "Submitted to slurm" in line)
    job = re.search(r"squeue --jobs=(\d+)", said)[1]
    assert state_of(job) == "PENDING"
    running.send_signal(number)
    running.communicate(timeout=180)
    assert running.returncode == 128 + number
    assert state_of(job) == ""
