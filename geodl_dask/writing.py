"""The way of every result to its place: checked, grown block by block, published whole, with a manifest beside it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, cast

import dask.array as da
import rasterio
import xarray as xr
from odc.geo.crs import CRS

from .attributes import grid_of, plain_layers
from .blocks import BlockReader, BlockStore, Continued, Index, Tally, lattice_of, regular_blocks
from .classes import TABLE_ATTRS, list_values
from .dispatch import Progress, store_blocks
from .errors import OutputError, OutputExistsError, RunError
from .growth import PARTS_MANIFEST, Growth, growing_output, partial_of
from .manifest import INPUT_ATTRS, FailedBlock, Manifest, asked_of, require_same
from .outputs import (
    SIDES,
    Written,
    check_output,
    check_space,
    finished_in,
    manifest_of,
    publish,
)
from .shards import Shard
from .stac_item import references_of, write_item
from .standing import failed_in, whole_result, written_by
from .uploads import RemoteOutput, local_place

_NAMED, _LOOKS_AT_ONCE = 10, 16
_LIBRARIES = ("geodl_dask", "dask", "distributed", "numpy", "rasterio", "torch", "xarray", "zarr")


class WriteOptions(TypedDict, total=False):
    """What both writers take."""

    overwrite: bool
    """Replace what stands there once the new result is whole."""
    resume: bool
    """Go on with what an interrupted run of the same words has left, if one has; a whole result is left as it is."""
    same_pixels: bool
    """The user's word that rasters which were copied, moved or mended since the interrupted run have its pixels."""
    keep_going: bool
    """Blocks that go on failing become nodata, and `Written` and the manifest list them."""
    shard: tuple[int, int] | None
    """``(I, N)``: compute the Ith of N shares of the blocks, beside N - 1 other runs of the same words, on as many
    machines as share the folder; always goes on with what is there. `geodl_dask.finalize` makes the result of them."""
    progress: Progress | None
    """Called with the pixels that are done and those to be done in all."""


@dataclass(frozen=True)
class Format:
    """How results of one kind are kept while they grow, and made when all blocks are there."""

    suffixes: tuple[str, ...]
    """Of their names."""
    store: Callable[[Path], BlockStore]
    """The blocks in a folder of parts."""
    begin: Callable[[Path], None]
    """Makes in a folder of parts what the store needs, unless an earlier run has, or another at the same moment."""
    finish: Callable[[Path, Tally], Path]
    """Makes the result of the finished store, and returns where in that folder it is."""
    reopen: Callable[[Path], BlockReader]
    """A result, of which blocks failed, to take over the others."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """What else was asked of the result's form."""


@dataclass(frozen=True)
class _Task:
    """A result, and where it is to be."""

    change: xr.DataArray | xr.Dataset
    blocks: da.Array
    classes: xr.DataArray
    form: Format
    out: Path | str
    started: Manifest

    @property
    def here(self) -> Path:
        """Its place on this disk, beside which it grows."""
        return self.out if isinstance(self.out, Path) else local_place(self.out)


def write_result(
    change: xr.DataArray | xr.Dataset,
    path: str | os.PathLike[str],
    form: Format,
    *,
    overwrite: bool = False,
    resume: bool = False,
    same_pixels: bool = False,
    keep_going: bool = False,
    shard: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Written:
    """Compute a raster block by block into a store, make the result of it, and give that its name.

    Of a shard alone its blocks are computed. Raises OutputError, OutputExistsError, BlockFailedError,
    SchedulerLostError, and what ``form.finish`` does. After an error, and when it is stopped, finished blocks stay
    beside the output for a run that resumes.
    """
    share = None if shard is None else Shard(*shard)
    resume = resume or (share is not None and not overwrite)
    task = _task_of(change, path, form, overwrite=overwrite, resume=resume, shards=share.count if share else 0)
    if keep_going and "_FillValue" not in task.classes.attrs:
        raise OutputError("The raster has no _FillValue, which blocks that fail would be filled with.")
    whole = whole_result(task.out, task.started.asked, same_pixels=same_pixels) if resume else None
    if whole is not None:
        return whole
    failed = failed_in(task.out, task.started.asked, same_pixels=same_pixels) if resume else ()
    if failed and share:
        raise OutputExistsError(f"{path} is there but for {len(failed)} blocks. Say --resume without --shard.")
    if failed:
        task = replace(task, started=replace(task.started, replaces=True))
    with growing_output(task.here, task.started, shard=share, resume=resume, same_pixels=same_pixels) as growth:
        if isinstance(task.out, str):
            RemoteOutput.at(task.out).require_writable()
        finished = _finished_before(task, growth, keep_going=keep_going)
        if share and finished:
            return replace(written_by(task.out, growth.started), shards_left=())
        if finished is None:
            tally = _keep(task, growth, share or Shard(), progress, failed=failed, keep_going=keep_going)
            if share:
                return _record_share(task, growth, share, tally)
            finished = _finish(task, growth, tally)
        place, manifest = _publish(task, growth, finished)
    return _written(task, place, manifest)


def join_result(
    change: xr.DataArray | xr.Dataset, out: Path | str, form: Format, left: Manifest, progress: Progress | None = None
) -> Written:
    """Make the result of blocks that runs have left, none of which is computed here, and give it its name.

    change : the result, lazy; to compute a block of it is an error. left : the manifest of the runs.
    Raises OutputExistsError where one is at work yet, RunError where blocks are missing, which it names.
    """
    task = _Task(change, regular_blocks(change), plain_layers(change)[0], form, out, left)
    with growing_output(task.here, left, resume=True) as growth:
        if growth.started.parts != left.parts:
            raise OutputExistsError(f"Another run has made {out} of the blocks meanwhile, or has removed them.")
        finished = _finished_before(task, growth, keep_going=True)
        if finished is None:
            failed = _failed_in_shards(task, growth)
            _require_all(task, growth, failed)
            tally = store_blocks(
                task.blocks, form.store(growth.folder), progress, lattice_of(task.classes, task.blocks),
                keep_going=True, folder=growth.folder,
            )  # fmt: skip
            broken = {index: cause for index, cause in tally.failed.items() if index not in failed}
            if broken:
                raise _missing(task, growth, set(broken), "there, but cannot be read")
            tally.failed = failed
            tally.computed, tally.kept = tally.kept, 0  # by the shards, since whatever was made of the blocks before
            finished = _finish(task, growth, tally)
        place, manifest = _publish(task, growth, finished)
    return _written(task, place, manifest)


def kept_blocks(
    change: xr.DataArray | xr.Dataset, path: str | os.PathLike[str], form: Format, shard: Shard, *,
    same_pixels: bool = False,
) -> int:  # fmt: skip
    """How many blocks of a shard earlier runs of the same words have left. Changes nothing.

    Raises OutputExistsError for what a run of other words has left.
    """
    task = _task_of(change, path, form, overwrite=False, resume=True, shards=0)
    if isinstance(task.out, Path) and whole_result(task.out, task.started.asked, same_pixels=same_pixels):
        return shard.block_count(task.blocks.numblocks)
    partial = partial_of(task.here)
    left = Manifest.read(partial / PARTS_MANIFEST)
    if left is None:
        return 0
    require_same(left, task.started.asked, partial, same_pixels=same_pixels)
    store = form.store(partial / left.parts)
    return sum(store.is_done(index) for index in shard.indices(task.blocks.numblocks))


def _task_of(
    change: xr.DataArray | xr.Dataset, path: str | os.PathLike[str], form: Format, *, overwrite: bool, resume: bool,
    shards: int,
) -> _Task:  # fmt: skip
    blocks, (classes, confidence) = regular_blocks(change), plain_layers(change)
    out = check_output(path, form.suffixes, overwrite=overwrite, resume=resume, provenance=classes.attrs)
    more = dict(form.layout) | ({} if confidence is None else {"confidence": str(confidence.dtype)})
    beside = None if confidence is None else {"dtype": str(confidence.dtype), "attrs": confidence.attrs}
    references = references_of(classes.attrs, out)
    started = replace(
        _start(classes, blocks, more), replaces=overwrite, shards=shards,
        form={"attrs": classes.attrs, "confidence": beside, "crs": str(grid_of(classes).crs), "references": references},
    )  # fmt: skip
    return _Task(change, blocks, classes, form, out, started)


def _finished_before(task: _Task, growth: Growth, *, keep_going: bool) -> Path | None:
    """What an earlier run had finished when it ended, unless this one is to make it whole."""
    finished = finished_in(growth.folder, task.here)
    if finished and finished.exists() and not keep_going and _has_holes(finished):
        manifest_of(finished).unlink()  # whoever resumes without keep_going wants it whole
        return None
    return finished


def _keep(
    task: _Task, growth: Growth, share: Shard, progress: Progress | None, *, failed: tuple[FailedBlock, ...],
    keep_going: bool,
) -> Tally:  # fmt: skip
    """Compute the blocks of a share that are not there yet. failed : those that an earlier result lacks, if one has."""
    blocks, form = task.blocks, task.form
    form.begin(growth.folder)
    store, shape = form.store(growth.folder), blocks.numblocks
    is_new = not growth.has_finished()
    missing = sum(is_new or not store.is_done(index) for index in share.indices(shape))
    check_space(growth.folder, blocks.nbytes * missing // blocks.npartitions)
    if is_new:
        growth.has_finished = lambda: any(store.is_done(index) for index in share.indices(shape))
    if failed:
        store = Continued(store, form.reopen(task.here), _indices(failed, blocks))
    return store_blocks(
        blocks, store, progress, lattice_of(task.classes, blocks), keep_going=keep_going, folder=growth.folder,
        shard=share,
    )  # fmt: skip


def _finish(task: _Task, growth: Growth, tally: Tally) -> Path:
    """The result of blocks that are all there, with what stands beside it; not under its name yet."""
    _count_failed(tally, task.classes, task.blocks)
    finished = task.form.finish(growth.folder, tally)
    ended = replace(_end(task.started, tally, task.blocks), replaces=growth.started.replaces, is_complete=True)
    references = task.started.form["references"]
    write_item(task.change, task.out, finished=finished, manifest=ended, references=references)
    ended.write(manifest_of(finished))
    return finished


def _record_share(task: _Task, growth: Growth, share: Shard, tally: Tally) -> Written:
    """Say beside the parts that a shard is done, and which are not."""
    _count_failed(tally, task.classes, task.blocks)
    done = replace(_end(task.started, tally, task.blocks), parts=growth.started.parts)
    done.write(growth.record_of(share.number))
    left = tuple(number for number in range(1, share.count + 1) if _record(growth, number) is None)
    return replace(written_by(task.out, done), shards_left=left)


def _record(growth: Growth, number: int) -> Manifest | None:
    """What a shard has said when it was done; None where it is not."""
    found = Manifest.read(growth.record_of(number))
    return found if found and found.parts == growth.started.parts else None


def _failed_in_shards(task: _Task, growth: Growth) -> dict[Index, str]:
    """Causes, by block, of blocks that shards which were to keep going have given up."""
    records = (_record(growth, number) for number in range(1, growth.started.shards + 1))
    failed = [block for record in records if record for block in record.failed_blocks]
    store = task.form.store(growth.folder)
    causes = {index: block.cause for block in failed for index in _indices([block], task.blocks)}
    return {index: cause for index, cause in causes.items() if not store.is_done(index)}


def _require_all(task: _Task, growth: Growth, failed: Mapping[Index, str]) -> None:
    """Raise RunError where blocks are missing that no shard has given up."""
    store, (rows, cols) = task.form.store(growth.folder), task.blocks.numblocks

    def missing_in(row: int) -> list[Index]:
        return [(row, col) for col in range(cols) if (row, col) not in failed and not store.is_done((row, col))]

    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:  # a network file system answers many at a time
        missing = {index for some in pool.map(missing_in, range(rows)) for index in some}
    if missing:
        raise _missing(task, growth, missing, "missing")


def _missing(task: _Task, growth: Growth, missing: set[Index], what: str) -> RunError:
    of_all = f"{len(missing):,} of {task.blocks.npartitions:,} blocks are {what}"
    count = growth.started.shards
    if not count:
        return RunError(f"{of_all}. Compute them by the same command and --resume.")
    shares = {number: Shard(number, count).indices(task.blocks.numblocks) for number in range(1, count + 1)}
    lacking = {number: sum(index in missing for index in indices) for number, indices in shares.items()}
    told = [f"{lacks:,} of shard {number}/{count}" for number, lacks in lacking.items() if lacks]
    more = [f"and of {len(told) - _NAMED} more shards"] if len(told) > _NAMED else []
    return RunError(
        f"{of_all}: {', '.join([*told[:_NAMED], *more])}. Let those shards run again by the same command, and then "
        "finalize."
    )


def _start(classes: xr.DataArray, blocks: da.Array, more: dict[str, Any]) -> Manifest:
    """The record of a run that begins. more : what else it is asked."""
    grid, attrs = grid_of(classes), classes.attrs
    crs = cast("CRS", grid.crs)
    asked = asked_of(
        attrs, name=classes.name, dtype=str(classes.dtype), blocks=[lengths[0] for lengths in blocks.chunks],
        shape=list(blocks.shape), transform=list(grid.transform)[:6], crs=crs.proj.name, wkt=crs.to_wkt(), **more,
    )  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    software = {"python": platform.python_version(), "gdal": rasterio.__gdal_version__, **versions}
    return Manifest(
        asked, str(attrs.get("model", "")), str(attrs.get("model_name", "")), begun=_now(), software=software
    )


def _has_holes(finished: Path) -> bool:
    manifest = Manifest.read(manifest_of(finished))
    return manifest is not None and bool(manifest.failed_blocks)


def _publish(task: _Task, growth: Growth, finished: Path) -> tuple[Path | str, Manifest]:
    """Give a result its name, here or in object storage. Returns its place and its manifest."""
    manifest, out = cast("Manifest", Manifest.read(manifest_of(finished))), task.out
    growth.has_finished = lambda: True
    if isinstance(out, Path):
        return publish(finished, out, overwrite=growth.started.replaces), manifest
    run = replace(growth.started, begun=task.started.begun, form={})
    RemoteOutput.at(out, is_patient=True).upload(finished, run, sides=SIDES)
    return out, manifest


def _written(task: _Task, place: Path | str, manifest: Manifest) -> Written:
    if place != task.out:
        raise RunError(f"{task.out} has come there since the run began, and stays as it is. The result is {place}.")
    return written_by(task.out, manifest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _indices(failed: Iterable[FailedBlock], blocks: da.Array) -> frozenset[Index]:
    height, width = (lengths[0] for lengths in blocks.chunks)
    return frozenset((block.row_off // height, block.col_off // width) for block in failed)


def _end(started: Manifest, tally: Tally, blocks: da.Array) -> Manifest:
    """The record of a run that has done what it was to do."""
    ended = _now()
    seconds = datetime.fromisoformat(ended) - datetime.fromisoformat(started.begun)
    return replace(
        started, parts="", shards=0, form={}, ended=ended, seconds=seconds.total_seconds(),
        computed_blocks=tally.computed, kept_blocks=tally.kept, failed_blocks=tuple(_failed(tally, blocks)),
        pixels=dict(sorted(tally.pixels.items())), tiles=tally.tiles, empty_tiles=tally.empty_tiles,
    )  # fmt: skip


def _count_failed(tally: Tally, change: xr.DataArray, blocks: da.Array) -> None:
    """Pixels of blocks that failed, which are nodata."""
    missing = sum(each.height * each.width for each in _failed(tally, blocks))
    if missing:
        tally.pixels[int(change.attrs["_FillValue"])] += missing


def _failed(tally: Tally, blocks: da.Array) -> Iterator[FailedBlock]:
    for (row, col), cause in sorted(tally.failed.items()):
        (heights, widths) = blocks.chunks
        yield FailedBlock(sum(heights[:row]), sum(widths[:col]), heights[row], widths[col], cause)


def found_attrs(attrs: Mapping[str, Any], tally: Tally, blocks: da.Array) -> dict[str, Any]:
    """Attributes that a finished raster gets: a class table of all that was found, inputs as by now, failed blocks."""
    listed = list_values(attrs, tally.pixels)
    failed = [[each.row_off, each.col_off, each.height, each.width] for each in _failed(tally, blocks)]
    known = {key: listed[key] for key in (*TABLE_ATTRS, *sorted(INPUT_ATTRS)) if key in listed}
    return known | ({"failed_blocks": failed} if failed else {})
