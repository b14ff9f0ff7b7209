"""What the contenders of `speed` are given, and whether they gave the same back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
import zarr
from contenders import FILE_TILE_PX, Stacked, read_filled, stride_px
from fresh import Job
from memory import lay_out
from networks import TILE_PX, make_network, write_model
from rasterio.windows import Window

from geodl_dask.demo import prepare_demo

STRIP = 1024
WINDOW_PX = 1024
"""Side of the core that tiles are merged to, rounded down to whole strides."""
REACH_PX = {"cheap": 2, "heavy": 63}
"""How far the networks look: tiles can be merged where the padding is as much."""


def prepare_rasters(folder: Path, size: int, compress: str | None) -> None:
    """The pair of a size: the demo's scene again and again, tiled."""
    if not (folder / "demo").exists():
        prepare_demo(folder / "demo")
    tiles = {"tiled": True, "blockxsize": FILE_TILE_PX, "blockysize": FILE_TILE_PX, "compress": compress}
    for name in ("from.tif", "to.tif"):
        lay_out(folder / "demo" / name, folder / f"{size}_{name}", size, **tiles)


def prepare_network(job: Job) -> None:
    """The model definition, the weights, and the network as TorchScript of six bands."""
    job.model.parent.mkdir(exist_ok=True)
    write_model(job.network, job.padding, job.model.parent)
    network = make_network(job.network)
    torch.save(network.state_dict(), job.weights)
    torch.jit.trace(Stacked(network), torch.zeros(1, 6, TILE_PX, TILE_PX, dtype=torch.uint8)).save(job.script)


def prepare_stack(job: Job) -> None:
    """The pair as one raster with a margin of zeros, so that whole tiles cover it."""
    side = -(-job.size // stride_px(job)) * stride_px(job) + 2 * job.padding
    with ExitStack() as files:
        datasets = [files.enter_context(rasterio.open(path)) for path in job.rasters]
        transform = datasets[0].transform @ rasterio.Affine.translation(-job.padding, -job.padding)
        profile = {**datasets[0].profile, "count": 6, "width": side, "height": side, "transform": transform}
        profile.pop("photometric", None)
        out = files.enter_context(rasterio.open(job.stack, "w", **profile, bigtiff="if_safer"))
        for row in range(0, side, STRIP):
            height = min(STRIP, side - row)
            pixels = read_filled(datasets, row - job.padding, -job.padding, height, side)
            out.write(pixels, window=Window(0, row, side, height))


def merges(job: Job) -> bool:
    """Whether larger tiles give the same, so that geodl_dask may run them."""
    return job.padding >= REACH_PX[job.network]


def floor_jobs(job: Job) -> dict[str, Job]:
    """The windows whose forward is a floor, by name: tiles, merged tiles, core pixels alone."""
    strides, core = -(-job.size // stride_px(job)), WINDOW_PX // stride_px(job) * stride_px(job)
    across = -(-strides // (core // stride_px(job)))
    side = core + 2 * job.padding
    covered = strides * stride_px(job) + across * 2 * job.padding
    return {
        "tiles": replace(job, window_px=TILE_PX, windows=float(strides**2)),
        "merged": replace(job, window_px=side, windows=(covered / side) ** 2),
        "core": replace(job, window_px=WINDOW_PX, windows=(job.size / WINDOW_PX) ** 2),
    }


def count_differing(reference: Path, made: Path, job: Job) -> int:
    """Pixels whose class is another."""
    with ExitStack() as files:
        one, other = _reader(reference, job, files), _reader(made, job, files)
        rows = range(0, job.size, STRIP)
        return sum(int((one(row) != other(row)).sum()) for row in rows)


def _reader(path: Path, job: Job, files: ExitStack) -> Callable[[int], np.ndarray]:
    """Of a result: the strip of class values that begins at a row."""
    if path.suffix == ".zarr":
        array = zarr.open_group(path, mode="r")["change"]
        return lambda row: np.asarray(array[row : row + STRIP])
    dataset = files.enter_context(rasterio.open(path))
    # Of some peers the result has the margin that they were given.
    margin = job.padding if dataset.width > job.size else 0

    def read(row: int) -> np.ndarray:
        height = min(STRIP, job.size - row)
        values = dataset.read(1, window=Window(margin, margin + row, job.size, height))
        # One peer writes indices of classes.
        return np.where(values == 1, 255, values)

    return read
