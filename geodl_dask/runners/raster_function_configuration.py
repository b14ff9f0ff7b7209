"""What a raster function says of itself, checked: an odd answer ends in an error that names key and value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from ..emd import shown
from ..errors import ModelDefinitionError


def read_configuration(answer: Any, function: str) -> dict[str, Any]:
    """``getConfiguration``'s answer: padding, tx and ty as whole numbers, extractBands and dataRange as tuples.

    Those that are None or empty are left out, other keys are as they were. function : its file, for messages.
    Raises ModelDefinitionError.
    """
    read = {key: value for key, value in (answer if isinstance(answer, Mapping) else {}).items() if value is not None}
    for key in ("padding", "tx", "ty"):
        if key in read:
            read[key] = _whole(function, key, read[key], "a whole number")
    if read.get("padding", 0) < 0:
        raise _wrong(function, "padding", read["padding"], "0 or more")
    for key, needed in (("extractBands", "a list of band numbers, from 0,"), ("dataRange", "(lowest, highest)")):
        if key in read and not (isinstance(read[key], str) or not hasattr(read[key], "__iter__")):
            read[key] = tuple(read[key])
        elif key in read:
            raise _wrong(function, key, read[key], needed)
        if not read.get(key, True):
            del read[key]
    if "extractBands" in read:
        needed = "a list of band numbers, from 0,"
        read["extractBands"] = tuple(_whole(function, "extractBands", band, needed) for band in read["extractBands"])
    wanted = read.get("dataRange", (0, 1))
    if len(wanted) != 2 or not all(_is_number(each) for each in wanted) or wanted[0] >= wanted[1]:
        raise _wrong(function, "dataRange", wanted, "(lowest, highest)")
    return read


def read_domain(name: str, domain: tuple[str, ...]) -> tuple[float, float]:
    """Lowest and highest value of the argument ``name``, a number. Raises ModelDefinitionError."""
    try:
        lowest, highest = map(float, domain)
    except ValueError:
        raise _wrong("The function", f"the domain of {name}", domain, "(lowest, highest)") from None
    return lowest, highest


def read_pixel_type(answer: Any, given: str, function: str) -> str:
    """Esri's name of the output's pixel type in ``updateRasterInfo``'s answer; ``given`` where it says nothing."""
    info = answer.get("output_info", {"pixelType": given}) if isinstance(answer, Mapping) else {"pixelType": given}
    if not isinstance(info, Mapping) or not isinstance(info.get("pixelType"), str):
        raise _wrong(function, "output_info", info, 'a dict with a pixelType, such as "u1",')
    return str(info["pixelType"])


def _whole(function: str, key: str, value: Any, needed: str) -> int:
    """A whole number, 8.0 and "8" too."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer() or abs(number) >= 2**31:
        raise _wrong(function, key, value, needed)
    return int(number)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _wrong(function: str, key: str, value: Any, needed: str) -> ModelDefinitionError:
    return ModelDefinitionError(f"{function} answers with {shown(value)} for {key}; {needed} is needed.")
