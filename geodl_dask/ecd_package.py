"""The model of a classifier definition (``.ecd``), taken out into the cache beside an equivalent ``.emd``."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from .ecd import EcdError, extract, model_definition, read_ecd
from .errors import ModelDefinitionError
from .package import cache_folder

DEFINITION = "definition.emd"


def open_ecd(path: Path) -> Path:
    """The ``.emd`` that says what the ``.ecd`` says; takes the model out unless the cache has it already.

    Safe to call from many processes at once. Raises ModelDefinitionError for what is no ``.ecd`` of ours, and OSError.
    """
    with path.open("rb") as file:
        place = cache_folder() / "ecd" / hashlib.file_digest(file, "sha256").hexdigest()[:32]
    if not (place / DEFINITION).is_file():
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{place.name}.partial-", dir=place.parent) as partial:
            _take_out(path, Path(partial, "content"))
            try:
                Path(partial, "content").rename(place)
            except OSError:  # a twin was faster
                if not (place / DEFINITION).is_file():
                    raise
    return place / DEFINITION


def _take_out(path: Path, folder: Path) -> None:
    try:
        ecd = read_ecd(path)
        model, _ = extract(path, folder)
    except EcdError as error:
        raise ModelDefinitionError(str(error)) from error
    text = json.dumps(model_definition(ecd, model.name), indent=2)
    (folder / DEFINITION).write_text(text, encoding="utf-8")
