"""A result as xarray's operations leave it: class values and steps of confidence again, where they became floats.

`where`, `concat` of rasters that do not cover the same ground, and readers that decode put NaN in the place of nodata,
for which no integer type has room. What the numbers mean travels on in the attributes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from .classes import TABLE_ATTRS, ClassTable
from .errors import RasterInputError


def class_values(change: xr.DataArray) -> xr.DataArray:
    """A raster of classes in integers: one of floats that has a class table gets its type and nodata back, lazily.

    Others are returned as they are. A number that is no class value raises RasterInputError when it is computed.
    """
    if change.dtype.kind != "f" or not set(TABLE_ATTRS) <= change.attrs.keys():
        return change
    table = ClassTable.from_attrs(change.attrs)
    assert table is not None
    nodata = _nodata_of(change, table.nodata)
    dtype = np.promote_types(table.dtype, np.min_scalar_type(nodata))
    return _in_integers(change, change.encoding.get("dtype", dtype), nodata)


def confidence_values(confidence: xr.DataArray) -> xr.DataArray:
    """Confidence as it was kept: steps that became floats in integers again, lazily; others as they are."""
    if confidence.dtype.kind != "f" or "scale_factor" not in confidence.attrs:
        return confidence
    scale, offset = confidence.attrs["scale_factor"], confidence.attrs.get("add_offset", 0.0)
    highest, nodata = round((1 - offset) / scale), _nodata_of(confidence, 0)
    return _in_integers(confidence, np.min_scalar_type(max(highest, nodata)), nodata)


def _nodata_of(layer: xr.DataArray, otherwise: int) -> int:
    """As the attributes have it, or what a reader who decoded made of them."""
    found = layer.attrs.get("_FillValue", layer.encoding.get("_FillValue"))
    return otherwise if found is None or np.isnan(found) else int(found)


def _in_integers(layer: xr.DataArray, dtype: Any, nodata: int) -> xr.DataArray:
    turn = partial(_whole_numbers, dtype=np.dtype(dtype), nodata=nodata)
    values = layer.data
    lazy = isinstance(values, da.Array)
    whole = da.map_blocks(turn, values, dtype=dtype, meta=np.empty((0,) * layer.ndim, dtype)) if lazy else turn(values)
    turned = layer.copy(data=whole).drop_encoding()
    turned.attrs["_FillValue"] = nodata
    return turned


def _whole_numbers(values: np.ndarray, *, dtype: np.dtype[Any], nodata: int) -> np.ndarray:
    """Integers of floats, nodata where they are not a number. Runs on workers."""
    is_none = np.isnan(values)
    with np.errstate(invalid="ignore"):  # of what does not fit, which is found below
        whole = np.where(is_none, nodata, values).astype(dtype)
    wrong = (whole != values) & ~is_none
    if wrong.any():
        raise RasterInputError(
            f"The raster holds {values[wrong][0]:g}, which is no class value: classes cannot be averaged or "
            "interpolated. Count them instead, for instance (change == 7).sum('year')."
        )
    return whole
