"""Tile lattice, block plan, halo and padding: integers, and cutting and joining numpy arrays.

::

    |<------------------- tile size ------------------>|
    | padding |<------ core = stride ------>|  padding |
              |  core  |  core  |  core  |                block of 3 strides
    | halo    |<-------- block --------->|    halo |      halo = padding

The lattice is anchored at the grid's upper-left corner, never at a block's, and a block is a whole
number of strides. So a pixel always lies at the same place of the same tile, whatever the blocks,
and the answer cannot depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .errors import TileGeometryError


@dataclass(frozen=True)
class TileSpec:
    """The model's input window. Raises TileGeometryError where padding leaves no core."""

    size_yx: tuple[int, int]
    """Height and width of the model's input window, pixels."""
    padding: int = 0
    """Margin cropped from each side of a tile's prediction, pixels."""

    def __post_init__(self) -> None:
        if min(self.size_yx) < 1:
            raise TileGeometryError(
                f"The tile is {self.size_yx[0]} x {self.size_yx[1]} pixels; at least 1 x 1 is needed."
            )
        if self.padding < 0:
            raise TileGeometryError(f"padding is {self.padding}; it must be 0 or more pixels.")
        if 2 * self.padding >= min(self.size_yx):
            raise TileGeometryError(
                f"padding {self.padding} leaves nothing of a tile of {self.size_yx[0]} x {self.size_yx[1]} pixels: it "
                f"is cut from every side, so it must be at most {(min(self.size_yx) - 1) // 2}."
            )

    @property
    def stride_yx(self) -> tuple[int, int]:
        """Distance between neighbouring tiles, which is the size of a tile's core, pixels."""
        return self.size_yx[0] - 2 * self.padding, self.size_yx[1] - 2 * self.padding

    @property
    def area_px(self) -> int:
        """Pixels of the window, with the padding."""
        return math.prod(self.size_yx)


@dataclass(frozen=True)
class Window:
    """A rectangle of a grid, pixels; rasterio's order of offsets."""

    row_off: int
    col_off: int
    height: int
    width: int


@dataclass(frozen=True)
class BlockPlan:
    """How a grid is cut into blocks of whole strides.

    Raises TileGeometryError for an empty grid or a block that is not a whole number of strides.
    """

    shape_yx: tuple[int, int]
    """Height and width of the grid, pixels."""
    block_yx: tuple[int, int]
    """Height and width of a block, pixels; the last ones of a row or column may be smaller."""
    tile: TileSpec
    """The model's input window."""

    def __post_init__(self) -> None:
        if min(self.shape_yx) < 1:
            raise TileGeometryError(
                f"The grid is {self.shape_yx[0]} x {self.shape_yx[1]} pixels: there is nothing to do."
            )
        if any(block < 1 or block % stride for block, stride in zip(self.block_yx, self.tile.stride_yx, strict=True)):
            raise TileGeometryError(
                f"Blocks of {self.block_yx} pixels are not whole strides of {self.tile.stride_yx} pixels (y, x)."
            )

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Block lengths along y and x, as Dask has them."""
        rows, cols = (
            tuple(min(block, length - start) for start in range(0, length, block))
            for length, block in zip(self.shape_yx, self.block_yx, strict=True)
        )
        return rows, cols

    def core(self, index: tuple[int, int]) -> Window:
        """The pixels that block ``index`` (row, column) answers for."""
        row, col = index[0] * self.block_yx[0], index[1] * self.block_yx[1]
        return Window(
            row, col, min(self.block_yx[0], self.shape_yx[0] - row), min(self.block_yx[1], self.shape_yx[1] - col)
        )

    def haloed(self, core: Window) -> Window:
        """A core and its halo, clipped to the grid: the window to read."""
        halo = self.tile.padding
        top, left = max(0, core.row_off - halo), max(0, core.col_off - halo)
        bottom = min(self.shape_yx[0], core.row_off + core.height + halo)
        right = min(self.shape_yx[1], core.col_off + core.width + halo)
        return Window(top, left, bottom - top, right - left)

    def tiles_yx(self, core: Window) -> tuple[int, int]:
        """How many tiles cover a core along y and x."""
        return -(-core.height // self.tile.stride_yx[0]), -(-core.width // self.tile.stride_yx[1])

    def fill(self, core: Window) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels to add (before, after) along y and x, so that whole tiles cover the haloed window.

        Not zero only where tiles reach outside the grid.
        """
        haloed, halo = self.haloed(core), self.tile.padding
        (rows, cols), (stride_y, stride_x) = self.tiles_yx(core), self.tile.stride_yx
        top, left = haloed.row_off - (core.row_off - halo), haloed.col_off - (core.col_off - halo)
        bottom = rows * stride_y + 2 * halo - haloed.height - top
        right = cols * stride_x + 2 * halo - haloed.width - left
        return (top, bottom), (left, right)


def plan_blocks(
    shape_yx: tuple[int, int], tile: TileSpec, chunks: int | Literal["auto"] = "auto", run: int = 1
) -> BlockPlan:
    """Blocks of about ``chunks`` pixels a side, rounded down to whole strides (at least one).

    ``"auto"`` aims at 16 blocks or more, of 512 to 2,048 pixels a side. It looks at nothing but the grid and the
    arguments, so that a run that is continued elsewhere has the same blocks. run : tiles a side that are to be
    predicted as one, if they may be: blocks that have as many are a multiple of it.
    Raises TileGeometryError for chunks below 1.
    """
    if chunks != "auto" and (isinstance(chunks, bool) or not isinstance(chunks, int)):
        raise TileGeometryError(f"chunks is {chunks!r}; a number of pixels above 0, or auto, is needed.")
    wanted = min(max(512, math.isqrt(shape_yx[0] * shape_yx[1] // 16)), 2048) if chunks == "auto" else chunks
    if wanted < 1:
        raise TileGeometryError(f"chunks is {wanted}; a number of pixels above 0, or auto, is needed.")
    counts = [
        max(1, min(wanted, -(-length // stride) * stride) // stride)
        for length, stride in zip(shape_yx, tile.stride_yx, strict=True)
    ]
    block_y, block_x = (
        (count // run * run if count > run else count) * stride
        for count, stride in zip(counts, tile.stride_yx, strict=True)
    )
    return BlockPlan(shape_yx, (block_y, block_x), tile)


@dataclass(frozen=True)
class TileRun:
    """A rectangle of neighbouring tiles of a block, predicted as one large tile: their cores, one padding around."""

    row: int
    """The first row of tiles, from the block's upper edge."""
    col: int
    """The first column of tiles, from the block's left edge."""
    rows: int = 1
    """How many tiles it is high."""
    cols: int = 1
    """How many tiles it is wide."""

    def merged(self, tile: TileSpec) -> TileSpec:
        """The large tile."""
        height, width = self.rows * tile.stride_yx[0], self.cols * tile.stride_yx[1]
        return TileSpec((height + 2 * tile.padding, width + 2 * tile.padding), tile.padding)

    def inside(self, tile: TileSpec) -> tuple[slice, slice]:
        """Where the large tile lies in a block that is filled to whole tiles and has its halo."""
        return self._slices(tile, self.merged(tile).size_yx)

    def cores(self, tile: TileSpec) -> tuple[slice, slice]:
        """Where its cores lie in the block, filled to whole tiles."""
        return self._slices(tile, self.merged(tile).stride_yx)

    def origin(self, core: Window, tile: TileSpec) -> tuple[int, int]:
        """Row and column, in the grid, of its upper-left corner: negative where it begins outside."""
        inside = self.cores(tile)
        return core.row_off + inside[0].start - tile.padding, core.col_off + inside[1].start - tile.padding

    def halves(self) -> tuple[TileRun, TileRun]:
        """Its tiles as two runs, cut across the longer side; of one tile the second is empty."""
        if self.rows >= self.cols:
            half = -(-self.rows // 2)
            return replace(self, rows=half), replace(self, row=self.row + half, rows=self.rows - half)
        half = -(-self.cols // 2)
        return replace(self, cols=half), replace(self, col=self.col + half, cols=self.cols - half)

    def _slices(self, tile: TileSpec, size_yx: tuple[int, int]) -> tuple[slice, slice]:
        (top, left), (height, width) = (self.row * tile.stride_yx[0], self.col * tile.stride_yx[1]), size_yx
        return slice(top, top + height), slice(left, left + width)


def tile_runs(asked: np.ndarray, tile: TileSpec, most: int) -> Iterator[TileRun]:
    """Runs of at most ``most`` tiles a side that cover every asked tile of a block.

    asked : (row, column) bool, one for each tile. A run is never more pixels than its asked tiles one by one.
    """
    for row in range(0, asked.shape[0], most):
        for col in range(0, asked.shape[1], most):
            at = np.argwhere(asked[row : row + most, col : col + most]) + (row, col)
            if not len(at):
                continue
            (top, left), (bottom, right) = at.min(axis=0).tolist(), at.max(axis=0).tolist()
            run = TileRun(top, left, bottom - top + 1, right - left + 1)
            if run.merged(tile).area_px <= len(at) * tile.area_px:
                yield run
            else:
                yield from (TileRun(*each) for each in at.tolist())


def crop_to_core(prediction: Any, tile: TileSpec) -> Any:
    """Cut the padding off a prediction (..., y, x), unless the model gave the core alone.

    prediction : numpy array or torch tensor, and so is what is returned.
    Raises ValueError where y, x is neither the tile's size nor its core's.
    """
    shape_yx = tuple(prediction.shape[-2:])
    if shape_yx == tile.stride_yx:
        return prediction
    if shape_yx != tile.size_yx:
        raise ValueError(
            f"The model answered with {shape_yx[0]} x {shape_yx[1]} pixels for a tile of {tile.size_yx[0]} x "
            f"{tile.size_yx[1]}; the whole tile or its core of {tile.stride_yx[0]} x {tile.stride_yx[1]} is needed."
        )
    (stride_y, stride_x), start = tile.stride_yx, tile.padding
    return prediction[..., start : start + stride_y, start : start + stride_x]
