"""A change detector of arcgis.learn: run natively, and by arcgis.learn's own function, side by side on the same pair.

    python benchmarks/change_detector.py PACKAGE.dlpk [--size 512] [--threads 2] [--repeats 2]

Needs an environment with arcgis, as the README's "Models" describes it. PACKAGE is one that arcgis.learn wrote;
tests/recordings/record_change_detectors.py makes some. Both get the same blocks and the same number of threads, in
turn: arcgis.learn's function spends them within one block, since it answers one call at a time; ours takes several
blocks at once.
"""

from __future__ import annotations

import argparse
import time

import dask
import numpy as np
import rioxarray  # noqa: F401
import torch
import xarray as xr

import geodl_dask as gd


def make_pair(size: int, bands: int) -> list[xr.DataArray]:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256 if bands == 3 else 4000, (bands, size, size)).astype(
        "uint8" if bands == 3 else "uint16"
    )
    after = before.copy()
    after[:, size // 4 : size // 2, size // 3 : size // 2] = 99
    coords = {"y": size - 0.5 - np.arange(size), "x": np.arange(size) + 0.5}
    return [xr.DataArray(each, coords, ("band", "y", "x")).rio.write_crs("EPSG:32633") for each in (before, after)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("package")
    for name, default in (("size", 512), ("threads", 2), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    bands = len(gd.model_info(given.package).extract_bands or range(6)) // 2
    pair, best, answers = make_pair(given.size, bands), {}, {}
    torch.set_num_threads(given.threads)
    for _ in range(given.repeats):
        for runner in ("native", "raster-function"):
            change = gd.detect_change(
                *pair, given.package, runner=runner, trust_code=True, processor="cpu", chunks=given.size // 2
            )
            started = time.perf_counter()
            with dask.config.set(scheduler="threads", num_workers=given.threads):
                answers[runner] = change.values
            seconds = time.perf_counter() - started
            best[runner] = min(best.get(runner, np.inf), seconds)
            print(f"{runner:16} {seconds:6.1f} s  blocks {change.data.chunksize}", flush=True)
    differing = int((answers["native"] != answers["raster-function"]).sum())
    print(f"pixels that differ: {differing} of {answers['native'].size}")
    ratio = best["raster-function"] / best["native"]
    print(f"arcgis.learn's function takes {ratio:.2f} times as long as the native runner")


if __name__ == "__main__":
    main()
