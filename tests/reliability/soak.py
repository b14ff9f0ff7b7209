"""A long run whose workers are killed again and again, with everybody's memory over time.

    python tests/reliability/soak.py [--minutes 30] [--seed 1] [--picture benchmarks/results/soak.png]

Scheduler and workers are processes of their own, the client is this one. A block is 64 pixels a side of the toy network
of the tests, and takes at least 0.3 s, most of it asleep: so the run takes about as long as is asked for, of thousands
of blocks, and leaves the machine to others. For so long, some seconds after both workers are there one of them, or
both, is killed (SIGKILL), and its nanny starts another; what is left then is computed in peace. In the end the store is
compared with one that nothing disturbed, file by file.

Prints what was seen, and writes it beside the picture, as Markdown. Ends with status 1 where bytes differ or memory has
grown.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from unittest.mock import patch

import distributed
import numpy as np
import psutil
import xarray as xr
from distributed import Client

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import ToyNetwork, save_network, write_definition, write_raster
from dask_processes import dask_processes

import geodl_dask as gd
from geodl_dask.outputs import Written

BLOCK_PX, BLOCK_S, WORKERS, SAMPLE_S = 64, 0.3, 2, 1.0
BLOCKS_PER_S = 2.1
"""Of both workers, killed like that: seen on two cores."""
KILLED_AFTER_S = 1.0, 5.0
"""The least and the most."""
MOST_MB = 40.0
"""What the peak of the last quarter of a run may be more than that of its second: memory that is not given back."""


@dataclass
class Soak:
    """What was seen of a run."""

    blocks: int = 0
    seconds: float = 0.0
    kills: list[float] = field(default_factory=list)
    """When, in seconds since the run began."""
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Of client, scheduler and workers (the largest): seconds since the run began, and MB."""
    differing: list[str] = field(default_factory=list)
    """Files of the result that are not as in a run that nothing disturbed."""

    def growth_mb(self, who: str) -> float:
        """From the second quarter of the run to the last, peak to peak."""
        quarter = self.seconds / 4
        early = [mb for at, mb in self.memory[who] if quarter <= at < 2 * quarter]
        late = [mb for at, mb in self.memory[who] if at >= 3 * quarter]
        return max(late) - max(early) if early and late else 0.0  # in seconds there may be no worker to look at

    def grown(self) -> dict[str, float]:
        """Who has grown by more than is given back, and by how many MB."""
        return {who: round(self.growth_mb(who)) for who in self.memory if self.growth_mb(who) > MOST_MB}

    def told(self) -> str:
        """In a line."""
        memory = ", ".join(
            f"{who} {max(mb for _, mb in seen):.0f} MB at most, {self.growth_mb(who):+.0f}"
            for who, seen in self.memory.items()
        )
        return f"{self.seconds:.0f} s, {self.blocks:,} blocks, {len(self.kills)} workers killed; {memory}"


def paused(block: np.ndarray) -> np.ndarray:
    """A block of a slower network. Runs on workers."""
    time.sleep(BLOCK_S)
    return block


def request(folder: Path, blocks: int) -> xr.DataArray:
    """Change of two rasters of at least so many blocks, lazy."""
    side = int(np.ceil(blocks**0.5)) * BLOCK_PX
    images = np.random.default_rng(3).integers(0, 256, (2, 3, 512, 512)).astype(np.uint8)
    pair = [folder / "from.tif", folder / "to.tif"]
    for path, image in zip(pair, images, strict=True):
        tiled = np.tile(image, (1, side // 512 + 1, side // 512 + 1))[:, :side, :side]
        write_raster(path, tiled, compress="deflate")
    save_network(ToyNetwork(), folder / "toy.pt")
    return gd.detect_change(*pair, write_definition(folder / "toy.emd", ModelFile="toy.pt"), chunks=BLOCK_PX)


def slowed(change: xr.DataArray) -> xr.DataArray:
    """The same, but each block takes its time."""
    return change.copy(data=change.data.map_blocks(paused, dtype=change.dtype, meta=change.data._meta))


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def soak(seconds: float, seed: int) -> Soak:
    """Kill for so long, and look on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        change = request(folder, int(seconds * BLOCKS_PER_S))
        expected = files_of(Path(gd.write_zarr(change, folder / "undisturbed.zarr").path))
        seen = Soak(blocks=change.data.npartitions)
        # Whom we kill so often is soon taken to be at fault: here no block is, however many of its workers die.
        patient = patch.dict(os.environ, {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000"})
        with patient, dask_processes(workers=WORKERS) as (address, scheduler), gd.connect(address) as client:
            client.wait_for_workers(WORKERS, timeout=180)
            disturb = partial(_kill_workers, seen, client, random.Random(seed), seconds)
            written = _watched(seen, slowed(change), folder / "change.zarr", scheduler, disturb)
        found = files_of(Path(written.path))
        seen.differing = sorted(each for each in expected | found if expected.get(each) != found.get(each))
    return seen


def _kill_workers(seen: Soak, client: Client, chance: random.Random, seconds: float, ended: threading.Event) -> None:
    """One or both, again and again, some time after both have come."""
    begun = time.monotonic()
    while not ended.wait(chance.uniform(*KILLED_AFTER_S)) and time.monotonic() - begun < seconds:
        while len(client.nthreads()) < WORKERS and not ended.wait(0.2):
            pass
        # Those that are at work: a nanny gives up on a worker that dies while it starts.
        alive = sorted(client.run(os.getpid, on_error="ignore").values())
        for victim in chance.sample(alive, min(len(alive), chance.choice([1, 1, 1, WORKERS]))):
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                seen.kills.append(time.monotonic() - begun)
        time.sleep(0.5)  # until the scheduler has noticed


def _watched(
    seen: Soak, change: xr.DataArray, out: Path, scheduler: psutil.Process, disturb: Callable[[threading.Event], None]
) -> Written:
    ended, begun = threading.Event(), time.monotonic()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            now = {"client": [psutil.Process()], "scheduler": [scheduler], "workers": _workers()}
            for who, processes in now.items():
                mb = max((_memory_mb(each) for each in processes), default=0.0)
                if mb:
                    seen.memory.setdefault(who, []).append((time.monotonic() - begun, mb))

    threads = [threading.Thread(target=disturb, args=(ended,)), threading.Thread(target=sample)]
    for thread in threads:
        thread.start()
    try:
        return gd.write_zarr(change, out)
    finally:
        ended.set()
        seen.seconds = time.monotonic() - begun
        for thread in threads:
            thread.join()


def _workers() -> list[psutil.Process]:
    """The processes that compute, below the nannies."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if "spawn_main" in " ".join(each.cmdline()):
                found.append(each)
        except psutil.Error:  # it has just ended
            continue
    return found


def _memory_mb(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 2**20
    except psutil.Error:
        return 0.0


def save_picture(seen: Soak, path: Path) -> None:
    """Memory over time, with a mark for each worker that was killed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    for who, samples in seen.memory.items():
        axes.plot([at / 60 for at, _ in samples], [mb for _, mb in samples], label=who, linewidth=1)
    axes.plot([at / 60 for at in seen.kills], [0] * len(seen.kills), "|", color="black", label="worker killed")
    axes.set(xlabel="minutes", ylabel="memory, MB (workers: the largest)", ylim=(0, None), title=seen.told())
    axes.title.set_size(8)
    axes.legend(loc="center right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    seen = soak(given.minutes * 60, given.seed)
    told = f"{seen.told()}. Files that differ: {len(seen.differing)}. Grown: {seen.grown() or 'nobody'}."
    print(told)
    if given.picture:
        save_picture(seen, given.picture)
        asked = f"`python tests/reliability/soak.py --minutes {given.minutes:g} --seed {given.seed}`"
        where = f"{date.today()}, {os.cpu_count()} cores, distributed {distributed.__version__}"
        text = f"# Soak\n\n{asked}, {where}:\n\n{told}\n\n![Memory over time]({given.picture.name})\n"
        given.picture.with_suffix(".md").write_text(text)
    sys.exit(1 if seen.differing or seen.grown() else 0)


if __name__ == "__main__":
    main()
