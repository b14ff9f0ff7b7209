"""Where the files of a model are: as a run was planned with them, or in a copy on a machine that has not got them.

A model travels to the workers as its definition, which holds paths. Where these lead to nothing, or to other files, its
files go after it into one folder, in which they lie as they lay about each other at home::

    models/cd/cd.emd                     <folder>/cd/cd.emd
    models/cd/cd.py                      <folder>/cd/cd.py
    models/weights/cd.pt                 <folder>/weights/cd.pt
"""

from __future__ import annotations

import json
import os
import posixpath
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .cache import kept_with
from .definition import ModelDefinition, digest_of, listed_files
from .digest import files_beside, is_file
from .emd import map_texts, parse_keys, texts_in
from .errors import ModelFileError


def require_unchanged(definition: ModelDefinition) -> None:
    """Raise ModelFileError where the model's files are not those that the definition was read with."""
    if not is_at_hand(definition):
        raise ModelFileError(
            f"The files of {definition.source} are not those that the run was planned with: the model was changed "
            "meanwhile, or this machine has another copy of it, or none. Start the run again."
        )


def is_at_hand(definition: ModelDefinition) -> bool:
    """Whether this machine has the model's files, as the definition was read with them."""
    keys = parse_keys(definition.text)
    try:
        listed = listed_files(definition)
        return digest_of(keys, definition.model_file, definition.inference_function, listed) == definition.digest
    except OSError:  # they may not be read
        return False


@dataclass(frozen=True)
class ModelCopy:
    """What of a model travels: its definition, and files that lie in one folder."""

    definition: ModelDefinition
    """The model; its paths start from that folder."""
    files: tuple[tuple[str, str], ...]
    """Of each file the name in that folder, and its path at home."""

    def at(self, folder: Path) -> ModelDefinition:
        """The definition with its files in ``folder``."""
        there, base = self.definition, folder.as_posix()
        places = [
            path and posixpath.normpath(f"{base}/{path}")
            for path in (there.folder, there.model_file, there.inference_function)
        ]
        return replace(there, folder=places[0], model_file=places[1], inference_function=places[2])


def copy_model(definition: ModelDefinition, *, with_code: bool) -> ModelCopy:
    """What travels of a model: the files that its definition names or, of a package, all.

    with_code : whether code that the model brings may run, which else stays at home.
    Nothing travels of a model whose files are not those that it was read with.
    """
    if not is_at_hand(definition):
        return ModelCopy(definition, ())
    keys, home, function = parse_keys(definition.text), definition.folder, definition.inference_function
    function = function if with_code else None
    listed = [path if path and (with_code or not _is_code(path)) else None for path in listed_files(definition)]
    package = [each.as_posix() for each in kept_with(Path(home))] if with_code and home else []
    named = {definition.model_file, function, *listed, *package, *files_beside(definition.model_file, function)}
    paths = sorted(path for path in named if path and is_file(path))
    folders = [posixpath.dirname(path) for path in paths] + ([home] if home else [])
    root = Path(os.path.commonpath(folders)).as_posix() if folders else "/"
    there = replace(
        definition,
        text=json.dumps(_with_relative_paths(keys, listed, home or root)),
        folder=posixpath.relpath(home or root, root),
        model_file=definition.model_file and posixpath.relpath(definition.model_file, root),
        inference_function=function and posixpath.relpath(function, root),
        digest=digest_of(keys, definition.model_file, function, listed),
    )
    return ModelCopy(there, tuple((posixpath.relpath(path, root), path) for path in paths))


def _is_code(path: str) -> bool:
    return path.lower().endswith(".py")


def _with_relative_paths(keys: dict[str, Any], listed: list[str | None], home: str) -> dict[str, Any]:
    """The keys with ``ModelFiles`` from the definition's folder on; what is no file, or stays at home, as it was."""
    if "ModelFiles" not in keys:
        return keys
    relative = {
        text: posixpath.relpath(path, home)
        for text, path in zip(texts_in(keys["ModelFiles"]), listed, strict=True)
        if path
    }
    return {**keys, "ModelFiles": map_texts(keys["ModelFiles"], lambda text: relative.get(text, text))}


_copies: dict[ModelDefinition, ModelDefinition] = {}


def use_copy(definition: ModelDefinition, copy: ModelDefinition) -> None:
    """From now on this process takes the model's files from a copy of them."""
    Path(copy.folder or ".").mkdir(parents=True, exist_ok=True)  # the definition's own, where it lay alone
    _copies[definition] = copy


def as_at_hand(definition: ModelDefinition) -> ModelDefinition:
    """The definition whose files this process takes: a copy's, or the one that is given."""
    return _copies.get(definition, definition)
