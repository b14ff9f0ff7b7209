"""Rasters that are laid together as one: what each is, and whether they fit.

They fit where they have one CRS and one pixel lattice, so that no pixel has to be computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import rasterio.errors
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags

from ..errors import RasterInputError
from .gdal import opened

LATTICE_TOLERANCE_PX = 0.01
"""Members are on one pixel lattice where no corner of any is further from it than this."""

THREADS = 16
"""How many members are opened at a time; opening is waiting."""

ADVICE = (
    "Warp them to one grid first, for instance with gdalwarp -t_srs EPSG:xxxx -tr X Y -tap, or make a tile index, "
    "which warps as it reads, with gdaltindex -f GPKG index.gti.gpkg, and hand over that."
)


@dataclass(frozen=True)
class MemberBand:
    """One band of a member."""

    number: int
    """GDAL's, from 1."""
    dtype: str
    """NumPy's name."""
    name: str
    """Description; empty where there is none."""
    meaning: ColorInterp
    """What GDAL says that it shows."""
    scaling: tuple[float, float]
    """Scale and offset."""
    block_shape: tuple[int, int]
    """Of the file's own blocks, (y, x)."""
    colors: tuple[tuple[int, tuple[int, int, int, int]], ...]
    """Pixel values and their colours; empty where there is no palette."""


@dataclass(frozen=True)
class Member:
    """One raster of several, described."""

    name: str
    """For messages."""
    dataset: str
    """What GDAL opens."""
    crs: CRS
    """Its coordinate reference system."""
    transform: Affine
    """Pixel to world."""
    shape: tuple[int, int]
    """(y, x)."""
    bands: tuple[MemberBand, ...]
    """Without alpha."""
    all_valid: bool
    """True where it has neither nodata nor a mask."""


def describe_members(datasets: Sequence[str], names: Sequence[str], role: str) -> list[Member]:
    """Open each raster for its description. Raises RasterInputError, with the name of the one that fails."""
    with ThreadPoolExecutor(min(THREADS, len(datasets))) as pool:
        return list(pool.map(lambda dataset, name: _describe(dataset, name, role), datasets, names))


def _describe(path: str, name: str, role: str) -> Member:
    try:
        with opened(path) as dataset:
            return _described(dataset, path, name, role)
    except rasterio.errors.RasterioIOError as error:
        raise RasterInputError(f"{role}: {name} cannot be opened as a raster: {error}.") from error


def _described(dataset: Any, path: str, name: str, role: str) -> Member:
    if dataset.crs is None:
        raise RasterInputError(f"{role}: {name} has no CRS. Assign the right one first: rio edit-info --crs EPSG:xxxx")
    transform = dataset.transform
    if transform.b or transform.d:
        raise RasterInputError(f"{role}: {name} is rotated, so it is on no common grid. {ADVICE}")
    numbers = [
        band for band, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True) if meaning != ColorInterp.alpha
    ]
    return Member(
        name=name,
        dataset=path,
        crs=dataset.crs,
        transform=transform,
        shape=dataset.shape,
        bands=tuple(_band(dataset, number) for number in numbers),
        all_valid=all(MaskFlags.all_valid in dataset.mask_flag_enums[number - 1] for number in numbers),
    )


def _band(dataset: Any, number: int) -> MemberBand:
    at = number - 1
    meaning = dataset.colorinterp[at]
    colors = dataset.colormap(number) if meaning == ColorInterp.palette else {}
    return MemberBand(
        number=number,
        dtype=dataset.dtypes[at],
        name=dataset.descriptions[at] or "",
        meaning=meaning,
        scaling=(dataset.scales[at], dataset.offsets[at]),
        block_shape=dataset.block_shapes[at],
        colors=tuple(sorted(colors.items())),
    )


def require_one_lattice(members: Sequence[Member], role: str) -> None:
    """Refuse members of several CRS or pixel lattices. Raises RasterInputError, which names two of them."""
    first = members[0]
    for other in members[1:]:
        for difference in _differences(first, other):
            raise RasterInputError(f"{role}: {difference}. {ADVICE}")


def require_same_bands(members: Sequence[Member], role: str) -> None:
    """Refuse members whose bands differ in number, type, scale or colours. Raises RasterInputError."""
    first = members[0]
    for other in members[1:]:
        for ours, theirs, what in (
            (len(first.bands), len(other.bands), "band(s)"),
            (_types(first), _types(other), "pixels"),
            ([band.scaling for band in first.bands], [band.scaling for band in other.bands], "as scales and offsets"),
        ):
            if ours != theirs:
                raise RasterInputError(
                    f"{role}: {first.name} has {ours} {what}, {other.name} has {theirs}; the rasters of a mosaic need "
                    "the same bands. Name the ones that belong together, for instance as FOLDER/*_rgb.tif."
                )
        if [band.colors for band in first.bands] != [band.colors for band in other.bands]:
            raise RasterInputError(
                f"{role}: {first.name} and {other.name} have different palettes, so one pixel value means two things. "
                "Expand them first: gdal_translate -expand rgb"
            )


def lattice_offset_px(member: Member, origin: Affine) -> tuple[float, float]:
    """Where a member's first pixel lies: (row, column) from the first pixel of ``origin``, whole up to rounding."""
    col, row = ~origin @ (member.transform.c, member.transform.f)
    return row, col


def _differences(first: Member, other: Member) -> Iterator[str]:
    names = f"{first.name} and {other.name}"
    if first.crs != other.crs:
        yield f"{first.name} is in {first.crs.to_string()}, {other.name} in {other.crs.to_string()}"
    height, width = other.shape
    drift_px = max(
        abs(other.transform.a / first.transform.a - 1) * width, abs(other.transform.e / first.transform.e - 1) * height
    )
    if drift_px > LATTICE_TOLERANCE_PX:
        yield f"{first.name} has pixels of {_size(first)}, {other.name} of {_size(other)}"
    offset = lattice_offset_px(other, first.transform)
    if any(abs(each - round(each)) > LATTICE_TOLERANCE_PX for each in offset):
        row, col = (math.remainder(each, 1) for each in offset)
        yield f"The pixels of {names} do not meet: shifted by {abs(row):.3g} rows, {abs(col):.3g} columns"


def _size(member: Member) -> str:
    return f"{member.transform.a:.10g} x {member.transform.e:.10g}"


def _types(member: Member) -> str:
    return "/".join(dict.fromkeys(band.dtype for band in member.bands))
