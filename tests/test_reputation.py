"""Whose failure a failure is: the block's, or the machine's that it was given to."""

from __future__ import annotations

import pytest

from geodl_dask.reputation import CHARGES, TRIES, Reputation

BLOCK, OTHER = (0, 0), (0, 1)


def crew(*workers: str) -> Reputation:
    reputation = Reputation()
    reputation.alive = set(workers)
    return reputation


def fail(reputation: Reputation, *workers: str, index=BLOCK) -> None:
    for worker in workers:
        reputation.note_failed(worker, index)


def test_block_that_fails_goes_to_another_worker_best_to_one_that_has_done_one():
    reputation = crew("a", "b", "c")
    fail(reputation, "a")
    assert reputation.judge(BLOCK, is_waiting=True) == ("again", ["b", "c"])
    reputation.note_done("c", [OTHER])
    assert reputation.judge(BLOCK, is_waiting=True) == ("again", ["c"])


def test_worker_alone_is_asked_again_and_then_the_block_is_at_fault():
    reputation = crew("a")
    for _ in range(TRIES - 1):
        fail(reputation, "a")
        assert reputation.judge(BLOCK, is_waiting=True) == ("again", [])
    fail(reputation, "a")
    assert reputation.judge(BLOCK, is_waiting=True)[0] == "final"


def test_block_is_at_fault_once_a_worker_that_can_do_others_has_failed_at_it():
    reputation = crew("a", "b", "c", "d")
    reputation.note_done("b", [OTHER])
    fail(reputation, "a", "b", "c")
    assert reputation.judge(BLOCK, is_waiting=True)[0] == "final"


def test_block_that_failed_on_workers_that_have_done_nothing_waits_for_one_that_has():
    reputation = crew("a", "b", "c", "d")
    fail(reputation, "a", "b", "c")
    assert reputation.judge(BLOCK, is_waiting=True)[0] == "later"
    assert reputation.judge(BLOCK, is_waiting=False) == ("again", ["d"])
    reputation.note_done("d", [OTHER])
    assert reputation.judge(BLOCK, is_waiting=True) == ("again", ["d"])


def test_block_is_at_fault_where_nobody_is_left_who_might_do_better():
    reputation = crew("a", "b", "c")
    fail(reputation, "a", "b", "c")
    assert reputation.judge(BLOCK, is_waiting=True)[0] == "final"


def test_worker_that_fails_at_what_others_can_do_is_set_aside_once():
    reputation = crew("a", "b")
    blocks = [(0, col) for col in range(CHARGES + 2)]
    for index in blocks:
        fail(reputation, "a", index=index)
    told = [reputation.note_done("b", [index]) for index in blocks]
    assert told == [[], [], ["a"], [], []]
    fail(reputation, "b")
    assert reputation.judge(BLOCK, is_waiting=True) == ("again", [])


def test_worker_that_computes_blocks_between_failures_stays():
    reputation = crew("a", "b")
    for col in range(3 * CHARGES):
        fail(reputation, "a", index=(0, col))
        assert reputation.note_done("b", [(0, col)]) == []
        reputation.note_done("a", [(1, col)])


def test_last_worker_is_not_set_aside():
    reputation = crew("a", "b")
    assert reputation.set_aside("a")
    assert not reputation.set_aside("a")
    assert not reputation.set_aside("b")


@pytest.mark.parametrize("gone", ["a", "b"])
def test_workers_that_have_left_are_asked_for_nothing(gone):
    reputation = crew("a", "b", "c")
    fail(reputation, "c")
    reputation.alive.discard(gone)
    assert gone not in reputation.judge(BLOCK, is_waiting=True)[1]
