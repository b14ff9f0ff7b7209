"""What stands under a result's name already: is it whole, and of a run of the same words?"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import OutputExistsError
from .growth import PARTS_MANIFEST, growing_output, partial_of
from .manifest import FailedBlock, Manifest, is_same, require_same
from .outputs import Written, finished_in, manifest_of
from .uploads import RemoteOutput, local_place


def written_by(out: Path | str, manifest: Manifest) -> Written:
    """What a writer says of a run that has ended. out : where its result is."""
    return Written(
        out, manifest.seconds, manifest.pixels or {}, manifest.tiles, manifest.empty_tiles, manifest.computed_blocks,
        manifest.failed_blocks,
    )  # fmt: skip


def whole_result(out: Path | str, asked: dict[str, Any], *, same_pixels: bool) -> Written | None:
    """The result that a run of the same words has written there; None where there is something to do."""
    if isinstance(out, Path):
        if not os.path.lexists(out) or _goes_on(out, asked, same_pixels=same_pixels):
            return None
        if failed_in(out, asked, same_pixels=same_pixels):
            return None
        return _already_written(out, Manifest.read(manifest_of(out)), asked, same_pixels=same_pixels)
    remote, here = RemoteOutput.at(out), local_place(out)
    if not remote.stands():
        return None
    standing, left = remote.manifest(), Manifest.read(partial_of(here) / PARTS_MANIFEST)
    is_left = left is not None and is_same(left, asked, same_pixels=same_pixels)
    if left is not None and is_left and _is_to_upload(left, standing, asked, same_pixels=same_pixels):
        return None
    written = _already_written(out, standing, asked, same_pixels=same_pixels)
    if left is not None and is_left:
        with growing_output(here, left, resume=True):
            pass  # of a run that was stopped when it had uploaded all: its parts are removed
    return written


def failed_in(out: Path | str, asked: dict[str, Any], *, same_pixels: bool) -> tuple[FailedBlock, ...]:
    """Blocks that are missing in the result that a run of the same words has written on this disk."""
    standing = Manifest.read(manifest_of(out)) if isinstance(out, Path) and os.path.lexists(out) else None
    if standing is None or not is_same(standing, asked, same_pixels=same_pixels):
        return ()
    return standing.failed_blocks


def _is_to_upload(left: Manifest, standing: Manifest | None, asked: dict[str, Any], *, same_pixels: bool) -> bool:
    """Whether what stands in object storage is to give way to what a run of the same words has left here."""
    if standing is not None and is_same(standing, asked, same_pixels=same_pixels):
        return not standing.is_complete
    return left.replaces


def _goes_on(out: Path, asked: dict[str, Any], *, same_pixels: bool) -> bool:
    """Whether what stands there is to be replaced, or to get its manifest yet, by a run of the same words."""
    partial = partial_of(out)
    left, standing = Manifest.read(partial / PARTS_MANIFEST), Manifest.read(manifest_of(out))
    if left is None or not is_same(left, asked, same_pixels=same_pixels):
        return False
    is_whole = standing is not None and standing.is_complete and is_same(standing, asked, same_pixels=same_pixels)
    return finished_in(partial / left.parts, out) is not None or (left.replaces and not is_whole)


def _already_written(
    out: Path | str, manifest: Manifest | None, asked: dict[str, Any], *, same_pixels: bool
) -> Written:
    require_same(manifest, asked, out, same_pixels=same_pixels)
    if manifest is None or manifest.pixels is None:
        raise OutputExistsError(f"{out} exists. Choose another name, or say --overwrite (overwrite=True).")
    return replace(written_by(out, manifest), computed_blocks=0)
