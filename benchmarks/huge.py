"""Peak memory on a pair of rasters larger than memory.

    python benchmarks/huge.py [--side 200000] [--blocks 3000] [--workers 2]

A virtual mosaic (VRT) of one GeoTIFF laid out again and again stands for each date; of the pair some thousand blocks,
whole rows of them in the middle, are computed. The model is as cheap as can be, the threshold of a difference, so that
memory and reading are what is seen. The floor is an idle worker that has imported what the run imports.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from distributed import LocalCluster
from memory import floor_mb, peak_mb

import geodl_dask as gd

TRANSFORM, CRS = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), "EPSG:32633"
PIECE = 2_000
BLOCK = 896


class Difference(torch.nn.Module):
    """Whether a pixel's value has moved by more than 20."""

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return (stack[:, 1:] - stack[:, :1]).abs() - 20


def write(path: Path, pixels: np.ndarray) -> Path:
    height, width = pixels.shape
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": CRS, "transform": TRANSFORM, "tiled": True}
    with rasterio.open(path, "w", **profile, width=width, height=height, compress="zstd") as dataset:
        dataset.write(pixels, 1)
    return path


def lay_out(piece: Path, target: Path, side: int) -> Path:
    """A VRT of ``side`` x ``side`` pixels."""
    dataset = ET.Element("VRTDataset", rasterXSize=str(side), rasterYSize=str(side))
    ET.SubElement(dataset, "SRS").text = CRS
    ET.SubElement(dataset, "GeoTransform").text = ", ".join(map(str, TRANSFORM.to_gdal()))
    band = ET.SubElement(dataset, "VRTRasterBand", dataType="Byte", band="1")
    for row in range(0, side, PIECE):
        for col in range(0, side, PIECE):
            source = ET.SubElement(band, "SimpleSource")
            ET.SubElement(source, "SourceFilename").text = str(piece)
            ET.SubElement(source, "SourceProperties", RasterXSize=str(PIECE), RasterYSize=str(PIECE), DataType="Byte",
                          BlockXSize="256", BlockYSize="256")  # fmt: skip
            ET.SubElement(source, "DstRect", xOff=str(col), yOff=str(row), xSize=str(PIECE), ySize=str(PIECE))
    ET.ElementTree(dataset).write(target)
    return target


def write_model(folder: Path) -> Path:
    torch.jit.trace(Difference(), torch.zeros(1, 2, 8, 8)).save(folder / "difference.pt")
    definition = {
        "Framework": "PyTorch", "ModelType": "ImageClassification", "ModelFile": "difference.pt", "ImageHeight": 512,
        "ImageWidth": 512, "Padding": 32, "ExtractBands": [0, 1], "GeodlDask": {"output": "distance", "threshold": 0},
        "Classes": [
            {"Value": 0, "Name": "same", "Color": [0, 0, 0]}, {"Value": 1, "Name": "other", "Color": [9, 9, 9]},
        ],
    }  # fmt: skip
    (folder / "difference.emd").write_text(json.dumps(definition))
    return folder / "difference.emd"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=200_000)
    parser.add_argument("--blocks", type=int, default=3_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = [
            lay_out(write(folder / f"{date}.tif", random.integers(0, 255, (PIECE, PIECE)).astype(np.uint8)),
                    folder / f"{date}.vrt", given.side)
            for date in ("from", "to")
        ]  # fmt: skip
        rows = -(-given.blocks // -(-given.side // BLOCK)) * BLOCK
        top, left = TRANSFORM.f - given.side // 2 * 0.5, TRANSFORM.c
        extent = (left, top - rows * 0.5, left + given.side * 0.5, top)
        with (
            LocalCluster(n_workers=given.workers, threads_per_worker=1, dashboard_address=None) as cluster,
            cluster.get_client() as client,
        ):
            floor = max(client.run(floor_mb).values())
            started = time.perf_counter()
            change = gd.detect_change(*pair, write_model(folder), extent=extent, chunks=BLOCK)
            planned = time.perf_counter() - started
            written = gd.write_zarr(change, folder / "out.zarr")
            seconds = time.perf_counter() - started
            peak = max(client.run(peak_mb).values())
        print(f"{given.side:,} x {given.side:,} pixels, two dates, {2 * given.side**2 / 1e9:.0f} GB")
        print(f"{change.data.npartitions:,} blocks of it, {written.tiles:,} tiles, {change.size / 1e9:.2f} Gpx")
        print(f"planned in {planned:.1f} s, done in {seconds:.0f} s, {change.size / seconds / 1e6:.1f} Mpx/s")
        print(f"peak of a worker {peak:.0f} MB, {peak / floor:.2f} of the floor ({floor:.0f} MB)")
        print(f"client {peak_mb():.0f} MB")


if __name__ == "__main__":
    main()
