"""Which blocks of a raster each of several runs computes, so that none is left out and none done twice.

Blocks are counted row by row, cut into short runs of neighbours, and the runs dealt out in turn, here to three shards::

    1 1 1 2 2 2 3 3
    3 1 1 1 2 2 2 3
    3 3 1 1 1 2 2 2

Neighbours read the same pixels around them, so that a shard finds them in its cache; and as each shard has runs from
everywhere, none has all of the sea or of a scene's empty corners, whose blocks cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .errors import OutputError

RUNS = 32
"""Each shard has about so many; its share is longer than another's by one at the most."""


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the blocks of a raster. Raises OutputError for one that is none."""

    number: int = 1
    """Which one, from 1."""
    count: int = 1
    """How many there are; of one, it is all blocks, row by row."""

    def __post_init__(self) -> None:
        is_whole = all(isinstance(each, int) and not isinstance(each, bool) for each in (self.number, self.count))
        if not is_whole or not 1 <= self.number <= self.count:
            raise OutputError(
                f"The shard is {self.number!r} of {self.count!r}; two whole numbers I and N are needed, I from 1 to N: "
                "--shard I/N (shard=(I, N))."
            )

    def __str__(self) -> str:
        """As the command line has it."""
        return f"{self.number}/{self.count}"

    def indices(self, blocks_yx: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Row and column of its blocks. blocks_yx : how many blocks the raster has along y and x."""
        for run in self._runs(blocks_yx):
            yield from (divmod(block, blocks_yx[1]) for block in run)

    def block_count(self, blocks_yx: tuple[int, int]) -> int:
        """How many blocks it has."""
        return sum(map(len, self._runs(blocks_yx)))

    def pixel_count(self, chunks: tuple[tuple[int, ...], ...]) -> int:
        """How many pixels its blocks have. chunks : lengths of the raster's blocks along y and x."""
        heights, widths = chunks
        if self.count == 1:
            return sum(heights) * sum(widths)
        return sum(heights[row] * widths[col] for row, col in self.indices((len(heights), len(widths))))

    def _runs(self, blocks_yx: tuple[int, int]) -> Iterator[range]:
        total = blocks_yx[0] * blocks_yx[1]
        length = max(1, total // (RUNS * self.count))
        for start in range((self.number - 1) * length, total, self.count * length):
            yield range(start, min(start + length, total))
