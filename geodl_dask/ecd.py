"""Esri classifier definition (``.ecd``) around a deep learning model: write, read, take apart.

Standalone: standard library only (Python 3.11 or newer), so a copy of this file alone works.

    python -m geodl_dask.ecd MODEL CLASS_INFO.json OUT.ecd [--reference] [--emd] [--overwrite]
    python -m geodl_dask.ecd --extract FILE.ecd FOLDER

**The layout is our own.** ArcGIS never published its own for deep learning, and the adaptor
function that read it is gone. Ours is Esri's classic envelope with its classic class records::

    {"EsriClassifierDefinitionFile": 0, "FileVersion": 1, "NumberDefinitions": 1,
     "Generator": "...", "Definitions": [
      {"Classifier": "CNTK", "NumberClasses": 2, "RasterIsSegmented": false,
       "NumberBands": 4, "MiniBatchSize": 16,
       "Classes": [{"ClassValue": 100, "ClassName": "Impervious",
                    "Red": 204, "Green": 204, "Blue": 204}, ...],
       "ExtraInfo": {"FileName": "classInfo.json", "Text": "<class information as it was>"},
       "DeepLearningModel": {
        "FileName": "cntk.model", "Kind": "CNTK v2", "Container": "file",
        "Size": 123456, "SHA256": "...", "Encoding": "base64", "Data": "..."}}]}

``ExtraInfo.Text`` holds every character of the input, byte order mark and line ends too.
``Container`` is ``tar`` where the model is a folder (TensorFlow SavedModel); ``Size`` and
``SHA256`` are then the tar's. ``Encoding`` is ``reference`` where the model stays outside;
``Path``, relative to the ``.ecd``, then stands for ``Data``. The file is ASCII. ``Data`` comes
last, but a reader must not rely on it: ours passes over ``Data`` wherever another JSON tool put it.
"""

from __future__ import annotations

import argparse
import binascii
import colorsys
import hashlib
import json
import os
import re
import reprlib
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, TextIO

_CHUNK = 3 << 18  # bytes; whole groups of 3 (bytes) and of 4 (base64)
_INFO_LIMIT = 4 << 20
_HEAD_LIMIT = 32 << 20
_HEADER = "ImportDeepLearningModelToEsriExtraInfo"
_EXPORT_NAME = "esri_model_definition.emd"
_DATA = re.compile(rb'(?<!\\)"Data"\s*:\s*"')
_SIZE = re.compile(rb'"Size"\s*:\s*([0-9]{1,18})\b')
_FAMILIES = {"tensorflow": "TensorFlow", "keras": "TensorFlow", "cntk": "CNTK", "onnx": "ONNX"}
_FAMILIES |= {"pytorch": "PyTorch", "torch": "PyTorch"}
_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "Keras HDF5",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": "PyTorch pickle",
    b"B\0C\0N\0\0\0": "CNTK v1",
}
_ZIP_MEMBERS = {
    "constants.pkl": "PyTorch TorchScript",
    "archive_format": "PyTorch export",
    "serialized_exported_program.json": "PyTorch export",
    "data.pkl": "PyTorch pickle",
    "model.weights.h5": "Keras archive",
}
_COLORS = ("Red", "Green", "Blue")
StrPath = str | os.PathLike[str]
Progress = Callable[[int, int], None]
"""Called now and then with the bytes of the model done so far, and all of them."""


class EcdError(ValueError):
    """What was given cannot be converted, read or extracted; the message says where and why."""


class EcdExistsError(EcdError, FileExistsError):
    """The output is there already, and overwriting it was not asked for."""


@dataclass(frozen=True)
class EcdClass:
    value: int
    """What stands in the classified raster."""
    name: str
    """As given, leading blanks too."""
    color: tuple[int, int, int]
    """Red, green, blue, 0 to 255."""


@dataclass(frozen=True)
class EcdModel:
    file_name: str
    """Name of the model file, or of the SavedModel folder."""
    kind: str
    """What `sniff_model` found when the file was written."""
    is_folder: bool
    """True for a SavedModel, which travels as a tar."""
    size_bytes: int
    """Of the model file, or of the tar."""
    sha256: str
    """Of the same bytes, in lower-case hexadecimal digits."""
    path: Path | None
    """Where a referenced model is expected; None if it is embedded."""
    data_span: tuple[int, int] = (0, 0)
    """Offset and length in bytes of an embedded model's base64 text."""


@dataclass(frozen=True)
class Ecd:
    path: Path
    """The ``.ecd`` itself, absolute."""
    classifier: str
    """The framework as the class information names it, such as "CNTK"."""
    number_bands: int
    mini_batch_size: int
    """Tiles per call of the network."""
    classes: tuple[EcdClass, ...]
    extra_info_name: str
    """File name that the class information had."""
    extra_info_text: str
    """The class information as it was; its UTF-8 encoding is the input, byte for byte."""
    model: EcdModel

    @property
    def extra_info(self) -> dict[str, Any]:
        """The class information, parsed; unknown keys are all there."""
        return _parse_json(self.extra_info_text.encode(), self.extra_info_name)

    @property
    def contradiction(self) -> str:
        """In words, that classifier and kind of model do not fit; "" if they do."""
        return _contradiction(self.classifier, self.model.kind)


@contextmanager
def _only_our_error() -> Iterator[None]:
    try:
        yield
    except EcdError:
        raise
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise EcdError(f"{name}{error.strerror or error}.") from error


@_only_our_error()
def deep_learning_model_to_ecd(
    in_deep_learning_model: StrPath,
    in_classification_info_json: StrPath,
    out_classifier_definition: StrPath,
    *,
    reference: bool = False,
    emd: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Ecd:
    """Write a model and its class information as one ``.ecd``: the whole file, or nothing.

    in_deep_learning_model : a model file of any framework, or a TensorFlow SavedModel folder.
    in_classification_info_json : the reference tool's class information; or an ``.emd`` or a
    training-data export folder (the classifier is then the model's own framework).
    reference : leave the model where it is, and write its relative path and digest.
    emd : write an equivalent model definition beside it, same name, suffix ``.emd``.

    Warns, and goes on, where `Classifier` names another framework than the model's bytes do: which
    names ArcGIS took is not known. Raises EcdError, or EcdExistsError.
    """
    model = Path(os.path.abspath(in_deep_learning_model))
    info = Path(os.path.abspath(in_classification_info_json))
    info = info / _EXPORT_NAME if info.is_dir() else info
    out = Path(os.path.abspath(out_classifier_definition))
    if out.suffix.lower() != ".ecd":
        raise EcdError(f"The output is {out}; its name must end in .ecd.")
    outputs = [out, out.with_suffix(".emd")] if emd else [out]
    for given in (model, info):
        if any(path.exists() and given.exists() and path.samefile(given) for path in outputs):
            raise EcdError(f"{given} is an input and an output; choose another output.")
    kind = sniff_model(model)
    definition = _definition(info, kind)
    if message := _contradiction(definition["Classifier"], kind):
        warnings.warn(message, stacklevel=3)
    place = _relative(model, out.parent)
    with _staged(out.parent, [path.name for path in outputs], overwrite) as staging:
        packed = _packed(model, staging.parent / "packed.tar")
        carrier = {"Encoding": "reference", "Path": place} if reference else {"Encoding": "base64", "Data": ""}
        definition["DeepLearningModel"] = {
            "FileName": _file_name({"name": model.name}, "name", f"{model}: "),
            "Kind": kind,
            "Container": "tar" if model.is_dir() else "file",
            "Size": packed.stat().st_size,
            "SHA256": "0" * 64,
        } | carrier
        _check_names(info.name, model.name, f"{model}: ")
        _write_ecd(staging / out.name, definition, packed, progress)
        if emd:
            text = json.dumps(model_definition(read_ecd(staging / out.name), place), indent=4)
            _write(staging / outputs[1].name, [text.encode()])
    return read_ecd(out)


@_only_our_error()
def read_ecd(path: StrPath) -> Ecd:
    """All of an ``.ecd`` but the model's own bytes, which are passed over. Needs little memory."""
    path = Path(os.path.abspath(path))
    with open(path, "rb") as file:
        record = _parse_json(_read_head(file, str(path)), str(path))
    where = f"{path}: "
    if "EsriClassifierDefinitionFile" not in record:
        raise EcdError(f"{where}EsriClassifierDefinitionFile is missing; this is not an .ecd.")
    for key in ("FileVersion", "NumberDefinitions"):
        _integer(record, key, where, 1, 1)
    definitions = record.get("Definitions")
    if not isinstance(definitions, list) or len(definitions) != 1:
        _refuse(f"{where}Definitions", definitions, "a list of one definition")
    definition = _object({"Definitions[0]": definitions[0]}, "Definitions[0]", where)
    where += "Definitions[0]."
    if "DeepLearningModel" not in definition:
        raise EcdError(
            f"{where}DeepLearningModel is missing; only classifiers around a deep learning model "
            f"can be read, and this one is {_shown(definition.get('Classifier'))}."
        )
    classifier, bands, batch, classes = _essentials(definition, where, "NumberBands")
    _integer(definition, "NumberClasses", where, len(classes), len(classes))
    info = _object(definition, "ExtraInfo", where)
    info_name = _file_name(info, "FileName", f"{where}ExtraInfo.")
    text = _text(info, "Text", f"{where}ExtraInfo.")
    _parse_json(text.encode(), f"{where}ExtraInfo.Text")
    model = _model(_object(definition, "DeepLearningModel", where), f"{where}DeepLearningModel.", path)
    _check_names(info_name, model.file_name, where)
    return Ecd(path, classifier, bands, batch, classes, info_name, text, model)


@_only_our_error()
def extract(path: StrPath, folder: StrPath, *, progress: Progress | None = None) -> tuple[Path, Path]:
    """Write the model and the class information into a folder, byte for byte as they were.

    Returns their two paths. Size and digest are verified first; nothing that is there already is
    replaced, and after an error nothing new is left.
    """
    ecd = read_ecd(path)
    model = ecd.model
    names = [model.file_name, ecd.extra_info_name]
    folder = Path(os.path.abspath(folder))
    with _staged(folder, names) as staging:
        _write(staging / ecd.extra_info_name, [ecd.extra_info_text.encode()])
        if model.path is None:
            chunks = _decoded(ecd.path, *model.data_span)
        elif model.path.exists() and model.path.is_dir() == model.is_folder:
            chunks = _chunks(_packed(model.path, staging.parent / "packed.tar"))
        else:
            raise EcdError(f"{model.path}, which {ecd.path} refers to, is missing; move it back.")
        digest = hashlib.sha256()
        target = staging / model.file_name
        written = staging.parent / "verified.tar" if model.is_folder else target
        _write(written, _watched(chunks, model.size_bytes, digest, progress))
        if digest.hexdigest() != model.sha256:
            raise EcdError(f"{ecd.path}: SHA256 does not fit the model; one of them is damaged.")
        if model.is_folder:
            _unpack(written, target)
    return folder / names[0], folder / names[1]


def model_definition(ecd: Ecd, model_file: str) -> dict[str, Any]:
    """The content of an equivalent ``.emd`` that names `model_file` as its model."""
    given = ecd.extra_info
    kept = ("ImageHeight", "ImageWidth", "DataRange", "ModelPadding", "NormalizationStats")
    return {
        "Framework": _framework(ecd.model.kind) or ecd.classifier,
        "ModelType": "ImageClassification",
        "ModelFile": model_file,
        "ExtractBands": list(range(ecd.number_bands)),
        "BatchSize": ecd.mini_batch_size,
        "Classes": [{"Value": c.value, "Name": c.name, "Color": list(c.color)} for c in ecd.classes],
        **{key: given[key] for key in (*kept, "GeodlDask") if not isinstance(given.get(key), str | None)},
    }


def sniff_model(model: StrPath) -> str:
    """Kind of a model, framework first ("PyTorch TorchScript", "ONNX", ...), or "unknown".

    Told from its bytes, never by running or unpickling it; only CNTK also by its suffix.
    """
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise EcdError(f"{path} is a folder without saved_model.pb; give the model file.")
        return "TensorFlow SavedModel"
    if not path.is_file() or not path.stat().st_size:
        raise EcdError(f"{path} is {'empty' if path.is_file() else 'no file'}; give a model file.")
    with open(path, "rb") as file:
        head = file.read(16)
        kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
        if head.startswith(b"PK\x03\x04"):
            kind = _zip_kind(path)
        elif head[4:8] == b"TFL3":
            kind = "TensorFlow Lite"
        kind = kind or _protobuf_kind(file, path.stat().st_size)
    return kind or ("CNTK" if path.suffix.lower() in (".model", ".dnn", ".cntk") else "unknown")


def _zip_kind(path: Path) -> str:
    with suppress(zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
        return next((kind for name, kind in _ZIP_MEMBERS.items() if name in names), "")
    return ""


def _protobuf_kind(file: BinaryIO, size: int) -> str:
    """Tell ONNX, TensorFlow and CNTK apart by the outermost message's fields and wire types."""
    wires: dict[int, int] = {}
    first: dict[int, bytes] = {}
    position = 0
    while position < size and len(wires) < 32:
        file.seek(position)
        head = file.read(80)
        tag, end = _varint(head, 0)
        value, end = _varint(head, end) if tag & 7 in (0, 2) else (0, end)
        length = {0: end, 1: end + 8, 2: end + value, 5: end + 4}.get(tag & 7, 0)
        position += length
        if not end or not length or position > size:
            return ""
        wires.setdefault(tag >> 3, tag & 7)
        first.setdefault(tag >> 3, head[end:])
    if wires.get(1) == 0 and wires.get(7) == 2 and max(wires) < 32:
        return "ONNX"
    if wires.get(1) == 2 and wires.items() <= {1: 2, 2: 2, 3: 0, 4: 2}.items():
        return "TensorFlow graph"
    if wires == {1: 0, 2: 2}:  # CNTK's dictionary is keyed by words, a SavedModel is not
        worded = re.match(rb"\x0a.[A-Za-z_]\w*\x12", first[2], re.DOTALL)
        return "CNTK v2" if worded else "TensorFlow SavedModel"
    return ""


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """A protobuf integer and the position behind it; (0, 0) if there is none."""
    value = 0
    for index, byte in enumerate(data[start : start + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, start + index + 1
    return 0, 0


def _framework(kind: str) -> str:
    return "" if kind == "unknown" else kind.partition(" ")[0]


def _contradiction(classifier: str, kind: str) -> str:
    named, found = _FAMILIES.get(classifier.casefold()), _FAMILIES.get(_framework(kind).casefold())
    if named is None or found is None or named == found:
        return ""
    return f"Classifier is {classifier}, but the model looks like {kind}; is it the right file?"


def _definition(info: Path, kind: str) -> dict[str, Any]:
    """The definition in classic names but for the model, from the class information's file."""
    with open(info, "rb") as file:
        data = file.read(_INFO_LIMIT + 1)
    if len(data) > _INFO_LIMIT:
        raise EcdError(f"{info} exceeds {_INFO_LIMIT >> 20} MiB; is it really class information?")
    record, where = _parse_json(data, str(info)), f"{info}: "
    if _HEADER in record:
        _integer(record, "Version", where, 1, 1)
    elif info.suffix.lower() == ".emd":
        record = _class_information(record, where, kind)
    else:
        _refuse(f"{where}{_HEADER}", None, 'class information begins with it, as "...": 0')
    classifier, bands, batch, classes = _essentials(record, where, "NumberRasterBands")
    rows = [dict(zip(("ClassValue", "ClassName", *_COLORS), (c.value, c.name, *c.color), strict=True)) for c in classes]
    return {
        "Classifier": classifier,
        "NumberClasses": len(rows),
        "RasterIsSegmented": False,
        "NumberBands": bands,
        "MiniBatchSize": batch,
        "Classes": rows,
        "ExtraInfo": {
            "FileName": _file_name({"name": info.name}, "name", f"{info}: "),
            "Text": data.decode(),
        },
    }


def _class_information(emd: dict[str, Any], where: str, kind: str) -> dict[str, Any]:
    """Class information out of an ``.emd``: a training-data export's, or a model definition.

    Exports hold text such as "e.g. 8" for what they do not know, and the colour -1, -1, -1 for
    none; a class without colour gets one here.
    """
    framework = _framework(kind) or emd.get("Framework")
    if not isinstance(framework, str) or framework.startswith("e.g."):
        _refuse(f"{where}Framework", framework, "the model's bytes do not tell it: write it here")
    inputs = emd.get("InputRastersProps")
    names = inputs.get("BandNames") if isinstance(inputs, dict) else None
    bands = [b for b in (emd.get("ExtractBands"), emd.get("AllTilesStats"), names) if isinstance(b, list)]
    if not any(bands):
        _refuse(f"{where}ExtractBands", emd.get("ExtractBands"), "a list such as [0, 1, 2]")
    classes = emd.get("Classes")
    records = []
    for index, entry in enumerate(classes if isinstance(classes, list) else []):
        record = dict(_object({"": entry}, "", f"{where}Classes[{index}]"))
        for key in ("Name", "ClassName"):
            if type(record.get(key)) is int:
                record[key] = str(record[key])
        if record.get("Color", [-1, -1, -1]) == [-1, -1, -1] and "Red" not in record:
            spectrum = colorsys.hsv_to_rgb(index / len(emd["Classes"]), 0.7, 0.9)
            record["Color"] = [round(255 * part) for part in spectrum]
        records.append(record)
    batch = emd.get("BatchSize", "")
    return {
        "Classifier": framework,
        "NumberRasterBands": len(next(filter(None, bands))),
        "MiniBatchSize": 4 if isinstance(batch, str) else batch,
        "Classes": records,
    }


def _essentials(record: dict[str, Any], where: str, bands_key: str) -> tuple[str, int, int, tuple[EcdClass, ...]]:
    """Classifier, number of bands, mini batch size, classes."""
    return (
        _text(record, "Classifier", where),
        _integer(record, bands_key, where, 1, 65_535),
        _integer(record, "MiniBatchSize", where, 1, 2**31 - 1),
        _class_table(record.get("Classes"), where),
    )


def _class_table(records: object, where: str) -> tuple[EcdClass, ...]:
    if not isinstance(records, list) or not records:
        _refuse(f"{where}Classes", records, "a list of at least one class")
    table: dict[int, EcdClass] = {}
    for index, entry in enumerate(records):
        place = f"{where}Classes[{index}]"
        record = _object({"": entry}, "", place)
        prefix = "Class" if "ClassValue" in record else ""
        value = _integer(record, f"{prefix}Value", f"{place}.", -(2**31), 2**32 - 1)
        if value in table:
            first = list(table).index(value)
            raise EcdError(f"{place}.{prefix}Value is {value} again, as in Classes[{first}].")
        color = record.get("Color", [record.get(key) for key in _COLORS])
        valid = [c for c in color if type(c) is int and 0 <= c <= 255] if isinstance(color, list) else []
        if len(valid) != 3 or color != valid:
            _refuse(f"{place}.Color", color, "three whole numbers from 0 to 255")
        name = _text(record, f"{prefix}Name", f"{place}.")
        table[value] = EcdClass(value, name, (valid[0], valid[1], valid[2]))
    return tuple(table.values())


def _model(record: dict[str, Any], where: str, ecd: Path) -> EcdModel:
    name = _file_name(record, "FileName", where)
    kind = _text(record, "Kind", where)
    size = _integer(record, "Size", where, 1, 2**62)
    digest = _text(record, "SHA256", where).lower()
    if not re.fullmatch("[0-9a-f]{64}", digest):
        _refuse(f"{where}SHA256", digest, "64 hexadecimal digits")
    container, encoding = _text(record, "Container", where), _text(record, "Encoding", where)
    if container not in ("file", "tar"):
        _refuse(f"{where}Container", container, '"file" or "tar"')
    if encoding == "reference":
        place = Path(os.path.normpath(ecd.parent / _text(record, "Path", where)))
        return EcdModel(name, kind, container == "tar", size, digest, place)
    if encoding != "base64":
        _refuse(f"{where}Encoding", encoding, '"base64" or "reference"')
    span = re.fullmatch(r"([0-9]{1,18})\+([0-9]{1,18})", _text(record, "Data", where))
    if span is None:
        raise EcdError(f"{where}Data is not the file's first string of that name; remove the other.")
    return EcdModel(name, kind, container == "tar", size, digest, None, (int(span[1]), int(span[2])))


def _parse_json(data: bytes, name: str) -> dict[str, Any]:
    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for key, value in pairs:
            if key in record:
                raise EcdError(f"{name}: {_shown(key)} stands twice in one object; keep one.")
            record[key] = value
        return record

    def finite(text: str) -> float:
        number = float(text)
        if number - number != 0:
            raise EcdError(f"{name}: {_shown(text)} is no number in JSON.")
        return number

    try:
        record = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=without_twins,
            parse_float=finite,
            parse_constant=finite,
        )
    except EcdError:
        raise
    except UnicodeDecodeError as error:
        raise EcdError(f"{name}: byte {error.start} is not UTF-8; save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        hint = " An unescaped backslash? Write it twice." if "escape" in error.msg else ""
        at = f"line {error.lineno}, column {error.colno}"
        raise EcdError(f"{name}: not JSON at {at}: {error.msg}.{hint}") from error
    except (ValueError, RecursionError) as error:
        raise EcdError(f"{name}: nested too deeply, or a number with too many digits.") from error
    return _object({"": record}, "", name)


def _refuse(place: str, value: object, wanted: str) -> NoReturn:
    raise EcdError(f"{place} is {_shown(value)}; needed: {wanted}.")


def _shown(value: object) -> str:
    return "missing" if value is None else reprlib.repr(value)


def _object(record: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict):
        _refuse(where + key, value, "an object in braces")
    return value


def _integer(record: dict[str, Any], key: str, where: str, low: int, high: int) -> int:
    value = record.get(key)
    if type(value) is not int or not low <= value <= high:
        _refuse(where + key, value, f"{low}" if low == high else f"a whole number, {low} to {high}")
    return value


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value or re.search("[\0\ud800-\udfff]", value):
        _refuse(where + key, value, "text")
    return value


def _file_name(record: dict[str, Any], key: str, where: str) -> str:
    """A name that is safe to create in a folder on any system."""
    name = _text(record, key, where)
    if not name.strip(". ") or re.search(r"[\x00-\x1f/\\:]", name) or len(name.encode()) > 255:
        _refuse(where + key, name, "a plain file name without folder")
    return name


def _check_names(info_name: str, model_name: str, where: str) -> None:
    if info_name.casefold() == model_name.casefold():
        raise EcdError(f"{where}class information and model are both called {model_name}; rename one.")


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return path.as_posix()


def _packed(model: Path, archive: Path) -> Path:
    """The model file itself; of a folder, a tar that depends on names and contents only."""
    if not model.is_dir():
        return model
    with tarfile.open(archive, "x", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(model.rglob("*"), key=lambda path: path.relative_to(model).parts):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise EcdError(f"{path} is neither file nor folder; only these can be carried.")
            _file_name({"name": path.name}, "name", f"{path}: ")
            member = tarfile.TarInfo(path.relative_to(model).as_posix())
            if path.is_dir():
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.size = path.stat().st_size
                with open(path, "rb") as file:
                    tar.addfile(member, file)
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Write out a tar's files; refuses links, devices, sparse files, names that lead elsewhere."""
    folder.mkdir()
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                names = member.name.split("/")
                target = folder.joinpath(*(_file_name({"": name}, "", "name in tar") for name in names))
                target.parent.mkdir(parents=True, exist_ok=True)
                if member.isdir():
                    target.mkdir(exist_ok=True)
                elif member.type == tarfile.REGTYPE and (source := tar.extractfile(member)):
                    _write(target, _pieces(source))
                else:
                    _refuse(f"{member.name} in the tar", member.type, "a file or a folder")
    except EcdError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError, struct.error) as error:
        raise EcdError(f"the model's tar cannot be unpacked: {error}.") from error


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from _pieces(file)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_CHUNK):
        yield piece


def _watched(chunks: Iterable[bytes], size: int, digest: Any, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        digest.update(chunk)
        done += len(chunk)
        if progress:
            progress(done, size)
        yield chunk
    if done != size:
        raise EcdError(f"the model has {done} bytes instead of {size}; it is damaged, or changing.")


def _encoded(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        rest += chunk
        cut = len(rest) - len(rest) % 3
        yield binascii.b2a_base64(rest[:cut], newline=False)
        rest = rest[cut:]
    yield binascii.b2a_base64(rest, newline=False)


def _decoded(path: Path, offset: int, length: int) -> Iterator[bytes]:
    """The bytes behind base64 text in a JSON string; other tools write its / and + as escapes."""
    waiting = rest = b""
    with open(path, "rb") as file:
        file.seek(offset)
        try:
            while length > 0 and (piece := file.read(min(length, _CHUNK))):
                length -= len(piece)
                piece = waiting + piece
                last = piece.rfind(b"\\", 0)
                cut = last if length and last >= 0 and last > len(piece) - 6 else len(piece)
                piece, waiting = piece[:cut], piece[cut:]
                rest += piece if last < 0 else json.loads(b'"%b"' % piece).encode("ascii")
                cut = len(rest) - len(rest) % 4
                yield binascii.a2b_base64(rest[:cut], strict_mode=True)
                rest = rest[cut:]
            binascii.a2b_base64(rest, strict_mode=True)
        except ValueError as error:
            raise EcdError(f"{path}: the model's Data is not base64; it is damaged.") from error


def _write_ecd(path: Path, definition: dict[str, Any], packed: Path, progress: Progress | None) -> None:
    """Write the JSON with the model's text streamed into it, then the digest in its place."""
    document = {
        "EsriClassifierDefinitionFile": 0,
        "FileVersion": 1,
        "NumberDefinitions": 1,
        "Generator": "geodl_dask; the layout for deep learning models is our own, not ArcGIS's",
        "Definitions": [definition],
    }
    model = definition["DeepLearningModel"]
    text = json.dumps(document, indent=1) + "\n"
    cut = text.rindex('""') + 1 if "Data" in model else len(text)
    if cut > _HEAD_LIMIT:
        raise EcdError(f"class information of {cut >> 20} MiB is more than can be read back.")
    digest = hashlib.sha256()
    watched = _watched(_chunks(packed), model["Size"], digest, progress)
    with open(path, "xb") as file:
        file.write(text[:cut].encode())
        file.writelines(_encoded(watched) if "Data" in model else (b"" for _ in watched))
        file.write(text[cut:].encode())
        file.seek(text.rindex('"SHA256": "', 0, cut) + len('"SHA256": "'))
        file.write(digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with open(path, "xb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _staged(folder: Path, names: list[str], overwrite: bool = False) -> Iterator[Path]:
    """A private folder; these names in it move to `folder` if all goes well, else no trace is left."""
    for name in names:
        if os.path.lexists(folder / name) and not overwrite:
            raise EcdExistsError(f"{folder / name} exists; choose another name, or overwrite it.")
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    moved: list[Path] = []
    try:
        with tempfile.TemporaryDirectory(prefix=".ecd-", dir=folder) as scratch:
            staging = Path(scratch, "new")
            staging.mkdir()
            yield staging
            for name in names:
                _move(staging / name, folder / name, overwrite)
                moved.append(folder / name)
    except BaseException:
        for path in moved if not overwrite else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if made:
            folder.rmdir()
        raise


def _move(item: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(item, target)
        return
    try:
        os.link(item, target)  # unlike a rename, never replaces what came there meanwhile
    except OSError as error:  # a folder, or a file system without hard links
        if os.path.lexists(target):
            raise EcdExistsError(f"{target} exists; choose another name.") from error
        os.rename(item, target)


def _read_head(file: BinaryIO, name: str) -> bytes:
    """The JSON text, the model's text replaced by where it is: "Data": "<offset>+<length>"."""
    kept = bytearray()
    passed = False
    while chunk := file.read(_CHUNK):
        start = max(0, len(kept) - 4096)
        kept += chunk
        if not passed and (match := _DATA.search(kept, start)):
            passed = True
            offset = file.tell() - len(kept) + match.end()
            del kept[match.end() :]
            end = _end_of_data(file, offset, kept, name)
            kept += b"%d+%d" % (offset, end - offset)
            file.seek(end)
        if len(kept) > _HEAD_LIMIT:
            raise EcdError(f"{name}: more than {_HEAD_LIMIT >> 20} MiB beside Data; not an .ecd.")
    return bytes(kept)


def _end_of_data(file: BinaryIO, offset: int, before: bytearray, name: str) -> int:
    if sizes := _SIZE.findall(before):
        expected = offset + (int(sizes[-1]) + 2) // 3 * 4
        file.seek(expected)
        if file.read(1) == b'"':
            return expected
    file.seek(offset)
    while chunk := file.read(_CHUNK):
        if (found := chunk.find(b'"')) >= 0:
            return file.tell() - len(chunk) + found
    raise EcdError(f"{name} ends within the model's Data; it was cut short.")


def _terminal_progress(stream: TextIO) -> Progress | None:
    """A line that rewrites itself, for models from 64 MB; None where nobody would see it."""
    shown = time.monotonic()

    def show(done: int, size: int) -> None:
        nonlocal shown
        if size >= 64e6 and (time.monotonic() - shown > 0.2 or done == size):
            shown = time.monotonic()
            end = "\r\x1b[K" if done == size else ""
            print(f"\r{done / 1e6:,.0f} of {size / 1e6:,.0f} MB", end=end, file=stream, flush=True)

    return show if stream.isatty() else None


def _say(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns its exit status: 0 done, 2 asked wrongly, 130 stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m geodl_dask.ecd",
        usage="%(prog)s MODEL CLASS_INFO.json OUT.ecd [--reference] [--emd] [--overwrite]\n"
        "       %(prog)s --extract FILE.ecd FOLDER",
        description="Write a deep learning model and its class information as one .ecd; or take "
        "an .ecd apart. CLASS_INFO.json may also be an .emd or a training-data export folder.",
    )
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--extract", nargs=2, metavar=("FILE.ecd", "FOLDER"), help="give both back")
    parser.add_argument("--reference", action="store_true", help="leave the model where it is")
    parser.add_argument("--emd", action="store_true", help="write a model definition (.emd) too")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    given = parser.parse_args(arguments)
    if len(given.paths) != (0 if given.extract else 3):
        parser.error("give MODEL CLASS_INFO.json OUT.ecd, or --extract FILE.ecd FOLDER")
    try:
        _say(_run(given), sys.stdout)
    except EcdError as error:
        _say(f"error: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        _say("stopped; nothing was written", sys.stderr)
        return 130
    return 0


def _run(given: argparse.Namespace) -> str:
    begin, progress = time.monotonic(), _terminal_progress(sys.stderr)
    if given.extract:
        written = list(extract(*given.extract, progress=progress))
        ecd = read_ecd(given.extract[0])
    else:
        options = {"reference": given.reference, "emd": given.emd, "overwrite": given.overwrite}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ecd = deep_learning_model_to_ecd(*given.paths, progress=progress, **options)
        for warning in caught:
            _say(f"warning: {warning.message}", sys.stderr)
        written = [ecd.path, ecd.path.with_suffix(".emd")][: 1 + given.emd]
    size = ecd.model.size_bytes / 1e6
    return (
        f"wrote {' and '.join(map(str, written))}: {ecd.model.kind} model of {size:,.1f} MB, "
        f"{len(ecd.classes)} classes, {time.monotonic() - begin:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
