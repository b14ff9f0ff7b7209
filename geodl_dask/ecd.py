"""Esri classifier definition (``.ecd``) around a deep learning model: write, read, take apart.

Standalone: the standard library (Python 3.11 or newer) and nothing else, so that a copy of this file alone works::

    python -m geodl_dask.ecd MODEL CLASS_INFO.json OUT.ecd [--reference] [--emd] [--overwrite]
    python -m geodl_dask.ecd --extract FILE.ecd NEW_FOLDER

**The layout is our own.** ArcGIS never published its own for deep learning models, and the adaptor function that read
it is gone. Ours is Esri's classic JSON envelope with its classic class records, in ASCII::

    {"EsriClassifierDefinitionFile": 0, "FileVersion": 1, "NumberDefinitions": 1, "Generator": "...", "Definitions": [
      {"Classifier": "CNTK", "NumberClasses": 2, "RasterIsSegmented": false, "NumberBands": 4, "MiniBatchSize": 16,
       "Classes": [{"ClassValue": 100, "ClassName": "Impervious", "Red": 204, "Green": 204, "Blue": 204}, ...],
       "ExtraInfo": {"FileName": "classInfo.json", "Text": "<the class information, every character of it>"},
       "DeepLearningModel": {"Kind": "CNTK", "Files": [
         {"FileName": "cntk.model", "Size": 123456, "Encoding": "base64", "Data": "...", "SHA256": "..."}]}}]}

A model that is a folder (a TensorFlow SavedModel) has one entry in ``Files`` for each file in it, such as
``"FileName": "my_model/saved_model.pb"``; empty folders are not kept. A model that stays outside has ``"Encoding":
"reference"`` and, for ``Data``, a ``Path`` relative to the ``.ecd``. ``Size``, ``Encoding`` and ``Data`` follow each
other in this order: that is how a reader passes over gigabytes.
"""

from __future__ import annotations

import argparse
import colorsys
import hashlib
import json
import logging
import os
import re
import reprlib
import sys
import tempfile
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, TextIO

_CHUNK = 3 << 16  # bytes; whole groups of 3 (bytes) and of 4 (base64)
_LONGEST_INFO = 1 << 20  # bytes
_LONGEST_HEAD = 16 << 20  # bytes of an .ecd without Data: at most twelvefold the class information
_MOST_FILES = 4096
_HEADER = "ImportDeepLearningModelToEsriExtraInfo"
_EXPORT = "esri_model_definition.emd"
_ROW = ("ClassValue", "ClassName", "Red", "Green", "Blue")
_EMD_KEYS = ("ImageHeight", "ImageWidth", "DataRange", "ModelPadding", "NormalizationStats", "GeodlDask")
_FRAMEWORKS = {"tensorflow": 1, "keras": 1, "cntk": 2, "onnx": 3, "pytorch": 4, "torch": 4}
# How files begin: magic bytes, the first member of a zip, or the first fields of a protobuf message.
_KINDS = (
    ("Keras", rb"\x89HDF\r\n\x1a\n|PK\x03\x04.{26}(metadata|config)\.json"),
    ("PyTorch", rb"PK\x03\x04.{26}(version|serialized_|[^/\0]+/(\.?data|version|archive_format|byteorder|code))"),
    ("PyTorch", rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."),
    ("CNTK", rb"B\0C\0N\0|\x08\x01\x12.{1,5}?\x0a[\x03-\x40][a-z_]{3,}\x12"),
    ("TensorFlow", rb"....TFL3|\x08\x01\x12.{1,5}?\x0a|\x0a.{1,5}?\x0a.{1,2}?[\w./-]+\x12.[A-Z_]\w+"),
    ("ONNX", rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42]"),
)

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9]) *(\..*)?", re.IGNORECASE)
_DATA = re.compile(rb'"Size": *([0-9]{1,16}),\s*"Encoding": *"base64",\s*"Data": *"')
StrPath = str | os.PathLike[str]


class EcdError(ValueError):
    """What was given cannot be converted, read or extracted; the message says where and why."""


class EcdClass(NamedTuple):
    """A class: the value that stands in the classified raster, its name as given, and red, green, blue (0 to 255)."""

    value: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class EcdFile:
    """One file of a model."""

    name: str
    """File name; in a SavedModel the path from its folder on, with forward slashes."""
    size_bytes: int
    sha256: str
    """Lower-case hexadecimal digits."""
    path: Path | None
    """Where a referenced file is expected; None if it is embedded."""
    span: tuple[int, int] = (0, 0)
    """Offset and length of an embedded file's base64 text in the ``.ecd``, bytes."""


@dataclass(frozen=True)
class Ecd:
    """All that an ``.ecd`` holds but the model's bytes, which `extract` gives."""

    path: Path
    """The ``.ecd`` itself, absolute."""
    classifier: str
    """The framework as the class information names it."""
    number_bands: int
    mini_batch_size: int
    """Tiles per call of the network."""
    classes: tuple[EcdClass, ...]
    extra_info_name: str
    """File name that the class information had."""
    extra_info_text: str
    """The class information as it was; its UTF-8 encoding is the input, byte for byte."""
    kind: str
    """Framework that the model's bytes tell, as `sniff_model` gives it."""
    files: tuple[EcdFile, ...]

    @property
    def extra_info(self) -> dict[str, Any]:
        """The class information, parsed, with the keys that nobody knows."""
        return _parse(self.extra_info_text.encode(), f"{self.path}: {self.extra_info_name}: ")

    @property
    def model_name(self) -> str:
        """Name of the model: the file, or the SavedModel's folder."""
        return self.files[0].name.partition("/")[0]

    @property
    def contradiction(self) -> str:
        """Says that the model's bytes tell another framework than `classifier`; "" if they do not."""
        named, found = (_FRAMEWORKS.get(name.casefold()) for name in (self.classifier, self.kind))
        if not named or not found or named == found:
            return ""
        return f"Classifier is {self.classifier}, but {self.model_name} looks like {self.kind}; is it the right file?"


@contextmanager
def _own_error() -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise EcdError("the JSON is nested too deeply.") from error
    except OSError as error:
        raise EcdError(f"{error.filename or 'input or output'}: {error.strerror or error}.") from error


@_own_error()
def deep_learning_model_to_ecd(
    in_deep_learning_model: StrPath,
    in_classification_info_json: StrPath,
    out_classifier_definition: StrPath,
    *,
    reference: bool = False,
    emd: bool = False,
    overwrite: bool = False,
) -> Ecd:
    """Write a model and its class information as one ``.ecd``: the whole file, or nothing.

    A model whose bytes tell another framework than ``Classifier`` is converted, and logged as a warning: which names
    ArcGIS took is not known.

    Parameters
    ----------
    in_deep_learning_model
        Model file of any framework, or TensorFlow SavedModel folder.
    in_classification_info_json
        The reference tool's class information; or an ``.emd``, or a folder of exported training data, which has one.
    out_classifier_definition
        Name of the output, which ends in ``.ecd``.
    reference
        Leave the model where it is, and write its relative path and digest.
    emd
        Write an equivalent model definition beside it, same name, suffix ``.emd``.
    overwrite
        Replace outputs that exist.

    Raises
    ------
    EcdError
        The message names the offending file and place.
    """
    model, info, out = map(_located, (in_deep_learning_model, in_classification_info_json, out_classifier_definition))
    info = info / _EXPORT if info.is_dir() else info
    if out.suffix.lower() != ".ecd":
        raise EcdError(f"{out} does not end in .ecd; choose another output.")
    if not out.parent.is_dir():
        raise EcdError(f"The folder {out.parent} of the output does not exist; make it first.")
    outputs = [out, out.with_suffix(".emd")][: 1 + emd]
    for output in outputs:
        _check_output(output, (model, info), overwrite)
    kind = sniff_model(model)
    definition = _definition(info, kind)
    sources = _model_files(model)
    records = [_file_record(name, source, out.parent, reference) for name, source in sources.items()]
    definition["DeepLearningModel"] = {"Kind": kind, "Files": records}
    if info.name.casefold() == model.name.casefold():
        raise EcdError(f"Class information and model are both called {model.name}; rename one.")
    with tempfile.TemporaryDirectory(prefix=".ecd-", dir=out.parent) as scratch:
        staged = [Path(scratch, path.name) for path in outputs]
        _write_ecd(staged[0], definition, [] if reference else list(sources.values()))
        ecd = read_ecd(staged[0])
        if emd:
            text = json.dumps(model_definition(ecd, _relative(model, out.parent)), indent=4)
            staged[1].write_text(text, encoding="utf-8")
        with _published(staged[1], outputs[1], overwrite) if emd else nullcontext():
            _publish(staged[0], out, overwrite)
    if ecd.contradiction:
        logging.getLogger(__name__).warning(ecd.contradiction)
    return read_ecd(out)


@_own_error()
def read_ecd(path: StrPath) -> Ecd:
    """Read all of an ``.ecd`` but the model's own bytes, which are passed over. Raises EcdError."""
    path = _located(path)
    where = f"{path}: "
    with path.open("rb") as file:
        head, spans = _without_data(file, where)
    envelope = _parse(head, where)
    for key, value in (("EsriClassifierDefinitionFile", 0), ("FileVersion", 1), ("NumberDefinitions", 1)):
        _integer(envelope, key, where, value, value)
    definition, where = _objects(envelope, "Definitions", where, most=1)[0], f"{where}Definitions[0]."
    info, model = (_object(definition, key, where) for key in ("ExtraInfo", "DeepLearningModel"))
    essentials = _essentials(definition, where, ("Classifier", "NumberBands", "MiniBatchSize"))
    _integer(definition, "NumberClasses", where, len(essentials[-1]), len(essentials[-1]))
    info_name = _text(info, "FileName", f"{where}ExtraInfo.")
    _check_name(info_name.replace("/", ":"), f"{where}ExtraInfo.FileName")
    text = _text(info, "Text", f"{where}ExtraInfo.")
    _parse(text.encode(), f"{where}ExtraInfo.Text: ")
    where += "DeepLearningModel."
    records = enumerate(_objects(model, "Files", where, most=_MOST_FILES))
    files = tuple(_file(record, f"{where}Files[{index}].", path.parent, spans) for index, record in records)
    tops = {file.name.partition("/")[0] for file in files}
    if len(tops) > 1 or (len(files) > 1 and files[0].name in tops):
        raise EcdError(f"{where}Files are not in one folder.")
    return Ecd(path, *essentials, info_name, text, _text(model, "Kind", where), files)


@_own_error()
def extract(path: StrPath, new_folder: StrPath) -> tuple[Path, Path]:
    """Write the model and the class information into a new folder, byte for byte as they were.

    Sizes and digests are verified; after an error there is no folder. A model that stays outside is copied from where
    the ``.ecd`` says, which may be anywhere. Returns the paths of the model (a file, or a SavedModel's folder) and of
    the class information. Raises EcdError.
    """
    ecd, folder = read_ecd(path), _located(new_folder)
    _check_output(folder, (), overwrite=False)
    for file in ecd.files:
        check_reference(file)
    with tempfile.TemporaryDirectory(prefix=".ecd-", dir=folder.parent) as scratch:
        staged = Path(scratch, "new")
        staged.mkdir()
        (staged / ecd.extra_info_name).write_bytes(ecd.extra_info_text.encode())
        for file in ecd.files:
            target = staged / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            chunks = _chunks(file.path) if file.path else _decoded(ecd.path, *file.span)
            with target.open("xb") as output:
                if _copy(chunks, file.size_bytes, output.write, file.name) != file.sha256:
                    raise EcdError(f"{ecd.path}: {file.name} does not fit its SHA256; one of them is damaged.")
        staged.rename(folder)
    return folder / ecd.model_name, folder / ecd.extra_info_name


def check_reference(file: EcdFile) -> None:
    """Raise EcdError unless a referenced file is an ordinary one of the size that the ``.ecd`` states."""
    if file.path and (not file.path.is_file() or file.path.stat().st_size != file.size_bytes):
        raise EcdError(f"{file.path} is no file of {file.size_bytes} bytes; the model is needed there.")


def model_definition(ecd: Ecd, model_file: str) -> dict[str, Any]:
    """Content of an equivalent ``.emd`` that names `model_file` as its model."""
    given = ecd.extra_info
    return {
        "Framework": ecd.kind if ecd.kind != "unknown" else ecd.classifier,
        "ModelType": "ImageClassification",
        "ModelFile": model_file,
        "ExtractBands": list(range(ecd.number_bands)),
        "BatchSize": ecd.mini_batch_size,
        "Classes": [{"Value": each.value, "Name": each.name, "Color": list(each.color)} for each in ecd.classes],
        # Exports hold text such as "e.g. 256" for what they do not know.
        **{key: given[key] for key in _EMD_KEYS if not isinstance(given.get(key), str | None)},
    }


@_own_error()
def sniff_model(model: StrPath) -> str:
    """Framework of a model: Keras, TensorFlow, PyTorch, CNTK, ONNX or "unknown".

    Told from its first bytes, never by running or unpickling it. Raises EcdError for what is no model.
    """
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise EcdError(f"{path} is a folder without saved_model.pb; give the model file.")
        return "TensorFlow"
    if not path.is_file() or not path.stat().st_size:
        raise EcdError(f"{path} is {'empty' if path.is_file() else 'no file'}; give a model file.")
    with path.open("rb") as file:
        head = file.read(512)
    return next((kind for kind, begin in _KINDS if re.match(begin, head, re.DOTALL)), "unknown")


def _definition(info: Path, kind: str) -> dict[str, Any]:
    """The definition without the model, from the class information's file."""
    where = f"{info}: "
    with info.open("rb") as file:
        data = file.read(_LONGEST_INFO + 1)
    if len(data) > _LONGEST_INFO:
        raise EcdError(f"{where}larger than {_LONGEST_INFO >> 20} MiB; is it really class information?")
    record = _parse(data, where)
    keys = ("Classifier", "NumberRasterBands", "MiniBatchSize")
    if _HEADER in record:
        _integer(record, "Version", where, 1, 1)
    elif info.suffix.lower() == ".emd":
        record, keys = _from_emd(record, where, kind), ("Framework", "ExtractBands", "BatchSize")
    else:
        raise _wrong(f"{where}{_HEADER}", None, f'class information begins with "{_HEADER}": 0')
    classifier, bands, batch, classes = _essentials(record, where, keys)
    _check_name(info.name, where)
    rows = [dict(zip(_ROW, (each.value, each.name, *each.color), strict=True)) for each in classes]
    return {
        "Classifier": classifier,
        "NumberClasses": len(classes),
        "RasterIsSegmented": False,
        "NumberBands": bands,
        "MiniBatchSize": batch,
        "Classes": rows,
        "ExtraInfo": {"FileName": info.name, "Text": data.decode()},
    }


def _from_emd(emd: dict[str, Any], where: str, kind: str) -> dict[str, Any]:
    """Essentials of an ``.emd``: a model's, or an export's, where "e.g. 8" or -1, -1, -1 mean that it is not known."""
    lists = [emd.get("ExtractBands"), emd.get("AllTilesStats")]
    classes = _objects(emd, "Classes", where)
    for index, entry in enumerate(classes):
        entry.update({key: str(entry[key]) for key in ("Name", "ClassName") if type(entry.get(key)) is int})
        if entry.get("Color", [-1, -1, -1]) == [-1, -1, -1] and "Red" not in entry:
            entry["Color"] = [round(255 * part) for part in colorsys.hsv_to_rgb(index / len(classes), 0.7, 0.9)]
    return {
        "Framework": emd.get("Framework") if kind == "unknown" else kind,
        "ExtractBands": next((len(each) for each in lists if isinstance(each, list) and each), None),
        "BatchSize": 4 if isinstance(emd.get("BatchSize"), str | None) else emd["BatchSize"],
        "Classes": classes,
    }


def _essentials(
    record: dict[str, Any], where: str, keys: tuple[str, str, str]
) -> tuple[str, int, int, tuple[EcdClass, ...]]:
    """Classifier, number of bands and mini batch size, which stand under these keys, and the classes."""
    classes: dict[int, EcdClass] = {}
    for index, entry in enumerate(_objects(record, "Classes", where)):
        place = f"{where}Classes[{index}]."
        prefix = "Class" if "ClassValue" in entry else ""
        value = _integer(entry, f"{prefix}Value", place, 0, 2**32 - 2)
        if value in classes:
            raise EcdError(f"{place}{prefix}Value is {value}, as in Classes[{[*classes].index(value)}]; use it once.")
        color = entry.get("Color", [entry.get(key) for key in _ROW[2:]])
        parts = [part for part in color if type(part) is int and 0 <= part <= 255] if isinstance(color, list) else []
        if len(parts) != 3 or parts != color:
            raise _wrong(f"{place}Color", color, "three whole numbers from 0 to 255")
        name = _text(entry, f"{prefix}Name", place)
        classes[value] = EcdClass(value, name, (parts[0], parts[1], parts[2]))
    bands, batch = _integer(record, keys[1], where, 1, 65_535), _integer(record, keys[2], where, 1, 2**31 - 1)
    return _text(record, keys[0], where), bands, batch, tuple(classes.values())


def _file(record: dict[str, Any], where: str, folder: Path, spans: list[tuple[int, int]]) -> EcdFile:
    name, size = _text(record, "FileName", where), _integer(record, "Size", where, 0, 2**50)
    _check_name(name, f"{where}FileName")
    digest, encoding = _text(record, "SHA256", where), _text(record, "Encoding", where)
    if encoding == "reference":
        return EcdFile(name, size, digest, folder / _text(record, "Path", where))
    if encoding != "base64":
        raise _wrong(f"{where}Encoding", encoding, '"base64" or "reference"')
    number = record.get("Data")
    if not isinstance(number, str) or not re.fullmatch("[0-9]{1,4}", number) or int(number) >= len(spans):
        raise _wrong(f"{where}Data", number, "the model's bytes in base64")
    return EcdFile(name, size, digest, None, spans[int(number)])


def _parse(data: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            raise ValueError(f"a key stands twice in the object of {reprlib.repr(list(record))}")
        return record

    try:
        record = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise EcdError(f"{where}not JSON in UTF-8: {error}.") from error
    return _object({"text": record}, "text", where)


def _wrong(place: str, value: object, needed: str) -> EcdError:
    return EcdError(f"{place} is {'missing' if value is None else reprlib.repr(value)}; needed: {needed}.")


def _object(record: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict):
        raise _wrong(where + key, value, "an object in braces")
    return value


def _objects(record: dict[str, Any], key: str, where: str, most: int = 1 << 20) -> list[dict[str, Any]]:
    value = record.get(key)
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise _wrong(where + key, value, f"a list of 1 to {most} objects")
    return [_object({f"{key}[{index}]": each}, f"{key}[{index}]", where) for index, each in enumerate(value)]


def _integer(record: dict[str, Any], key: str, where: str, low: int, high: int) -> int:
    value = record.get(key)
    if type(value) is not int or not low <= value <= high:
        raise _wrong(where + key, value, str(low) if low == high else f"a whole number from {low} to {high}")
    return value


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value or re.search("[\0\ud800-\udfff]", value):
        raise _wrong(where + key, value, "text")
    return value


def _check_name(name: str, place: str) -> None:
    """Refuse what is not safe to create in a folder on any system; slashes may stand between folders and file."""
    parts = name.split("/")
    is_odd = any(not part or part[-1] in ". " or _DEVICES.fullmatch(part) for part in parts)
    if is_odd or re.search(r'[\x00-\x1f\\:<>"|?*\ud800-\udfff]', name):
        raise _wrong(place, name, "a plain file name")


def _located(path: StrPath) -> Path:
    """The path, absolute, its folder without links; its own name stays, which says more than a link's target."""
    path = Path(path).absolute()
    return Path(os.path.realpath(path.parent), path.name)


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return path.as_posix()


def _model_files(model: Path) -> dict[str, Path]:
    """Files of a model by the names that they get; a link to a folder counts as a file, and is refused as none."""
    found = sorted(model.rglob("*")) if model.is_dir() else [model]
    return {each.relative_to(model.parent).as_posix(): each for each in found if each.is_symlink() or not each.is_dir()}


def _file_record(name: str, source: Path, folder: Path, reference: bool) -> dict[str, Any]:
    _check_name(name, str(source))
    size = source.stat().st_size
    if not reference:
        return {"FileName": name, "Size": size, "Encoding": "base64", "Data": "", "SHA256": ""}
    digest = _copy(_chunks(source), size, len, str(source))
    place = _relative(source, folder)
    return {"FileName": name, "Size": size, "Encoding": "reference", "Path": place, "SHA256": digest}


def _check_output(output: Path, inputs: Iterable[Path], overwrite: bool) -> None:
    if os.path.lexists(output) and (not overwrite or output.is_dir()):
        raise EcdError(
            f"{output} exists{' and is a folder' * output.is_dir()}. Choose another name, or say --overwrite "
            "(overwrite=True)."
        )
    if any(path.exists() and output.exists() and path.samefile(output) for path in inputs):
        raise EcdError(f"{output} is an input and an output; choose another output.")


@contextmanager
def _published(source: Path, target: Path, overwrite: bool) -> Iterator[None]:
    """As `_publish`; if what comes next fails, all is as it was."""
    former = source.with_name("former")
    if overwrite and os.path.lexists(target):
        target.replace(former)
    try:
        _publish(source, target, overwrite)
        try:
            yield
        except BaseException:
            target.unlink()
            raise
    finally:
        if os.path.lexists(former) and not os.path.lexists(target):
            former.replace(target)


def _publish(source: Path, target: Path, overwrite: bool) -> None:
    try:
        if not overwrite:
            target.hardlink_to(source)  # unlike a rename, never replaces what came there meanwhile
            return
    except OSError:  # the target exists, or the file system has no hard links
        _check_output(target, (), overwrite)
    source.replace(target)


def _write_ecd(path: Path, definition: dict[str, Any], embedded: list[Path]) -> None:
    """Write the JSON; the text of the embedded files and their digests are streamed into it."""
    generator = "geodl_dask; the layout for deep learning models is our own, not ArcGIS's"
    envelope = {"EsriClassifierDefinitionFile": 0, "FileVersion": 1, "NumberDefinitions": 1, "Generator": generator}
    text = json.dumps({**envelope, "Definitions": [definition]}, indent=1) + "\n"
    parts = re.split('(?<="Data": ")(?=")|(?<="SHA256": ")(?=")', text)
    with path.open("xb") as file:
        file.write(parts[0].encode())
        records = definition["DeepLearningModel"]["Files"]
        for index, source in enumerate(embedded):
            size, name = records[index]["Size"], str(source)
            digest = _copy(_chunks(source), size, lambda part: file.write(b2a_base64(part, newline=False)), name)
            file.write(f"{parts[2 * index + 1]}{digest}{parts[2 * index + 2]}".encode())
        file.flush()
        os.fsync(file.fileno())


def _chunks(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise EcdError(f"{path} is no file; the model is needed there.")
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _decoded(path: Path, offset: int, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while length > 0 and (chunk := file.read(min(length, _CHUNK))):
            length -= len(chunk)
            try:
                yield a2b_base64(chunk, strict_mode=True)
            except ValueError as error:
                raise EcdError(f"{path}: the model's Data is not base64; it is damaged.") from error


def _copy(chunks: Iterable[bytes], size: int, write: Callable[[bytes], object], name: str) -> str:
    """The digest of what was written, which has `size` bytes."""
    digest, done = hashlib.sha256(), 0
    for chunk in chunks:
        done += len(chunk)
        if done > size:
            break
        digest.update(chunk)
        write(chunk)
    if done != size:
        raise EcdError(f"{name} does not have {size} bytes, as it should; it is damaged, or changing.")
    return digest.hexdigest()


def _without_data(file: BinaryIO, where: str) -> tuple[bytes, list[tuple[int, int]]]:
    """The JSON text with numbers in place of each Data, and offset and length of each of these in the file."""
    kept, spans, searched = bytearray(), list[tuple[int, int]](), 0
    while chunk := file.read(_CHUNK):
        kept += chunk
        searched_to = len(kept) - 512
        if match := _DATA.search(kept, searched):
            begin, length = file.tell() - len(kept) + match.end(), -(-int(match[1]) // 3) * 4
            kept[match.end() :] = b"%d" % len(spans)
            spans.append((begin, length))
            file.seek(begin + length)
            searched_to = len(kept)
        searched = max(searched, searched_to)
        if len(kept) > _LONGEST_HEAD or len(spans) > _MOST_FILES:
            raise EcdError(f"{where}too much beside the model's Data; not an .ecd.")
    return bytes(kept), spans


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise EcdError(f"{message}; see --help.")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0 (done), 2 (asked wrongly) or 130 (stopped)."""
    parser = _Parser(prog="python -m geodl_dask.ecd", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="MODEL CLASS_INFO.json OUT.ecd (see --extract)")
    parser.add_argument("--extract", action="store_true", help="PATHs are FILE.ecd NEW_FOLDER: give both back")
    parser.add_argument("--reference", action="store_true", help="leave the model where it is")
    parser.add_argument("--emd", action="store_true", help="write a model definition (.emd) too")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    try:
        given = vars(parser.parse_args(argv))
        paths, is_extract = given.pop("paths"), given.pop("extract")
        if len(paths) != (2 if is_extract else 3) or (is_extract and any(given.values())):
            parser.error("give MODEL CLASS_INFO.json OUT.ecd, or --extract FILE.ecd NEW_FOLDER")
        if is_extract:
            text = " and ".join(map(str, extract(*paths)))
        else:
            ecd = deep_learning_model_to_ecd(*paths, **given)
            text = f"{ecd.path}: {ecd.kind} model {ecd.model_name}, {len(ecd.classes)} classes"
    except EcdError as error:
        return _say(f"error: {error}", sys.stderr, 2)
    except KeyboardInterrupt:
        return _say("stopped; nothing was written", sys.stderr, 130)
    return _say(f"wrote {text}", sys.stdout, 0)


def _say(text: str, stream: TextIO, status: int) -> int:
    encoding = stream.encoding or "utf-8"
    print(" ".join(text.splitlines()).encode(encoding, "backslashreplace").decode(encoding), file=stream)
    return status


if __name__ == "__main__":
    sys.exit(main())
