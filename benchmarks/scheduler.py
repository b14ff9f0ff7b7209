"""What a block costs the scheduler and the client, and whether their memory grows with the number of blocks.

    python benchmarks/scheduler.py [--blocks 10000 1000000] [--workers 2]

Scheduler, workers and client are processes of their own. First `detect_change` plans so many blocks over an empty
pair; then as many blocks that do nothing go the way of every result, `store_blocks`, to a store that keeps nothing, so
that all that is left is what handing out blocks costs. CPU seconds and growth of the resident set are those from the
first task to the last.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask.array as da
import numpy as np
import psutil
from graph import write_empty

import geodl_dask as gd
from geodl_dask.demo import prepare_demo
from geodl_dask.dispatch import store_blocks

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from dask_processes import dask_processes

STRIDE_PX = 192


class NoStore:
    """Keeps nothing."""

    def is_done(self, index: tuple[int, int]) -> bool:
        return False

    def read_block(self, index: tuple[int, int]) -> np.ndarray:
        raise NotImplementedError

    def write_block(self, index: tuple[int, int], values: np.ndarray) -> None:
        pass


def no_op(block_id: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A pixel. Runs on workers."""
    return np.zeros((1, 1), np.uint8)


def run(address: str, scheduler: psutil.Process, blocks: int, model: Path) -> None:
    """What the client does: prints one line of the table."""
    side, me = round(math.sqrt(blocks)), psutil.Process()
    pair = [write_empty(model.with_name(name), side * STRIDE_PX) for name in ("a.tif", "b.tif")]
    gd.detect_change(*pair, model, chunks=STRIDE_PX)  # once, so that imports and the model are not counted
    started = time.perf_counter()
    gd.detect_change(*pair, model, chunks=STRIDE_PX)
    planned_s = time.perf_counter() - started
    array = da.map_blocks(
        no_op, chunks=((1,) * side, (1,) * side), dtype=np.uint8, meta=np.empty((0, 0), np.uint8), name=None
    )
    with gd.connect(address):
        store_blocks(array.blocks[:1, :1], NoStore())
        before, began = [(_cpu_s(each), _mb(each)) for each in (scheduler, me)], time.perf_counter()
        tally = store_blocks(array, NoStore(), progress=lambda done, total: None)
        seconds = time.perf_counter() - began
        after = [(_cpu_s(each), _mb(each)) for each in (scheduler, me)]
    assert tally.computed == side * side, tally
    (scheduler_s, scheduler_mb), (client_s, client_mb) = (
        (cpu - cpu_before, mb - mb_before) for (cpu_before, mb_before), (cpu, mb) in zip(before, after, strict=True)
    )
    micro = 1e6 / side**2
    print(
        f"| {side**2:,} | {planned_s:.2f} | {seconds:.0f} | {scheduler_s * micro:.0f} | {client_s * micro:.0f} | "
        f"{(scheduler_s + client_s) * micro:.0f} | {scheduler_mb:.0f} | {client_mb:.0f} |",
        flush=True,
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        address, pid, blocks, model = given.run
        run(address, psutil.Process(int(pid)), int(blocks), Path(model))
        return
    print("| blocks | planned, s | run, s | scheduler, us per block | client, us per block | both | scheduler grew, MB "
          "| client grew, MB |\n" + "|---" * 8 + "|", flush=True)  # fmt: skip
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        model = prepare_demo(Path(folder, "demo")).model
        for blocks in given.blocks:
            with dask_processes(given.workers) as (address, scheduler):
                words = [address, str(scheduler.pid), str(blocks), str(model)]
                subprocess.run([sys.executable, __file__, "--run", *words], check=True)


if __name__ == "__main__":
    main()
