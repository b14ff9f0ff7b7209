"""Reads ``.emd``, JSON text, ``.dlpk`` or ``.ecd`` into one frozen ``ModelDefinition``; quirks of Esri's file end here.

Loading runs none of the model's code and unpickles nothing.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

from .classes import ClassTable, ModelClass
from .digest import digest_model, is_file
from .ecd_package import open_ecd
from .emd import (
    BACKSLASH_HINT,
    LONGEST_TEXT_BYTES,
    decode_text,
    map_texts,
    parse_keys,
    printable,
    read_choice,
    read_color,
    read_integer,
    read_number,
    read_numbers,
    read_path,
    shown,
    texts_in,
    wrong,
)
from .errors import ModelDefinitionError, ModelPackageError
from .package import find_definition, is_package, open_package

MOST_CLASSES = 4096
IS_URL = re.compile("[a-zA-Z][a-zA-Z0-9+.-]+://")  # c://folder is a way of writing c:/folder
MOST_MODEL_FILES = 1000
LARGEST_TILE_PX = 65_536
DEEPEST_FUNCTION = 16
_PATH_KEYS = {"ModelFile", "InferenceFunction", "ModelFiles"}
_UNCHANGED = (227, 227, 223)
"""Class 0, unless it has a colour: what lies behind all others on a map."""
_PALETTE = (0xE69F00, 0x56B4E9, 0x009E73, 0xF0E442, 0x0072B2, 0xD55E00, 0xCC79A7)  # Okabe and Ito


@dataclass(frozen=True)
class NativeOptions:
    """The ``GeodlDask`` object of a definition: what a native model needs and Esri has no key for."""

    input: Literal["stack", "pair"] = "stack"
    """``"stack"``: model(concatenated bands); ``"pair"``: model(from, to)."""
    output: Literal["logits", "probabilities", "distance", "classes"] | None = None
    """What the model returns; None: read off shape and range."""
    threshold: float | None = None
    """One-channel outputs: the class is the first non-zero value above it."""
    mean: tuple[float, ...] | None = None
    """Per band of one date, subtracted from pixels as stored."""
    std: tuple[float, ...] | None = None
    """Per band of one date, above 0: what the difference is divided by."""

    def __post_init__(self) -> None:
        if self.std is not None and min(self.std) <= 0:
            raise ModelDefinitionError(f"GeodlDask.std is {shown(list(self.std))}; numbers above 0 are needed.")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ModelDefinitionError(
                f"GeodlDask.mean has {len(self.mean)} numbers and GeodlDask.std {len(self.std)}; "
                "one per band of one date is needed."
            )


@dataclass(frozen=True)
class ModelDefinition:
    """What a model says of itself. Hashable, picklable and small: weights and code stay on disk."""

    text: str
    """The definition as JSON text, as it was given."""
    source: str
    """What the user gave, for messages: a path, or ``"JSON text"``."""
    folder: str | None
    """Absolute folder that relative paths start from, forward slashes; None for JSON text."""
    model_file: str | None
    """Absolute path of the weights, forward slashes, which need not exist; None where none are named, or ``"."``."""
    inference_function_name: str | None
    """``InferenceFunction`` as written."""
    inference_function: str | None
    """Absolute path of the Python file that it means, forward slashes; None where that is not found."""
    classes: ClassTable
    """Classes in the order of the score axis."""
    extract_bands: tuple[int, ...] | None
    """Bands of the stacked pair that the model takes, from 0, in this order; None: all."""
    tile_yx: tuple[int, int] | None
    """``ImageHeight`` and ``ImageWidth``, pixels."""
    batch_size: int | None
    """``BatchSize``: tiles per call."""
    padding: int | None
    """``Padding``: default of the argument, pixels."""
    model_padding: int | None
    """``ModelPadding``: what the network itself cuts from each side, pixels."""
    data_range: tuple[float, float] | None
    """``DataRange``: the range that pixels are rescaled to."""
    native: NativeOptions
    """What only our own runners read."""
    digest: str
    """sha256 of the definition, the files that it names, and the code and data that these bring along.

    The same on every machine and in every folder.
    """

    @property
    def keys(self) -> dict[str, Any]:
        """All keys of the definition, a fresh copy, fit to be printed."""
        return cast(dict[str, Any], map_texts(json.loads(self.text), printable))

    @property
    def name(self) -> str:
        """Short name: the stem of the file that was given; of JSON text ``ModelName``."""
        if self.folder is not None:
            return printable(Path(self.source).stem or Path(self.folder).name)
        name = self.keys.get("ModelName")
        return name.strip() if isinstance(name, str) and name.strip() else "model"


def load_definition(model: str | os.PathLike[str]) -> ModelDefinition:
    """Read the definition from an ``.emd``, ``.dlpk`` or ``.ecd`` file, JSON text or a folder with one ``.emd``.

    The files that it names need not exist; whoever loads them complains. Raises ModelDefinitionError or
    ModelPackageError, and MissingDependencyError for a 7-Zip package without py7zr.
    """
    if isinstance(model, str) and (text := model.lstrip("\ufeff \t\r\n")).startswith("{"):
        return _read(text, "JSON text", _Places(None, None))
    source = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
    if not isinstance(source, str) or not source or "\0" in source or IS_URL.match(source):
        raise ModelDefinitionError(
            f"The model is {shown(model)}; the path of an .emd or .dlpk on disk, or the text of an .emd, is needed."
        )
    try:
        if source.lower().endswith(".ecd") and Path(source).is_file():
            text, folder = open_ecd(Path(source).absolute())
            return _read(text, source, _Places(folder, folder))
        path, package = _locate(Path(source).absolute(), source)
        with path.open("rb") as file:
            content = file.read(LONGEST_TEXT_BYTES + 1)
    except OSError as error:
        raise ModelDefinitionError(f"{source} cannot be read: {error.strerror or error}.") from error
    try:
        text = decode_text(content)
    except ModelDefinitionError as error:
        raise ModelDefinitionError(f"{source}: {error}") from error
    return _read(text, source, _Places(path.parent, package))


def listed_files(definition: ModelDefinition) -> list[str | None]:
    """Absolute paths of ``ModelFiles``, forward slashes; None for what is no file."""
    places = _Places(None if definition.folder is None else Path(definition.folder), None)
    return [places.existing(path) for path in texts_in(parse_keys(definition.text).get("ModelFiles"))]


def normalise_definition(definition: ModelDefinition, folder: Path) -> Path:
    """Write a copy for a raster function into ``folder``: forward slashes, absolute ``ModelFile``, all else as it was.

    ``ModelFile`` ``"."`` stays; entries of ``ModelFiles`` become absolute where that file exists.
    """
    keys = definition.keys
    for key in keys.keys() & _PATH_KEYS:
        keys[key] = map_texts(keys[key], lambda path: path.replace("\\", "/"))
    if definition.model_file is not None:
        keys["ModelFile"] = definition.model_file
    if "ModelFiles" in keys:
        places = _Places(None if definition.folder is None else Path(definition.folder), None)
        keys["ModelFiles"] = map_texts(keys["ModelFiles"], lambda path: places.existing(path) or path)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{re.sub('[^A-Za-z0-9_-]', '_', definition.name)[:100]}.emd"
    copy.write_text(json.dumps(keys, indent=4), encoding="utf-8")
    return copy


def _locate(path: Path, source: str) -> tuple[Path, Path | None]:
    """The ``.emd`` that ``path`` is or holds, and the unpacked package that it lies in, if any."""
    if path.is_dir():
        return find_definition(path), None
    if not path.is_file():
        raise ModelDefinitionError(
            f"{source} is not there (looked in {Path.cwd()}); the path of an .emd, .dlpk or .ecd is needed."
        )
    if not is_package(path):
        return path, None
    package = open_package(path)
    try:
        return find_definition(package), package
    except ModelPackageError as error:
        raise ModelPackageError(f"{source}: {error}") from error


@dataclass(frozen=True)
class _Places:
    """Where the paths of a definition lead."""

    folder: Path | None
    """Absolute folder that relative paths start from."""
    package: Path | None
    """Unpacked package that no path may leave."""

    def resolve(self, key: str, written: str) -> str:
        """Absolute path, forward slashes. Raises ModelDefinitionError for one that must not be followed."""
        path = written.replace("\\", "/")
        if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in path):
            raise ModelDefinitionError(f"{key} is {shown(written)}, with control characters. {BACKSLASH_HINT}")
        if re.match("[a-zA-Z][a-zA-Z0-9+.-]+:/|//[?.]/|/+vsi", path):
            raise ModelDefinitionError(f"{key} is {shown(written)}; the path of a file on disk is needed.")
        is_absolute = bool(re.match("/|[a-zA-Z]:", path))
        if self.folder is None and not is_absolute:
            raise ModelDefinitionError(
                f"{key} is {shown(written)}, a relative path, and JSON text has no folder to start from. "
                "Write an absolute path, or save the text as an .emd beside the file."
            )
        resolved = posixpath.normpath(path if is_absolute else f"{cast(Path, self.folder).as_posix()}/{path}")
        if self.package is not None and not resolved.startswith(f"{self.package.as_posix()}/"):
            raise ModelDefinitionError(f"{key} is {shown(written)}, which leads out of the package.")
        if re.match("/+(dev|proc|sys)/", resolved):
            raise ModelDefinitionError(f"{key} is {shown(written)}, a device; the path of a file is needed.")
        parent, _, name = resolved.rpartition("/")
        return resolved if is_file(resolved) else _find(parent or "/", [name]) or resolved

    def existing(self, written: str) -> str | None:
        """Absolute path of one of ``ModelFiles``; None where that is no file, or no path at all."""
        try:
            path = self.resolve("ModelFiles", written)
        except ModelDefinitionError:
            if self.package is not None:
                raise
            return None
        return path if is_file(path) else None

    def find_function(self, written: str) -> str | None:
        """The Python file that an ``InferenceFunction`` means; None where there is none.

        ``[Functions]`` is a folder of every ArcGIS installation; here the folder that the environment
        variable GEODL_DASK_FUNCTIONS names, then the model's own.
        """
        if not written.lower().startswith("[functions]"):
            path = self.resolve("InferenceFunction", written)
            return path if is_file(path) else None
        parts = [part for part in re.split(r"[\\/]", written[len("[functions]") :]) if part not in ("", ".")]
        if ".." in parts or len(parts) > DEEPEST_FUNCTION or any(ord(letter) < 32 for letter in written):
            raise ModelDefinitionError(f"InferenceFunction is {shown(written)}, which is no path below a folder.")
        configured = os.environ.get("GEODL_DASK_FUNCTIONS")
        bases = [Path(configured).absolute() if configured else None, self.folder]
        tails = [parts[start:] for start in range(len(parts))]
        found = (_find(base.as_posix(), tail) for base in bases if base for tail in tails)
        return next((path for path in found if path), None)


def _find(base: str, parts: Sequence[str]) -> str | None:
    """The file at ``base/part/part``, whatever the case of its letters; None where there is none, or more than one."""
    found = [base]
    for part in parts:
        try:
            names = {
                child for parent in found for child in Path(parent).iterdir() if child.name.lower() == part.lower()
            }
        except OSError:
            return None
        found = [child.as_posix() for child in names if child.name == part] or [child.as_posix() for child in names]
    return found[0] if len(found) == 1 and is_file(found[0]) else None


def _read(text: str, source: str, places: _Places) -> ModelDefinition:
    try:
        if broken := re.search("[\ud800-\udfff]", text):
            raise ModelDefinitionError(f"the text holds half of a character ({broken[0]!r}); save it as UTF-8.")
        keys = parse_keys(text)
        model_file = read_path("ModelFile", keys.get("ModelFile"))
        weights = places.resolve("ModelFile", model_file) if model_file and model_file.strip("./\\") else None
        name = read_path("InferenceFunction", keys.get("InferenceFunction"))
        function = places.find_function(name) if name else None
        listed = texts_in(keys.get("ModelFiles"))
        if len(listed) > MOST_MODEL_FILES:
            raise ModelDefinitionError(f"ModelFiles names {len(listed)} files; at most {MOST_MODEL_FILES} are read.")
        more = [places.existing(path) for path in listed]
        return ModelDefinition(
            text=text,
            source=source,
            folder=places.folder.as_posix() if places.folder else None,
            model_file=weights,
            inference_function_name=name and printable(name),
            inference_function=function,
            classes=_read_classes(keys.get("Classes")),
            extract_bands=_read_bands(keys.get("ExtractBands")),
            tile_yx=_read_tile(keys),
            batch_size=_optional_integer(keys, "BatchSize", 1),
            padding=_optional_integer(keys, "Padding", 0),
            model_padding=_optional_integer(keys, "ModelPadding", 0),
            data_range=_read_range(keys.get("DataRange")),
            native=_read_native(keys.get("GeodlDask")),
            digest=digest_of(keys, weights, function, more),
        )
    except ModelDefinitionError as error:
        raise ModelDefinitionError(f"{source}: {error}") from error
    except OSError as error:
        raise ModelDefinitionError(f"{source} names a file that cannot be read: {error}") from error


def _optional_integer(keys: dict[str, Any], key: str, lowest: int) -> int | None:
    return None if keys.get(key) is None else read_integer(key, keys[key], lowest)


def _read_tile(keys: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width); where one is missing the tile is square."""
    given = [(key, keys[key]) for key in ("ImageHeight", "ImageWidth") if keys.get(key) is not None]
    sides = [read_integer(key, side, 1, LARGEST_TILE_PX) for key, side in given]
    return (sides[0], sides[-1]) if sides else None


def _read_range(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 2:
        raise wrong("DataRange", given, "[lowest, highest]")
    lowest, highest = read_numbers("DataRange", given)
    if lowest >= highest:
        raise wrong("DataRange", given, "[lowest, highest]")
    return lowest, highest


def _read_bands(given: Any) -> tuple[int, ...] | None:
    if given is None or given == []:
        return None
    if not isinstance(given, list) or any(isinstance(band, str) for band in given):
        raise wrong("ExtractBands", given, "a list of band numbers, from 0, over both rasters stacked,")
    return tuple(read_integer("ExtractBands", band) for band in given)


def _read_native(given: Any) -> NativeOptions:
    known = [field.name for field in fields(NativeOptions)]
    if given is None:
        return NativeOptions()
    if not isinstance(given, dict):
        raise wrong("GeodlDask", given, "an object")
    for key in given:
        if key not in known:
            raise ModelDefinitionError(f"GeodlDask has an unknown key {shown(key)}; known are {', '.join(known)}.")
    read: dict[str, Any] = {
        "input": lambda key, value: read_choice(key, value, ("stack", "pair")),
        "output": lambda key, value: read_choice(key, value, ("logits", "probabilities", "distance", "classes")),
        "threshold": read_number,
        "mean": read_numbers,
        "std": read_numbers,
    }
    return NativeOptions(
        **{key: read[key](f"GeodlDask.{key}", value) for key, value in given.items() if value is not None}
    )


def _read_classes(given: Any) -> ClassTable:
    """Classes in Esri's form (Value, Name, Color) or that of training exports (ClassValue, ClassName)."""
    if given is None:
        raise ModelDefinitionError(
            'Classes is missing. Add one entry per class, for example "Classes": '
            '[{"Value": 0, "Name": "No change"}, {"Value": 1, "Name": "Change", "Color": [255, 0, 0]}].'
        )
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise wrong("Classes", given, "a list of objects with Value and Name")
    if len(given) > MOST_CLASSES:
        raise ModelDefinitionError(f"Classes lists {len(given)} classes; at most {MOST_CLASSES} can be read.")
    colors = [read_color(entry.get("Color")) for entry in given]
    taken = {*colors, _UNCHANGED}
    spare = (color for color in _palette() if color not in taken)
    classes = []
    for entry, color in zip(given, colors, strict=True):
        value = read_integer("Value of a class", entry.get("Value", entry.get("ClassValue")), 0, 2**32 - 2)
        name = entry.get("Name", entry.get("ClassName"))
        if isinstance(name, (bool, list, dict)):
            raise wrong("Name of a class", name, "text")
        text = printable(str(value if name is None else name)).replace("\n", " ")
        is_behind = value == 0 and _UNCHANGED not in colors
        classes.append(ModelClass(value, text, color or (_UNCHANGED if is_behind else next(spare))))
    return ClassTable(tuple(classes))


def _palette() -> Iterator[tuple[int, int, int]]:
    """Colours in a fixed order, the first ones easy to tell apart, more than any definition has classes."""
    for number in (*_PALETTE, *(index * 0x9E3779 % 2**24 for index in range(1, 3 * MOST_CLASSES))):
        yield number >> 16, number >> 8 & 255, number & 255


def digest_of(keys: dict[str, Any], weights: str | None, function: str | None, more: Sequence[str | None]) -> str:
    """What `digest_model` says of the keys, paths shortened to file names, and of the files."""
    portable = {
        key: map_texts(value, lambda path: re.split(r"[\\/]", path)[-1]) if key in _PATH_KEYS else value
        for key, value in keys.items()
    }
    return digest_model(json.dumps(portable, sort_keys=True), weights, function, more)
