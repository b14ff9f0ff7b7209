"""Tasks per block, and the time and memory that the graph costs, for both doors.

    python benchmarks/graph.py [--blocks 1000 10000 100000] [--doors windows arrays]

Builds `detect_change` over an all-zero pair cut into that many blocks and makes its graph ready for a scheduler, each
in a process of its own; nothing is computed. The floor is one `map_blocks` over the same blocks that does nothing.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import geodl_dask as gd
from geodl_dask.demo import prepare_demo

TRANSFORM, CRS = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), "EPSG:32633"
BANDS = 3


def write_empty(path: Path, size: int) -> Path:
    """A GeoTIFF without a pixel stored."""
    profile = {"driver": "GTiff", "count": BANDS, "dtype": "uint8", "crs": CRS, "transform": TRANSFORM}
    with rasterio.open(path, "w", **profile, width=size, height=size, tiled=True, sparse_ok=True, bigtiff="yes"):
        return path


def array_of_zeros(size: int, chunk: int) -> xr.DataArray:
    grid = GeoBox((size, size), TRANSFORM, CRS)
    pixels = da.zeros((BANDS, size, size), chunks=(BANDS, chunk, chunk), dtype=np.uint8)
    return xr.DataArray(pixels, dims=("band", "y", "x"), coords=xr_coords(grid, dims=("y", "x")))


def measure(door: str, blocks: int, folder: Path) -> None:
    """Print one line. Runs in a process of its own."""
    stride = 192
    side = round(math.sqrt(blocks))
    size = side * stride
    if door == "windows":
        pair = [write_empty(folder / name, size) for name in ("a.tif", "b.tif")]
    else:
        pair = [array_of_zeros(size, stride) for _ in range(2)]
    model = folder / "model.emd"
    gd.detect_change(*pair, model, chunks=stride)  # once, so that imports and the model are not counted
    before, started = peak_mb(), time.perf_counter()
    if door == "floor":
        array = da.map_blocks(np.zeros_like, da.zeros((size, size), chunks=stride, dtype=np.uint8))
    else:
        array = gd.detect_change(*pair, model, chunks=stride).data
    built = time.perf_counter()
    (ready,) = dask.optimize(array)
    tasks = len(
        ready.__dask_graph__().to_dict() if hasattr(ready.__dask_graph__(), "to_dict") else ready.__dask_graph__()
    )
    done = time.perf_counter()
    print(f"{side * side} {tasks} {built - started:.3f} {done - built:.3f} {peak_mb() - before:.0f}")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--doors", nargs="+", default=["windows", "arrays"])
    parser.add_argument("--one", nargs=3, metavar=("DOOR", "BLOCKS", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.one[0], int(given.one[1]), Path(given.one[2]))
        return
    print("| door | blocks | tasks per block | build, s | make ready, s | of the floor | memory, MB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        prepare_demo(Path(folder))
        for blocks in given.blocks:
            floor = None
            for door in ("floor", *given.doors):
                command = [sys.executable, __file__, "--one", door, str(blocks), folder]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                made, tasks, memory = int(printed[0]), int(printed[1]), printed[4]
                build, ready = map(float, printed[2:4])
                floor = floor or build + ready
                ratio = (build + ready) / floor
                print(
                    f"| {door} | {made:,} | {tasks / made:.1f} | {build:.2f} | {ready:.2f} | {ratio:.1f} | {memory} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
