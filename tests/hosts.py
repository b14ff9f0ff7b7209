"""Hosts of their own on one machine: namespaces of mounts and name, and, joined by a link, of network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest


@dataclass(frozen=True)
class Host:
    """A set of namespaces, held by a process that sleeps."""

    name: str
    process: subprocess.Popen
    network: bool

    def command(self, *words: str) -> list[str]:
        kinds = ["--mount", "--uts", *(["--net"] if self.network else [])]
        return ["nsenter", "--target", str(self.process.pid), *kinds, f"--wd={Path.cwd()}", *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def hide(self, *folders: Path) -> None:
        """Put an empty folder in the place of each, for this host alone."""
        for folder in folders:
            self.run("mount", "-t", "tmpfs", "tmpfs", str(folder))

    @contextmanager
    def running(self, *words: str, **environment: str) -> Iterator[subprocess.Popen]:
        """A Python of this host: ``-m module ...``."""
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            self.command(sys.executable, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": paths, **environment},
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    with suppress(psutil.NoSuchProcess):  # it has ended with whom it was started by
                        each.kill()
            process.communicate()

    def worker(self, address: str, *words: str, nannies: int = 1, **environment: str):
        """Workers of one thread each, with nannies."""
        module = ("-m", "distributed.cli.dask_worker", address, "--nworkers", str(nannies), "--nthreads", "1")
        return self.running(*module, "--dashboard-address", ":0", *words, **environment)


@contextmanager
def other_host(name: str, *, network: bool = False) -> Iterator[Host]:
    """A host; skips the test where none can be made."""
    kinds = ["--mount", "--uts", *(["--net"] if network else [])]
    words = ["unshare", *kinds, "--propagation", "private", "sh", "-c", f"hostname {name} && echo up && exec sleep 600"]
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare and nsenter (util-linux)")
    try:
        if process.stdout.readline() != "up\n":
            pytest.skip(f"needs the right to make namespaces: {process.stderr.read().strip()}")
        yield Host(name, process, network)
    finally:
        process.kill()
        process.communicate()


NEAR, FAR = "10.219.7.1", "10.219.7.2"


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with the addresses NEAR and FAR, joined by a link, whose ends are called ``wire``."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(other_host(name, network=True)) for name in ("near", "far"))
        if shutil.which("ip") is None:
            pytest.skip("needs ip (iproute2)")
        pair = ["wire", "type", "veth", "peer", "name", "wire", "netns", str(far.process.pid)]
        joined = subprocess.run(near.command("ip", "link", "add", *pair), capture_output=True, text=True)
        if "not permitted" in joined.stderr or "Unknown device type" in joined.stderr:
            pytest.skip(f"needs to join two namespaces: {joined.stderr.strip()}")
        assert joined.returncode == 0, joined.stderr
        for host, address in ((near, NEAR), (far, FAR)):
            host.run("ip", "address", "add", f"{address}/24", "dev", "wire")
            host.run("ip", "link", "set", "wire", "up")
            host.run("ip", "link", "set", "lo", "up")
        yield near, far


def wait_until(is_so, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)
