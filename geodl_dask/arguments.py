"""Model arguments: the reference tool's grammar, and which names a model knows."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real

from .errors import ModelArgumentError

_HINT = 'Write arguments as "padding 64;batch_size 16".'


def parse_arguments(
    arguments: str | Mapping[str, object] | Iterable[tuple[str, object]] | None,
) -> dict[str, str]:
    """Names and values as text, in the order given.

    Text is ``"name value;name value"``, where a value may hold blanks. Of a mapping or of pairs, a value
    None leaves the argument at its default; numbers and booleans become what Esri's functions read:
    8.0 is ``"8"``, True is ``"True"``. Raises ModelArgumentError.
    """
    if arguments is None:
        return {}
    pairs = _split(arguments) if isinstance(arguments, str) else _pairs(arguments)
    parsed: dict[str, str] = {}
    for name, value in pairs:
        if name in parsed:
            raise ModelArgumentError(
                f"The argument {name} is given twice, as {parsed[name]!r} and {value!r}. Keep one."
            )
        parsed[name] = value
    return parsed


def check_names(given: Mapping[str, str], known: Collection[str], model: str) -> None:
    """Raise ModelArgumentError for a name that the model does not take; ``model`` is its name, for the message."""
    takes = f"{model} takes {', '.join(sorted(known))}." if known else f"{model} takes no arguments."
    for name in given:
        if name in known:
            continue
        if name == "score_threshold":
            raise ModelArgumentError(
                f"{model} has no score_threshold; the reference tool's own example passes it, and models trained in "
                f"ArcGIS ignore it without a word. Leave it out. {takes}"
            )
        by_lower = {each.lower(): each for each in known}
        close = difflib.get_close_matches(name.lower(), by_lower, n=1)
        suggestion = f" Did you mean {by_lower[close[0]]}?" if close else ""
        raise ModelArgumentError(f"{model} has no argument {name}.{suggestion} {takes}")


def integer_argument(given: Mapping[str, str], name: str, default: int, minimum: int) -> int:
    """The whole number given for ``name``, or ``default``. Raises ModelArgumentError below ``minimum``."""
    text = given.get(name)
    if text is None:
        return default
    if not re.fullmatch("[+-]?[0-9]{1,9}", text) or int(text) < minimum:
        raise ModelArgumentError(f"{name} is {text!r}; a whole number of at least {minimum} is needed. {_HINT}")
    return int(text)


def number_argument(given: Mapping[str, str], name: str, default: float, minimum: float) -> float:
    """The number given for ``name``, or ``default``. Raises ModelArgumentError below ``minimum``."""
    text = given.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[+-]?([0-9]{1,9}(\.[0-9]{0,20})?|\.[0-9]{1,20})(e[+-]?[0-9]{1,2})?", text.lower()) or (
        float(text) < minimum
    ):
        raise ModelArgumentError(f"{name} is {text!r}; a number of at least {minimum:g} is needed. {_HINT}")
    return float(text)


def boolean_argument(given: Mapping[str, str], name: str, default: bool) -> bool:
    """Whether ``name`` was given as True, as Esri spells it, in any case. Raises ModelArgumentError for other words."""
    text = given.get(name, str(default)).lower()
    if text not in ("true", "false"):
        raise ModelArgumentError(f"{name} is {given[name]!r}; True or False is needed. {_HINT}")
    return text == "true"


def _split(text: str) -> list[tuple[str, str]]:
    pairs = []
    for item in filter(None, map(str.strip, text.split(";"))):
        name, *rest = item.split(maxsplit=1)
        value = rest[0] if rest else ""
        if "=" in name or value.startswith("="):
            raise ModelArgumentError(f"The argument {item!r} has an equals sign; a blank is needed. {_HINT}")
        if not value:
            raise ModelArgumentError(f"The argument {name} has no value. {_HINT}")
        pairs.append((name, value))
    return pairs


def _pairs(given: Mapping[str, object] | Iterable[tuple[str, object]]) -> list[tuple[str, str]]:
    pairs = []
    try:
        items = list(given.items() if isinstance(given, Mapping) else given)
    except TypeError as error:
        raise ModelArgumentError(f"arguments is {given!r}; text, a dict or pairs are needed. {_HINT}") from error
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[0], str) or not item[0].strip():
            raise ModelArgumentError(f"arguments holds {item!r}; pairs of a name and a value are needed.")
        if item[1] is not None:
            pairs.append((item[0].strip(), _value_text(item[0].strip(), item[1])))
    return pairs


def _value_text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy's too
        return str(bool(value))
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real) and math.isfinite(value):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    raise ModelArgumentError(f"The argument {name} is {value!r}; text, a finite number or True or False is needed.")
