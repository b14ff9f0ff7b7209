"""A netCDF file, and which of its variables -> what GDAL's netCDF driver opens."""

from __future__ import annotations

import warnings
from pathlib import Path

import rasterio.errors

from ..errors import RasterInputError
from .gdal import opened
from .members import describe_members
from .mosaic import stack_of_members

SUFFIXES = (".nc", ".nc4", ".cdf")


def variables_of_file(path: Path, choice: str, role: str) -> tuple[str, str]:
    """What GDAL opens for the chosen variables of a file, and what it is for people.

    choice : names with commas between them, which become the bands; empty for the only one there is.
    Raises RasterInputError, which lists what there is.
    """
    names = _variables(path, role)
    if not names and not choice:
        return str(path.absolute()), ""
    chosen = [name.strip() for name in choice.split(",") if name.strip()] or names
    if names and ((len(chosen) > 1 and not choice) or not set(chosen) <= set(names)):
        raise RasterInputError(
            f"{role} {path} has the variables {', '.join(names)}{f', not {choice}' if choice else ''}. Choose one, or "
            f"several as bands: {path.name}#{','.join(names[:2])}"
        )
    datasets = [f'NETCDF:"{path.absolute()}":{name}' for name in chosen]
    if len(datasets) == 1:
        return datasets[0], f"netCDF file, variable {chosen[0]}"
    members = describe_members(datasets, chosen, role)
    return stack_of_members(members, chosen, role), f"netCDF file, variables {', '.join(chosen)}"


def _variables(path: Path, role: str) -> list[str]:
    """The names of all rasters in the file; none where it has but one, which GDAL opens by the file's name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # the file as a whole is nowhere
            with opened(str(path)) as dataset:
                return [name.rpartition(":")[2] for name in dataset.subdatasets]
    except rasterio.errors.RasterioIOError as error:
        raise RasterInputError(f"{role} {path} cannot be opened as a netCDF file: {error}.") from error
