"""What geodl_dask takes: contenders of `speed`, which import neither torch nor GDAL before it does."""

from __future__ import annotations

import inspect
from typing import Any

from fresh import Job, Work


def model_tiles(job: Job) -> Work:
    """The model's own tiles."""
    return _detect(job, "model")


def auto_tiles(job: Job) -> Work:
    """Tiles as large as geodl_dask sees fit, which is its default."""
    return _detect(job, "auto")


def _detect(job: Job, tile_size: str) -> Work:
    import geodl_dask.cog
    import geodl_dask.kernel
    import geodl_dask.runners.native
    import geodl_dask.runners.pytorch
    import geodl_dask.zarr_store

    # Versions before 0.2 know no other tiles than the model's.
    knows = "tile_size" in inspect.signature(geodl_dask.detect_change).parameters
    options: dict[str, Any] = {"tile_size": tile_size} if knows else {}
    write = geodl_dask.write_zarr if job.out.endswith(".zarr") else geodl_dask.write_cog

    def work() -> dict[str, Any]:
        change = geodl_dask.detect_change(*job.rasters, job.model, processor="cpu", **options)
        if change.attrs["padding"] != job.padding:
            raise AssertionError(f"padding is {change.attrs['padding']} and not {job.padding}")
        write(change, job.out)
        return {} if knows else {"note": "no tile_size here: the model's tiles"}

    return work
