"""Change detectors that arcgis.learn trained (``ModelName`` ChangeDetector), run without it and without their code.

What arcgis.learn's own function does to pixels and distances is followed to the letter; where its tiles lie, as
always, is `tiling`'s affair. The network is `stanet`, its weights a state dict (``.pth``).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

from ..arguments import check_names, integer_argument, number_argument
from ..definition import ModelDefinition, NativeOptions
from ..emd import read_numbers, shown
from ..errors import BandCountError, ModelDefinitionError
from . import Parameter, RunnerSpec
from .native import DEFAULT_BATCH_SIZE, NativeRunner
from .native import describe_parameters as describe_native

if TYPE_CHECKING:
    from .pytorch import TorchNetwork

THRESHOLD = 1.0
"""Distance above which arcgis.learn's function sees a change; there it is a constant."""
FUNCTION = "arcgisimageclassifier"
"""Stem of the function that arcgis.learn writes beside such a model, in lower case."""
_WHOLE_FILES = (".pt", ".pt2", ".onnx", ".keras", ".h5")
_BYTE_MIDDLE = 127.5
_PREFIXES = {"backbone": "netF.module.backbone", "fusion": "netF.module.decoder", "attention": "netA.Self_Att"}
_STEM = "netF.module.backbone.conv1.weight"
_UNUSED = re.compile(r"\.num_batches_tracked$|\.Self_Att\.gamma$")
"""Tensors without bearing on the answer: BAM's gamma is trained, but arcgis.learn's network does not apply it."""


def is_change_detector(definition: ModelDefinition) -> bool:
    """Whether arcgis.learn trained this model for change detection, and its file is weights alone."""
    keys, suffix = definition.keys, PureWindowsPath(definition.model_file or "").suffix.lower()
    configuration = keys.get("ModelConfiguration")
    framework = str(keys.get("Framework") or "arcgis.learn")
    is_configured = configuration == "change_detection" and framework.lower().startswith("arcgis.learn")
    return (keys.get("ModelName") == "ChangeDetector" or is_configured) and suffix not in _WHOLE_FILES


def is_at_home(definition: ModelDefinition) -> bool:
    """Whether it is run here unless somebody says otherwise: a known network, and no function but arcgis.learn's."""
    if not is_change_detector(definition):
        return False
    named = PureWindowsPath(definition.inference_function_name or FUNCTION).stem.lower()
    try:
        read_architecture(definition)
    except ModelDefinitionError:
        return False
    return named == FUNCTION


def read_architecture(definition: ModelDefinition) -> tuple[str, str]:
    """(backbone, attention) as ``ModelParameters`` has them, or arcgis.learn's defaults.

    Raises ModelDefinitionError for a network that is not known.
    """
    from .stanet import ATTENTIONS, BACKBONES

    parameters = definition.keys.get("ModelParameters") or {}
    if not isinstance(parameters, dict):
        raise ModelDefinitionError(f"{definition.source}: ModelParameters is {shown(parameters)}; an object is needed.")
    backbone, attention = parameters.get("backbone") or "resnet18", parameters.get("attention_type") or "PAM"
    for key, value, known in (("backbone", backbone, BACKBONES), ("attention_type", attention, ATTENTIONS)):
        if value not in known:
            raise ModelDefinitionError(
                f"{definition.source}: ModelParameters.{key} is {shown(value)}; known are {', '.join(known)}. Its own "
                "function may know it: --runner raster-function."
            )
    return backbone, attention


def obstacle(definition: ModelDefinition) -> str | None:
    """Why the model cannot be run here, as the rest of a sentence about it; None where it can."""
    from .stanet import takes_tile

    try:
        _, attention = read_architecture(definition)
        size = _tile_size(definition)
    except ModelDefinitionError as error:
        return f"cannot be run: {error}"
    if not definition.model_file:
        return "names no ModelFile; the weights (.pth) are needed."
    if not takes_tile(attention, size):
        near = [each for each in (32 * (size // 32), 32 * (size // 32 + 1)) if takes_tile(attention, each)]
        return (
            f"has tiles of {size} pixels (ImageHeight), whose {-(-size // 4)} x {-(-size // 4)} features its attention "
            f"(PAM) cannot part into 8 x 8 of one size; arcgis.learn cannot either. {' and '.join(map(str, near))} "
            "pixels work, and so would BAM, but the size is that of the training."
        )
    return None


def describe_parameters(definition: ModelDefinition) -> tuple[Parameter, ...]:
    """arcgis.learn's padding and batch_size, and two of ours: threshold and return_probability_raster."""
    default = definition.native.threshold if definition.native.threshold is not None else THRESHOLD
    what = "Distance above which a pixel has changed; an addition of geodl_dask, in ArcGIS it is always 1."
    threshold = Parameter("threshold", "numeric", f"{default:g}", "Threshold", what, ())
    what = "Keep the distance of each pixel in a second band, or variable; an addition of geodl_dask."
    known = (
        replace(each, description=what) if each.name == "return_probability_raster" else each
        for each in describe_native(definition)
    )
    return (*known, threshold)


def load_change_detector(spec: RunnerSpec) -> NativeRunner:
    """The runner of a change detector. Runs on the client once, and once per worker process.

    Raises ModelDefinitionError, ModelArgumentError, BandCountError or ModelFileError.
    """
    definition, given = spec.definition, dict(spec.arguments)
    if reason := obstacle(definition):
        raise ModelDefinitionError(f"{definition.source} {reason}")
    check_names(given, [each.name for each in describe_parameters(definition)], definition.source)
    native = _native_options(definition, given)
    given.pop("threshold", None)
    given["batch_size"] = str(_square_batch(definition, given))
    size = _tile_size(definition)
    plain = replace(
        spec,
        definition=replace(definition, native=native, tile_yx=(size, size)),
        arguments=tuple(given.items()),
        output="distance",
    )
    return NativeRunner(plain, _load_network(plain))


def _tile_size(definition: ModelDefinition) -> int:
    """``ImageHeight``, which arcgis.learn's function takes for both axes. Raises ModelDefinitionError."""
    if definition.tile_yx is None:
        raise ModelDefinitionError(
            f"{definition.source} has no ImageHeight; the tile that it was trained on is needed."
        )
    return definition.tile_yx[0]


def _square_batch(definition: ModelDefinition, given: dict[str, str]) -> int:
    """The largest square number of tiles that is not above what was asked for."""
    wanted = integer_argument(given, "batch_size", definition.batch_size or DEFAULT_BATCH_SIZE, 1)
    return math.isqrt(wanted) ** 2


def _native_options(definition: ModelDefinition, given: dict[str, str]) -> NativeOptions:
    """What a native model says in ``GeodlDask``: there a threshold may stand, mean and std too."""
    native = definition.native
    if native.output not in (None, "distance"):
        raise ModelDefinitionError(
            f"{definition.source}: GeodlDask.output is {native.output!r}; a change detector answers with distances."
        )
    threshold = number_argument(given, "threshold", THRESHOLD if native.threshold is None else native.threshold, 0)
    mean, std = native.mean, native.std
    if mean is None and std is None:
        mean, std = _normalisation(definition)
    return replace(native, input="pair", output="distance", threshold=threshold, mean=mean, std=std)


def _normalisation(definition: ModelDefinition) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per band: what becomes -1 to 1 is the range of a byte or, where they stand, of the statistics.

    It is not ImageNet's, whatever ``IsImageNetNormalization`` says.
    """
    stats = definition.keys.get("NormalizationStats")
    if not stats:
        return (_BYTE_MIDDLE,), (_BYTE_MIDDLE,)
    try:
        low, high = _band_ranges(stats)
    except ModelDefinitionError as error:
        raise ModelDefinitionError(f"{definition.source}: {error}") from error
    pairs = list(zip(low, high, strict=True))
    return tuple((a + b) / 2 for a, b in pairs), tuple((b - a) / 2 for a, b in pairs)


def _band_ranges(stats: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not isinstance(stats, dict):
        raise ModelDefinitionError(f"NormalizationStats is {shown(stats)}; an object is needed.")
    low, high = (
        read_numbers(f"NormalizationStats.{key}", stats.get(key)) for key in ("band_min_values", "band_max_values")
    )
    if len(low) != len(high) or any(a >= b for a, b in zip(low, high, strict=False)):
        raise ModelDefinitionError(
            f"NormalizationStats has the minima {shown(list(low))} and the maxima {shown(list(high))}; one of each per "
            "band of one date, min below max, is needed (arcgis.learn would divide by zero)."
        )
    return low, high


def _load_network(spec: RunnerSpec) -> TorchNetwork:
    """The network with the weights of the model's file. Raises BandCountError or ModelFileError."""
    from .pytorch import TorchNetwork
    from .stanet import build_change_detector
    from .state_dict import read_state_dict, take_weights

    definition, path = spec.definition, spec.definition.model_file or ""
    state = {name: tensor for name, tensor in read_state_dict(path).items() if not _UNUSED.search(name)}
    names = {_without_module(name): name for name in state}
    stem = state.get(names.get(_without_module(_STEM), ""))
    bands = stem.shape[1] if stem is not None and stem.ndim == 4 else spec.band_count
    taken = len(definition.extract_bands) // 2 if definition.extract_bands else spec.band_count
    if bands != taken:
        raise BandCountError(
            f"The weights of {definition.source} take {bands} band(s) of each date, and they are given {taken} "
            f"(ExtractBands {list(definition.extract_bands or [])}; the rasters have {spec.band_count})."
        )
    module = build_change_detector(*read_architecture(definition), bands)
    stored = {name: _stored_name(name) for name in module.state_dict() if not _UNUSED.search(name)}
    take_weights(module, state, {ours: names.get(_without_module(name), name) for ours, name in stored.items()}, path)
    network = TorchNetwork(spec, module)
    network.tile_yx = definition.tile_yx
    return network


def _stored_name(name: str) -> str:
    """arcgis.learn's name of a tensor of `stanet`'s."""
    part, _, rest = name.partition(".")
    return f"{_PREFIXES[part]}.{rest}"


def _without_module(name: str) -> str:
    """A name without the steps that torch's DataParallel puts in: they may be there or not."""
    return ".".join(step for step in name.split(".") if step != "module")
