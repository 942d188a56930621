"""Which free block is handed out next."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus_caches.kv import free_blocks
from pluribus_caches.kv.free_blocks import FreeBlocks


def test_a_text_lies_in_few_runs_where_there_is_no_single_one() -> None:
    free = FreeBlocks(10)
    free.take(10)
    for block in (9, 2, 0, 5, 6, 7):
        free.add(block, is_empty=False)
    assert free.take(4) == [0, 5, 6, 7]
    assert free.take(2) == [2, 9]


def test_the_run_that_has_been_free_for_longest_is_taken_first() -> None:
    free = FreeBlocks(9)
    free.take(9)
    for block in (6, 7, 0, 1, 3, 4):
        free.add(block, is_empty=False)
    assert [free.take(2) for _ in range(3)] == [[6, 7], [0, 1], [3, 4]]


def test_of_many_blocks_those_are_searched_that_have_been_free_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(free_blocks, "SEGMENT", 4)
    free = FreeBlocks(12)
    free.take(12)
    for block in (9, 10, 6, 0, 1, 2, 4):
        free.add(block, is_empty=False)
    assert free.take(2) == [9, 10]
    assert free.take(2) == [0, 1], "6 is older, and alone in its segment"
    free.add(8, is_empty=True)
    assert free.take(1) == [8]
    free.add(7, is_empty=False)
    free.add(8, is_empty=False)
    assert free.take(3) == [6, 7, 8], "a run may reach from one into the next"


@settings(deadline=None)
@given(st.sets(st.integers(0, 19)), st.sampled_from([3, 4096]), st.data())
def test_any_number_of_free_blocks_can_be_taken(
    held: set[int], segment: int, data: st.DataObject
) -> None:
    with patch.object(free_blocks, "SEGMENT", segment):
        free = FreeBlocks(20)
        for block in held:
            free.remove(block)
        if len(held) < 20:
            num_blocks = data.draw(st.integers(1, 20 - len(held)))
            taken = free.take(num_blocks)
            assert len(taken) == len(set(taken)) == num_blocks
            assert taken == sorted(taken)
            assert not held & set(taken)
            assert len(free) == 20 - len(held) - num_blocks
            free.check_integrity()
            for block in taken[::2]:
                free.add(block, is_empty=data.draw(st.booleans()))
            free.check_integrity()
