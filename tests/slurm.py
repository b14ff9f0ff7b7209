"""A real Slurm of one node in a folder of its own: no systemd, no cgroups, nothing under /etc, devices for GPUs.

``python tests/slurm.py`` keeps one up until Ctrl-C, and says how a shell finds it.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

DAEMONS = "munged", "slurmctld", "slurmd"
CPUS, MEMORY_MB = 16, 32_000
"""What the node claims to have: nothing here is bound to a core or limited in memory."""
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmUser=root
# A job that was requeued starts when the credential of its last start has expired: two minutes, unless said.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
JobRequeue=1
KillWait=60
ReturnToService=2
"""


def obstacle() -> str | None:
    """Why no Slurm can be brought up here; None where one can."""
    missing = [daemon for daemon in DAEMONS if not shutil.which(daemon, path=_path())]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


@contextmanager
def slurm(gpus: int = 2) -> Iterator[Path]:
    """The configuration file of a Slurm that runs while the block lasts, for SLURM_CONF in the environment."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        configuration = _write_configuration(folder, gpus)
        environment = {**os.environ, "SLURM_CONF": str(configuration), "PATH": _path()}
        _start(stack, environment, folder, "munged", "--foreground", "--force", *_places_of_munge(folder))
        _wait_for(folder / "munge.socket")
        _start(stack, environment, folder, "slurmctld", "-D", "-f", str(configuration))
        _start(stack, environment, folder, "slurmd", "-D", "-f", str(configuration))
        until = time.monotonic() + 180
        while "idle" not in _output_of(["sinfo", "--noheader", "--format", "%T"], environment):
            assert time.monotonic() < until, _logs(folder)
            time.sleep(0.2)
        stack.callback(_end_jobs, environment)
        yield configuration


def submit(*words: str, folder: Path) -> str:
    """Start a job from a folder, as ``sbatch`` takes it. Returns its number."""
    done = subprocess.run(["sbatch", "--parsable", *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def facts_of(job: str) -> dict[str, str]:
    """What Slurm says of a job: JobState, Restarts and so on."""
    told = subprocess.run(["scontrol", "show", "job", "--oneliner", job], check=True, capture_output=True, text=True)
    return dict(word.split("=", 1) for word in told.stdout.split() if "=" in word)


def _write_configuration(folder: Path, gpus: int) -> Path:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    for number in range(gpus):  # Slurm wants a device, and numbers it by the digits that its name ends with
        (folder / f"gpu{number}").symlink_to(os.devnull)
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, host=host, gpus=gpus, cpus=CPUS, memory_mb=MEMORY_MB, ports=_free_ports(2))
    )
    return folder / "slurm.conf"


def _places_of_munge(folder: Path) -> list[str]:
    names = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    return [f"--{option}={folder}/munge.{name}" for option, name in names.items()]


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to whoever asks for any, or one may be given away before Slurm takes it."""
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            with suppress(OSError):  # somebody has it
                listening = socket.create_server(("127.0.0.1", random.SystemRandom().randrange(12_000, 30_000)))
                ports.append(stack.enter_context(listening).getsockname()[1])
        return ports


def _path() -> str:
    """Debian has the daemons where only root looks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _start(stack: ExitStack, environment: dict[str, str], folder: Path, *command: str) -> None:
    with (folder / f"{command[0]}.out").open("wb") as output:
        running = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    stack.callback(_end, running)


def _end(running: subprocess.Popen) -> None:
    running.terminate()
    try:
        running.wait(timeout=20)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def _end_jobs(environment: dict[str, str]) -> None:
    subprocess.run(["scancel", "--user", "root"], env=environment, check=False)
    until = time.monotonic() + 180
    while _output_of(["squeue", "--noheader"], environment) and time.monotonic() < until:
        time.sleep(0.2)


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 180
    while not path.exists():
        assert time.monotonic() < until, _logs(path.parent)
        time.sleep(0.05)


def _output_of(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _logs(folder: Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), slurm() as configuration:
        print(f"export SLURM_CONF={configuration}", flush=True)
        signal.pause()
