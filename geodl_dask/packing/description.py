"""What a network is, from keywords and from a file: the keys of a model definition, without the model's file.

Of the file's keys those of Esri and our ``GeodlDask`` object are meant, as `geodl_dask.definition` reads them, so that
an ``.emd`` will do; or it is the class information that ``model-to-ecd`` takes.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import yaml

from ..emd import DEEPEST_NESTING, decode_text, parse_keys, read_integer, shown, wrong
from ..errors import ModelDefinitionError

_KEYS = (
    *("Classes", "ExtractBands", "ImageHeight", "ImageWidth", "Padding", "ModelPadding", "BatchSize", "DataRange"),
    *("NormalizationStats", "ModelName", "Description", "GeodlDask"),
)
_OF_THE_PACKAGE = ("Framework", "ModelType", "ModelFile", "ModelFiles", "InferenceFunction", "ModelConfiguration")
"""Keys that the package decides itself."""
_CLASS_INFORMATION = "ImportDeepLearningModelToEsriExtraInfo"
_CLASS = re.compile(r"(?P<Value>\d+)\s+(?P<Name>.+?)(\s+(?P<Color>#[0-9A-Fa-f]{6}))?")
_NEEDED = {
    "Classes": 'the classes (--classes "0 No change;1 Change", classes=)',
    "ExtractBands": "the number of bands of each raster (--bands 3, bands=)",
    "ImageHeight": "the size of a tile in pixels (--tile-size 256, tile_size=)",
}


class Description(TypedDict, total=False):
    """What is said of a network by keywords; None, like nothing, leaves it to the file, and then to the default."""

    classes: str | Sequence[Mapping[str, Any]] | None
    """``"0 No change;1 Change #c81e1e"``, or a list of ``{"Value": ..., "Name": ..., "Color": ...}``."""
    bands: int | Sequence[int] | None
    """How many of each raster; or a list, which of all rasters stacked, from 0 (``ExtractBands``)."""
    tile_size: int | tuple[int, int] | None
    """Side of a tile, or height and width, pixels."""
    padding: int | None
    """Pixels cut from each side of a tile's prediction; a quarter of the tile unless said."""
    model_padding: int | None
    """Pixels by which the network's answer is smaller on each side; then nothing else is cut."""
    batch_size: int | None
    """Tiles per call."""
    input: Literal["stack", "pair"] | None
    """``"stack"`` (default): network(bands of both dates); ``"pair"``: network(from, to)."""
    output: Literal["logits", "probabilities", "distance", "classes"] | None
    """What the network answers with; read off its answer to noise unless said."""
    threshold: float | None
    """Of one score per pixel: above it the pixel is of the first class whose value is not 0."""
    mean: float | Sequence[float] | None
    """Subtracted from pixels as stored: one number, or one per band of one date."""
    std: float | Sequence[float] | None
    """What the difference is divided by."""
    minimum: float | Sequence[float] | None
    """With ``maximum``, in the place of mean and std: what becomes 0."""
    maximum: float | Sequence[float] | None
    """What becomes 1."""
    name: str | None
    """``ModelName``; the package's own name unless said."""
    description: str | None
    """What the model is for, in a sentence."""


def describe(
    definition: str | os.PathLike[str] | Mapping[str, Any] | None, said: Description, rasters: int
) -> dict[str, Any]:
    """The keys of a definition: those of the file or mapping ``definition``, and what is ``said`` besides, which wins.

    Raises ModelDefinitionError for what cannot be read, is misspelt, or is missing; TypeError for an unknown keyword.
    """
    if unknown := said.keys() - Description.__annotations__.keys():
        raise TypeError(f"{', '.join(unknown)} is not known; known are {', '.join(Description.__annotations__)}.")
    keys = {} if definition is None else _read(definition)
    if _CLASS_INFORMATION in keys:
        keys = _from_class_information(keys)
    for key in keys.keys() - set(_KEYS):
        if close := difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.8):
            raise ModelDefinitionError(f"{shown(definition)} has the key {key}. Did you mean {close[0]}?")
    keys = {key: value for key, value in keys.items() if key not in _OF_THE_PACKAGE} | _said_keys(said, rasters)
    native = keys.get("GeodlDask") or {}
    if not isinstance(native, dict):
        raise wrong("GeodlDask", native, "an object")
    keys["GeodlDask"] = native | _said_options(said)
    if missing := [text for key, text in _NEEDED.items() if keys.get(key) in (None, [])]:
        raise ModelDefinitionError(
            f"Not said of the model: {'; '.join(missing)}. Say it, also in a file: --definition."
        )
    return keys


def _read(definition: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(definition, Mapping):
        return parse_keys(_json("the definition", dict(definition)))
    path = Path(definition)
    try:
        text = decode_text(path.read_bytes())
        if path.suffix.lower() in (".yaml", ".yml"):
            text = _json(str(path), _load_yaml(text))
        return parse_keys(text)
    except OSError as error:
        raise ModelDefinitionError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ModelDefinitionError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    except ModelDefinitionError as error:
        raise ModelDefinitionError(f"{path}: {error}") from error


def _load_yaml(text: str) -> Any:
    """A few lines of aliases may stand for more than any memory holds, once they are written out."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ModelDefinitionError("it has an alias (*name); write out what it stands for.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_NESTING:  # looked at as it is read, for PyYAML takes the longer the deeper it is
            raise ModelDefinitionError(f"it is nested more than {DEEPEST_NESTING} deep.")
    return yaml.safe_load(text)


def _json(what: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelDefinitionError(f"{what} holds what JSON has no word for: {error}.") from error


def _from_class_information(given: dict[str, Any]) -> dict[str, Any]:
    """The same keys as `geodl_dask.ecd.model_definition` makes of it."""
    bands = read_integer("NumberRasterBands", given.get("NumberRasterBands"), 1)
    own = (_CLASS_INFORMATION, "Version", "Classifier", "NumberRasterBands", "MiniBatchSize")
    keys = {key: value for key, value in given.items() if key not in own}
    return {"ExtractBands": list(range(bands)), "BatchSize": given.get("MiniBatchSize"), **keys}


def _said_keys(said: Description, rasters: int) -> dict[str, Any]:
    """What is said that has a key of Esri's."""
    keys: dict[str, Any] = {
        "ModelName": said.get("name"),
        "Description": said.get("description"),
        "Padding": said.get("padding"),
        "ModelPadding": said.get("model_padding"),
        "BatchSize": said.get("batch_size"),
    }
    if (classes := said.get("classes")) is not None:
        keys["Classes"] = _parse_classes(classes) if isinstance(classes, str) else [dict(each) for each in classes]
    if (bands := said.get("bands")) is not None:
        keys["ExtractBands"] = list(range(rasters * bands)) if isinstance(bands, int) else list(bands)
    if (size := said.get("tile_size")) is not None:
        keys["ImageHeight"], keys["ImageWidth"] = (size, size) if isinstance(size, int) else size
    return {key: value for key, value in keys.items() if value is not None}


def _said_options(said: Description) -> dict[str, Any]:
    """What is said that stands in the ``GeodlDask`` object."""
    words: dict[str, Any] = {key: said.get(key) for key in ("input", "output", "threshold")}
    numbers = {key: _listed(said.get(key)) for key in ("mean", "std", "minimum", "maximum")}
    options = {key: value for key, value in (words | numbers).items() if value is not None}
    low, high = options.pop("minimum", None), options.pop("maximum", None)
    if low is None and high is None:
        return options
    if low is None or high is None or {"mean", "std"} & options.keys():
        raise ModelDefinitionError("Say minimum and maximum, or mean and std: one pair of them, and both of the pair.")
    if len(low) != len(high) or any(a >= b for a, b in zip(low, high, strict=True)):
        raise ModelDefinitionError(
            f"minimum is {low} and maximum {high}; as many numbers, each minimum below its maximum, are needed."
        )
    return options | {"mean": low, "std": [b - a for a, b in zip(low, high, strict=True)]}


def _listed(value: Any) -> list[float] | None:
    """One number or several as a list."""
    return None if value is None else [float(each) for each in np.atleast_1d(value)]


def _parse_classes(text: str) -> list[dict[str, Any]]:
    """``"0 No change;1 Change #c81e1e"`` as Esri has it."""
    classes = []
    for item in filter(None, map(str.strip, text.split(";"))):
        found = _CLASS.fullmatch(item)
        if found is None:
            raise ModelDefinitionError(
                f'The class {item!r} is not "VALUE NAME" or "VALUE NAME #RRGGBB". Write classes as "0 No change;1 '
                'Change #c81e1e".'
            )
        classes.append({"Value": int(found["Value"]), "Name": found["Name"], "Color": found["Color"]})
    return classes
