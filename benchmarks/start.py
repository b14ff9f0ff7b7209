"""How long it takes from the start of a process to the first finished block, and what takes it.

    python benchmarks/start.py [--size 4096] [--network heavy] [--rounds 3]

A fresh process imports geodl_dask, starts two worker processes or none, plans a run (which loads the model and tries
it) and writes to Zarr. The workers import and load in turn, which is within their first block. Times are wall clock,
medians over the rounds; the first line is the interpreter's own start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

STAGES = ("interpreter", "imports", "workers", "model and plan", "first block", "all blocks")


def run(started: float, folder: Path, model: Path, size: int, workers: int | None) -> dict[str, float]:
    """The stages of one run, seconds each. Runs in a fresh process that was started at ``started``."""
    ends = [started, time.time()]
    import geodl_dask as gd
    import geodl_dask.kernel
    import geodl_dask.runners.native
    import geodl_dask.runners.pytorch
    import geodl_dask.zarr_store

    ends.append(time.time())
    of_blocks: list[float] = []
    with gd.connect("local", workers=workers):
        ends.append(time.time())
        change = gd.detect_change(folder / f"{size}_from.tif", folder / f"{size}_to.tif", model, processor="cpu")
        ends.append(time.time())
        out = folder / "start.zarr"
        gd.write_zarr(change, out, overwrite=True, progress=lambda *_: of_blocks.append(time.time()))
    ends += [of_blocks[0], of_blocks[-1]]
    taken = [end - begin for begin, end in pairwise(ends)]
    return dict(zip(STAGES, taken, strict=True))


def measure(folder: Path, model: Path, size: int, workers: int | None) -> dict[str, float]:
    """The same in a fresh process."""
    told = [str(time.time()), str(folder), str(model), str(size), str(workers or 0)]
    command = [sys.executable, __file__, "--run", *told]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    stages: dict[str, float] = json.loads(answer.splitlines()[-1])
    return stages


def print_table(found: dict[str, list[dict[str, float]]]) -> None:
    """One column for each way."""
    print(f"| s | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for stage in STAGES:
        print(f"| {stage} | {' | '.join(f'{median(each[stage] for each in runs):.2f}' for runs in found.values())} |")
    sums = (median(sum(each[stage] for stage in STAGES[:-1]) for each in runs) for runs in found.values())
    print(f"| **start to first block** | {' | '.join(f'{each:.2f}' for each in sums)} |")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="side of the rasters, pixels")
    parser.add_argument("--network", choices=["cheap", "heavy"], default="heavy")
    parser.add_argument("--padding", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from fresh import Job
    from layout import prepare_network, prepare_rasters

    ways: dict[str, int | None] = {"one process": None, "2 worker processes": 2}
    with tempfile.TemporaryDirectory() as name:
        job = Job(name, given.network, given.padding, 0)
        prepare_network(job)
        prepare_rasters(Path(name), given.size, None)
        sized = replace(job, size=given.size)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(given.rounds):
            for way, workers in ways.items():
                found[way].append(measure(Path(name), sized.model, given.size, workers))
    print(f"{given.size:,} x {given.size:,} pixels, {given.network} network\n")
    print_table(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        at, where, definition, side, count = sys.argv[2:]
        print(json.dumps(run(float(at), Path(where), Path(definition), int(side), int(count) or None)), flush=True)
    else:
        main()
