"""A large class raster to a COG: peak memory of every process, and the time beside gdal_translate's.

    python benchmarks/cog.py [--size 40960] [--block 4096] [--repeats 2]

The raster is lazy, lots of classes that each block computes without any model. It goes through write_cog in one
process and with two workers; GDAL makes a COG of the same pixels, by the same creation options, from a plain tiled
GeoTIFF that was laid out before. Each run has fresh processes, and the runs take turns. Peak is the resident set
(VmHWM), the floor that of a process that has imported what the run imports. The pixels of every COG are compared with
the plain GeoTIFF's. Times are of everything, and of the last pass alone, which puts the blocks together.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import dask.array as da
import numpy as np
import rasterio
import xarray as xr
from memory import peak_mb
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.transform import from_origin

import geodl_dask as gd
from geodl_dask.classes import ClassTable, ModelClass

STRIP = 1024
LOT_PX = 40
GRID = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
NODATA = 255
NAMES = ("No change", "New building", "Building removed", "New road", "Woods cleared")
OPTIONS = {
    "COMPRESS": "DEFLATE", "BLOCKSIZE": "512", "NUM_THREADS": "ALL_CPUS", "OVERVIEW_RESAMPLING": "MODE",
    "BIGTIFF": "IF_SAFER",
}  # fmt: skip
"""As `geodl_dask.cog` has them."""
CACHE_MB = "256"
GDAL_COPY = """
import sys, rasterio, rasterio.shutil
with rasterio.Env(GDAL_CACHEMAX=int(sys.argv[3])):
    rasterio.shutil.copy(sys.argv[1], sys.argv[2], driver="COG", **dict(each.split("=") for each in sys.argv[4:]))
"""


@dataclass(frozen=True)
class Run:
    """What one run took."""

    how: str
    seconds: float
    last_pass_s: float
    peaks_mb: tuple[float, ...]
    floor_mb: float
    size_mb: float


def classes_at(top: int, left: int, height: int, width: int) -> np.ndarray:
    """Class values of a window: lots with ragged sides, most of them no change, and stripes of nodata."""
    values = np.empty((height, width), np.uint8)
    for row in range(top, top + height):
        if row == top or row % LOT_PX == 0:
            drawn = np.random.default_rng(row // LOT_PX).integers(0, 60, (left + width) // LOT_PX + 2)
            lots = np.where(drawn < len(NAMES), drawn, 0).astype(np.uint8)
            lots[-(row // LOT_PX) % 60 :: 60] = NODATA
            line = lots.repeat(LOT_PX)
        begin = left + row * 2654435761 % 2**32 // 2**29
        values[row - top] = line[begin : begin + width]
    return values


def lazy_classes(size: int, block: int) -> xr.DataArray:
    """A (y, x) raster as `detect_change` gives it."""

    def compute(block_info):
        (top, bottom), (left, right) = block_info[None]["array-location"]
        return classes_at(top, left, bottom - top, right - left)

    chunks = da.core.normalize_chunks(block, (size, size))
    data = da.map_blocks(compute, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0), np.uint8))
    table = ClassTable(tuple(ModelClass(value, name, (50 * value,) * 3) for value, name in enumerate(NAMES)))
    grid = GeoBox((size, size), GRID["transform"], GRID["crs"])
    attrs = {**table.to_attrs(), "_FillValue": NODATA}
    return xr.DataArray(data, dims=("y", "x"), coords=xr_coords(grid, dims=("y", "x")), name="change", attrs=attrs)


def lay_out(path: Path, size: int) -> None:
    """The same pixels as a plain tiled GeoTIFF."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": NODATA, "tiled": True, **GRID}
    with rasterio.open(
        path, "w", **profile, height=size, width=size, blockxsize=512, blockysize=512, bigtiff="if_safer"
    ) as plain:
        for top in range(0, size, STRIP):
            height = min(STRIP, size - top)
            window = rasterio.windows.Window(0, top, size, height)
            plain.write(classes_at(top, 0, height, size), 1, window=window)


def floor_mb() -> float:
    """What importing takes. Runs on workers."""
    import geodl_dask.cog  # noqa: F401

    return peak_mb()


def run_ours(out: Path, size: int, block: int, workers: int | None) -> Run:
    """write_cog in a fresh process, this one."""
    floor, ends = floor_mb(), []
    with gd.connect("local", workers=workers) as client:
        if workers:
            client.run(floor_mb)
        started = time.perf_counter()
        gd.write_cog(lazy_classes(size, block), out, progress=lambda *done: ends.append(time.perf_counter()))
        ended = time.perf_counter()
        of_workers = client.run(peak_mb).values() if workers else ()
    how = f"write_cog, {workers} workers" if workers else "write_cog, one process"
    return Run(
        how, ended - started, ended - ends[-1], (peak_mb(), *sorted(of_workers)), floor, out.stat().st_size / 1e6
    )


def run_gdal(plain: Path, out: Path, *, binary: str | None) -> Run:
    """GDAL alone, in a process of its own."""
    options = [f"{key}={value}" for key, value in OPTIONS.items()]
    if binary:
        command = [binary, "-q", "-of", "COG", "--config", "GDAL_CACHEMAX", CACHE_MB]
        command += [part for each in options for part in ("-co", each)] + [str(plain), str(out)]
        how = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        how = f"gdal_translate {how.split(',')[0].removeprefix('GDAL ')}"
    else:
        command = [sys.executable, "-c", GDAL_COPY, str(plain), str(out), CACHE_MB, *options]
        how = f"rasterio copy, GDAL {rasterio.__gdal_version__}"
    started, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command) as running:
        status = Path(f"/proc/{running.pid}/status")
        while running.poll() is None:
            told = status.read_text(encoding="ascii").split("VmHWM:")
            peak = int(told[1].split()[0]) / 1024 if len(told) > 1 else peak
            time.sleep(0.05)
    if running.returncode:
        raise SystemExit(f"{how} failed")
    seconds = time.perf_counter() - started
    return Run(how, seconds, seconds, (peak,), 0.0, out.stat().st_size / 1e6)


def require_same_pixels(plain: Path, made: Path) -> None:
    """Raise AssertionError unless both files hold the same pixels."""
    with rasterio.open(plain) as one, rasterio.open(made) as other:
        for top in range(0, one.height, STRIP):
            window = rasterio.windows.Window(0, top, one.width, min(STRIP, one.height - top))
            np.testing.assert_array_equal(one.read(1, window=window), other.read(1, window=window))


def measure(folder: Path, plain: Path, size: int, block: int) -> list[Run]:
    """Each way once."""
    runs, out, nothing = [], folder / "change.tif", nullcontext()
    for way in (None, 2, "binary", "rasterio"):
        if way == "binary" and not shutil.which("gdal_translate"):
            continue
        ours = way is None or way == 2
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) if ours else nothing as fresh:
            if ours:
                runs.append(fresh.submit(run_ours, out, size, block, way).result())
            else:
                runs.append(run_gdal(plain, out, binary=shutil.which("gdal_translate") if way == "binary" else None))
        require_same_pixels(plain, out)
        for left in folder.glob("change.tif*"):
            left.unlink()
        print(runs[-1], flush=True)
    return runs


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=40_960, help="side of the raster, pixels")
    parser.add_argument("--block", type=int, default=4_096, help="side of a block, pixels")
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name, "plain.tif")
        lay_out(plain, given.size)
        turns = [measure(Path(name), plain, given.size, given.block) for _ in range(given.repeats)]
    gdals = [each.how for each in turns[0] if not each.how.startswith("write_cog")]
    print(f"{given.size:,} x {given.size:,} pixels, blocks of {given.block:,}")
    print("peaks: the client's, then each worker's; ratios: of everything, in brackets of the last pass")
    print(f"| way | s | last pass, s | peak, MB | COG, MB | {' | '.join(f's / {gdal}' for gdal in gdals)} |")
    print("|---|---|---|---|---|" + "---|" * len(gdals))
    for turn in turns:
        base = {each.how: each.seconds for each in turn}
        for each in turn:
            peaks = ", ".join(f"{peak:.0f}" for peak in each.peaks_mb)
            peaks += f" (floor {each.floor_mb:.0f})" if each.floor_mb else ""
            ratios = (f"{each.seconds / base[gdal]:.2f} ({each.last_pass_s / base[gdal]:.2f})" for gdal in gdals)
            times = f"{each.seconds:.0f} | {each.last_pass_s:.0f}"
            print(f"| {each.how} | {times} | {peaks} | {each.size_mb:.0f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
