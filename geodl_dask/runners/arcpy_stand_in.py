"""A stand-in for ``arcpy``: the few names that published raster functions touch, and nothing more.

Functions say ``import arcpy`` unguarded and read and write ``arcpy.env.processorType``; some send
messages. The stand-in is importable only while a raster function runs, and only where no real arcpy
is installed. Whatever else a function asks of it fails with the usual AttributeError or ImportError.
"""

from __future__ import annotations

import importlib.util
import logging
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

from . import Device

logger = logging.getLogger(__name__)


def arcpy_is_installed() -> bool:
    """Whether this Python has a real arcpy."""
    return importlib.util.find_spec("arcpy") is not None


def make_arcpy(device: Device) -> dict[str, ModuleType]:
    """Modules by name: ``arcpy``, and ``arcpy.ia.util``, which ArcGIS's own classifier imports one function from."""
    arcpy, ia, util = (_module(name) for name in ("arcpy", "arcpy.ia", "arcpy.ia.util"))
    on_gpu = device == "cuda"
    fields = {
        "env": SimpleNamespace(processorType="GPU" if on_gpu else "CPU", gpuId="0" if on_gpu else None),
        "AddMessage": logger.info,
        "AddWarning": logger.warning,
        "AddError": logger.error,
        "SetProgressor": _do_nothing,
        "SetProgressorLabel": _do_nothing,
        "SetProgressorPosition": _do_nothing,
        "ResetProgressor": _do_nothing,
        "ia": ia,
    }
    vars(arcpy).update(fields)
    vars(ia).update(util=util)
    vars(util).update(get_available_device=lambda max_memory=0.8: 0 if on_gpu else -1)
    return {module.__name__: module for module in (arcpy, ia, util)}


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    # importlib.util.find_spec("arcpy"), which libraries ask, raises ValueError where __spec__ is None.
    module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
    module.__path__ = []
    return module


def _do_nothing(*args: object, **kwargs: object) -> None:
    """There is no progress bar to move."""
