"""What a model is, and which arguments it takes: everything that can be said of it without rasters."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .classes import ModelClass
from .definition import ModelDefinition, load_definition
from .runners import Parameter, carries_code, choose_kind, describe_parameters, obstacle


@dataclass(frozen=True)
class ModelFile:
    """A file that a definition names."""

    key: str
    """The definition's key that names it: ModelFile or InferenceFunction."""
    written: str
    """As the definition has it."""
    path: str | None
    """Where it is; None where it is not found."""
    size_bytes: int | None
    """Its size; None where it is not found, or a folder."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself."""

    source: str
    """What was given: a path, or ``"JSON text"``."""
    name: str
    """Short name."""
    model_type: str | None
    """``ModelType``."""
    framework: str | None
    """``Framework``."""
    tile_yx: tuple[int, int] | None
    """Height and width of the model's tile, pixels."""
    extract_bands: tuple[int, ...] | None
    """Bands of the stacked pair that it takes, from 0; None: all."""
    classes: tuple[ModelClass, ...]
    """Classes in the order of the score axis."""
    files: tuple[ModelFile, ...]
    """Weights and function."""
    carries_code: bool
    """Whether running it runs code that it brings, which needs trust."""
    runner: Literal["native", "raster-function"]
    """Who runs it."""
    obstacle: str | None
    """Why it cannot be run, as the rest of a sentence about it; None where it can, for all that is seen here."""
    arguments: tuple[Parameter, ...]
    """Arguments that are known."""
    arguments_are_all: bool
    """False where the model's own function, which was not run, may take more."""
    digest: str
    """sha256 of the definition and its files."""


def model_info(model: str | os.PathLike[str], *, trust_code: bool = False) -> ModelInfo:
    """Describe a model.

    model : ``.emd`` file, ``.dlpk`` package or JSON text. trust_code : whether its raster function may run, to say
    which arguments it takes; without it none of the model's code runs and nothing is unpickled.
    Raises ModelDefinitionError or ModelPackageError; with trust also what its function raises.
    """
    definition = load_definition(model)
    kind = choose_kind(definition)
    has_all = kind == "native" or trust_code
    keys = definition.keys
    return ModelInfo(
        source=definition.source,
        name=definition.name,
        model_type=_text(keys.get("ModelType")),
        framework=_text(keys.get("Framework")),
        tile_yx=definition.tile_yx,
        extract_bands=definition.extract_bands,
        classes=definition.classes.classes,
        files=_files(definition),
        carries_code=carries_code(definition, kind),
        runner=kind,
        obstacle=obstacle(definition, kind),
        arguments=describe_parameters(definition, kind) if has_all else _stated(definition),
        arguments_are_all=has_all,
        digest=definition.digest,
    )


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _files(definition: ModelDefinition) -> tuple[ModelFile, ...]:
    found = (
        ("ModelFile", _text(definition.keys.get("ModelFile")), definition.model_file),
        ("InferenceFunction", definition.inference_function_name, definition.inference_function),
    )
    files = []
    for key, written, path in found:
        if written:
            seen = _look(path)
            size = seen.st_size if seen and stat.S_ISREG(seen.st_mode) else None
            files.append(ModelFile(key, written, path if seen else None, size))
    return tuple(files)


def _look(path: str | None) -> os.stat_result | None:
    """What is there; None too for what this system cannot look at."""
    try:
        return None if path is None else Path(path).stat()
    except OSError:  # a name too long, or a folder that is not ours
        return None


def _stated(definition: ModelDefinition) -> tuple[Parameter, ...]:
    """The arguments whose default the definition itself has."""
    stated = (("padding", definition.padding), ("batch_size", definition.batch_size))
    return tuple(
        Parameter(name, "numeric", str(value), name, "Default of the definition.", ())
        for name, value in stated
        if value is not None
    )
