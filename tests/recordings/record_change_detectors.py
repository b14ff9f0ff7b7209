"""Records what arcgis.learn itself answers, for tests/test_change_detector.py.

In ``tests``: ``python -m recordings.record_change_detectors FOLDER``.
Needs an environment with arcgis 2.4.4 as the README's "Models" describes it, and h5py, tqdm, beautifulsoup4, numexpr,
bottleneck and ipython, which only training data need. arcgis.learn makes each model from a few synthetic chips, takes
the seeded weights, and writes its package into FOLDER; then its own function, unmodified, runs over each pair, block by
block as ArcGIS does. Kept are the definitions, the names and shapes of the weights, classes and distances.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import rasterio
import torch
from raster_functions.hosting import tiles_of
from recordings.detectors import DETECTORS, RECORDED, STEP, Detector
from recordings.seeded import seeded_state

from geodl_dask.definition import load_definition
from geodl_dask.runners import Batch, RunnerSpec, arcgis_learn, load_runner
from geodl_dask.tiling import TileSpec, crop_to_core

CHIP_COUNT = 12
SEED = 1


class GdalDataset:
    """What the training code wants of GDAL's Python module."""

    def __init__(self, path: str) -> None:
        self.path = path

    def ReadAsArray(self) -> np.ndarray:
        with rasterio.open(self.path) as dataset:
            return dataset.read()


def write_chips(folder: Path, detector: Detector) -> Path:
    rng, side = np.random.default_rng(0), detector.tile
    for chip in range(CHIP_COUNT):
        top = 256 if detector.bands == 3 else 4000
        before = rng.integers(0, top, (detector.bands, side, side)).astype(detector.pixel_type)
        after, change = before.copy(), np.zeros((1, side, side), np.uint8)
        after[:, 8:24, 8:24], change[:, 8:24, 8:24] = 10, 1
        for name, pixels in (("images_before", before), ("images_after", after), ("labels", change)):
            path = folder / name / f"{chip:04d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            profile = {"count": len(pixels), "height": side, "width": side, "dtype": pixels.dtype}
            with rasterio.open(path, "w", driver="GTiff", **profile) as dataset:
                dataset.write(pixels)
    return folder


def write_package(folder: Path, detector: Detector) -> tuple[Path, dict[str, list[int]]]:
    """The package that arcgis.learn writes, and the names and shapes of its weights."""
    learn = importlib.import_module("arcgis.learn")
    more = {} if detector.bands == 3 else {"imagery_type": "ms", "norm_pct": 1.0}
    data = learn.prepare_data(
        str(write_chips(folder / "chips", detector)), dataset_type="ChangeDetection", batch_size=4,
        chip_size=detector.tile, val_split_pct=0.25, **more,
    )  # fmt: skip
    model = learn.ChangeDetector(data, backbone=detector.backbone, attention_type=detector.attention)
    shapes = {name: list(tensor.shape) for name, tensor in model.learn.model.state_dict().items()}
    model.learn.model.load_state_dict(seeded_state(shapes, SEED, detector.contrast))
    out = folder / detector.name
    model.save(str(out), compute_metrics=False, save_html=False)
    return out / f"{detector.name}.dlpk", shapes


def record_pair(runner, pair: np.ndarray, tile: TileSpec) -> tuple[np.ndarray, np.ndarray]:
    """(classes, distances), each (y, x): what arcgis.learn's function and its network answer, block by block."""
    network, heard = runner._function._object.child_image_classifier.model, []
    hook = network.register_forward_hook(lambda module, inputs, answer: heard.append(answer.detach().numpy()))
    blocks, plan = tiles_of(*pair, runner.tile)
    canvas = [np.zeros(plan.block_yx, dtype) for dtype in (np.uint8, np.float32)]
    (height, width), padding = runner.tile.stride_yx, runner.tile.padding
    for block in range(len(blocks.origins)):
        part = slice(block, block + 1)
        one = Batch(tuple(image[part].copy() for image in blocks.images), blocks.valid[part], blocks.origins[part])
        heard.clear()
        classes = crop_to_core(runner.predict(one), runner.tile)[0]
        cores = crop_to_core(np.concatenate(heard), tile)[:, 0]
        rows = height // tile.stride_yx[0]
        distances = cores.reshape(rows, -1, *tile.stride_yx).swapaxes(1, 2).reshape(height, width)
        top, left = blocks.origins[block] + padding
        for whole, answer in zip(canvas, (classes, distances), strict=True):
            whole[top : top + height, left : left + width] = answer
    hook.remove()
    classes, distances = (whole[: pair.shape[2], : pair.shape[3]] for whole in canvas)
    return classes, distances


def record(folder: Path, detector: Detector) -> dict[str, np.ndarray]:
    package, shapes = write_package(folder, detector)
    definition = load_definition(package)
    spec = RunnerSpec(
        definition, "raster-function", detector.bands, detector.pixel_type, tuple(detector.arguments.items())
    )
    runner = load_runner(spec)
    tile = TileSpec((detector.tile, detector.tile), runner.tile.padding)
    about = {"definition": json.loads(definition.text), "shapes": shapes, "seed": SEED}
    kept = {f"{detector.name}/about": np.array(json.dumps(about))}
    for kind in detector.kinds:
        classes, distances = record_pair(runner, detector.pair(kind), tile)
        margin = np.abs(distances - 1).min()
        print(f"{detector.name} {kind}: {classes.mean() / 255:.1%} changed, {np.ptp(distances):.3g}, {margin:.2g}")
        assert np.array_equal(classes, np.where(distances > 1, 255, 0))
        kept[f"{detector.name}/{kind}/changed"] = np.packbits(classes == 255)
        kept[f"{detector.name}/{kind}/distances"] = distances[::STEP, ::STEP]
    return kept


def main(folder: Path) -> None:
    torch.set_num_threads(2)
    os.cpu_count = lambda: 8  # arcgis.learn derives a number of workers from it, which must not be negative
    shutil.rmtree(folder, ignore_errors=True)
    gdal = types.ModuleType("osgeo.gdal")
    gdal.Open = GdalDataset
    package = types.ModuleType("osgeo")
    package.gdal, package.__path__ = gdal, []
    package.ogr, package.osr, package.gdal_array, package.gdalconst = map(types.ModuleType, "abcd")
    sys.modules |= {"osgeo": package, "osgeo.gdal": gdal, "gdal": gdal}
    with arcgis_learn.stand_ins():
        importlib.import_module("arcgis").env._processorType = "CPU"
        kept = {key: array for each in DETECTORS for key, array in record(folder, each).items()}
    np.savez_compressed(RECORDED, **kept)
    print(f"{RECORDED.name}: {RECORDED.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
