"""Which bands of a raster are used, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import BandCountError, RasterInputError

Bands = Sequence[int | str] | None
"""Band numbers from 1 or names, in the order in which the model takes them; None: all, as they come."""


def choose_bands(wanted: Bands, names: tuple[str, ...], raster: str, *, alpha: int | None = None) -> tuple[int, ...]:
    """Positions, from 0, of the wanted bands among ``names``. Raises BandCountError for one that is not there.

    alpha : number of the band that is none of them, because it says where pixels count.
    """
    if wanted is None:
        return tuple(range(len(names)))
    if isinstance(wanted, str) or not isinstance(wanted, Iterable) or not len(wanted):
        raise BandCountError(
            f"The bands of {raster} are given as {wanted!r}; a list of numbers from 1 or names is needed."
        )
    return tuple(_position(band, names, raster, alpha) for band in wanted)


def _position(band: int | str, names: tuple[str, ...], raster: str, alpha: int | None) -> int:
    folded = [name.casefold() for name in names]
    if isinstance(band, str) and folded.count(band.casefold()) == 1:
        return folded.index(band.casefold())
    if str(band).isdecimal() and 1 <= int(band) <= len(names):
        return int(band) - 1
    listed = ", ".join(f"{number} ({name})" if name != str(number) else name for number, name in enumerate(names, 1))
    hidden = (
        f" Band {alpha} is marked as alpha, which says where pixels count; if it is near infrared, say so to the file "
        "first: rio edit-info --colorinterp red,green,blue,nir FILE"
        if alpha
        else ""
    )
    raise BandCountError(f"Band {band!r} was asked for; {raster} has the bands {listed}.{hidden}")


def require_real(dtype: np.dtype[Any] | None, name: str) -> np.dtype[Any]:
    """``dtype``, if it holds integers or real numbers. Raises RasterInputError."""
    if dtype is None or not (np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.floating)):
        raise RasterInputError(f"{name} has pixels of type {dtype}; integers or real numbers are needed.")
    return dtype
