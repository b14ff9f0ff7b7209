"""Deep-learning change detection between two rasters of any size, without ArcGIS.

Importing this package loads neither torch nor GDAL; each name is loaded when it is first used.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

with suppress(ImportError):  # python -m geodl_dask.ecd needs nothing but Python
    from dask.config import update_defaults

    # Worker processes that are begun from here on keep the memory that networks free (see `allocator`).
    update_defaults({"distributed": {"nanny": {"pre-spawn-environ": {"MALLOC_ARENA_MAX": 1}}}})

__version__ = version("geodl_dask")

_HOMES = {
    "GeodlError": ".errors",
    "change_polygons": ".vectors",
    "change_table": ".report",
    "classify_raster": ".change",
    "connect": ".cluster",
    "deep_learning_model_to_ecd": ".ecd",
    "describe_change": ".description",
    "detect_change": ".change",
    "finalize": ".finishing",
    "load_definition": ".definition",
    "model_info": ".inspection",
    "open_change": ".results",
    "pack_model": ".packing",
    "plot_change": ".plot",
    "write_cog": ".cog",
    "write_report": ".html_report",
    "write_zarr": ".zarr_store",
}

__all__ = [
    "GeodlError",
    "__version__",
    "change_polygons",
    "change_table",
    "classify_raster",
    "connect",
    "deep_learning_model_to_ecd",
    "describe_change",
    "detect_change",
    "finalize",
    "load_definition",
    "model_info",
    "open_change",
    "pack_model",
    "plot_change",
    "write_cog",
    "write_report",
    "write_zarr",
]

if TYPE_CHECKING:
    from .change import classify_raster, detect_change
    from .cluster import connect
    from .cog import write_cog
    from .definition import load_definition
    from .description import describe_change
    from .ecd import deep_learning_model_to_ecd
    from .errors import GeodlError
    from .finishing import finalize
    from .html_report import write_report
    from .inspection import model_info
    from .packing import pack_model
    from .plot import plot_change
    from .report import change_table
    from .results import open_change
    from .vectors import change_polygons
    from .zarr_store import write_zarr


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
