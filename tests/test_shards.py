"""The shards of a raster: every block in one of them, and about as many in each."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodl_dask.errors import OutputError
from geodl_dask.shards import RUNS, Shard

lengths = st.integers(1, 40)


@given(rows=lengths, cols=lengths, count=st.integers(1, 50))
def test_every_block_is_in_one_shard_and_their_sizes_differ_by_one_run_at_the_most(rows, cols, count):
    shards = [Shard(number, count) for number in range(1, count + 1)]
    of_each = [list(shard.indices((rows, cols))) for shard in shards]
    assert sorted(chain(*of_each)) == [(row, col) for row in range(rows) for col in range(cols)]
    assert [shard.block_count((rows, cols)) for shard in shards] == list(map(len, of_each))
    sizes = list(map(len, of_each))
    assert max(sizes) - min(sizes) <= max(1, rows * cols // (RUNS * count))


def test_blocks_of_a_shard_are_neighbours_and_lie_in_all_parts_of_the_raster():
    indices = list(Shard(2, 8).indices((64, 64)))
    assert [index for index in indices if index[0] == 0] == [(0, col) for col in (*range(16, 32),)]
    assert {row // 16 for row, _ in indices} == {0, 1, 2, 3}


def test_one_shard_is_everything_row_by_row():
    assert list(Shard().indices((2, 3))) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


@given(heights=st.lists(lengths, min_size=1, max_size=9), widths=st.lists(lengths, min_size=1, max_size=9))
def test_pixels_of_all_shards_are_those_of_the_raster(heights, widths):
    chunks = tuple(heights), tuple(widths)
    counts = [Shard(number, 3).pixel_count(chunks) for number in (1, 2, 3)]
    assert sum(counts) == Shard().pixel_count(chunks) == sum(heights) * sum(widths)


@pytest.mark.parametrize("asked", [(0, 3), (4, 3), (1, 0), (-1, -1), (1.0, 2), ("1", 2), (True, 2)])
def test_what_is_no_shard_is_refused(asked):
    with pytest.raises(OutputError, match=r"--shard I/N \(shard=\(I, N\)\)"):
        Shard(*asked)
