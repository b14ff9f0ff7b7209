"""What a raster function is given and what it answers: pixel blocks in, class values out.

A block is made of fresh arrays every time, because functions write into them (they set masked pixels to 0).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..classes import ClassTable
from ..errors import BandCountError, InferenceError, ModelDefinitionError
from . import RunnerSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """How the pixels of the rasters become the arrays that the function is given."""

    names: tuple[str, ...]
    """Raster parameters: one that gets the stack, two that get a raster each, or one that gets a tuple."""
    as_tuple: bool
    """Whether the one parameter is of type ``rasters``."""
    bands: tuple[tuple[int, ...], ...]
    """Bands of each array: of the stack if there is one array, of its own raster if there are two."""
    with_mask: bool
    """Whether the function wants masks."""
    with_composite: bool
    """Whether the function wants all rasters stacked as well."""
    rescale: tuple[np.float32, np.float32] | None
    """(scale, shift) that bring the pixel type's range to the one that the model expects."""

    @property
    def band_counts(self) -> tuple[int, ...]:
        """Bands of each array."""
        return tuple(len(bands) for bands in self.bands)

    def infos(self, info: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """Keyword arguments of ``updateRasterInfo``; ``info`` tells of a raster of so many bands."""
        each = [info(count) for count in self.band_counts]
        infos: dict[str, Any] = {f"{name}_info": one for name, one in zip(self.names, each, strict=False)}
        if self.as_tuple:
            infos[f"{self.names[0]}_info"] = tuple(each)
        if self.with_composite:
            infos["compositeraster_info"] = info(sum(self.band_counts))
        return infos

    def blocks(self, images: Sequence[np.ndarray], valid: np.ndarray) -> dict[str, Any]:
        """Keyword arguments of ``updatePixels``: fresh, writable, C-contiguous arrays (band, y, x), masks 1 = valid."""
        given = [np.concatenate(images)] if len(self.bands) == 1 else images
        pixels = [self._rescaled(image[list(bands)], valid) for image, bands in zip(given, self.bands, strict=True)]
        arrays = dict(zip(self.names, pixels, strict=False))
        if self.with_composite:
            arrays["compositeraster"] = np.concatenate(pixels)
        blocks: dict[str, Any] = {f"{name}_pixels": array for name, array in arrays.items()}
        if self.with_mask:
            blocks |= {f"{name}_mask": _mask(array, valid) for name, array in arrays.items()}
        if self.as_tuple:
            blocks[f"{self.names[0]}_pixels"] = tuple(pixels)
            if self.with_mask:
                blocks[f"{self.names[0]}_mask"] = tuple(_mask(array, valid) for array in pixels)
        return blocks

    def _rescaled(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        if self.rescale is not None:
            pixels = np.where(valid, pixels.astype(np.float32) * self.rescale[0] + self.rescale[1], np.float32(0))
        return np.ascontiguousarray(pixels)


def _mask(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(band, y, x) uint8: functions index the bands with it, so one plane would not do."""
    return np.broadcast_to(valid, pixels.shape).astype(np.uint8, order="C")


def plan_inputs(
    names: Sequence[str], tuples: Sequence[str], configuration: Mapping[str, Any], spec: RunnerSpec
) -> Inputs:
    """What the function's raster parameters get: ``names`` are of type raster, ``tuples`` of type rasters.

    Raises ModelDefinitionError or BandCountError.
    """
    if (len(names), len(tuples)) not in ((1, 0), (spec.raster_count, 0), (0, 1)):
        needed = "two (from, to)" if spec.raster_count == 2 else "that is all that there is"
        raise ModelDefinitionError(
            f"The function of {spec.definition.source} declares the raster parameters {[*names, *tuples]}; one raster "
            f"for the stack, {needed}, or one of type rasters is needed."
        )
    return Inputs(
        names=(*names, *tuples),
        as_tuple=bool(tuples),
        bands=_bands(configuration.get("extractBands"), spec, stacked=len(names) == 1),
        with_mask=bool(configuration.get("inputMask")),
        with_composite=bool(configuration.get("compositeRasters")),
        rescale=_rescale(configuration.get("dataRange"), spec),
    )


def _bands(bands: tuple[int, ...] | None, spec: RunnerSpec, *, stacked: bool) -> tuple[tuple[int, ...], ...]:
    """Bands of each array. ``bands`` counts the stack; on two arrays it may count each one's bands."""
    count, rasters, source = spec.band_count, spec.raster_count, spec.definition.source
    stacked = stacked or rasters == 1
    if bands is None:
        return (tuple(range(rasters * count)),) if stacked else (tuple(range(count)),) * 2
    counts_stack = stacked or max(bands) >= count
    # 0, 1, .., 5 of two rasters with four bands each would be the whole first date and half of the second.
    takes_all = rasters == 2 and bands == tuple(range(len(bands))) and len(bands) % 2 == 0
    if min(bands) < 0 or max(bands) >= rasters * count or (counts_stack and takes_all and len(bands) != 2 * count):
        raise BandCountError(
            f"{source} takes {len(bands)} bands of the stack (ExtractBands {list(bands)}), which is "
            f"{len(bands) / rasters:g} of each raster; the rasters have {count} band(s) each. Give rasters with those "
            "bands."
        )
    if stacked:
        return (bands,)
    if not counts_stack:
        return bands, bands
    return tuple(band for band in bands if band < count), tuple(band - count for band in bands if band >= count)


def _rescale(wanted: tuple[float, float] | None, spec: RunnerSpec) -> tuple[np.float32, np.float32] | None:
    """(scale, shift) from the whole range of the pixel type to ``wanted`` (lowest, highest); None where they agree."""
    if wanted is None:
        return None
    if not np.issubdtype(spec.pixel_type, np.integer):
        logger.warning(
            "%s expects pixels of %s to %s; %s pixels have no range of their own to rescale from, and are handed over "
            "as stored.", spec.definition.source, *wanted, spec.pixel_type,
        )  # fmt: skip
        return None
    low, high = np.iinfo(spec.pixel_type).min, np.iinfo(spec.pixel_type).max
    if (float(wanted[0]), float(wanted[1])) == (low, high):
        return None
    logger.warning(
        "Pixels are rescaled from %s to %s (%s) to the model's %s to %s.", low, high, spec.pixel_type, *wanted
    )
    scale = (float(wanted[1]) - float(wanted[0])) / (high - low)
    return np.float32(scale), np.float32(float(wanted[0]) - low * scale)


def class_values(answer: Any, valid: np.ndarray, table: ClassTable, where: str) -> np.ndarray:
    """Class values (y, x) of a function's answer, nodata where not valid or masked out. Raises InferenceError."""
    if not isinstance(answer, Mapping) or answer.get("output_pixels") is None:
        raise InferenceError(f"{where} answered without output_pixels.")
    values = _plane(answer["output_pixels"], valid.shape, f"{where}: output_pixels")
    if answer.get("output_mask") is not None:
        valid = valid & (_plane(answer["output_mask"], valid.shape, f"{where}: output_mask") != 0)
    observed = values[valid]
    if values.dtype.kind == "f" and (broken := observed[~np.isfinite(observed) | (observed != np.rint(observed))]).size:
        raise InferenceError(
            f"{where} answered with {broken[0]}, which is no class value. If the model can give a probability raster, "
            "switch that off."
        )
    found = np.unique(observed).astype(np.int64)
    highest = int(np.iinfo(table.dtype).max)
    if wrong := [int(value) for value in found if not 0 <= value <= highest or value == table.nodata]:
        raise InferenceError(
            f"{where} answered with {wrong[0]}. {table.dtype} values of 0 to {highest} are possible, without "
            f"{table.nodata}, which means no observation. Classes lists {list(table.values)}: add the value there."
        )
    _warn_of_unlisted(found, table, where)
    classes = np.full(valid.shape, table.nodata, table.dtype)
    classes[valid] = observed
    return classes


def _plane(array: Any, shape_yx: tuple[int, ...], what: str) -> np.ndarray:
    """An array of the answer as (y, x). Raises InferenceError."""
    try:
        plane = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InferenceError(f"{what} is a {type(array).__name__} that is no array: {error}") from None
    if plane.shape not in (shape_yx, (1, *shape_yx)) or plane.dtype.kind not in "biuf":
        raise InferenceError(
            f"{what} has shape {plane.shape} and type {plane.dtype}; numbers of shape {(1, *shape_yx)} are needed."
        )
    return plane.reshape(shape_yx)


_warned_of: set[tuple[tuple[int, ...], int]] = set()


def _warn_of_unlisted(found: np.ndarray, table: ClassTable, where: str) -> None:
    """Name the values that the definition does not list, each once per process; they are written as they are."""
    unlisted = [int(value) for value in found if int(value) not in table.values]
    if new := [value for value in unlisted if (table.values, value) not in _warned_of]:
        _warned_of.update((table.values, value) for value in new)
        logger.warning("%s answered with %s; Classes lists %s. Written as they are.", where, new, list(table.values))
