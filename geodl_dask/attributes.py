"""Grid and attributes of a raster that is to be written, as every format can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from .classes import ClassTable
from .confidence import layers_of
from .errors import OutputError, RasterInputError


def plain_layers(change: xr.DataArray | xr.Dataset) -> tuple[xr.DataArray, xr.DataArray | None]:
    """The classes and, where it is there, their confidence, with attributes that every format can hold.

    Raises OutputError for a class table or nodata value that is none.
    """
    classes, confidence = layers_of(change)
    if not isinstance(classes, xr.DataArray):
        raise OutputError(f"What to write is a {type(classes).__name__}; a DataArray as of detect_change is needed.")
    classes = _with_plain_attrs(classes)
    try:
        ClassTable.from_attrs(classes.attrs)
    except RasterInputError as error:
        raise OutputError(str(error)) from error
    nodata = classes.attrs.get("_FillValue", 0)
    if isinstance(nodata, bool) or not isinstance(nodata, int):
        raise OutputError(f"The raster's _FillValue is {nodata!r}; a whole number is needed.")
    return classes, None if confidence is None else _with_plain_attrs(confidence)


def _with_plain_attrs(layer: xr.DataArray) -> xr.DataArray:
    layer = layer.copy(deep=False)
    layer.attrs = _plain(layer.attrs)
    return layer


def _plain(value: Any) -> Any:
    """Attributes as JSON and GeoTIFF know them: numpy's numbers as Python's, anything else as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode(errors="replace").decode()


def grid_of(change: xr.DataArray) -> GeoBox:
    """CRS, transform and shape of a raster. Raises OutputError."""
    grid: Any = change.odc.geobox
    if not isinstance(grid, GeoBox) or grid.crs is None:
        raise OutputError(
            "The change raster has no CRS or no evenly spaced y, x coordinates; it cannot be placed on a map."
        )
    return grid
