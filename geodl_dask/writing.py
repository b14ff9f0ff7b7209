"""The way of every result to its place: checked, grown block by block, published whole, with a manifest beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from .blocks import BlockStore, Progress, Tally, lattice_of, regular_blocks, store_blocks
from .errors import OutputError, OutputExistsError
from .manifest import Manifest, asked_of, require_same
from .outputs import Written, check_output, growing_output, manifest_of, parts_manifest, publish
from .uploads import RemoteOutput, local_place


def write_result(
    change: xr.DataArray,
    path: str | os.PathLike[str],
    suffixes: tuple[str, ...],
    begin: Callable[[Path], BlockStore],
    finish: Callable[[Path, Tally], Path],
    *,
    overwrite: bool,
    resume: bool,
    progress: Progress | None,
) -> Written:
    """Compute a raster block by block into a store, make the result of it, and give that its name.

    begin : the store in a folder of parts, new or as an earlier run has left it. finish : makes the result of the
    finished store, and returns where in that folder it is.
    Raises OutputError, OutputExistsError, BlockFailedError, and what ``finish`` does. After an error, and when it is
    stopped, finished blocks stay beside the output for a run that resumes.
    """
    started = time.perf_counter()
    out = check_output(path, suffixes, overwrite=overwrite, resume=resume, provenance=change.attrs)
    blocks, grid = regular_blocks(change), grid_of(change)
    model, crs = str(change.attrs.get("model", "")), cast("CRS", grid.crs)
    asked = asked_of(
        change.attrs, name=change.name, dtype=str(blocks.dtype), blocks=[lengths[0] for lengths in blocks.chunks],
        shape=list(blocks.shape), transform=list(grid.transform)[:6], crs=crs.proj.name, wkt=crs.to_wkt(),
    )  # fmt: skip
    if isinstance(out, str):
        write_here = partial(write_result, change, suffixes=suffixes, begin=begin, finish=finish, progress=progress)
        return _write_and_upload(write_here, out, asked, model, overwrite=overwrite, resume=resume)
    if resume and os.path.lexists(out) and not _replaces(out, asked):
        return _already_written(out, Manifest.read(manifest_of(out)), asked)
    with growing_output(out, asked=asked, model=model, overwrite=overwrite, resume=resume) as growth:
        store = begin(growth.folder)
        growth.has_finished = lambda: any(store.is_done(index) for index in np.ndindex(*blocks.numblocks))
        tally = store_blocks(blocks, store, progress, lattice_of(change, blocks))
        finished = finish(growth.folder, tally)
        written = Written(out, time.perf_counter() - started, dict(tally.pixels), tally.tiles, tally.empty_tiles)
        if growth.replaces or not os.path.lexists(out):
            manifest_of(out).unlink(missing_ok=True)  # of an earlier result, which it must not outlive
        publish(finished, out, overwrite=growth.replaces)
        Manifest(
            asked, model, growth.replaces, True, written.seconds, written.pixels, written.tiles, written.empty_tiles
        ).write(manifest_of(out))
    return written


def _write_and_upload(
    write_here: Callable[..., Written], url: str, asked: dict[str, Any], model: str, *, overwrite: bool, resume: bool
) -> Written:
    """Write a result with all that stands beside it on this disk, and upload it when it is whole.

    write_here : writes it to a path. It stays on this disk until it has been uploaded, for a run that resumes.
    Raises RunError where the upload fails.
    """
    started, out, remote = time.perf_counter(), local_place(url), RemoteOutput.at(url)
    if resume and remote.stands():
        standing, left = remote.manifest(), parts_manifest(out)
        if not _is_to_upload(left, standing, asked):
            written = _already_written(url, standing, asked)
            if left is not None and left.asked == asked:
                with growing_output(out, asked=asked, resume=True):
                    pass  # of a run that was stopped when it had uploaded all: its parts are removed
            return written
    with growing_output(out, asked=asked, model=model, overwrite=overwrite, resume=resume) as growth:
        folder = growth.folder / "result"
        folder.mkdir(exist_ok=True)
        growth.has_finished = lambda: any(folder.iterdir())
        remote.require_writable()
        written = write_here(path=folder / remote.name, overwrite=False, resume=True)
        run = Manifest(asked, model, growth.replaces, seconds=time.perf_counter() - started)
        RemoteOutput.at(url, is_patient=True).upload(folder, run)
    return replace(written, path=url, seconds=time.perf_counter() - started)


def grid_of(change: xr.DataArray) -> GeoBox:
    """CRS, transform and shape of a raster. Raises OutputError."""
    grid: Any = change.odc.geobox
    if not isinstance(grid, GeoBox) or grid.crs is None:
        raise OutputError(
            "The change raster has no CRS or no evenly spaced y, x coordinates; it cannot be placed on a map."
        )
    return grid


def _replaces(out: Path, asked: dict[str, Any]) -> bool:
    """Whether a run of the same words, which ended early, was to replace what stands there."""
    left, standing = parts_manifest(out), Manifest.read(manifest_of(out))
    is_whole = standing is not None and standing.is_complete and standing.asked == asked
    return left is not None and left.replaces and left.asked == asked and not is_whole


def _is_to_upload(left: Manifest | None, standing: Manifest | None, asked: dict[str, Any]) -> bool:
    """Whether what stands in object storage is to give way to what a run of the same words has left here."""
    if left is None or left.asked != asked:
        return False
    if standing is not None and standing.asked == asked:
        return not standing.is_complete
    return left.replaces


def _already_written(out: Path | str, manifest: Manifest | None, asked: dict[str, Any]) -> Written:
    require_same(manifest, asked, out)
    if manifest is None or manifest.pixels is None:
        raise OutputExistsError(f"{out} exists. Choose another name, or say --overwrite (overwrite=True).")
    return Written(out, manifest.seconds, manifest.pixels, manifest.tiles, manifest.empty_tiles)
