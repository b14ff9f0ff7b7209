"""How fast a change raster is made, beside what the hardware allows and beside other ways to make it.

    python benchmarks/speed.py [--sizes 4096 16384] [--networks cheap heavy] [--paddings 0 32 64] [--rounds 3]
        [--compress deflate] [--only NAME ...] [--without NAME ...] [--peers PYTHON] [--peer-sizes 4096]

Two tiled GeoTIFFs (the demo's scene, laid out again and again) and two networks (`networks`), tiles of 256 pixels.
Each contender runs in a fresh process, and they take turns; the figures are medians over the rounds, and each ratio is
of times of one round. Floors are the network alone, on windows in memory, and reading and writing alone. The network's
are measured by the best of the settings that are tried first (threads, memory format, batch, glibc's allocator,
freezing): "tiles" are the model's, "merged" those that geodl_dask makes of them where the network looks no further than
the padding, "core" windows without any margin. The larger floor is the greater of the network's, on the tiles that the
contender runs, and reading and writing. Differing pixels are counted against the model's own tiles in geodl_dask.
``--peers`` is the Python of an environment with other people's libraries, at padding 64 alone; of sizes above 4,096,
those whose memory does not grow take part, with the cheap network. "Others' CPU" is the share of the machine that other
processes took meanwhile: where it is not about 0, times are not to be trusted, least of all those of contenders that
leave torch its own threads, which wait for each other.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import median

import rasterio
import torch
from fresh import ContenderError, Job, Measured, Setting, measure
from layout import WINDOW_PX, count_differing, floor_jobs, merges, prepare_network, prepare_rasters, prepare_stack
from networks import TILE_PX

MARKED_ABOVE = 1e-4
"""Share of differing pixels from which on a result is not the same."""
AGAIN = 4
"""So many of the fastest settings are tried twice."""
ONE_ROUND_FROM_PX = 16_384
PEER_PADDING, PEER_SIZE = 64, 4096
FLOORS = {"tiles": "forward, tiles", "merged": "forward, merged", "core": "forward, core", "io": "read and write"}
REFERENCE = "ours, model's tiles, zarr"


@dataclass(frozen=True)
class Contender:
    """Who takes part, and how it is started."""

    start: str
    """``"module:function"``."""
    result: str = "change.tif"
    """Name of what it makes."""
    by: str = "best"
    """Setting: ``"best"`` for tiles, but for allocator and freezing, ``"tuned"``: those too, or ``"plain"``."""
    is_peer: bool = False
    """Whether it needs the peers' environment."""
    grows: bool = False
    """Whether its memory grows with the raster, so that large ones are not tried."""


CONTENDERS = {
    REFERENCE: Contender("ours:model_tiles", "change.zarr"),
    "ours, zarr": Contender("ours:auto_tiles", "change.zarr"),
    "ours, tif": Contender("ours:auto_tiles"),
    "expert's loop": Contender("contenders:expert"),
    "expert's loop, tuned as ours": Contender("contenders:expert", by="tuned"),
    "simple loop": Contender("contenders:simple", by="plain"),
    "dask map_overlap, threads": Contender("contenders:map_overlap", by="plain"),
    "xbatcher": Contender("peers:xbatcher", by="plain", is_peer=True),
    "torchgeo": Contender("peers:torchgeo", by="plain", is_peer=True),
    "MONAI": Contender("peers:monai", by="plain", is_peer=True, grows=True),
    "terratorch": Contender("peers:terratorch", by="plain", is_peer=True, grows=True),
    "geoai": Contender("peers:geoai", by="plain", is_peer=True, grows=True),
    "geo-inference": Contender("peers:geo_inference", by="plain", is_peer=True, grows=True),
}


@dataclass
class Row:
    """What was found of a contender, or of a floor, over the rounds."""

    who: str
    runs: list[Measured] = field(default_factory=list)
    of_floor: list[float] = field(default_factory=list)
    of_larger: list[float] = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    failed: str = ""


def settings() -> Iterator[Setting]:
    """Those that are tried, but for the batch."""
    for threads, channels_last, is_malloc_tuned in product((1, 2), (False, True), (False, True)):
        yield Setting(threads, 2 // threads, channels_last, is_malloc_tuned)


def calibrate(job: Job) -> dict[str, Setting]:
    """The fastest setting for the model's tiles and for large windows; prints what each gave."""
    best = {}
    side = WINDOW_PX + 2 * PEER_PADDING
    for kind, side_px, batches in (("tiles", TILE_PX, (1, 8)), ("merged", side, (1,))):

        def seconds_with(setting: Setting, side_px: int = side_px) -> float:
            tried = replace(job, setting=setting, window_px=side_px, windows=1.0)
            return measure(sys.executable, "floors:forward", tried).seconds

        tried = [replace(setting, batch=batch) for setting, batch in product(settings(), batches)]
        seconds = {setting: seconds_with(setting) for setting in tried}
        for setting in sorted(seconds, key=seconds.__getitem__)[:AGAIN]:
            seconds[setting] = min(seconds[setting], seconds_with(setting))
        frozen = replace(min(seconds, key=seconds.__getitem__), is_frozen=True)
        seconds[frozen] = seconds_with(frozen)
        best[kind] = min(seconds, key=seconds.__getitem__)
        for setting, taken in sorted(seconds.items(), key=lambda each: each[1]):
            speed = side_px**2 / taken / 1e6
            print(f"| {job.network} | {side_px} | {setting} | {speed:.2f} |", flush=True)
    return {**best, "core": best["merged"]}


def measure_floors(job: Job, best: dict[str, Setting]) -> dict[str, Measured]:
    """One round of them."""
    found = {}
    for kind, floor in floor_jobs(job).items():
        found[kind] = measure(sys.executable, "floors:forward", replace(floor, setting=best[kind]))
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        found["io"] = measure(sys.executable, "floors:read_and_write", replace(job, out=str(Path(folder, "out.tif"))))
    if not merges(job) or not job.padding:
        found["merged"] = found["tiles"]
    return found


def run_contender(row: Row, contender: Contender, job: Job, python: str, floors: dict[str, Measured]) -> None:
    """One run, with what it is worth beside the round's floors; the reference's result stays for the others."""
    kept, out = Path(job.folder, "reference"), Path(job.folder, "out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        run = measure(python, contender.start, replace(job, out=str(out / contender.result)))
    except ContenderError as error:
        row.failed = str(error)
        return
    row.runs.append(run)
    network = floors["merged" if contender.start == "ours:auto_tiles" and not run.note else "tiles"].seconds
    row.of_floor.append(run.seconds / network)
    row.of_larger.append(run.seconds / max(network, floors["io"].seconds))
    if row.who == REFERENCE:
        shutil.rmtree(kept, ignore_errors=True)
        out.rename(kept)
        row.differing.append(0)
    else:
        row.differing.append(count_differing(kept / "change.zarr", out / contender.result, job))


def setting_for(contender: Contender, best: Setting) -> Setting:
    """How the contender runs the network."""
    if contender.by == "plain":
        return Setting()
    return best if contender.by == "tuned" else replace(best, is_malloc_tuned=False, is_frozen=False)


def compare(job: Job, best: dict[str, Setting], given: argparse.Namespace) -> list[Row]:
    """Every contender and floor at one size, network and padding."""
    chosen = {who: each for who, each in CONTENDERS.items() if _takes_part(who, each, job, given)}
    if any(each.is_peer for each in chosen.values()) and not job.stack.exists():
        prepare_stack(job)
    rows = {who: Row(label) for who, label in FLOORS.items()} | {who: Row(who) for who in chosen}
    names = [who for who in chosen if who != REFERENCE]
    for turn in range(given.rounds or (1 if job.size >= ONE_ROUND_FROM_PX else 3)):
        floors = measure_floors(job, best)
        for kind, run in floors.items():
            rows[kind].runs.append(run)
        for who in [REFERENCE, *names[turn % len(names) :], *names[: turn % len(names)]] if names else [REFERENCE]:
            if rows[who].failed:
                continue
            python = given.peers if chosen[who].is_peer else sys.executable
            told = replace(job, setting=setting_for(chosen[who], best["tiles"]))
            run_contender(rows[who], chosen[who], told, python, floors)
    return list(rows.values())


def _takes_part(who: str, contender: Contender, job: Job, given: argparse.Namespace) -> bool:
    if who == REFERENCE:
        return True
    if (given.only and not any(each in who for each in given.only)) or who in given.without:
        return False
    if not contender.is_peer:
        return True
    is_large = job.size > PEER_SIZE
    fits = job.padding == PEER_PADDING and job.size in given.peer_sizes
    return bool(given.peers) and fits and not (is_large and (contender.grows or job.network != "cheap"))


def print_rows(rows: list[Row], job: Job) -> None:
    """Lines of the table."""
    start = f"| {job.size:,} | {job.network} | {job.padding}"
    for row in rows:
        if row.failed and not row.runs:
            print(f"{start} | {row.who} | failed: {row.failed} | | | | | | | | | | |", flush=True)
            continue
        middle = {
            name: median(getattr(run, name) for run in row.runs)
            for name in ("seconds", "cpu_s", "peak_mb", "import_s", "process_s", "disturbed")
        }
        cells = [row.who, f"{middle['seconds']:.2f}"]
        cells += [f"{median(each):.2f}" if each else "" for each in (row.of_floor, row.of_larger)]
        cells += [f"{job.size**2 / middle['seconds'] / 1e6:.2f}", f"{middle['cpu_s']:.1f}", f"{middle['peak_mb']:.0f}"]
        cells += [
            _agreement(row, job),
            f"{middle['import_s']:.1f}",
            f"{middle['process_s']:.1f}",
            f"{middle['disturbed']:.0%}",
        ]
        workers = max(run.workers for run in row.runs)
        notes = [row.runs[-1].note, f"{workers} worker processes" if workers else "", row.failed]
        print(f"{start} | {' | '.join(cells)} | {'; '.join(each for each in notes if each)} |", flush=True)


def _agreement(row: Row, job: Job) -> str:
    if not row.differing:
        return ""
    share = max(row.differing) / job.size**2
    mark = "**not the same** " if share > MARKED_ABOVE else ""
    return f"{mark}{max(row.differing):,} ({share:.4%})" if share else "0"


def print_head(given: argparse.Namespace) -> None:
    """Date, machine, versions."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name\t: ")[-1].splitlines()[0]
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{datetime.date.today()}, {os.cpu_count()} cores ({cpu}), load {load}; Python {platform.python_version()}, ")
    print(f"torch {torch.__version__}, GDAL {rasterio.__gdal_version__}; rasters {given.compress or 'uncompressed'}\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16_384], help="sides of the rasters, pixels")
    parser.add_argument("--networks", nargs="+", choices=["cheap", "heavy"], default=["cheap", "heavy"])
    parser.add_argument("--paddings", type=int, nargs="+", default=[0, 32, 64])
    parser.add_argument("--rounds", type=int, help="3, and from 16,384 on 1, if not given")
    parser.add_argument("--compress", help="of the rasters, GDAL's word; none if not given")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders whose name has one of these in it")
    parser.add_argument("--without", nargs="+", metavar="NAME", default=[], help="contenders that are left out")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with the peers' libraries")
    parser.add_argument("--peer-sizes", type=int, nargs="+", default=[PEER_SIZE])
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    given = parse()
    print_head(given)
    with tempfile.TemporaryDirectory() as name:
        folder, best = Path(name), {}
        print("| network | window, px | setting | Mpx/s, margin counted |\n|---|---|---|---|")
        for network in given.networks:
            for padding in given.paddings:
                prepare_network(Job(name, network, padding, 0))
            best[network] = calibrate(Job(name, network, given.paddings[0], 0))
        print("\n| size | network | padding | who | s | / floor of its tiles | / larger floor | kept Mpx/s | CPU s "
              "| peak MB | pixels that differ | imports, s | process, s | others' CPU | |")  # fmt: skip
        print("|---" * 15 + "|", flush=True)
        for size in given.sizes:
            prepare_rasters(folder, size, given.compress)
            for network, padding in product(given.networks, given.paddings):
                job = Job(name, network, padding, size)
                print_rows(compare(job, best[network], given), job)
            for left in folder.glob(f"{size}_*.tif"):
                left.unlink()


if __name__ == "__main__":
    main()
