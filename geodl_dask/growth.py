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
from contextlib import ExitStack, contextmanager, suppress
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
_ATTEMPTS = 20


@dataclass
class Growth:
    """A result that grows."""

    folder: Path
    """Where its parts are."""
    started: Manifest
    """What the run was asked when it began, be it in this process or an earlier one."""
    has_finished: Callable[[], bool] = lambda: False
    """Whether something is finished, so that the parts stay if the run ends early."""
    is_over: bool = False
    """Whether nothing of it is needed any more."""

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
    with ExitStack() as held:
        if shard is None:
            growth = _enter_alone(held, out, started, resume=resume, same_pixels=same_pixels)
        else:
            growth = _enter_beside(held, out, started, shard, same_pixels=same_pixels)
        try:
            yield growth
        except BaseException as error:
            growth.is_over = not growth.has_finished()
            if not growth.is_over:
                go_on = "the same command" if growth.started.shards else "--resume (resume=True)"
                error.add_note(f"What is finished is kept in {partial_of(out)}; {go_on} goes on with it.")
            raise
        growth.is_over = shard is None


def _enter_alone(held: ExitStack, out: Path, started: Manifest, *, resume: bool, same_pixels: bool) -> Growth:
    """For a run of all blocks, beside which nobody else is at work."""
    partial, work = partial_of(out), f"writing {out}"
    whole = Post(partial)
    # Whoever resumes may follow one that has just been killed, as jobs that go back into their queue do.
    look = whole.await_vacancy_elsewhere if resume else whole.require_vacant_elsewhere
    _hold(held, whole, work, look=look, is_new=not (started.replaces or resume))
    for number in _shards_in(partial):
        shard, of_shard = _post_of(partial, number), f"computing shard {number} of {out}"
        shard.await_vacancy_elsewhere(of_shard)
        with shard.locked(of_shard):
            pass
    if resume and _has_parts(partial):
        found = Manifest.read(partial / PARTS_MANIFEST)
        require_same(found, started.asked, partial, same_pixels=same_pixels)
        growth = _goes_on(partial, cast("Manifest", found))
        growth.has_finished = lambda: True
    else:
        _clear(partial, out)
        growth = _begin(partial, started)
    held.callback(_leave, whole, growth)
    held.enter_context(whole.occupied())
    return growth


def _enter_beside(held: ExitStack, out: Path, started: Manifest, shard: Shard, *, same_pixels: bool) -> Growth:
    """For a run of one shard, beside those of others."""
    partial, work = partial_of(out), f"computing shard {shard} of {out}"
    post, whole = _post_of(partial, shard.number), Post(partial)
    _hold(held, post, work, look=post.await_vacancy_elsewhere)
    held.enter_context(post.occupied())
    with whole.entered(f"writing {out}"):  # which a run of all blocks holds until it ends
        whole.require_vacant_elsewhere(f"writing {out}")
        found = Manifest.read(partial / PARTS_MANIFEST)
        growth = _begin(partial, started) if found is None else _goes_on(partial, found)
    require_same(growth.started, started.asked, partial, same_pixels=same_pixels, else_=f"remove {partial}")
    if growth.started.shards != shard.count:
        begun = f"in {growth.started.shards} shards" if growth.started.shards else "by a run without shards"
        raise OutputExistsError(
            f"{partial} was begun {begun}, and this is shard {shard}. Go on as it was begun, or remove it."
        )
    growth.has_finished = lambda: True
    return growth


def _hold(held: ExitStack, post: Post, work: str, *, look: Callable[[str], None], is_new: bool = False) -> None:
    """Hold the lock of a folder, which is made unless it is there. look : raises where another machine is at work."""
    for is_last in (*[False] * _ATTEMPTS, True):
        try:
            post.folder.mkdir()
        except FileExistsError as error:
            if is_new:
                raise OutputExistsError(f"{post.folder} is there already{post.owner_in_words()}; remove it.") from error
        try:
            _require_ours(post.folder)
            look(work)
            held.enter_context(post.locked(work))
            return
        except OutputExistsError:
            raise
        except (FileNotFoundError, FileExistsError):  # a run that ends at this very moment has taken it away
            if is_last:
                raise


def _leave(post: Post, growth: Growth) -> None:
    """Remove the folder of a run that is over.

    Its manifest goes after the parts, by which a run that comes after a kill knows what this is; its lock last, for
    with that gone the next run may come in.
    """
    if not growth.is_over:
        return
    for left in sorted(post.folder.glob("*"), key=lambda left: (left.is_file(), left.name == PARTS_MANIFEST)):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
            shutil.rmtree(left, ignore_errors=True)  # and a block that came late, into a folder already gone through
        elif left != post.lock:
            with suppress(OSError):
                left.unlink()
    with suppress(OSError):
        post.lock.unlink(missing_ok=True)
        post.folder.rmdir()


def _goes_on(partial: Path, found: Manifest) -> Growth:
    """What an earlier run has begun. Raises OutputExistsError where its blocks are not where its manifest says."""
    there = sorted(parts.name for parts in partial.glob("parts-*") if parts.is_dir())
    if there and found.parts not in there:
        raise OutputExistsError(
            f"{partial} has finished blocks in {', '.join(there)}, and its manifest says {found.parts!r}. Mend the "
            "manifest, or remove the folder and begin anew."
        )
    return Growth(partial / found.parts, found)


def _begin(partial: Path, started: Manifest) -> Growth:
    """A new folder for parts, or that of a shard which has come at the same moment and was quicker."""
    # A task of the run before may still be under way on a worker: what it writes must not come in here.
    begun = replace(started, parts=f"parts-{secrets.token_hex(4)}")
    (partial / begun.parts).mkdir()
    begun.write_first(partial / PARTS_MANIFEST)
    found = Manifest.read(partial / PARTS_MANIFEST)
    if found is None or found.parts != begun.parts:
        (partial / begun.parts).rmdir()
    if found is None:
        raise OutputExistsError(f"{partial} has a manifest that cannot be read. Remove the folder, and begin anew.")
    return Growth(partial / found.parts, found)


def _post_of(partial: Path, number: int) -> Post:
    return Post(partial, f"shard-{number}")


def _shards_in(partial: Path) -> list[int]:
    """Numbers of the shards that have been at work there."""
    numbers = (lock.stem.removeprefix("shard-") for lock in partial.glob("shard-[0-9]*.lock"))
    return sorted(int(number) for number in numbers if number.isdecimal())


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
