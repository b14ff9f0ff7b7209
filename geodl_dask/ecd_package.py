"""A classifier definition (``.ecd``) as a model: its definition, and the model's file, which is not trusted.

An embedded model is taken out into the cache. One that the ``.ecd`` refers to stays where it is, and is used only
where it lies in the ``.ecd``'s own folder or below.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from .cache import cache_folder, keep
from .ecd import Ecd, EcdError, EcdFile, check_reference, extract, model_definition, read_ecd
from .errors import ModelDefinitionError, ModelPackageError
from .package import PackageLimits


def open_ecd(path: Path) -> tuple[str, Path]:
    """The text of the ``.emd`` that says what the ``.ecd`` says, and the folder that its ModelFile lies in.

    Safe to call from many processes at once. Raises ModelDefinitionError for what is no ``.ecd`` of ours or refers to
    a model elsewhere, ModelPackageError for too large a model, and OSError.
    """
    try:
        ecd = read_ecd(path)
        if any(file.path for file in ecd.files):
            folder, model = ecd.path.parent, _referenced_model(ecd)
        else:
            folder, model = _take_out(ecd), ecd.model_name
    except EcdError as error:
        raise ModelDefinitionError(str(error)) from error
    return json.dumps(model_definition(ecd, model), indent=2), folder


def _take_out(ecd: Ecd) -> Path:
    """The folder in the cache with the model; takes it out unless it is there already."""
    size, limit = sum(file.size_bytes for file in ecd.files), PackageLimits.from_environment().inflated_bytes
    if size > limit:
        raise ModelPackageError(
            f"{ecd.path} has a model of {size} bytes; the environment variable GEODL_DASK_PACKAGE_MAX_BYTES is {limit}."
        )
    with ecd.path.open("rb") as file:
        place = cache_folder() / "ecd" / hashlib.file_digest(file, "sha256").hexdigest()[:32]

    def fill(folder: Path) -> list[str]:
        extract(ecd.path, folder)
        return [file.name for file in ecd.files]

    return keep(place, fill)


def _referenced_model(ecd: Ecd) -> str:
    """Path of the model, a file or a SavedModel's folder, from the ``.ecd``'s folder on."""
    places = [_confined_place(ecd, file) for file in ecd.files]
    return places[0].removesuffix(ecd.files[0].name) + ecd.model_name


def _confined_place(ecd: Ecd, file: EcdFile) -> str:
    """Where a referenced file is, from the ``.ecd``'s folder on, once it is clear that it is the right one.

    Raises EcdError for one that lies elsewhere, by a link too, or is another than was referred to.
    """
    folder, path = ecd.path.parent, file.path or ecd.path
    place = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ".."
    if re.search(r"\\|(^|/)\.\.(/|$)", place) or not path.resolve().is_relative_to(folder):
        raise EcdError(
            f"{ecd.path} refers to {path}, which is not in its folder. Put both there and convert again, or embed the "
            "model."
        )
    if not f"/{place}".endswith(f"/{file.name}"):
        raise EcdError(f"{ecd.path} refers to {path}, which should be called {file.name}.")
    check_reference(file)
    with path.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
            raise EcdError(f"{path} does not fit the SHA256 of {ecd.path}; one of them is damaged, or has changed.")
    return place
