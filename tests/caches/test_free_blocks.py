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


def test_what_is_known_is_kept_while_any_segment_has_room_that_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(free_blocks, "SEGMENT", 4)
    free = FreeBlocks(12)
    assert free.take(3) == [0, 1, 2]
    for block in (2, 1, 0):
        free.add(block, is_empty=False)
    assert free.take(3) == [4, 5, 6], "3 is empty, and has no room for three"
    assert free.take(4) == [8, 9, 10, 11]
    assert free.take(3) == [1, 2, 3], "0 was the last to be given back"


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=20, max_size=20), st.integers(1, 5), st.integers(3, 7))
def test_what_is_taken_has_been_free_for_as_long_as_anything_in_a_segment(
    is_empty: list[bool], num_blocks: int, segment: int
) -> None:
    with patch.object(free_blocks, "SEGMENT", segment):
        free = FreeBlocks(20)
        free.take(20)
        for block in range(0, 20, 3):
            is_empty[block] = False
        order = sorted(range(20), key=lambda block: block * 7 % 20)
        ages = {block: 0 if is_empty[block] else age for age, block in enumerate(order, 1)}
        for block in order:
            free.add(block, is_empty=is_empty[block])
        starts = [
            start
            for first in range(0, 20, segment)
            for start in range(first, min(first + segment, 20) - num_blocks + 1)
        ]
        latest = [max(ages[start + at] for at in range(num_blocks)) for start in starts]
        taken = free.take(num_blocks)
        if starts:
            assert max(ages[block] for block in taken) == min(latest)


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
