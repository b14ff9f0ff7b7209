"""Several rasters -> one: side by side from a folder or a glob, or as bands of one."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from ..errors import RasterNotFoundError
from .members import Member, describe_members, require_one_lattice, require_same_bands
from .vrt import Layer, virtual_raster

SUFFIXES = (".tif", ".tiff")
SIDECARS = (".aux.xml", ".msk", ".ovr", ".tfw", ".tifw", ".xml", ".json", ".txt")
"""What lies beside rasters and is none; a glob may catch it."""


def files_of_folder(folder: Path, role: str) -> list[Path]:
    """Its GeoTIFFs by name. Raises RasterNotFoundError where there is none."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise RasterNotFoundError(
            f"{role} {folder} is a folder without a GeoTIFF (*.tif, *.tiff); a raster, or a folder of GeoTIFFs, is "
            "needed. Other formats and subfolders by a pattern in quotes, for instance '"
            f"{folder / '**' / '*.jp2'}'."
        )
    return files


def files_of_pattern(pattern: str, role: str) -> list[Path]:
    """The files that a glob matches, by name. Raises RasterNotFoundError where there is none."""
    found = (Path(each) for each in glob.glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    files = sorted(path for path in found if path.is_file() and not path.name.lower().endswith(SIDECARS))
    if not files:
        raise RasterNotFoundError(f"{role} {pattern} matches no file (looked in {Path.cwd()}).")
    return files


def mosaic_of_files(files: Sequence[Path], role: str) -> tuple[str, str]:
    """What GDAL opens for files laid together, later over earlier, and what it is for people.

    Raises RasterInputError where they do not fit.
    """
    members = describe_members([str(path.absolute()) for path in files], [path.name for path in files], role)
    what = "1 file" if len(files) == 1 else f"{len(files)} files, later names over earlier"
    return mosaic_of_members(members, role), f"mosaic of {what}"


def mosaic_of_members(members: Sequence[Member], role: str) -> str:
    """What GDAL opens for rasters of the same bands laid together, later over earlier. Raises RasterInputError."""
    require_one_lattice(members, role)
    require_same_bands(members, role)
    bands = members[0].bands
    return virtual_raster(
        [Layer(band.name, tuple((member, member.bands[at]) for member in members)) for at, band in enumerate(bands)]
    )


def stack_of_members(members: Sequence[Member], names: Sequence[str], role: str) -> str:
    """What GDAL opens for the bands of rasters, one raster after the other. Raises RasterInputError."""
    require_one_lattice(members, role)
    return virtual_raster(
        [
            Layer(name if len(member.bands) == 1 else f"{name}_{band.name or band.number}", ((member, band),))
            for member, name in zip(members, names, strict=True)
            for band in member.bands
        ]
    )
