"""A piece of work in a fresh Python process, with what it took: seconds, processor time, peak memory.

Who starts the work calls `measure`, which runs this file as a script in the Python that it is given. A contender is a
function of a module of this folder: it takes a `Job`, imports what it needs and returns the work, a callable, whose
answer (a dict, or None) takes the place of what was measured, field by field. The clock of ``seconds`` runs over the
work alone; loading the network belongs to it, imports do not.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

Work = Callable[[], dict[str, Any] | None]
MALLOPT = {-8: 1, -3: 1 << 30, -1: (1 << 31) - 1}
"""M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD: freed memory is kept, so that no page is faulted in twice."""
POLL_S = 0.1
LASTING_POLLS = 5
"""How often a child process is seen before it counts: what libraries ask of the system is over sooner."""


class ContenderError(Exception):
    """A contender that gave no result, and why in one line."""


@dataclass(frozen=True)
class Setting:
    """How the network is run."""

    threads: int = 1
    """Python threads that call it."""
    intra_op: int = 2
    """Threads of torch within a call."""
    channels_last: bool = False
    """Whether network and tiles are in torch's memory format of that name."""
    is_malloc_tuned: bool = False
    """Whether glibc's allocator is told to keep what is freed, before torch is imported."""
    is_frozen: bool = False
    """Whether the network is traced and frozen, which folds normalisations into convolutions."""
    batch: int = 8
    """Tiles per call."""

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        malloc = ", malloc tuned" if self.is_malloc_tuned else ""
        frozen = ", frozen" if self.is_frozen else ""
        return f"{self.threads} x {self.intra_op} threads, {layout}, batch {self.batch}{malloc}{frozen}"


@dataclass(frozen=True)
class Job:
    """What a contender is given; what it finds in the folder, the properties say."""

    folder: str
    """Where rasters and models lie."""
    network: str
    """``"cheap"`` or ``"heavy"``."""
    padding: int
    """Pixels cropped from each side of a tile's prediction."""
    size: int
    """Side of the rasters, pixels."""
    out: str = ""
    """Where the result belongs."""
    setting: Setting = field(default_factory=Setting)
    """How the network is run, where the contender lets itself be told."""
    window_px: int = 0
    """Of a floor: side of a window."""
    windows: float = 0.0
    """Of a floor: how many windows its seconds are for."""

    @property
    def rasters(self) -> tuple[Path, Path]:
        """The pair."""
        return Path(self.folder, f"{self.size}_from.tif"), Path(self.folder, f"{self.size}_to.tif")

    @property
    def stack(self) -> Path:
        """Both rasters as one of six bands, with zeros around for whole tiles: what the peers are given."""
        return Path(self.folder, f"{self.size}_{self.padding}_stack.tif")

    @property
    def model(self) -> Path:
        """The model definition."""
        return Path(self.folder, f"{self.network}_{self.padding}", f"{self.network}.emd")

    @property
    def weights(self) -> Path:
        """The network's state dict."""
        return Path(self.folder, f"{self.network}.pth")

    @property
    def script(self) -> Path:
        """The network as TorchScript of six bands as stored."""
        return Path(self.folder, f"{self.network}_stack.pt")


@dataclass(frozen=True)
class Measured:
    """What a contender took."""

    seconds: float
    """Wall time of the work."""
    cpu_s: float
    """User and system time of the work, of child processes too."""
    import_s: float
    """Wall time of the imports."""
    peak_mb: float
    """Highest resident set (VmHWM), summed over the processes."""
    note: str = ""
    """What else is to be said."""
    process_s: float = 0.0
    """Wall time from the start of the process to its end."""
    workers: int = 0
    """Child processes that were seen."""
    disturbed: float = 0.0
    """Share of the machine's processor time that others took meanwhile, 0 to 1."""


def measure(python: str, contender: str, job: Job, limit_s: float = 3600) -> Measured:
    """Run ``contender``, ``"module:function"``, in a fresh process. Raises ContenderError where it fails."""
    module, name = contender.split(":")
    command = [python, "-W", "ignore", __file__, module, name, json.dumps(asdict(job))]
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as said:
        started, before = time.perf_counter(), _others_s()
        with subprocess.Popen(command, stdout=told, stderr=said) as running:
            peaks = _peaks_until_end(running, started + limit_s)
        process_s = time.perf_counter() - started
        disturbed = max(0.0, _others_s() - before) / process_s / (os.cpu_count() or 1)
        lines = _lines(told)
        if running.returncode or not lines or not lines[-1].startswith("{"):
            last = (_lines(said) or ["no word"])[-1]
            raise ContenderError(f"ended with {running.returncode}: {last[:200]}")
        found = json.loads(lines[-1])
    if "failed" in found:
        raise ContenderError(found["failed"])
    others = [peak for pid, peak in peaks.items() if pid != running.pid]
    found["peak_mb"] += sum(others)
    return Measured(**found, process_s=process_s, workers=len(others), disturbed=disturbed)


def _others_s() -> float:
    """Processor seconds of the machine so far, less those of this process and of the children that have ended."""
    user, nice, system, _, _, *interrupts = (
        int(each) for each in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    )
    busy = user + nice + system + sum(interrupts)
    return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return [line for line in file.read().splitlines() if line.strip()]


def _peaks_until_end(running: subprocess.Popen[bytes], deadline: float) -> dict[int, float]:
    """Highest resident set, MB, of the process and of each that it started."""
    peaks: dict[int, float] = {}
    seen: Counter[int] = Counter()
    while running.poll() is None:
        for pid in _tree(running.pid):
            peaks[pid] = _peak_mb(pid) or peaks.get(pid, 0.0)
            seen[pid] += 1
        if time.perf_counter() > deadline:
            running.kill()
        time.sleep(POLL_S)
    return {pid: peak for pid, peak in peaks.items() if seen[pid] >= LASTING_POLLS}


def _tree(pid: int) -> list[int]:
    try:
        children = [
            int(each)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for each in (task / "children").read_text(encoding="ascii").split()
        ]
    except OSError:
        children = []
    return [pid, *(each for child in children for each in _tree(child))]


def _peak_mb(pid: int | str) -> float:
    try:
        told = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").split("VmHWM:")
    except OSError:
        return 0.0
    return int(told[1].split()[0]) / 1024 if len(told) > 1 else 0.0


def _serve(module: str, name: str, text: str) -> dict[str, Any]:
    """Run a contender in this process. Returns the fields of `Measured` that are known here, or ``failed``."""
    given = json.loads(text)
    job = Job(**{**given, "setting": Setting(**given["setting"])})
    if job.setting.is_malloc_tuned:
        mallopt = ctypes.CDLL(None).mallopt
        refused = [option for option, value in MALLOPT.items() if not mallopt(option, value)]
        if refused:
            return {"failed": f"mallopt refused {refused}"}
    started = time.perf_counter()
    try:
        work = getattr(importlib.import_module(module), name)(job)
    except ImportError as error:
        return {"failed": f"cannot be imported: {error}"}
    imported, cpu = time.perf_counter(), sum(os.times()[:4])
    answer = work() or {}
    seconds, cpu_s = time.perf_counter() - imported, sum(os.times()[:4]) - cpu
    found = {"seconds": seconds, "cpu_s": cpu_s, "import_s": imported - started, "peak_mb": _peak_mb("self")}
    return {**found, **answer}


if __name__ == "__main__":
    answered = json.dumps(_serve(*sys.argv[1:]))
    print(f"\n{answered}", flush=True)
