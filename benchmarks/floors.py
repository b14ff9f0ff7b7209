"""What no contender can be faster than: the network alone on tiles in memory, and reading and writing alone."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import rasterio
import torch
from contenders import load_network, output_profile
from fresh import Job, Work
from rasterio.windows import Window

LEAST_S = 2.0
"""For how long the network runs before its speed is believed."""
READ_PX = 2048


def forward(job: Job) -> Work:
    """The network on ``job.windows`` windows of normalised noise: some are timed, all are counted."""

    def work() -> dict[str, Any]:
        network, threads = load_network(job), job.setting.threads
        ready = Barrier(threads + 1)
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(_forward_for_a_while, network, job, ready) for _ in range(threads)]
            ready.wait()
            cpu = sum(os.times()[:4])
            done = [each.result() for each in running]
            cpu_s = sum(os.times()[:4]) - cpu
        per_second = sum(windows / seconds for windows, seconds in done)
        total = sum(windows for windows, _ in done)
        return {"seconds": job.windows / per_second, "cpu_s": cpu_s * job.windows / total}

    return work


def _forward_for_a_while(network: torch.nn.Module, job: Job, ready: Barrier) -> tuple[int, float]:
    """(windows, seconds) of one thread."""
    torch.set_num_threads(job.setting.intra_op)
    layout = torch.channels_last if job.setting.channels_last else torch.contiguous_format
    shape = (job.setting.batch, 3, job.window_px, job.window_px)
    pair = [torch.randn(shape).contiguous(memory_format=layout) for _ in range(2)]
    with torch.inference_mode():
        for _ in range(2):
            network(*pair)
        ready.wait()
        started, calls = time.perf_counter(), 0
        while time.perf_counter() < started + LEAST_S or calls < 2:
            network(*pair)
            calls += 1
    return calls * job.setting.batch, time.perf_counter() - started


def read_and_write(job: Job) -> Work:
    """Both rasters read in large windows, and a raster of classes written uncompressed."""

    def work() -> None:
        corners = [(row, col) for row in range(0, job.size, READ_PX) for col in range(0, job.size, READ_PX)]
        windows = [Window(col, row, min(READ_PX, job.size - col), min(READ_PX, job.size - row)) for row, col in corners]
        for path in job.rasters:
            with rasterio.open(path) as dataset:
                for window in windows:
                    dataset.read(window=window)
        values = np.zeros((READ_PX, READ_PX), np.uint8)
        with rasterio.open(job.out, "w", **{**output_profile(job), "compress": None}) as out:
            for window in windows:
                out.write(values[: window.height, : window.width], 1, window=window)

    return work
