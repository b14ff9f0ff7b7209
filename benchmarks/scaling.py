"""How much faster two workers are than one.

    python benchmarks/scaling.py [--size 4096] [--workers 1 2] [--rounds 3]

The heavy network of `networks` over a pair of rasters, tiles of 256 pixels with a padding of 64, by worker processes
with one thread each, which have loaded the model before the clock starts; every round takes all numbers of workers in
turn. The speed-up is of seconds of one round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from distributed import LocalCluster
from layout import prepare_rasters
from networks import write_model

import geodl_dask as gd

PADDING_PX = 64


def seconds_with(workers: int, folder: Path, size: int) -> float:
    """Of a run, the first of which only makes the workers ready."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        cluster.get_client(),
    ):
        seconds = 0.0
        for side in (1024, size):
            pair = [folder / f"{side}_{name}" for name in ("from.tif", "to.tif")]
            change = gd.detect_change(*pair, folder / "heavy.emd", chunks=1024, processor="cpu")
            started = time.perf_counter()
            gd.write_zarr(change, folder / f"{side}.zarr", overwrite=True)
            seconds = time.perf_counter() - started
    return seconds


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model("heavy", PADDING_PX, folder)
        for size in (1024, given.size):
            prepare_rasters(folder, size, None)
        rounds = [[seconds_with(each, folder, given.size) for each in given.workers] for _ in range(given.rounds)]
    print("| workers | s | speed-up |\n|---|---|---|")
    for place, workers in enumerate(given.workers):
        seconds = median(each[place] for each in rounds)
        print(f"| {workers} | {seconds:.1f} | {median(each[0] / each[place] for each in rounds):.2f} |")


if __name__ == "__main__":
    main()
