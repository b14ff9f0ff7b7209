"""How much faster two workers are than one, and how much faster they could be.

    python benchmarks/scaling.py [--size 4096] [--workers 1 2] [--rounds 3]

The heavy network of `networks` over a pair of rasters, tiles of 256 pixels with a padding of 64, by worker processes
with one thread each, which have loaded the model and computed a few blocks before the clock starts; every round takes
all numbers of workers in turn. The speed-up is of seconds of one round.

What the machine allows is measured in the same processes: all of them run the network alone, at once, over windows of
the size that a block of the run has. Cores that share memory and caches slow each other down there too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from distributed import LocalCluster
from layout import prepare_rasters
from networks import make_network, write_model

import geodl_dask as gd

PADDING_PX = 64
BLOCK_PX = 1024
WARM_UP_PX = 2048
"""Of the rasters before: four blocks, so that no worker's first one is on the clock."""


def seconds_of_network(windows: int) -> float:
    """Of the network alone, over windows as large as a block with its padding."""
    window = torch.rand(1, 3, *2 * [BLOCK_PX + 2 * PADDING_PX])
    traced = torch.jit.trace(make_network("heavy").eval().to(memory_format=torch.channels_last), (window, window))
    network = torch.jit.freeze(traced)  # as geodl_dask runs it
    with torch.inference_mode():
        for _ in range(2):
            network(window, window)
        started = time.perf_counter()
        for _ in range(windows):
            network(window, window)
    return time.perf_counter() - started


def seconds_with(workers: int, folder: Path, size: int) -> tuple[float, float]:
    """Of a run, and of the slowest of the workers for its share of the network alone."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        cluster.get_client() as client,
    ):
        seconds = 0.0
        for side in (WARM_UP_PX, size):
            pair = [folder / f"{side}_{name}" for name in ("from.tif", "to.tif")]
            change = gd.detect_change(*pair, folder / "heavy.emd", chunks=BLOCK_PX, processor="cpu")
            started = time.perf_counter()
            gd.write_zarr(change, folder / f"{side}.zarr", overwrite=True)
            seconds = time.perf_counter() - started
        share = (size // BLOCK_PX) ** 2 // workers
        return seconds, max(client.run(seconds_of_network, share).values())


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
        for size in {WARM_UP_PX, given.size}:
            prepare_rasters(folder, size, None)
        rounds = [[seconds_with(each, folder, given.size) for each in given.workers] for _ in range(given.rounds)]
    print("| workers | s | speed-up | network alone, s | speed-up |\n|---|---|---|---|---|")
    for place, workers in enumerate(given.workers):
        cells = [str(workers)]
        for what in (0, 1):
            cells.append(f"{median(each[place][what] for each in rounds):.1f}")
            cells.append(f"{median(each[0][what] / each[place][what] for each in rounds):.2f}")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
