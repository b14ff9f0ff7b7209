"""One's own network as a package (``.dlpk``): a definition, the network's file, and a small raster function.

::

    model.dlpk                    a zip archive, everything at its root, as arcgis.learn's packages have it
      model.emd                   the definition: Esri's keys, and our GeodlDask object
      network.pt2                 the network: torch.export (.pt2), TorchScript (.pt) or ONNX (.onnx)
      GeodlDaskFunction.py        packing/raster_function.py, for whoever speaks Esri's protocol

The definition names the function, because ArcGIS runs nothing without one. To geodl_dask the package is native all the
same (`runners.choose_kind`): the ``GeodlDask`` object says all that the function would do, and the network's file is
checked before it is loaded, as every native one. So none of the package's code runs, and none needs trust: a package
that claims our function's name for another function gains nothing by it, since that function is not run. Who wants the
function says ``--runner raster-function``, and ``--trust-code`` as ever.

There is no ``esriinfo`` folder: packages of arcgis.learn have none, and what ArcGIS Pro would read there is not known.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from ..classes import ModelClass
from ..confidence import TOLERANCE
from ..decision import decide
from ..definition import IS_URL, ModelDefinition, load_definition
from ..digest import files_beside
from ..errors import BandCountError, InferenceError, ModelDefinitionError, ModelFileError, OutputError, RequestError
from ..outputs import check_output, publish
from ..runners import OWN_FUNCTION, Batch, Runner, RunnerSpec, choose_kind, load_runner
from ..runners.native import random_batch, statistics_of
from .archive import write_archive
from .description import Description, describe
from .exporting import Exporter, export_module

if TYPE_CHECKING:
    import torch

_FRAMEWORKS = {".pt": "PyTorch", ".pt2": "PyTorch", ".onnx": "ONNX"}


@dataclass(frozen=True)
class Packed:
    """A package that was written, and what it answered to noise."""

    path: Path
    """The package."""
    size_bytes: int
    """Its size."""
    digest: str
    """sha256 of the definition and its files, as `model_info` gives it."""
    input_shape: tuple[int, ...]
    """(tile, band, y, x) of what it was given; of two rasters, the bands of both."""
    answer_shape: tuple[int, ...]
    """(tile, score, y, x), or (tile, y, x) of a network that answers with classes."""
    answer_range: tuple[float, float]
    """Lowest and highest number of the answer."""
    output: str
    """What that is: logits, probabilities, distance or classes."""
    was_said: bool
    """Whether the meaning was said; else it was read off the answer."""
    classes_seen: dict[ModelClass, float]
    """Each class, and its share of the pixels, 0 to 1."""


def pack_model(
    model: str | os.PathLike[str] | torch.nn.Module,
    out: str | os.PathLike[str],
    *,
    definition: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    rasters: Literal[1, 2] = 2,
    pixel_type: str = "uint8",
    exporter: Exporter = "torch.export",
    overwrite: bool = False,
    **said: Unpack[Description],
) -> Packed:
    """Write a network as a deep learning package that geodl_dask and, by Esri's protocol, ArcGIS can run.

    The package is run on noise before it takes its name, so what does not fit together is refused with nothing written.
    Its bytes depend on what is in it alone.

    model : file of torch.export (``.pt2``), TorchScript (``.pt``) or ONNX (``.onnx``); or a torch module, of which a
        copy is exported, in eval mode, by ``exporter``: ``"torch.export"``, or ``"torch.jit"``, which traces it, and
        whose files older versions of torch read too.
    out : the package, ``.dlpk``; never replaced unless ``overwrite`` is true.
    definition : file (JSON, YAML, an ``.emd``, or class information as `deep_learning_model_to_ecd` takes it) or dict
        with keys of a model definition. What is said by keywords wins.
    rasters : 2 for a network of two dates (`detect_change`), 1 for one of a single raster (`classify_raster`).
    pixel_type : numpy name of the rasters' type; the noise has its range.
    said : ``classes``, ``bands`` and ``tile_size``, which are needed, here or in ``definition``; ``padding``,
        ``model_padding``, ``batch_size``, ``input``, ``output``, ``threshold``, ``mean`` and ``std`` or ``minimum`` and
        ``maximum``, ``name``, ``description``: see `geodl_dask.packing.description.Description`.

    Raises a RequestError (see `geodl_dask.errors`): ModelDefinitionError for what is said, ModelFileError for a network
    that does not do that, BandCountError, TileGeometryError, OutputError, OutputExistsError.
    """
    path = _require_output(model, out, overwrite=overwrite)
    keys = {"ModelName": path.stem} | describe(definition, said, rasters)
    was_said = keys["GeodlDask"].get("output") is not None
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        staged = Path(scratch) / path.name
        file = _model_file(model, staged.with_suffix(""), keys, exporter)
        keys = _settled(keys, file, rasters, pixel_type)
        write_archive(staged, _members(keys, file, path.stem))
        packed = replace(load_definition(staged), source=str(path))
        noise, runner = _load(packed, rasters, pixel_type)
        shape, span, shares = _try_out(noise, runner, packed)
        size = staged.stat().st_size
        place = publish(staged, path, overwrite=overwrite)
    stacked = (len(noise.origins), sum(each.shape[1] for each in noise.images), *noise.images[0].shape[2:])
    return Packed(place, size, packed.digest, stacked, shape, span, runner.output, was_said, shares)


def _require_output(model: object, out: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The package's absolute path, if it may be written there."""
    if IS_URL.match(os.fspath(out)):
        raise OutputError(f"The output {os.fspath(out)!r} is a URL; the path of a package on disk is needed.")
    named = {"model": os.fspath(model)} if isinstance(model, (str, os.PathLike)) else None
    return Path(check_output(out, (".dlpk",), overwrite=overwrite, provenance=named))


def _model_file(model: Any, stem: Path, keys: dict[str, Any], exporter: Exporter) -> Path:
    """The network's file: as given, or exported to ``stem`` with a suffix."""
    if not isinstance(model, (str, os.PathLike)):
        parsed = _parsed(keys, None)
        channels = len(parsed.extract_bands or ())
        inputs = [channels // 2] * 2 if parsed.native.input == "pair" else [channels]
        return export_module(model, stem, channels=inputs, tile_yx=parsed.tile_yx or (0, 0), exporter=exporter)
    file = Path(model).absolute()
    if not file.is_file():
        raise ModelFileError(f"{file} is no file; the file of a network is needed.")
    if file.suffix.lower() not in _FRAMEWORKS:
        raise ModelFileError(
            f"{file} does not end in {', '.join(_FRAMEWORKS)}: TorchScript, torch.export or ONNX can be packed, since "
            "nothing of theirs has to be trusted. Weights alone (a state dict, .pth) need their network: give "
            "pack_model the torch module with its weights loaded, or export it by torch.export.save."
        )
    return file


def _parsed(keys: dict[str, Any], file: Path | None) -> ModelDefinition:
    """The definition of a network that lies in ``file``. Raises ModelDefinitionError."""
    try:
        parsed = load_definition(json.dumps(keys | ({} if file is None else {"ModelFile": file.as_posix()})))
    except ModelDefinitionError as error:
        raise ModelDefinitionError(f"The description of the model: {str(error).removeprefix('JSON text: ')}") from error
    return parsed if file is None else replace(parsed, source=file.name)  # which may lie in a scratch folder


def _settled(keys: dict[str, Any], file: Path, rasters: Literal[1, 2], pixel_type: str) -> dict[str, Any]:
    """The keys of the package's definition: all that the function would have to guess is said.

    Raises what the native runner raises of a network that does not do what is said.
    """
    parsed = _parsed(keys, file)
    options = dict(keys["GeodlDask"])
    if (stats := keys.get("NormalizationStats")) and not (parsed.native.mean or parsed.native.std):
        options["mean"], options["std"] = (each.tolist() for each in statistics_of(stats, parsed))
    _, runner = _load(parsed, rasters, pixel_type)
    height, width = runner.tile.size_yx
    settled = {
        "Framework": _FRAMEWORKS[file.suffix.lower()],
        "ModelType": "ImageClassification",
        "ModelFile": file.name,
        "InferenceFunction": OWN_FUNCTION,
        **{key: value for key, value in keys.items() if key != "NormalizationStats" and value is not None},
        "ImageHeight": height,
        "ImageWidth": width,
        "Classes": [{"Value": each.value, "Name": each.name, "Color": each.color} for each in parsed.classes.classes],
        "GeodlDask": {"input": parsed.native.input, **options, "output": runner.output},
    }
    # One tile at a time is what the runner asks of a CPU, unless the network wants another number.
    return settled if runner.batch_size == 1 else settled | {"BatchSize": runner.batch_size}


def _members(keys: dict[str, Any], file: Path, stem: str) -> dict[str, bytes | Path]:
    """Names in the archive, all at its root, and what they hold."""
    function = Path(__file__).with_name("raster_function.py")
    beside = [Path(each) for each in files_beside(str(file), None)]
    return {
        f"{stem}.emd": (json.dumps(keys, indent=2) + "\n").encode(),
        file.name: file,
        **{each.relative_to(file.parent).as_posix(): each for each in beside},
        OWN_FUNCTION: function.read_bytes(),
    }


def _load(definition: ModelDefinition, rasters: Literal[1, 2], pixel_type: str) -> tuple[Batch, Runner]:
    """Noise in the type of the rasters, and the runner of the network, to which it is to be given."""
    bands = definition.extract_bands or ()
    if rasters == 2 and len(bands) % 2 and bands == tuple(range(len(bands))):
        raise BandCountError(
            f"ExtractBands lists {len(bands)} bands of two rasters, which cannot have as many each. Say how many each "
            "has (--bands, bands=), or that there is one raster (--rasters 1, rasters=1)."
        )
    name = _type_name(pixel_type)
    count = -(-(max(bands) + 1) // rasters)
    spec = RunnerSpec(definition, choose_kind(definition), count, name, raster_count=rasters)
    runner = load_runner(spec)
    return random_batch(spec, runner.tile, runner.batch_size), runner


def _type_name(pixel_type: str) -> str:
    """The name of a type of pixels as numpy has it. Raises RequestError for one that no raster of numbers has."""
    refusal = RequestError(f"pixel_type is {pixel_type!r}; a type of numpy, such as uint8 or float32, is needed.")
    try:
        given = np.dtype(pixel_type)
    except (TypeError, ValueError, SyntaxError) as error:
        raise refusal from error
    if given.kind not in "uif":
        raise refusal
    return given.name


def _try_out(
    noise: Batch, runner: Runner, definition: ModelDefinition
) -> tuple[tuple[int, ...], tuple[float, float], dict[ModelClass, float]]:
    """Shape and range of the answer to noise, and the share of each class in it.

    Raises ModelFileError for an answer that is not what it is said to be.
    """
    table = definition.classes
    try:
        with runner.lane():
            answer = runner.predict(noise)
            counts = np.ones((answer.shape[0], *answer.shape[-2:]), bool)
            classes = decide(answer, counts, runner, table)
    except InferenceError as error:
        raise ModelFileError(f"{definition.source}, tried on noise: {error}") from error
    low, high = float(answer.min()), float(answer.max())
    bounds = {"probabilities": (-TOLERANCE, 1 + TOLERANCE), "distance": (0.0, np.inf)}
    lowest, highest = bounds.get(runner.output, (-np.inf, np.inf))
    if not lowest <= low <= high <= highest:
        raise ModelFileError(
            f"The network answers to noise with {low:.3g} to {high:.3g}, and is said to give {runner.output}. Say what "
            "it gives (--output, output=), or leave that out."
        )
    shares = {each: float((classes == each.value).mean()) for each in table.classes}
    return tuple(answer.shape), (low, high), shares
