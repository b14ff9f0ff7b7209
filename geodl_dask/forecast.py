"""What a run will take: blocks, tasks, bytes and memory, from its plan alone. Nothing is read or computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from distributed import Client
from distributed.system import MEMORY_LIMIT

from .blocks import regular_blocks
from .confidence import layers_of
from .dispatch import blocks_per_task
from .kernel import Inference
from .rasters.grids import describe_grid
from .shards import Shard
from .workers import memory_limit


@dataclass(frozen=True)
class Room:
    """The workers that a run has."""

    workers: int
    """Processes."""
    threads: int
    """Of each: so many blocks it has in work at once."""
    memory_bytes: int
    """Of each; 0: not limited."""

    @classmethod
    def here(cls, workers: int | None, threads: int | None = None) -> Room:
        """On this machine; without ``workers`` in this process."""
        count = workers or 1
        return cls(count, threads or max(1, CPU_COUNT // count), MEMORY_LIMIT // count)

    @classmethod
    def of_client(cls, client: Client) -> Room:
        """As they are by now."""
        threads = client.nthreads().values()
        return cls(len(threads), max(threads, default=1), memory_limit(client))


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it begins."""

    grid: str
    """Of the result, in words."""
    blocks_yx: tuple[int, int]
    """How many blocks there are along y and x."""
    block_yx: tuple[int, int]
    """Height and width of a block, pixels."""
    block_why: str
    """Why it is that large."""
    shard: str
    """The share of the blocks that is computed."""
    shard_blocks: int
    """How many blocks that is."""
    kept_blocks: int
    """How many of these an earlier run has kept."""
    tasks: int
    """In how many tasks the blocks go to the workers."""
    blocks_per_task: int
    """How many neighbouring blocks make a task."""
    tile_yx: tuple[int, int]
    """Height and width of the model's tile, pixels."""
    padding: int
    """What is cut from each side of its prediction, pixels."""
    tiles: int
    """How many tiles cover the raster."""
    prediction: str
    """How they are predicted, in words."""
    prediction_bytes: int | None
    """Memory that one prediction takes, as a probe measured it; None: not measured."""
    pixel_bytes: int | None
    """Of one pixel in all bands of all rasters; None: not known, for they are no files."""
    read_bytes: int | None
    """Pixels of all blocks of the share with their halos, on the result's grid."""
    block_bytes: int | None
    """The same of the largest block."""
    result_bytes: int
    """Pixels of the share's blocks of the result, not compressed."""

    def warnings(self, room: Room) -> list[str]:
        """Where blocks and workers do not fit each other, and which blocks would."""
        found = []
        if self.shard_blocks < room.workers:
            smaller = self._chunks_for(self.block_yx[0] * self.block_yx[1] * self.shard_blocks / room.workers)
            found.append(
                f"There are {self.shard_blocks} blocks for {room.workers} workers, so that some have nothing to do. "
                f"{smaller} would give each one, or nearly."
            )
        needed = room.threads * (self.block_bytes or 0)
        if room.memory_bytes and needed > room.memory_bytes / 2:
            side = math.sqrt(room.memory_bytes / 2 / room.threads / (self.pixel_bytes or 1)) - 2 * self.padding
            found.append(
                f"{room.threads} blocks at once take {format_bytes(needed)} as pixels alone, and a worker has "
                f"{format_bytes(room.memory_bytes)}. {self._chunks_for(max(side, 1) ** 2)} would leave half of it free."
            )
        return found

    def _chunks_for(self, most_px: float) -> str:
        """The option by which no block has more pixels, but for a tile's."""
        strides = [length - 2 * self.padding for length in self.tile_yx]
        return f"--chunks {max(math.isqrt(int(most_px)) // max(strides), 1) * max(strides)}"


def forecast(
    change: xr.DataArray | xr.Dataset, *, chunks: int | Literal["auto"], shard: Shard, kept: int = 0
) -> Forecast:
    """What it takes to write a share of a result.

    change : as `detect_change` gives it. chunks : what was asked for. kept : blocks that an earlier run has left.
    """
    blocks, classes = regular_blocks(change), layers_of(change)[0]
    tile_yx, padding = tuple(classes.attrs["tile_size"]), classes.attrs["padding"]
    stride_yx = [length - 2 * padding for length in tile_yx]
    inference, rasters = _planned(blocks)
    count = shard.block_count(blocks.numblocks)
    share, of_task = count / blocks.npartitions, blocks_per_task(count)
    pixel_bytes = sum(len(each.band_names) * np.dtype(each.dtype).itemsize for each in rasters) or None
    haloed = [_haloed(lengths, padding) for lengths in blocks.chunks]
    return Forecast(
        grid=describe_grid(classes.odc.geobox),
        blocks_yx=blocks.numblocks,
        block_yx=(blocks.chunks[0][0], blocks.chunks[1][0]),
        block_why=_why(chunks, stride_yx),
        shard=str(shard),
        shard_blocks=count,
        kept_blocks=kept,
        tasks=-(-count // of_task),
        blocks_per_task=of_task,
        tile_yx=tile_yx,
        padding=padding,
        tiles=math.prod(-(-length // stride) for length, stride in zip(blocks.shape, stride_yx, strict=True)),
        prediction=classes.attrs["prediction"],
        prediction_bytes=_prediction_bytes(inference) if inference else None,
        pixel_bytes=pixel_bytes,
        read_bytes=pixel_bytes and int(sum(haloed[0]) * sum(haloed[1]) * share * pixel_bytes),
        block_bytes=pixel_bytes and max(haloed[0]) * max(haloed[1]) * pixel_bytes,
        result_bytes=int(blocks.nbytes * share),
    )


def _planned(blocks: Any) -> tuple[Inference | None, tuple[Any, ...]]:
    """The inference and the rasters of blocks that are read from files; of others there is none."""
    for layer in blocks.dask.layers.values():
        given = [value for value, _ in getattr(layer, "indices", ())]
        for place, value in enumerate(given):
            if isinstance(value, Inference):
                return value, given[place + 1]
    return None, ()


def _haloed(lengths: tuple[int, ...], padding: int) -> list[int]:
    """Lengths of blocks with their halo, which ends where the grid does."""
    ends, start, found = sum(lengths), 0, []
    for length in lengths:
        found.append(min(ends, start + length + padding) - max(0, start - padding))
        start += length
    return found


def _prediction_bytes(inference: Inference) -> int | None:
    plan, tile, run = inference.plan, inference.plan.tile, inference.prediction.run
    height, width = (
        min(run * stride, block) + 2 * tile.padding for stride, block in zip(tile.stride_yx, plan.block_yx, strict=True)
    )
    return int(inference.prediction.bytes_per_px * height * width) or None


def _why(chunks: int | Literal["auto"], stride_yx: list[int]) -> str:
    whole = f"rounded down to whole strides of {stride_yx[0]} x {stride_yx[1]} pixels"
    if chunks == "auto":
        return f"a sixteenth of the raster, but 512 to 2,048 pixels a side, {whole}; --chunks sets another"
    return f"--chunks {chunks}, {whole}"
