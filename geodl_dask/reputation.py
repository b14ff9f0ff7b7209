"""What workers have shown of themselves: is it the block that fails, or the machine that it was given to?

A worker whose disk or GPU is broken fails at once, is idle again, and so gets more blocks than any other. Hence a block
that failed goes to another worker, best to one that has computed a block; it counts as the block's own failure once
such a worker has failed at it, too, or nobody is left who might do better. And a worker that fails at several blocks
which others then do, and computes none meanwhile, is set aside.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from .blocks import Index

TRIES = 3
CHARGES = 3
"""Blocks that a worker has failed at and others have done, after which it is set aside."""

Verdict = Literal["again", "later", "final"]


class Reputation:
    """Of the workers of a run, by their addresses."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        """Workers that are there."""
        self._proven: set[str] = set()
        self._blamed: set[str] = set()
        self._failed_at: dict[Index, list[str]] = {}
        self._charges: Counter[str] = Counter()
        self._aside: set[str] = set()

    def note_done(self, worker: str, indices: list[Index]) -> list[str]:
        """A worker has computed some blocks. Returns the workers that are to be set aside for that."""
        if not indices:
            return []
        self._proven.add(worker)
        self._charges.pop(worker, None)
        for index in indices:
            self._charges.update(set(self._failed_at.pop(index, ())) - {worker})
        broken = sorted(each for each, count in self._charges.items() if count >= CHARGES and each not in self._aside)
        return [each for each in broken if self.set_aside(each)]

    def note_failed(self, worker: str, index: Index) -> None:
        """A worker has failed at a block."""
        self._failed_at.setdefault(index, []).append(worker)
        self._blamed.add(worker)

    def set_aside(self, worker: str) -> bool:
        """Expect nothing more of a worker, unless it is the only one. Returns whether it was one that counted."""
        counted = self.alive - self._aside
        if worker not in counted or len(counted) < 2:
            return False
        self._aside.add(worker)
        self._proven.discard(worker)
        return True

    def judge(self, index: Index, *, is_waiting: bool) -> tuple[Verdict, list[str]]:
        """Whether a block that failed is tried again, and on which workers: on any, where none are listed.

        is_waiting : other blocks are under way, which may yet show who is to be trusted: then it may be ``"later"``.
        """
        failed = self._failed_at[index]
        others = self.alive - self._aside - set(failed)
        proven = others & self._proven
        unknown = others - self._blamed - self._proven
        if len(failed) < TRIES:
            return "again", sorted(proven or unknown or others)
        if self._proven & set(failed) or not (proven or unknown):
            del self._failed_at[index]
            return "final", []
        return ("later", []) if is_waiting and not proven else ("again", sorted(proven or unknown))
