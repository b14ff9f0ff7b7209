"""Host of Esri's Python raster function protocol, so that a published function runs unmodified.

Called in this order: ``initialize``, ``getParameterInfo``, ``getConfiguration``, ``updateRasterInfo``,
``updateKeyMetadata``; then for each tile ``selectRasters`` and ``updatePixels``, after the reference in
Esri/raster-functions and the habits of the functions in Esri/raster-deep-learning. The function's block, which
holds a whole batch of the network's tiles (they are cut inside the function), is one tile to us::

    |<------------- tile: what updatePixels is given ------------->|
    | padding |<---- tx (ty): what it answers, our core ---->| padding |

Choices where the protocol is silent: a runner knows no grid, so coordinates (``tlc``, ``extent``) are pixels of
the grid with y up, of the core, and ``width`` and ``height`` are the core's. Every block has its full size,
whatever ``fixedTileSize`` says. A ``dataRange`` rescales from the whole range of an integer pixel type (ArcGIS:
from the raster's statistics, which would differ from raster to raster); other pixels are handed over as stored.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Literal

import numpy as np

from ..arguments import check_names
from ..definition import ModelDefinition
from ..errors import InferenceError, ModelArgumentError, ModelDefinitionError, TileGeometryError
from ..tiling import TileSpec
from . import Batch, Device, Parameter, RunnerSpec
from .raster_function_blocks import class_values, plan_inputs
from .raster_function_configuration import read_configuration, read_domain, read_pixel_type
from .raster_function_loading import HostedFunction

logger = logging.getLogger(__name__)


class RasterFunctionRunner:
    """Runner of the raster function that a model brings.

    Raises ModelDefinitionError, ModelArgumentError, ModelFileError, BandCountError, TileGeometryError,
    DeviceError or MissingDependencyError.
    """

    returns: Literal["scores", "classes"] = "classes"
    output: str = "classes"
    threshold: float | None = None
    batch_size: int = 1
    """The function cuts its block into a batch of the network's tiles itself."""

    def __init__(self, spec: RunnerSpec) -> None:
        definition = spec.definition
        self._lane = threading.Lock()
        self._function = HostedFunction(definition, spec.device)
        self._table = definition.classes
        declared = _declared_parameters(self._function, definition)
        self.parameters = tuple(each for each in declared if _is_argument(each))
        """What the function takes as arguments."""
        scalars = _scalars(declared, dict(spec.arguments), self._function, definition)
        configuration = _configure(self._function, scalars, spec)
        self.tile = _tile(configuration, definition)
        names, tuples = ([each.name for each in declared if each.data_type == kind] for kind in ("raster", "rasters"))
        self._inputs = plan_inputs(names, tuples, configuration, spec)
        self._pixel_type = self._output_type(scalars, spec)
        _report_batch_size(dict(spec.arguments), self.tile, definition)
        if self._function.has("updateKeyMetadata"):
            self._function.call("updateKeyMetadata", (), -1, doing=f"Describing the output of {definition.source}")

    def lane(self) -> AbstractContextManager[object]:
        """One thread at a time: nobody knows what the function does."""
        return self._lane

    def predict(self, batch: Batch) -> np.ndarray:
        """Class values (tile, y, x) of the cores, in the class table's dtype; nodata where not valid or masked out.

        Raises InferenceError for what the function raises, and for an answer that is none.
        """
        return np.stack([self._predict_tile(batch, index) for index in range(len(batch.origins))])

    def _predict_tile(self, batch: Batch, index: int) -> np.ndarray:
        padding, (height, width) = self.tile.padding, self.tile.stride_yx
        row, col = (int(origin) + padding for origin in batch.origins[index])
        where = f"Predicting the {height} x {width} pixels from row {row}, column {col} on"
        corner = (float(col), float(-row))
        props = {**self._properties(corner), "pixelType": self._pixel_type}
        request = (corner, (1, height, width), props)
        blocks = self._inputs.blocks([pixels[index] for pixels in batch.images], batch.valid[index])
        if self._function.has("selectRasters"):
            chosen = self._function.call("selectRasters", *request, doing=where, wrong=InferenceError)
            if chosen:
                names = {f"{name}_{part}" for name in chosen for part in ("pixels", "mask")}
                blocks = {name: block for name, block in blocks.items() if name in names}
        answer = self._function.call("updatePixels", *request, named=blocks, doing=where, wrong=InferenceError)
        valid = batch.valid[index][padding : padding + height, padding : padding + width]
        return class_values(answer, valid, self._table, f"{where}, {self._function.file.name}")

    def _properties(self, corner: tuple[float, float]) -> dict[str, Any]:
        """What the protocol says of a raster, of a core whose upper-left corner is ``corner`` (x, y)."""
        (height, width), (x, y) = self.tile.stride_yx, corner
        place = {"extent": (x, y - height, x + width, y), "spatialReference": 0, "cellSize": (1.0, 1.0)}
        return {**place, "width": width, "height": height, "noData": None}

    def _output_type(self, scalars: dict[str, Any], spec: RunnerSpec) -> str:
        """Esri's name of the type that the function answers in, after ``updateRasterInfo``."""

        def info(band_count: int) -> dict[str, Any]:
            return {**self._properties((0.0, 0.0)), "bandCount": band_count, "pixelType": _esri_type(spec.pixel_type)}

        output = info(self._inputs.band_counts[0])
        if not self._function.has("updateRasterInfo"):
            return str(output["pixelType"])
        named = {**scalars, **self._inputs.infos(info), "output_info": output}
        doing = f"Describing the output of {spec.definition.source}"
        answer = self._function.call("updateRasterInfo", named=named, doing=doing)
        return read_pixel_type(answer, output["pixelType"], self._function.file.name)


def describe_parameters(definition: ModelDefinition, device: Device = "cpu") -> tuple[Parameter, ...]:
    """The arguments that a model's raster function takes. Runs the model's code; no rasters are needed.

    Raises ModelDefinitionError, ModelFileError, DeviceError or MissingDependencyError.
    """
    declared = _declared_parameters(HostedFunction(definition, device), definition)
    return tuple(each for each in declared if _is_argument(each))


def _declared_parameters(function: HostedFunction, definition: ModelDefinition) -> tuple[Parameter, ...]:
    entries = function.call("getParameterInfo", doing=f"Asking for the parameters of {definition.source}")
    parameters = []
    for entry in entries or ():
        if isinstance(entry, Mapping) and "name" in entry:  # published templates have a stray text among them
            domain = entry.get("domain")
            parameters.append(
                Parameter(
                    name=str(entry["name"]),
                    data_type=str(entry.get("dataType", "string")).strip(),
                    default=None if entry.get("value") is None else _text(entry["value"]),
                    display_name=str(entry.get("displayName") or entry["name"]),
                    description=str(entry.get("description") or ""),
                    domain=tuple(_text(value) for value in domain) if isinstance(domain, list | tuple) else (),
                )
            )
    return tuple(parameters)


def _is_argument(parameter: Parameter) -> bool:
    return parameter.name not in ("model", "device") and parameter.data_type not in ("raster", "rasters")


def _text(value: object) -> str:
    """A value as the tool would hand it over: functions say ``int(...)`` and ``.lower()`` to every one."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _scalars(
    declared: Sequence[Parameter], given: dict[str, str], function: HostedFunction, definition: ModelDefinition
) -> dict[str, Any]:
    """Every parameter that is no raster: as given, or its default."""
    known = {each.name: each for each in declared if _is_argument(each)}
    check_names(given, list(known), definition.source)
    defaults = {name: each.default for name, each in known.items() if each.default is not None}
    scalars = {name: _whole_without_point(known[name], value) for name, value in defaults.items()}
    scalars |= {name: _whole_without_point(known[name], _checked(known[name], value)) for name, value in given.items()}
    offered = {"model": function.definition_file, "device": function.device_number}
    return {name: value for name, value in offered.items() if name in {each.name for each in declared}} | scalars


def _checked(parameter: Parameter, value: str) -> str:
    """The value of an argument, if the function can take it. Raises ModelArgumentError."""
    domain = parameter.domain
    if parameter.is_number:
        try:
            number = float(value)
        except ValueError:
            raise ModelArgumentError(f"{parameter.name} is {value!r}; a number is needed.") from None
        if len(domain) == 2:
            lowest, highest = read_domain(parameter.name, domain)
            if not lowest <= number <= highest:
                raise ModelArgumentError(f"{parameter.name} is {value}; {domain[0]} to {domain[1]} is possible.")
        return value
    if parameter.data_type.lower() in ("boolean", "gpboolean"):
        domain = ("True", "False")
    allowed = {each.lower(): each for each in domain}
    if domain and value.lower() not in allowed:
        raise ModelArgumentError(f"{parameter.name} is {value!r}; one of {', '.join(domain)} is needed.")
    return allowed.get(value.lower(), value)


def _whole_without_point(parameter: Parameter, value: str) -> str:
    """Numbers such as 8.0 as 8, since functions say ``int(...)``; all else as it is."""
    if parameter.is_number:
        with suppress(ValueError):
            return _text(float(value)) if float(value).is_integer() else value
    return value


KNOWN_KEYS = {
    *("extractBands", "padding", "tx", "ty", "fixedTileSize", "inputMask", "dataRange", "compositeRasters"),
    *("inheritProperties", "invalidateProperties", "batch_size", "resampling", "resamplingType"),
    "test_time_augmentation",
}
"""Keys of a configuration whose meaning is known; several of them mean nothing here."""


def _configure(function: HostedFunction, scalars: dict[str, Any], spec: RunnerSpec) -> dict[str, Any]:
    if not function.has("getConfiguration"):
        return {}
    wrong = ModelArgumentError if spec.arguments else ModelDefinitionError
    doing = f"Asking {spec.definition.source} for its configuration"
    answer = function.call("getConfiguration", named=scalars, doing=doing, wrong=wrong)
    configuration = read_configuration(answer, function.file.name)
    if unknown := sorted(configuration.keys() - KNOWN_KEYS):
        logger.info("%s configures %s, which means nothing here.", function.file.name, ", ".join(unknown))
    return configuration


def _tile(configuration: dict[str, Any], definition: ModelDefinition) -> TileSpec:
    padding, size_yx = configuration.get("padding", 0), definition.tile_yx
    core_yx = [configuration.get("ty"), configuration.get("tx")]
    if size_yx is not None:
        core_yx = [size - 2 * padding if core is None else core for core, size in zip(core_yx, size_yx, strict=True)]
    known = [core for core in core_yx if core is not None]
    if len(known) < 2:
        raise ModelDefinitionError(
            f"{definition.source} has no ImageHeight and ImageWidth, and its function configures no tx and ty, so the "
            "size of a tile is not known."
        )
    height, width = known
    if min(height, width) <= 0:
        tile = f" of {size_yx[0]} x {size_yx[1]} pixels" if size_yx else ""
        raise TileGeometryError(
            f"padding {padding} leaves nothing of a tile{tile}: it is cut from every side, so it must be below half."
        )
    return TileSpec((height + 2 * padding, width + 2 * padding), padding)


def _report_batch_size(given: dict[str, str], tile: TileSpec, definition: ModelDefinition) -> None:
    """Say so where the function takes another batch than it was asked for: many round down to a square number."""
    if "batch_size" not in given or "tile_size" in given or definition.tile_yx is None:
        return
    cores = [length - 2 * tile.padding for length in definition.tile_yx]
    if min(cores) > 0 and all(stride % core == 0 for stride, core in zip(tile.stride_yx, cores, strict=True)):
        taken = tile.stride_yx[0] // cores[0] * (tile.stride_yx[1] // cores[1])
        if str(taken) != given["batch_size"]:
            logger.warning("batch_size %s was asked for; the model's function takes %d.", given["batch_size"], taken)


def _esri_type(pixel_type: str) -> str:
    """Esri's name of a numpy type: u1, i2, f4."""
    dtype = np.dtype(pixel_type)
    return f"{dtype.kind}{dtype.itemsize}"
