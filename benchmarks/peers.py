"""Other people's tiled inference: contenders of `speed`, in an environment that has their libraries.

Each is set up for the work of the others, at what its interface allows that comes nearest: tiles of 256 pixels, the
padding cropped, raw 0 outside the raster, classes by argmax in a GeoTIFF. All are given one raster of six bands that
has the margin already (`Job.stack`), which the others make themselves, within their time.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import rasterio
import torch
from contenders import VALUES, Stacked, classify, load_network, output_profile, stride_px
from fresh import Job, Work
from networks import TILE_PX
from rasterio.windows import Window

Item = TypeVar("Item")
_operators = torch.library.Library("torchvision", "FRAGMENT")


def monai(job: Job) -> Work:
    """MONAI's sliding_window_inference, with weights that are 1 in the core and 0 in the padding."""
    from monai.inferers import sliding_window_inference

    def work() -> None:
        network, overlap = Stacked(load_network(job)), 2 * job.padding / TILE_PX
        with torch.inference_mode():
            scores = sliding_window_inference(
                _whole_stack(job), TILE_PX, job.setting.batch, network, overlap=overlap,
                roi_weight_map=torch.tensor(_core(job)),
            )  # fmt: skip
        _write(scores[0, :, job.padding :, job.padding :], job)

    return work


def terratorch(job: Job) -> Work:
    """TerraTorch's tiled_inference, which adds the margin itself."""
    _declare_nms()
    from terratorch.tasks.tiled_inference import tiled_inference

    def work() -> None:
        inside = slice(job.padding, job.padding + job.size)
        scores = tiled_inference(
            Stacked(load_network(job)), _whole_stack(job)[..., inside, inside], crop=TILE_PX, stride=stride_px(job),
            delta=job.padding, average_patches=False, blend_overlaps=False, batch_size=job.setting.batch,
            padding="constant",
        )  # fmt: skip
        _write(scores[0], job)

    return work


def xbatcher(job: Job) -> Work:
    """A loop over xbatcher's BatchGenerator, several patches per call of the network."""
    import rioxarray
    from xbatcher import BatchGenerator

    def work() -> None:
        stack = rioxarray.open_rasterio(job.stack, cache=False)
        sides, overlap = {"band": 6, "y": TILE_PX, "x": TILE_PX}, {"y": 2 * job.padding, "x": 2 * job.padding}
        patches = BatchGenerator(stack, sides, overlap, preload_batch=False)
        corners = product(range(0, job.size, stride_px(job)), repeat=2)
        _classify_patches(((corner, patch.values) for corner, patch in zip(corners, patches, strict=True)), job)

    return work


def torchgeo(job: Job) -> Work:
    """A loop over TorchGeo's GridGeoSampler and torch's DataLoader."""
    _declare_nms()
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset
    from torchgeo.samplers import GridGeoSampler

    def work() -> None:
        dataset = RasterDataset(job.stack)
        sampler = GridGeoSampler(dataset, TILE_PX, stride_px(job))
        with rasterio.open(job.stack) as opened:
            transform = opened.transform
        loader = DataLoader(dataset, job.setting.batch, sampler=sampler, collate_fn=list)

        def patches() -> Iterator[tuple[tuple[int, int], np.ndarray]]:
            for sample in (each for batch in loader for each in batch):
                x, y, _ = sample["bounds"]
                column, row = ~transform * (x.start, y.stop)
                yield (round(row), round(column)), sample["image"].numpy()

        _classify_patches(patches(), job)

    return work


def geoai(job: Job) -> Work:
    """geoai's predict_geotiff, with weights that are 1 in the core and 0 in the padding."""
    from geoai import inference

    def work() -> None:
        with mock.patch.object(inference, "create_weight_mask", lambda *_, **__: _core(job)):
            inference.predict_geotiff(
                Stacked(load_network(job)), str(job.stack), job.out, tile_size=TILE_PX, overlap=2 * job.padding,
                batch_size=job.setting.batch, num_classes=2, output_dtype="uint8", output_nodata=1, device="cpu",
                preprocess_fn=np.float32, postprocess_fn=lambda scores: VALUES[scores.argmax(0)], compress="deflate",
                verbose=False,
            )  # fmt: skip

    return work


def geo_inference(job: Job) -> Work:
    """NRCan's geo-inference: half of a patch as overlap, blended; pixels with a 0 in any band are its nodata."""
    from geo_inference.geo_inference import GeoInference

    def work() -> dict[str, Any]:
        folder = Path(job.out).parent
        infer = GeoInference(str(job.script), str(folder), device="cpu", num_classes=2)
        infer(str(job.stack), patch_size=TILE_PX, workers=2)
        shutil.move(next(folder.glob("*_mask_*.tif")), job.out)
        return {"note": "blends; class indices; 0 in any band is its nodata"}

    return work


def _declare_nms() -> None:
    """What torchvision 0.28 wants to see at its import, and lacks where its build is for GPUs and torch's is not."""
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # it is there already
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _whole_stack(job: Job) -> torch.Tensor:
    """(1, 6, y, x) float32 as stored, with the margin."""
    with rasterio.open(job.stack) as dataset:
        return torch.from_numpy(dataset.read(out_dtype="float32"))[None]


def _core(job: Job) -> np.ndarray:
    """(y, x) float32 over a tile: 1 in its core."""
    return np.pad(np.ones((stride_px(job),) * 2, np.float32), job.padding)


def _write(scores: torch.Tensor, job: Job) -> None:
    """scores : (2, y, x), or more at the right and the bottom."""
    with rasterio.open(job.out, "w", **output_profile(job)) as out:
        out.write(VALUES[scores[:, : job.size, : job.size].argmax(0).numpy()], 1)


def _classify_patches(patches: Iterable[tuple[tuple[int, int], np.ndarray]], job: Job) -> None:
    """Run and write patches: of each the row and column of its core in the raster, and (6, y, x) as stored."""
    network, stride = Stacked(load_network(job)), stride_px(job)
    with rasterio.open(job.out, "w", **output_profile(job)) as out:
        for batch in _batched(patches, job.setting.batch):
            cores = classify(network, np.stack([pixels for _, pixels in batch]), job)
            for ((row, column), _), core in zip(batch, cores, strict=True):
                window = Window(column, row, min(stride, job.size - column), min(stride, job.size - row))
                out.write(core[: window.height, : window.width], 1, window=window)


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """As itertools.batched of Python 3.12."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
