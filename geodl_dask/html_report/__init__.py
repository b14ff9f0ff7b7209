"""A result as one HTML file, which needs nothing else: map, areas, table, and how it was made."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import cast

import rasterio.errors

from ..errors import OutputError, RasterInputError
from ..outputs import check_output, publish_file
from ..rasters import Bands
from .content import page_content, study_result
from .page import render_page
from .sources import Photo, Result, find_photo, open_result

__all__ = ["write_report"]

SUFFIX = ".html"


def write_report(
    result: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    from_raster: str | os.PathLike[str] | None = None,
    to_raster: str | os.PathLike[str] | None = None,
    raster: str | os.PathLike[str] | None = None,
    from_bands: Bands = None,
    to_bands: Bands = None,
    bands: Bands = None,
    overwrite: bool = False,
) -> Path:
    """Write a result as one HTML file that needs no network: images to swipe between, change, areas, provenance.

    result : ``.tif`` or ``.zarr`` that `write_cog` or `write_zarr` has written, a path or a URL.
    path : where to; None is ``RESULT.html``, of a URL in the current folder.
    from_raster, to_raster, raster : the images, where they are not where the result's record says, or lie elsewhere:
        of what the record names only files on this disk that hold their own pixels are opened (no folders, virtual
        rasters, URLs). Without them the change is shown alone; what is named here must be there.
    from_bands, to_bands, bands : three of each that are shown as red, green and blue, or one; by number from 1 or name.
        None is those of that name, else the first three, or the first.

    The images are read from their overviews, if they have some, on the result's grid with at most 4096 pixels a side;
    the largest areas are looked for in an overview of that size, and shown as sharp as the images are. Areas by class
    are exact: those of the manifest, else counted. Memory does not grow with the rasters.
    Returns the file's path. Raises OutputError, OutputExistsError, RasterNotFoundError, RasterInputError,
    BandCountError or RasterReadError.
    """
    opened = open_result(result)  # first, for what is no result may have no name for a report either
    out = _checked(path if path is not None else _default_path(result), overwrite=overwrite)
    given = {"from_raster": (from_raster, from_bands), "to_raster": (to_raster, to_bands), "raster": (raster, bands)}
    roles = ("from_raster", "to_raster") if opened.compares else ("raster",)
    if unfit := [role for role, said in given.items() if role not in roles and said != (None, None)]:
        raise RasterInputError(f"{opened.path} is made from {' and '.join(roles)}; leave {', '.join(unfit)} out.")
    found = [find_photo(opened, role, *given[role]) for role in roles]
    _write(out, _page_of(opened, [each for each in found if each is not None]), overwrite=overwrite)
    return out


def _page_of(result: Result, photos: list[Photo]) -> str:
    with warnings.catch_warnings():  # here, for it holds for all threads, of which pictures are made in several
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # a picture lies nowhere
        return render_page(**page_content(study_result(result, photos)))


def _write(out: Path, page: str, *, overwrite: bool) -> None:
    """At once or not at all."""
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(page.encode("utf-8", "replace"))
        publish_file(unfinished, out, overwrite=overwrite)
    finally:
        unfinished.unlink(missing_ok=True)


def _default_path(result: str | os.PathLike[str]) -> Path:
    text = os.fspath(result).rstrip("/")
    return Path(text.rpartition("/")[2] if "://" in text else text).with_name(Path(text).name + SUFFIX)


def _checked(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    if "://" in os.fspath(path):
        raise OutputError(
            f"The report {path} is a URL; a report is written to this disk. Name a file, and upload that."
        )
    return cast("Path", check_output(path, (SUFFIX,), overwrite=overwrite))
