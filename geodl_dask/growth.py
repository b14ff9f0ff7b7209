"""Where a result grows: in ``OUT.partial`` beside ``OUT``, until it is whole.

What a run that ended early has finished stays there, with a manifest that says what it was asked, until a run goes on
with it or begins anew. One run writes there, or several shards of one side by side, of which each computes blocks of
its own: then nothing is removed before `geodl_dask.finishing` has joined them. Whoever comes first begins it, however
many come at once, and whether or not the file system has locks: a manifest is linked to its name, which one alone can.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from .errors import OutputExistsError
from .locks import Post
from .manifest import Manifest, require_same
from .shards import Shard

PARTS_MANIFEST = "manifest.json"
OLD = "old"
"""What a result is called in the moment in which another takes its place."""


@dataclass
class Growth:
    """A result that grows."""

    folder: Path
    """Where its parts are."""
    started: Manifest
    """What the run was asked when it began, be it in this process or an earlier one."""
    has_finished: Callable[[], bool] = lambda: False
    """Whether something is finished, so that the parts stay if the run ends early."""

    def record_of(self, number: int) -> Path:
        """The manifest that a shard writes when all its blocks are done."""
        return self.folder.parent / f"{_post_of(self.folder.parent, number).name}.json"


def partial_of(out: Path) -> Path:
    """The folder in which a result grows."""
    return out.with_name(out.name + ".partial")


def owner_in_words(out: Path) -> str:
    """The process of the run that writes a result, or did, for a sentence; nothing where that is not known."""
    return Post(partial_of(out)).owner_in_words()


@contextmanager
def growing_output(
    out: Path, started: Manifest, *, shard: Shard | None = None, resume: bool = False, same_pixels: bool = False
) -> Iterator[Growth]:
    """A folder for the parts of ``out``: empty, or with those of an earlier run of the same words, to be resumed.

    started : what the run is asked. shard : the share that it computes, beside others, so that it always resumes.
    same_pixels : as `manifest.require_same` takes it.
    The folder is gone afterwards, unless this was a shard, or the run ends early and something is finished; a note to
    the exception then says so.
    Raises OutputExistsError where another run is writing there, or has left its parts and neither overwriting nor
    resuming was asked for, or resuming and it was asked something else.
    """
    partial = partial_of(out)
    try:
        partial.mkdir(exist_ok=started.replaces or resume or shard is not None)
    except FileExistsError as error:
        raise OutputExistsError(f"{partial} is there already{owner_in_words(out)}; remove it.") from error
    _require_ours(partial)
    with ExitStack() as held:
        if shard is None:
            growth = _enter_alone(held, out, started, resume=resume, same_pixels=same_pixels)
        else:
            growth = _enter_beside(held, out, started, shard, same_pixels=same_pixels)
        try:
            yield growth
        except BaseException as error:
            if growth.has_finished():
                go_on = "the same command" if growth.started.shards else "--resume (resume=True)"
                error.add_note(f"What is finished is kept in {partial}; {go_on} goes on with it.")
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if shard is None:
            shutil.rmtree(partial, ignore_errors=True)


def _enter_alone(held: ExitStack, out: Path, started: Manifest, *, resume: bool, same_pixels: bool) -> Growth:
    """For a run of all blocks, beside which nobody else is at work."""
    partial, work = partial_of(out), f"writing {out}"
    whole = Post(partial)
    # Whoever resumes may follow one that has just been killed, as jobs that go back into their queue do.
    (whole.await_vacancy_elsewhere if resume else whole.require_vacant_elsewhere)(work)
    held.enter_context(whole.locked(work))
    for number in _shards_in(partial):
        shard, of_shard = _post_of(partial, number), f"computing shard {number} of {out}"
        shard.await_vacancy_elsewhere(of_shard)
        with shard.locked(of_shard):
            pass
    if resume and _has_parts(partial):
        found = Manifest.read(partial / PARTS_MANIFEST)
        require_same(found, started.asked, partial, same_pixels=same_pixels)
        growth = Growth(partial / cast("Manifest", found).parts, cast("Manifest", found), lambda: True)
    else:
        _clear(partial, out)
        growth = _begin(partial, started)
    held.enter_context(whole.occupied())
    return growth


def _enter_beside(held: ExitStack, out: Path, started: Manifest, shard: Shard, *, same_pixels: bool) -> Growth:
    """For a run of one shard, beside those of others."""
    partial, work = partial_of(out), f"computing shard {shard} of {out}"
    post, whole = _post_of(partial, shard.number), Post(partial)
    post.await_vacancy_elsewhere(work)
    held.enter_context(post.locked(work))
    held.enter_context(post.occupied())
    with whole.entered(f"writing {out}"):  # which a run of all blocks holds until it ends
        whole.require_vacant_elsewhere(f"writing {out}")
        found = Manifest.read(partial / PARTS_MANIFEST)
        growth = _begin(partial, started) if found is None else Growth(partial / found.parts, found)
    require_same(growth.started, started.asked, partial, same_pixels=same_pixels, else_=f"remove {partial}")
    if growth.started.shards != shard.count:
        begun = f"in {growth.started.shards} shards" if growth.started.shards else "by a run without shards"
        raise OutputExistsError(
            f"{partial} was begun {begun}, and this is shard {shard}. Go on as it was begun, or remove it."
        )
    growth.has_finished = lambda: True
    return growth


def _begin(partial: Path, started: Manifest) -> Growth:
    """A new folder for parts, or that of a shard which has come at the same moment and was quicker."""
    # A task of the run before may still be under way on a worker: what it writes must not come in here.
    begun = replace(started, parts=f"parts-{secrets.token_hex(4)}")
    (partial / begun.parts).mkdir()
    begun.write_first(partial / PARTS_MANIFEST)
    found = Manifest.read(partial / PARTS_MANIFEST)
    if found is None:
        raise OutputExistsError(f"{partial} has a manifest that cannot be read. Remove the folder, and begin anew.")
    if found.parts != begun.parts:
        (partial / begun.parts).rmdir()
    return Growth(partial / found.parts, found)


def _post_of(partial: Path, number: int) -> Post:
    return Post(partial, f"shard-{number}")


def _shards_in(partial: Path) -> list[int]:
    """Numbers of the shards that have been at work there."""
    return sorted(int(lock.stem.removeprefix("shard-")) for lock in partial.glob("shard-[0-9]*.lock"))


def _has_parts(partial: Path) -> bool:
    """Whether a run has been at work there, and was not killed before it could say what it was asked."""
    unnamed = f"{PARTS_MANIFEST}."
    left = [each for each in partial.iterdir() if not _is_of_locks(each.name) and not each.name.startswith(unnamed)]
    return any(not each.is_dir() or any(each.iterdir()) for each in left)


def _is_of_locks(name: str) -> bool:
    return name.startswith(("lock", "owner", "shard-"))


def _clear(partial: Path, out: Path) -> None:
    """Remove what an earlier run left, but for a result that it was about to replace when it was killed."""
    for old in partial.glob(f"*/{OLD}"):
        if not os.path.lexists(out):
            old.replace(out)
    for left in partial.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        elif left != Post(partial).lock:
            left.unlink()


def _require_ours(partial: Path) -> None:
    """Raise OutputExistsError for a folder that no run of ours has made, or that lies elsewhere."""
    found = {left.name for left in partial.iterdir()}
    if partial.is_symlink() or (found and not any(_is_of_locks(name) or name == PARTS_MANIFEST for name in found)):
        raise OutputExistsError(f"{partial} is not what an interrupted run left. Move it, or choose another name.")
