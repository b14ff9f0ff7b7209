"""The answer does not depend on blocks, workers, batches or file layout, bit for bit."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from conftest import CLASSES, TRANSFORM, write_definition, write_raster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import geodl_dask as gd
from geodl_dask import kernel, tiling
from geodl_dask.tiling import BlockPlan, TileSpec, Window

NODATA = 255


class PositionRunner:
    """Answers with what depends on the place in the tile and on every pixel of it: no shift or gap goes unnoticed."""

    returns = "classes"
    output = "classes"
    threshold = None

    def __init__(self, tile: TileSpec, batch_size: int) -> None:
        self.tile, self.batch_size = tile, batch_size

    def lane(self):
        return nullcontext()

    def predict(self, batch):
        assert len(batch.valid) == self.batch_size
        return np.stack([answer(*each, self.tile) for each in zip(*batch.images, batch.valid, strict=True)])


def answer(from_tile, to_tile, valid, tile: TileSpec) -> np.ndarray:
    """(y, x) values 0 to 250 of one tile."""
    height, width = tile.size_yx
    place = np.arange(height)[:, None] * 7 + np.arange(width) * 13
    everything = int((from_tile.sum(axis=0, dtype=np.int64) * (place + 1)).sum() + (valid * (place + 3)).sum())
    return (from_tile[0].astype(np.int64) * 31 + to_tile[-1] * 17 + place + everything) % 251


def whole_raster_answer(case: Case) -> np.ndarray:
    """The oracle: no blocks at all, one tile after another over the filled raster."""
    (stride_y, stride_x), p = case.tile.stride_yx, case.tile.padding
    height, width = case.from_pixels.shape[1:]
    valid = (case.from_pixels != NODATA).all(axis=0) & (case.to_pixels != NODATA).all(axis=0)
    fill = ((p, p + stride_y), (p, p + stride_x))
    images = [np.pad(np.where(valid, each, 0), ((0, 0), *fill)) for each in (case.from_pixels, case.to_pixels)]
    padded_valid = np.pad(valid, fill)
    result = np.full((height + stride_y, width + stride_x), NODATA, np.uint8)
    for row in range(0, height, stride_y):
        for col in range(0, width, stride_x):
            at = (slice(row, row + case.tile.size_yx[0]), slice(col, col + case.tile.size_yx[1]))
            core = answer(*(each[:, *at] for each in images), padded_valid[at], case.tile)
            core = core[p : p + stride_y, p : p + stride_x]
            result[row : row + stride_y, col : col + stride_x] = core
    return np.where(valid, result[:height, :width], NODATA)


@dataclass
class Case:
    tile: TileSpec
    from_pixels: np.ndarray
    to_pixels: np.ndarray
    chunks: int
    batch_size: int
    layout: dict
    door: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    padding = draw(st.integers(0, 6))
    tile = TileSpec((2 * padding + draw(st.integers(1, 12)), 2 * padding + draw(st.integers(1, 12))), padding)
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = rng.integers(0, 255, (2, *shape)).astype(np.uint8)
    images[rng.random((2, *shape)) < draw(st.sampled_from([0.0, 0.02, 0.9]))] = NODATA
    tiled = {"tiled": True, "blockxsize": 16, "blockysize": 32}
    layout = draw(
        st.sampled_from([tiled, {"tiled": False, "interleave": "pixel"}, {"tiled": False, "compress": "lzw"}])
    )
    door = draw(st.sampled_from(["files", "arrays", "mixed"]))
    return Case(tile, images[0], images[1], draw(st.integers(1, 80)), draw(st.integers(1, 5)), layout, door)


def detect(case: Case) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        layout = {**case.layout, "nodata": NODATA}
        if not layout["tiled"]:
            layout |= {"blockxsize": None, "blockysize": None}
        paths = [
            write_raster(Path(folder, f"{name}.tif"), image, **{k: v for k, v in layout.items() if v is not None})
            for name, image in (("from", case.from_pixels), ("to", case.to_pixels))
        ]
        rasters = list(paths)
        for at in {"files": (), "arrays": (0, 1), "mixed": (1,)}[case.door]:
            rasters[at] = as_array((case.from_pixels, case.to_pixels)[at])
        model = write_definition(Path(folder, "model.emd"), ModelFile="none.pt2", ExtractBands=None, Classes=CLASSES)
        patch.setattr(kernel, "load_runner", lambda spec: PositionRunner(case.tile, case.batch_size))
        kernel._load.cache_clear()
        try:
            change = gd.detect_change(*rasters, model, chunks=case.chunks)
            assert change.attrs["_FillValue"] == NODATA
            return change.compute(scheduler="synchronous").values
        finally:
            kernel._load.cache_clear()


def as_array(image: np.ndarray) -> xr.DataArray:
    height, width = image.shape[1:]
    coords = {
        "y": TRANSFORM.f + TRANSFORM.e * (np.arange(height) + 0.5),
        "x": TRANSFORM.c + TRANSFORM.a * (np.arange(width) + 0.5),
    }
    array = xr.DataArray(image, dims=("band", "y", "x"), coords=coords).rio.write_crs("EPSG:32633")
    array = array.rio.write_transform(TRANSFORM)  # a single row or column does not tell its size
    return array.rio.write_nodata(NODATA).chunk({"y": 11, "x": 17})


def check(case: Case) -> None:
    np.testing.assert_array_equal(detect(case), whole_raster_answer(case))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(cases())
def test_result_does_not_depend_on_blocks_batches_layout_or_door(case):
    check(case)


def planted_case() -> Case:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 255, (2, 1, 50, 60)).astype(np.uint8)
    return Case(TileSpec((14, 14), 3), images[0], images[1], 20, 2, {"tiled": False}, "files")


def test_the_property_notices_a_lattice_anchored_at_the_block(monkeypatch):
    check(planted_case())
    monkeypatch.setattr(BlockPlan, "__post_init__", lambda plan: None)
    monkeypatch.setattr(
        "geodl_dask.change.plan_blocks", lambda shape, tile, chunks, run: BlockPlan(shape, (20, 20), tile)
    )
    with pytest.raises(AssertionError, match="not equal"):
        check(planted_case())


def test_the_property_notices_a_halo_one_pixel_short(monkeypatch):
    whole = tiling.BlockPlan.haloed

    def short(plan: BlockPlan, core: Window) -> Window:
        thinner = BlockPlan(plan.shape_yx, plan.block_yx, plan.tile)
        object.__setattr__(thinner, "tile", TileSpec(plan.tile.size_yx, plan.tile.padding - 1))
        return whole(thinner, core)

    monkeypatch.setattr(BlockPlan, "haloed", short)
    with pytest.raises(AssertionError, match="not equal"):
        check(planted_case())
