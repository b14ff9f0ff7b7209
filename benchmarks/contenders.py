"""Loops by hand, and Dask as it comes: contenders of `speed` that need no library of tiles.

Each reads the pair, runs the network on tiles of 256 pixels with what lies outside the raster filled with 0 as
stored, keeps the core of each tile and writes a tiled, deflated GeoTIFF of class values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any

import networks
import numpy as np
import rasterio
import torch
from fresh import Job, Work
from rasterio.windows import Window

FILE_TILE_PX = 512
CHUNK_PX = 2048
VALUES = np.array(networks.CLASS_VALUES, np.uint8)


class Stacked(torch.nn.Module):
    """A network that takes six bands as stored: (tile, 6, y, x) of any type -> scores (tile, 2, y, x)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(networks.MEAN * 2)[:, None, None])
        self.register_buffer("std", torch.tensor(networks.STD * 2)[:, None, None])

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        """Normalise, part and run."""
        ready = (stack.float() - self.mean) / self.std
        scores: torch.Tensor = self.network(ready[:, :3], ready[:, 3:])
        return scores


def load_network(job: Job) -> torch.nn.Module:
    """The network with its weights, in the setting's memory format, frozen where the setting says so."""
    network: torch.nn.Module = {"cheap": networks.Cheap, "heavy": networks.Heavy}[job.network]()
    network.load_state_dict(torch.load(job.weights, weights_only=True))
    layout = torch.channels_last if job.setting.channels_last else torch.contiguous_format
    network = network.eval().to(memory_format=layout)  # type: ignore[call-overload]
    if not job.setting.is_frozen:
        return network
    example = [torch.zeros(1, 3, networks.TILE_PX, networks.TILE_PX)] * 2
    return torch.jit.freeze(torch.jit.trace(network, example))


def stride_px(job: Job) -> int:
    """Side of a tile's core."""
    return networks.TILE_PX - 2 * job.padding


def output_profile(job: Job) -> dict[str, Any]:
    """Of the result: rasterio's words."""
    with rasterio.open(job.rasters[0]) as dataset:
        grid = {"crs": dataset.crs, "transform": dataset.transform}
    shape = {"width": job.size, "height": job.size, "count": 1, "dtype": "uint8"}
    tiles = {"tiled": True, "blockxsize": FILE_TILE_PX, "blockysize": FILE_TILE_PX, "compress": "deflate"}
    return {"driver": "GTiff", **shape, **tiles, **grid}


@torch.inference_mode()
def classify(network: torch.nn.Module, tiles: np.ndarray, job: Job) -> np.ndarray:
    """(tile, 6, y, x) as stored -> class values of the cores, (tile, y, x)."""
    stack = torch.from_numpy(tiles)
    if job.setting.channels_last:
        stack = stack.contiguous(memory_format=torch.channels_last)
    scores = network(stack)[
        :, :, job.padding : job.padding + stride_px(job), job.padding : job.padding + stride_px(job)
    ]
    return VALUES[scores.argmax(1).numpy()]


def read_filled(datasets: list[Any], row: int, col: int, height: int, width: int) -> np.ndarray:
    """A window of the pair, (6, y, x), that may reach beyond the rasters: there it is 0."""
    filled = np.zeros((6, height, width), np.uint8)
    top, left = max(0, row), max(0, col)
    bottom, right = min(datasets[0].height, row + height), min(datasets[0].width, col + width)
    window = Window(left, top, right - left, bottom - top)
    inside = slice(top - row, bottom - row), slice(left - col, right - col)
    for date, dataset in enumerate(datasets):
        filled[3 * date : 3 * date + 3, *inside] = dataset.read(window=window)
    return filled


def simple(job: Job) -> Work:
    """One tile after the other: read, run, write."""

    def work() -> None:
        network, stride = Stacked(load_network(job)), stride_px(job)
        with contextlib.ExitStack() as files:
            datasets = [files.enter_context(rasterio.open(path)) for path in job.rasters]
            out = files.enter_context(rasterio.open(job.out, "w", **output_profile(job)))
            for row in range(0, job.size, stride):
                for col in range(0, job.size, stride):
                    origin = row - job.padding, col - job.padding
                    tile = read_filled(datasets, *origin, networks.TILE_PX, networks.TILE_PX)
                    window = Window(col, row, min(stride, job.size - col), min(stride, job.size - row))
                    core = classify(network, tile[None], job)[0]
                    out.write(core[: window.height, : window.width], 1, window=window)

    return work


def expert(job: Job) -> Work:
    """Strips read ahead by one thread and written by another, tiles in batches, the best setting of threads."""

    def work() -> None:
        setting = job.setting
        torch.set_num_threads(setting.intra_op)
        tell = partial(torch.set_num_threads, setting.intra_op)
        with contextlib.ExitStack() as held:
            datasets = [held.enter_context(rasterio.open(path)) for path in job.rasters]
            out = held.enter_context(rasterio.open(job.out, "w", **output_profile(job)))
            reader, writer = (held.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
            pool = held.enter_context(ThreadPoolExecutor(setting.threads, initializer=tell))
            network = Stacked(load_network(job))
            written: Future[None] | None = None
            for row, strip in _strips_ahead(datasets, reader, job):
                classes = classify_padded(strip, network, job, pool.map)
                if written:
                    written.result()
                written = writer.submit(_write_strip, out, row, classes, job)
            if written:
                written.result()

    return work


def _strips_ahead(datasets: list[Any], reader: ThreadPoolExecutor, job: Job) -> Iterator[tuple[int, np.ndarray]]:
    """(first row of the core, pixels with halo) of strips of as many rows of tiles as a tile of the file has."""
    stride, halo = stride_px(job), job.padding
    lines, columns = max(1, FILE_TILE_PX // stride), -(-job.size // stride)
    width = columns * stride + 2 * halo
    rows = range(0, job.size, lines * stride)

    def read(row: int) -> np.ndarray:
        core = min(lines, -(-(job.size - row) // stride)) * stride
        return read_filled(datasets, row - halo, -halo, core + 2 * halo, width)

    following = reader.submit(read, 0)
    for row in rows:
        strip = following.result()
        if row != rows[-1]:
            following = reader.submit(read, row + lines * stride)
        yield row, strip


def classify_padded(
    padded: np.ndarray, network: torch.nn.Module, job: Job, run: Callable[..., Any] = map
) -> np.ndarray:
    """Class values (y, x) of all cores of (6, y, x), which is whole strides and halo; ``run`` is some map."""
    views = np.lib.stride_tricks.sliding_window_view(padded, (networks.TILE_PX,) * 2, axis=(1, 2))
    views = views[:, :: stride_px(job), :: stride_px(job)].transpose(1, 2, 0, 3, 4)
    rows, columns = views.shape[:2]

    def classify_batch(first: int) -> np.ndarray:
        members = np.arange(first, min(first + job.setting.batch, rows * columns))
        return classify(network, views[np.unravel_index(members, (rows, columns))], job)

    cores = np.concatenate(list(run(classify_batch, range(0, rows * columns, job.setting.batch))))
    _, height, width = cores.shape
    return cores.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def _write_strip(out: Any, row: int, classes: np.ndarray, job: Job) -> None:
    strip = classes[: job.size - row, : job.size]
    out.write(strip, 1, window=Window(0, row, job.size, len(strip)))


def map_overlap(job: Job) -> Work:
    """Dask's overlap over chunks of about 2,048 pixels in this process's threads, through rioxarray."""
    import dask
    import dask.array as da
    import rioxarray
    import xarray as xr

    chunk = CHUNK_PX // stride_px(job) * stride_px(job)

    def work() -> None:
        torch.set_num_threads(1)
        network = Stacked(load_network(job))
        chunks = {"x": chunk, "y": chunk}
        opened = [rioxarray.open_rasterio(path, chunks=chunks, lock=False) for path in job.rasters]
        stack = da.concatenate([each.data for each in opened]).rechunk({0: 6})
        halo = {0: 0, 1: job.padding, 2: job.padding}
        haloed = da.overlap.overlap(stack, depth=halo, boundary={0: "none", 1: 0, 2: 0}, allow_rechunk=False)
        classes = haloed.map_blocks(
            _classify_chunk, network, job, drop_axis=0, chunks=stack.chunks[1:], dtype=np.uint8,
            meta=np.empty((0, 0), np.uint8),
        )  # fmt: skip
        change = xr.DataArray(classes, dims=("y", "x"), coords={"x": opened[0].x, "y": opened[0].y})
        change = change.rio.write_crs(opened[0].rio.crs)
        layout = {key: output_profile(job)[key] for key in ("tiled", "blockxsize", "blockysize", "compress")}
        with dask.config.set(scheduler="threads"):
            change.rio.to_raster(job.out, lock=Lock(), **layout)

    return work


def _classify_chunk(haloed: np.ndarray, network: torch.nn.Module, job: Job) -> np.ndarray:
    """(6, y, x) with halo -> class values (y, x) of the chunk."""
    height, width = (length - 2 * job.padding for length in haloed.shape[1:])
    whole = np.pad(haloed, ((0, 0), (0, -height % stride_px(job)), (0, -width % stride_px(job))))
    return classify_padded(whole, network, job)[:height, :width]
