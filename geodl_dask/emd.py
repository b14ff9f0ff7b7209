"""The text of an ``.emd``: bytes to a JSON object, and its values, each checked and named when it is wrong."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Collection
from typing import Any

from .errors import ModelDefinitionError

LONGEST_TEXT_BYTES = 4 * 2**20
DEEPEST_NESTING = 64
LONGEST_PATH = 4096
BACKSLASH_HINT = 'An unescaped backslash? Write "\\\\" or "/" in paths.'
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LARGEST_INTEGER = 2**31 - 1
_LARGEST_NUMBER = 1e300
_TRAINING_CHIP_KEYS = {"MetaDataMode", "AllTilesStats", "InputRastersProps"}


def decode_text(content: bytes) -> str:
    """Text of a file: UTF-8 with or without a byte order mark, UTF-16 with one. Raises ModelDefinitionError."""
    if len(content) > LONGEST_TEXT_BYTES:
        raise ModelDefinitionError(
            f"the file is larger than {LONGEST_TEXT_BYTES // 2**20} MiB, so it is no model definition. "
            "Give the .emd or the .dlpk."
        )
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelDefinitionError(
            f"the file is neither a package (zip or 7-Zip) nor UTF-8 text (see byte {error.start}). "
            "Give the .emd, saved as UTF-8, or the .dlpk."
        ) from error
    if text.startswith("version https://git-lfs"):
        raise ModelDefinitionError("the file is a Git LFS pointer, not the model. Fetch the model with: git lfs pull")
    if text.lstrip()[:1] == "<":
        raise ModelDefinitionError("the file is a web page or XML, not a model. Download the model again, signed in.")
    return text


def parse_keys(text: str) -> dict[str, Any]:
    """The JSON object of a model definition. Raises ModelDefinitionError for all that is none.

    NaN is let through, since metrics that nobody reads hold it: the readers below refuse it where it counts.
    """
    try:
        keys = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ModelDefinitionError(_describe(error, text)) from error
    except RecursionError as error:
        raise ModelDefinitionError(f"the JSON is nested more than {DEEPEST_NESTING} deep.") from error
    except ModelDefinitionError:
        raise
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        raise ModelDefinitionError(f"a number cannot be read: {error}.") from error
    if not isinstance(keys, dict):
        raise ModelDefinitionError(f'the JSON is {shown(keys)}; an object, {{"ModelFile": ...}}, is needed.')
    if _is_deep(keys):
        raise ModelDefinitionError(f"the JSON is nested more than {DEEPEST_NESTING} deep.")
    chips = sorted(_TRAINING_CHIP_KEYS & keys.keys())
    if chips and not {"InferenceFunction", "ModelFile"} & keys.keys():
        raise ModelDefinitionError(
            f"this .emd describes training chips ({', '.join(chips)}; no ModelFile), not a trained model. "
            "Give the .emd that training wrote beside the model file."
        )
    if "EsriClassifierDefinitionFile" in keys:
        raise ModelDefinitionError("this is a classifier definition (.ecd); the .emd or .dlpk of a model is needed.")
    return keys


def read_path(key: str, value: Any) -> str | None:
    """A path as written, without blanks around it; None where there is none."""
    if value is not None and (not isinstance(value, str) or len(value) > LONGEST_PATH):
        raise wrong(key, value, f"text of at most {LONGEST_PATH} characters")
    return (value or "").strip() or None


def read_integer(key: str, value: Any, lowest: int = 0, highest: int = _LARGEST_INTEGER) -> int:
    """A whole number, 8.0 too."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not lowest <= value <= highest or value != int(value):
        raise wrong(key, value, f"a whole number from {lowest} to {highest}")
    return int(value)


def read_number(key: str, value: Any) -> float:
    """A finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not -_LARGEST_NUMBER < value < _LARGEST_NUMBER:  # never true of NaN
        raise wrong(key, value, "a finite number")
    return float(value)


def read_numbers(key: str, value: Any) -> tuple[float, ...]:
    """Finite numbers, at least one."""
    if not isinstance(value, list) or not value:
        raise wrong(key, value, "a list of numbers")
    return tuple(read_number(key, each) for each in value)


def printable(text: str) -> str:
    """The text with what a terminal or a file would stumble over replaced: control characters, halves of characters."""
    return _UNPRINTABLE.sub("\ufffd", text)


def read_choice(key: str, value: Any, allowed: Collection[str]) -> Any:
    """One of a few words."""
    if not isinstance(value, str) or value not in allowed:
        raise wrong(key, value, f"one of {', '.join(allowed)}")
    return value


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same JSON value with every text in it (keys of objects left alone) replaced by what ``change`` gives."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_texts(each, change) for each in value]
    if isinstance(value, dict):
        return {key: map_texts(each, change) for key, each in value.items()}
    return value


def texts_in(value: Any) -> list[str]:
    """Every text in a JSON value, objects by their keys' order."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [text for each in value for text in texts_in(each)] if isinstance(value, list) else []


def wrong(key: str, value: Any, needed: str) -> ModelDefinitionError:
    """The error for a key whose value is not what is needed."""
    return ModelDefinitionError(f"{key} is {shown(value)}; {needed} is needed.")


def shown(value: Any) -> str:
    """The value as it is shown in a message: short, on one line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    return short.repr(value)


def _describe(error: json.JSONDecodeError, text: str) -> str:
    """What is wrong where, the line as it is written, and a stray backslash named if there is one."""
    line = text.split("\n")[error.lineno - 1]
    near = "".join(letter if letter.isprintable() else " " for letter in line[max(0, error.colno - 60) :][:120]).strip()
    is_backslash = "escape" in error.msg or line.rstrip(" \t\r,}").endswith('\\"')
    where = f"line {error.lineno}, column {error.colno}{': ' + near if near else ''}"
    hint = f" {BACKSLASH_HINT}" if is_backslash else ""
    return f"not JSON: {error.msg.removesuffix(' at')} at {where}.{hint}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ModelDefinitionError(f"the key {shown(key)} stands twice in one object; keep one.")
        keys[key] = value
    return keys


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST_NESTING):
        parents = [each for each in level if isinstance(each, (dict, list))]
        level = [child for each in parents for child in (each.values() if isinstance(each, dict) else each)]
    return bool(level)


def read_color(given: Any) -> tuple[int, int, int] | None:
    """[red, green, blue] or "#rrggbb"; None where no colour is given."""
    if given in (None, [], ""):
        return None
    if isinstance(given, str) and re.fullmatch("#?[0-9A-Fa-f]{6}", given.strip()):
        given = list(bytes.fromhex(given.strip().lstrip("#")))
    if not isinstance(given, list) or len(given) != 3:
        raise wrong("Color of a class", given, "[red, green, blue], each 0 to 255,")
    red, green, blue = (read_integer("Color of a class", part, 0, 255) for part in given)
    return red, green, blue
