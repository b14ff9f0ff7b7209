"""Kill matrix: SIGKILL to workers, the scheduler and the client at random moments, then ``resume``; what was lost?

    python benchmarks/kills.py [--kills 20] [--seed 1] [--repeat 2]

Scheduler, two workers and client are processes of their own; the raster is the demo's, laid out again and again, with
the demo's model. A run of which the scheduler or the client was killed is gone on with by ``resume=True`` until it is
whole; a run that lost workers ends by itself. Each result is compared with one that nothing disturbed: a Zarr store by
all of its files, a COG by its pixels and tags. Each block that is computed is noted, and at each kill so are the blocks
that are kept: one of these that is computed later has been computed twice.

Ends with status 1 where anything was lost or computed twice.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import rasterio

import geodl_dask as gd
from geodl_dask.demo import prepare_demo
from geodl_dask.outputs import partial_of

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from dask_processes import dask_processes

TARGETS = ("worker", "scheduler", "client")
FORMATS = (".tif", ".zarr")
CHUNKS_PX = 192


def note(block: np.ndarray, log: str, block_id: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Says in a file that a block was computed, and when. Runs on workers."""
    with Path(log).open("a") as file:  # one short write: whole lines, whoever else writes
        file.write(f"{block_id[0]} {block_id[1]} {time.time()}\n")
    return block


def run(pair: list[str], model: str, out: str, log: str, address: str | None) -> None:
    """What the client does: write a result, or go on with it."""
    change = gd.detect_change(*pair, model, chunks=CHUNKS_PX)
    change = change.copy(data=change.data.map_blocks(note, log=log, dtype=change.dtype, meta=change.data._meta))
    write = gd.write_zarr if out.endswith(".zarr") else gd.write_cog
    if address is None:
        write(change, out)
        return
    with gd.connect(address):
        write(change, out, resume=True)


def start_client(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, "--run", *words], stderr=subprocess.PIPE, text=True)


@dataclass
class Count:
    """What one row of the table counts."""

    kills: int = 0
    runs: int = 0
    blocks: int = 0
    computed: int = 0
    twice: int = 0
    unequal: int = 0
    not_told: int = 0
    kept: list[int] = field(default_factory=list)


@dataclass
class Trial:
    """One result, from its first run to its end."""

    out: Path
    log: Path
    kept_at: list[tuple[float, set[tuple[int, int]]]] = field(default_factory=list)

    def kept(self) -> set[tuple[int, int]]:
        partial = partial_of(self.out)
        if self.out.suffix == ".zarr":
            return {
                (int(path.parent.name), int(path.name)) for path in partial.glob("*/*/*/c/*/*") if path.name.isdecimal()
            }
        return {tuple(map(int, path.stem.split("_"))) for path in partial.glob("*/*_*.tif")}

    def lines(self) -> list[tuple[int, int, float]]:
        if not self.log.exists():
            return []
        return [(int(row), int(col), float(at)) for row, col, at in map(str.split, self.log.read_text().splitlines())]

    def computed_twice(self) -> int:
        return sum((row, col) in kept and at > when for row, col, at in self.lines() for when, kept in self.kept_at)

    def wait_for(self, blocks: int, client: subprocess.Popen) -> bool:
        """Until that many blocks are kept; False where the client ended before."""
        while client.poll() is None:
            if len(self.kept()) >= blocks:
                return True
            time.sleep(0.02)
        return False

    def about_to_kill(self) -> None:
        kept = self.kept()
        # A block that was computed, and is kept at this very moment, has its line already.
        self.kept_at.append((time.time(), kept))


def end(process: psutil.Process | subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)


def kill_workers(trial: Trial, words: list[str], count: Count, kills: int, chance: random.Random) -> int:
    """One run in which one worker after the other dies. Returns how many did."""
    with dask_processes(workers=2) as (address, _):
        client, done = start_client([*words, address]), 0
        while done < kills and trial.wait_for(len(trial.kept()) + chance.randint(1, 20), client):
            trial.about_to_kill()
            end(chance.choice(worker_processes()))
            done += 1
        _, told = client.communicate(timeout=600)
        if client.returncode:
            raise SystemExit(f"A run that lost {done} workers failed: {told}")
    count.runs += 1
    return done


def worker_processes() -> list[psutil.Process]:
    """Those that compute, below the nannies."""
    started = psutil.Process().children(recursive=True)
    return [each for each in started if "spawn_main" in " ".join(each.cmdline())]


def kill_scheduler_or_client(
    target: str, trial: Trial, words: list[str], count: Count, blocks: int, chance: random.Random
) -> int:
    """A first run that is killed, and a second that goes on. Returns 1 if the first one was."""
    with dask_processes(workers=2) as (address, scheduler):
        client = start_client([*words, address])
        is_killed = trial.wait_for(chance.randint(1, blocks - 8), client)
        trial.about_to_kill()
        count.kept.append(len(trial.kept()))
        end(scheduler if target == "scheduler" else client)
        _, told = client.communicate(timeout=120)
        if target == "scheduler" and not (client.returncode == 1 and "was lost" in told and "--resume" in told):
            count.not_told += 1
            print(told[-500:], file=sys.stderr)
    with dask_processes(workers=2) as (address, _):
        client = start_client([*words, address])
        _, told = client.communicate(timeout=600)
        if client.returncode:
            raise SystemExit(f"The run that went on failed: {told}")
    count.runs += 2
    return int(is_killed)


def contents(out: Path) -> dict[str, bytes]:
    if out.suffix == ".zarr":
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with rasterio.open(out) as dataset:
        return {"pixels": dataset.read().tobytes(), "tags": str(sorted(dataset.tags().items())).encode()}


def lay_out(image: Path, target: Path, times: int) -> str:
    """An image again and again, ``times`` in each direction."""
    with rasterio.open(image) as dataset:
        pixels, profile = np.tile(dataset.read(), (1, times, times)), dataset.profile
    with rasterio.open(target, "w", **profile | {"height": pixels.shape[1], "width": pixels.shape[2]}) as dataset:
        dataset.write(pixels)
    return str(target)


def measure(kills: int, seed: int, times: int, formats: tuple[str, ...], targets: tuple[str, ...]) -> bool:
    chance, is_good = random.Random(seed), True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = prepare_demo(folder / "demo")
        pair = [lay_out(image, folder / f"{image.stem}.tif", times) for image in (demo.from_raster, demo.to_raster)]
        print("| killed | result | kills | runs | blocks | computed | kept, then computed again | results unequal |")
        print("|---|---|---|---|---|---|---|---|")
        for suffix in formats:
            undisturbed = folder / f"undisturbed{suffix}"
            run(pair, str(demo.model), str(undisturbed), str(folder / "undisturbed.log"), None)
            expected = contents(undisturbed)
            blocks = len((folder / "undisturbed.log").read_text().splitlines())
            (folder / "undisturbed.log").unlink()
            for target in targets:
                count = Count()
                while count.kills < kills:
                    trial = Trial(folder / f"change{suffix}", folder / "computed.log")
                    words = [*pair, str(demo.model), str(trial.out), str(trial.log)]
                    if target == "worker":
                        most = min(kills - count.kills, blocks // 20)
                        count.kills += kill_workers(trial, words, count, most, chance)
                    else:
                        count.kills += kill_scheduler_or_client(target, trial, words, count, blocks, chance)
                    count.blocks += blocks
                    count.computed += len(trial.lines())
                    count.twice += trial.computed_twice()
                    count.unequal += contents(trial.out) != expected
                    for left in (trial.out, trial.log, *folder.glob("change*.json"), *folder.glob("change*.xml")):
                        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
                told = (target, suffix[1:], count.kills, count.runs, count.blocks, count.computed, count.twice)
                print("|", *(f"{each} |" for each in told), f"{count.unequal} |", flush=True)
                if count.kept:
                    print(f"  kept at the kills: {sorted(count.kept)}", file=sys.stderr, flush=True)
                if count.not_told:
                    print(f"  {count.not_told} run(s) did not say that the scheduler was lost", file=sys.stderr)
                is_good &= not (count.twice or count.unequal or count.not_told)
    return is_good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each target and format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2, help="how often the demo's images are laid out each way")
    parser.add_argument("--format", choices=FORMATS, action="append", help="one format instead of both")
    parser.add_argument("--target", choices=TARGETS, action="append", help="one target instead of all")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        try:
            run(given.run[:2], *given.run[2:])
        except gd.GeodlError as error:
            sys.exit(" ".join([str(error), *getattr(error, "__notes__", [])]))
        return
    good = measure(
        given.kills, given.seed, given.repeat, tuple(given.format or FORMATS), tuple(given.target or TARGETS)
    )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
