"""Peak memory of the worker processes, and what it does when the raster grows.

    python benchmarks/memory.py [--sizes 8192 16384] [--workers 2] [--output tif]

Runs the demo's model over square rasters (the demo's scene, laid out again and again) on a LocalCluster of
processes. Peak is the resident set (VmHWM). Prints, beside each peak, the ratio to an idle worker that has imported
what the run imports (the floor), and in the end the ratio of the largest raster's peak to the smallest's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from distributed import LocalCluster
from rasterio.transform import from_origin

import geodl_dask as gd
from geodl_dask.demo import prepare_demo

STRIP = 1024


def lay_out(source: Path, target: Path, size: int, **creation: object) -> None:
    """A size x size GeoTIFF of the source's pixels, again and again; uncompressed unless ``creation`` says more."""
    with rasterio.open(source) as dataset:
        image = dataset.read()
        profile = dataset.profile
    columns = np.arange(size) % image.shape[2]
    profile.update(width=size, height=size, transform=from_origin(500_000, 5_400_000, 0.5, 0.5))
    profile.update({"compress": None, **creation})
    with rasterio.open(target, "w", **profile, bigtiff="if_safer") as out:
        for row in range(0, size, STRIP):
            rows = np.arange(row, min(row + STRIP, size)) % image.shape[1]
            window = rasterio.windows.Window(0, row, size, len(rows))
            out.write(image[:, rows][:, :, columns], window=window)


def peak_mb() -> float:
    """Highest resident set of this process so far, MB (getrusage's would count what it was forked from). On workers."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def floor_mb() -> float:
    """The same once everything is imported. Runs on workers."""
    import torch  # noqa: F401

    import geodl_dask.cog
    import geodl_dask.kernel  # noqa: F401

    return peak_mb()


def measure(folder: Path, size: int, workers: int, output: str) -> tuple[float, float, float]:
    """(peak of the largest worker, floor of the largest worker, seconds) of one run in fresh processes."""
    rasters = []
    for name in ("from.tif", "to.tif"):
        rasters.append(folder / f"{size}_{name}")
        lay_out(folder / name, rasters[-1], size)
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        cluster.get_client() as client,
    ):
        floor = max(client.run(floor_mb).values())
        started = time.perf_counter()
        change = gd.detect_change(*rasters, folder / "model.emd")
        out = folder / f"{size}.{output}"
        (gd.write_zarr if output == "zarr" else gd.write_cog)(change, out)
        seconds = time.perf_counter() - started
        return max(client.run(peak_mb).values()), floor, seconds


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 16384], help="sides of the rasters, pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", choices=["tif", "zarr"], default="tif")
    given = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        prepare_demo(Path(folder))
        for size in given.sizes:
            peak, floor, seconds = measure(Path(folder), size, given.workers, given.output)
            peaks.append(peak)
            print(
                f"{size:6} x {size:6}: peak of a worker {peak:6.0f} MB, {peak / floor:.2f} of the floor "
                f"({floor:.0f} MB); client {peak_mb():.0f} MB; {seconds:.0f} s, {size**2 / seconds / 1e6:.2f} Mpx/s",
                flush=True,
            )
    print(f"largest raster's peak / smallest's: {peaks[-1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
