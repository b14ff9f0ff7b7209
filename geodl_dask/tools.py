"""The two reference tools under their own names and signatures, so that a script changes its imports alone.

::

    from geodl_dask import tools as arcpy     # was: import arcpy
    from geodl_dask.tools import *            # was: from arcpy.ia import *  (or arcpy.sa)

Names and meanings: "Detect Change Using Deep Learning" (Image Analyst) and "Deep Learning Model To Ecd" (Spatial
Analyst) of ArcGIS Pro's tool reference.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .definition import IS_URL
from .errors import DeviceError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .devices import Processor
    from .rasters import GridOptions

__all__ = ["CheckOutExtension", "DeepLearningModelToEcd", "DetectChangeUsingDeepLearning", "env"]


@dataclass
class Environment:
    """The environments that the tools follow, with ArcGIS's names. An unknown name is an AttributeError."""

    processorType: str | None = None  # noqa: N815
    """``"CPU"`` or ``"GPU"``; None takes a GPU where there is one."""
    gpuId: int | str | None = None  # noqa: N815
    """The one GPU to use, from 0; None takes all."""
    workspace: str | os.PathLike[str] | None = None
    """Folder that relative paths start from; None: the current one."""
    overwriteOutput: bool = False  # noqa: N815
    """Whether an existing output is replaced once the new one is whole."""
    parallelProcessingFactor: str | int | None = None  # noqa: N815
    """Worker processes: a number, or a share of the cores such as ``"50%"``; None or 0: this process alone."""
    trustCode: bool = os.environ.get("GEODL_DASK_TRUST_CODE") == "1"  # noqa: N815
    """Whether Python that a model brings may run (ArcGIS always lets it); the environment variable
    GEODL_DASK_TRUST_CODE=1 says so for scripts that must not change."""
    cellSize: float | str | os.PathLike[str] | None = None  # noqa: N815
    """Side of a pixel in units of the output's CRS, or a raster whose cell size is meant; None: the from raster's."""
    extent: str | tuple[float, float, float, float] | os.PathLike[str] | None = None
    """``"xmin ymin xmax ymax"`` in the output's CRS, or a raster whose extent is meant; None: the from raster's."""
    snapRaster: str | os.PathLike[str] | None = None  # noqa: N815
    """The raster whose pixel corners the result's fall on."""
    mask: str | os.PathLike[str] | None = None
    """A raster or polygon layer; the result is nodata outside, and where a mask raster is 0 or nodata."""
    outputCoordinateSystem: str | int | None = None  # noqa: N815
    """CRS of the result: a well-known id (EPSG code), or text that PROJ reads; None: the from raster's."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = [field.name for field in fields(self)]
        if name not in known:
            raise AttributeError(f"env has no {name}; it has {', '.join(known)}.")
        if name == "gpuId" and value is not None and (isinstance(value, bool) or not str(value).isdecimal()):
            raise DeviceError(f"env.gpuId is {value!r}; a number from 0, or None for all GPUs, is needed.")
        if name == "processorType" and value is not None and str(value).upper() not in ("CPU", "GPU"):
            raise DeviceError(f'env.processorType is {value!r}; "CPU", "GPU" or None, for a GPU if any, is needed.')
        super().__setattr__(name, value)


env = Environment()


def DetectChangeUsingDeepLearning(  # noqa: N802
    from_raster: str | os.PathLike[str],
    to_raster: str | os.PathLike[str],
    out_classified_raster: str | os.PathLike[str],
    in_model_definition: str | os.PathLike[str],
    arguments: str | Mapping[str, object] | Iterable[tuple[str, object]] | None = None,
) -> Path | str:
    """Classify what changed between two rasters, and write it.

    from_raster, to_raster : the earlier and the later image. out_classified_raster : ``.tif`` or ``.zarr``, a path or
    a URL of object storage.
    in_model_definition : ``.emd``, ``.dlpk`` or JSON text. arguments : ``"padding 0;batch_size 4"``, a value table
    (list of pairs) or a dict.
    Returns the absolute path of the result, or its URL. Raises the errors of `geodl_dask.detect_change` and of its
    writers.
    """
    from .change import detect_change
    from .cluster import connect
    from .cog import write_cog
    from .devices import worker_gpus
    from .outputs import check_output
    from .zarr_store import write_zarr

    workers = _workers(env.parallelProcessingFactor)
    out = check_output(_placed(out_classified_raster), (".tif", ".tiff", ".zarr"), overwrite=env.overwriteOutput)
    processor = cast("Processor", (env.processorType or "auto").lower())
    gpu_id = None if env.gpuId is None or processor == "cpu" else int(env.gpuId)
    gpus = worker_gpus(processor, gpu_id=gpu_id, workers=workers)
    change = detect_change(
        _placed(from_raster), _placed(to_raster), _placed(in_model_definition), arguments=arguments,
        trust_code=env.trustCode, processor=processor,
        mask=None if env.mask is None else _placed(env.mask), **_grid_options(),
    )  # fmt: skip
    write = write_zarr if Path(out).suffix.lower() == ".zarr" else write_cog
    with connect("local", workers=workers, gpus=gpus):
        return write(change, out, overwrite=env.overwriteOutput).path


def DeepLearningModelToEcd(  # noqa: N802
    in_deep_learning_model: str | os.PathLike[str],
    in_classification_info_json: str | os.PathLike[str],
    out_classifier_definition: str | os.PathLike[str],
) -> Path:
    """Put a deep learning model and the description of its classes into an Esri classifier definition (``.ecd``).

    Returns the absolute path of the ``.ecd``. Raises `geodl_dask.ecd.EcdError`.
    """
    from .ecd import deep_learning_model_to_ecd

    model, info, out = map(_placed, (in_deep_learning_model, in_classification_info_json, out_classifier_definition))
    return deep_learning_model_to_ecd(model, info, out, overwrite=env.overwriteOutput).path


def CheckOutExtension(extension_code: str) -> str:  # noqa: N802
    """Answer as ArcGIS does where a licence is there: nothing here needs one."""
    return "CheckedOut"


def _placed(path: str | os.PathLike[str]) -> str:
    """A path below the workspace; JSON text, URLs and absolute paths as they are."""
    text = os.fspath(path)
    is_path = not text.lstrip().startswith("{") and not IS_URL.match(text)
    return str(Path(env.workspace or "") / text) if is_path else text


def _workers(factor: str | int | None) -> int | None:
    from dask.system import CPU_COUNT

    text = "0" if factor is None else str(factor).strip()
    number = text.removesuffix("%").strip()
    if not number.isdecimal():
        raise RequestError(f'parallelProcessingFactor is {factor!r}; a number or a share such as "50%" is needed.')
    count = int(number) if number == text else int(number) * CPU_COUNT // 100
    return count or None


def _grid_options() -> GridOptions:
    """What the environments say of the result's grid."""
    crs = env.outputCoordinateSystem
    return {
        "cell_size": _numbers_or_raster(env.cellSize, "cellSize"),
        "extent": _numbers_or_raster(env.extent, "extent"),
        "snap_raster": None if env.snapRaster is None else _placed(env.snapRaster),
        "output_crs": f"EPSG:{crs}" if str(crs).isdecimal() else cast("str | None", crs),
    }


def _numbers_or_raster(given: Any, name: str) -> Any:
    """Numbers as numbers, a raster as its path; ArcGIS's words for the default as None."""
    if given is None or not isinstance(given, str | os.PathLike):
        return given
    text = os.fspath(given).strip()
    if text.upper() in ("", "DEFAULT"):
        return None
    if text.upper() in ("MAXOF", "MINOF"):
        raise RequestError(f"env.{name} is {text}, which is not followed; give numbers or a raster.")
    try:
        numbers = tuple(float(each) for each in text.split())
    except ValueError:
        return _placed(text)
    return numbers[0] if len(numbers) == 1 else numbers
