"""Class values, names and colours: the pixel type that holds them, and how they travel in attributes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .errors import ModelDefinitionError, RasterInputError

UNLISTED = (128, 128, 128)
"""Colour of values that a model's own function gives and its definition does not list."""

TABLE_ATTRS = ("flag_values", "flag_meanings", "flag_colors", "class_names")
"""Names of the attributes in which a class table travels."""

_NO_TABLE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)
"""What attributes raise that hold something else."""


@dataclass(frozen=True)
class ModelClass:
    """One class of a model."""

    value: int
    """Class value: the number written to the raster (Esri ``Value``)."""
    name: str
    """Name as the model gives it."""
    color: tuple[int, int, int]
    """Red, green, blue, each 0 to 255."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of a model, in the order of its score axis.

    Raises ModelDefinitionError for no classes, a value twice, a negative value or a bad colour.
    """

    classes: tuple[ModelClass, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise ModelDefinitionError("Classes is empty; at least one class with a Value and a Name is needed.")
        seen: set[int] = set()
        for each in self.classes:
            if each.value < 0 or each.value > 2**32 - 2:
                raise ModelDefinitionError(
                    f"Class {each.name!r} has Value {each.value}; class values are 0 to {2**32 - 2}."
                )
            if each.value in seen:
                raise ModelDefinitionError(f"Class value {each.value} stands twice in Classes; values must be unique.")
            if len(each.color) != 3 or not all(0 <= part <= 255 for part in each.color):
                raise ModelDefinitionError(
                    f"Class {each.name!r} has Color {list(each.color)}; three integers 0 to 255 are needed."
                )
            seen.add(each.value)

    @property
    def values(self) -> tuple[int, ...]:
        """Class values by class index."""
        return tuple(each.value for each in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by class index."""
        return tuple(each.name for each in self.classes)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Smallest unsigned type that holds the class values and one value more."""
        for candidate in (np.uint8, np.uint16, np.uint32):
            highest = int(np.iinfo(candidate).max)
            if max(self.values) <= highest and len(self.values) <= highest:
                return np.dtype(candidate)
        raise AssertionError("values are checked in __post_init__")

    @cached_property
    def nodata(self) -> int:
        """Highest value of ``dtype`` that is no class value: it means "no observation"."""
        value = int(np.iinfo(self.dtype).max)
        while value in self.values:
            value -= 1
        return value

    def change_values(self) -> tuple[int, int]:
        """(value above the threshold, value below it) of a one-channel model.

        Above is the first class value that is not 0, below the other one (0 if there is only one
        class), after Esri's change detector. Raises ModelDefinitionError for more than two classes.
        """
        if len(self.classes) > 2:
            raise ModelDefinitionError(
                f"The model gives one score per pixel, which tells two classes apart; Classes lists "
                f"{len(self.classes)}."
            )
        above = next((value for value in self.values if value != 0), None)
        if above is None:
            raise ModelDefinitionError(
                "The model gives one score per pixel, and Classes lists no value other than 0 for the pixels above "
                "the threshold."
            )
        return above, next((value for value in self.values if value != above), 0)

    def with_unlisted(self, values: Iterable[int]) -> ClassTable:
        """This table and, in grey and named as such, those of ``values`` from 0 that it does not list."""
        unlisted = sorted(value for value in set(values) - set(self.values) if value >= 0)
        return ClassTable((*self.classes, *(ModelClass(value, f"{value} (unlisted)", UNLISTED) for value in unlisted)))

    def to_attrs(self) -> dict[str, Any]:
        """CF flag attributes (CF conventions 3.5) plus ``flag_colors`` and the names unaltered."""
        return {
            "flag_values": list(self.values),
            "flag_meanings": " ".join("_".join(name.split()) or str(value) for value, name in self._pairs()),
            "flag_colors": " ".join("#{:02x}{:02x}{:02x}".format(*each.color) for each in self.classes),
            "class_names": list(self.names),
        }

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> ClassTable | None:
        """The table that ``to_attrs`` wrote; None where the attributes hold none.

        attrs : as they were, or as Zarr, netCDF or a GeoTIFF's tags, where a list is JSON text, give them back.
        Raises RasterInputError for attributes that make no table.
        """
        if not {"flag_values", "flag_colors", "class_names"} <= attrs.keys():
            return None
        try:
            colors = [_color_of(code) for code in attrs["flag_colors"].split()]
            values, names = (_as_list(attrs[key]) for key in ("flag_values", "class_names"))
            listed = zip(values, names, colors, strict=True)
            return cls(tuple(ModelClass(int(value), str(name), color) for value, name, color in listed))
        except _NO_TABLE as error:
            raise RasterInputError(
                f"flag_values, flag_colors and class_names of the raster make no class table: {str(error)[:200]}. As "
                "many whole numbers, colours such as #00ff00 and names are needed, as geodl-dask writes them: make the "
                "result again, or mend its attributes (of a GeoTIFF: its tags)."
            ) from error

    def _pairs(self) -> Iterable[tuple[int, str]]:
        return zip(self.values, self.names, strict=True)


def _color_of(code: str) -> tuple[int, int, int]:
    """Red, green, blue of ``#rrggbb``. Raises ValueError."""
    parts = bytes.fromhex(code.lstrip("#"))
    if len(parts) != 3:
        raise ValueError(f"{code!r} is no colour")
    return parts[0], parts[1], parts[2]


def _as_list(given: Any) -> list[Any]:
    """A list, from one, an array, its JSON text, or its only entry."""
    if isinstance(given, str):
        try:
            listed = json.loads(given)
        except (ValueError, RecursionError):
            return [given]
        return listed if isinstance(listed, list) else [given]
    return given if isinstance(given, list) else list(np.atleast_1d(given))


def list_values(attrs: Mapping[str, Any], values: Iterable[int]) -> dict[str, Any]:
    """Attributes of a classified raster whose class table lists all of ``values``, but nodata; others as they are."""
    table = ClassTable.from_attrs(attrs)
    if table is None:
        return dict(attrs)
    return {**attrs, **table.with_unlisted(value for value in values if value != attrs.get("_FillValue")).to_attrs()}
