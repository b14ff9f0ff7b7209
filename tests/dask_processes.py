"""A real Dask scheduler and its workers in processes of their own, for to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from distributed.utils import json_load_robust


@contextmanager
def dask_processes(workers: int = 1) -> Iterator[tuple[str, psutil.Process]]:
    """The scheduler's address and process while the block lasts; each worker has one thread, and finds these tests."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        told = Path(folder, "scheduler.json")
        scheduler = _start(stack, "dask_scheduler", "--scheduler-file", str(told), "--port", "0", "--host", "127.0.0.1")
        address = json_load_robust(told, timeout=180)["address"]
        if workers:
            _start(
                stack,
                "dask_worker",
                address,
                "--nworkers",
                str(workers),
                "--nthreads",
                "1",
                "--local-directory",
                folder,
            )
        yield address, scheduler


def _start(stack: ExitStack, module: str, *words: str) -> psutil.Process:
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", *words, "--dashboard-address", "127.0.0.1:0"],
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    stack.callback(_end, running)
    return psutil.Process(running.pid)


def _end(running: subprocess.Popen) -> None:
    """With all that it has started."""
    if running.poll() is None:
        started = psutil.Process(running.pid).children(recursive=True)
        for each in [psutil.Process(running.pid), *started]:
            with suppress(psutil.NoSuchProcess):  # it has ended with whom it was started by
                each.kill()
    running.wait()
