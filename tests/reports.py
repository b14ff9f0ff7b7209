"""Results and images for reports, written by our own writers, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from conftest import write_raster
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.transform import from_origin

from geodl_dask.classes import ClassTable, ModelClass
from geodl_dask.cog import write_cog
from geodl_dask.confidence import Confidence
from geodl_dask.rasters import open_raster
from geodl_dask.rasters.states import state_of
from geodl_dask.zarr_store import write_zarr

TRANSFORM = from_origin(500_000, 5_400_000, 0.5, 0.5)
TABLE = ClassTable(
    (
        ModelClass(0, "No change", (230, 230, 230)),
        ModelClass(1, "New building", (230, 85, 45)),
        ModelClass(4, "Woods cleared", (123, 79, 163)),
    )
)


def change_of(shape_yx: tuple[int, int] = (240, 320)) -> np.ndarray:
    """Two areas: 60 x 40 pixels of value 4 at row 20, column 30, and 30 x 20 of value 1 at row 150, column 200."""
    change = np.zeros(shape_yx, np.uint8)
    change[20:80, 30:70] = 4
    change[150:180, 200:220] = 1
    return change


def photograph(folder: Path, name: str, change: np.ndarray, *, seed: int = 0, dtype: Any = np.uint8, bands: int = 3,
               **place: Any) -> Path:  # fmt: skip
    """An image of a few large patches, so that it is small and can be told from others."""
    coarse = np.random.default_rng(seed).integers(40, 220, (bands, 4, 5))
    height, width = change.shape
    pixels = coarse.repeat(-(-height // 4), axis=1).repeat(-(-width // 5), axis=2)[:, :height, :width]
    scale = 1 if np.dtype(dtype) == np.uint8 else 11
    return write_raster(folder / name, (pixels * scale).astype(dtype), **{"transform": TRANSFORM, **place})


def write_result(
    path: Path, change: np.ndarray, *, table: ClassTable = TABLE, crs: str = "EPSG:32633", transform: Any = TRANSFORM,
    confidence: np.ndarray | None = None, photos: dict[str, Path] | None = None,
    pyramid: bool = False, failing: tuple[int, int] | None = None, **attrs: Any,
) -> Path:  # fmt: skip
    """A result with the attributes that `detect_change` would give it."""
    coords = xr_coords(GeoBox(change.shape, transform, crs), dims=("y", "x"))
    photos = photos or {}
    said = {
        "long_name": "change", "_FillValue": table.nodata, **table.to_attrs(), "model": "model.emd",
        "model_name": "Toy", "model_digest": "sha256:0", "runner": "native", "arguments": "padding 4",
        **{role: str(place) for role, place in photos.items()},
        "rasters": [f"{role} {place}: GeoTIFF" for role, place in photos.items()],
        "raster_states": [state_of(open_raster(str(place))) for place in photos.values()], **attrs,
    }  # fmt: skip
    layer = xr.DataArray(change.astype(table.dtype), coords, ("y", "x"), "change", said).chunk(128)
    if failing is not None:
        layer = layer.copy(data=layer.data.map_blocks(_fail_at, failing, dtype=layer.dtype, meta=layer.data._meta))
    result: Any = layer
    if confidence is not None:
        kept = Confidence(np.dtype(table.dtype), table.nodata)
        encoded = kept.encode(confidence.astype(np.float32))
        result = layer.to_dataset().assign(confidence=(("y", "x"), encoded, kept.to_attrs())).chunk(128)
    if path.suffix == ".zarr":
        write_zarr(result, path, overwrite=True, pyramid=pyramid, keep_going=failing is not None)
    else:
        write_cog(result, path, overwrite=True, keep_going=failing is not None)
    return path


def _fail_at(block: np.ndarray, failing: tuple[int, int], block_id: Any = None) -> np.ndarray:
    if block_id == failing:
        raise ValueError("This block cannot be computed.")
    return block


def write_pair(folder: Path, path: Path, change: np.ndarray | None = None, **said: Any) -> Path:
    """A result with both its images beside it."""
    change = change_of() if change is None else change
    photos = {
        "from_raster": photograph(folder, "before.tif", change, seed=1),
        "to_raster": photograph(folder, "after.tif", change, seed=2),
    }
    return write_result(path, change, photos=photos, **said)
