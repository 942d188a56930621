"""Which gaps are found, and how many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus_caches.kv.gaps import FUTURE, NOWHERE, PAST, Gaps

times = st.integers(-3, 12)
gaps = st.lists(st.tuples(times | st.just(PAST), times | st.just(FUTURE)), max_size=7)


@settings(max_examples=500, deadline=None)
@given(gaps, st.lists(st.integers(0, 8), min_size=1, max_size=5).map(sorted), st.integers(0, 10))
def test_as_many_gaps_are_found_as_there_can_be(
    spans: list[tuple[int, int]], needs: list[int], length: int
) -> None:
    now, until = needs[0], needs[-1] + length
    table = Gaps()
    for block, (start, end) in enumerate(spans):
        table.add([block], start, end)
    rows = table.find(np.array(needs), until, now)

    def suits(need: int, span: tuple[int, int]) -> bool:
        start, end = span
        return end >= until and (start == PAST or (start <= need and need > now))

    found = [int(table.blocks[row]) for row in rows if row != NOWHERE]
    assert len(set(found)) == len(found)
    for need, row in zip(needs, rows, strict=True):
        assert row == NOWHERE or suits(need, spans[table.blocks[row]])
    assert len(found) == most_matched([[suits(n, span) for span in spans] for n in needs])


def most_matched(suits: list[list[bool]]) -> int:
    """Return how many rows can have a column each that suits them."""
    taken: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, is_suited in enumerate(suits[row]):
            if is_suited and column not in tried:
                tried.add(column)
                if column not in taken or place(taken[column], tried):
                    taken[column] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(len(suits)))


def test_rows_are_used_again() -> None:
    table = Gaps()
    rows = table.add(range(100), PAST, FUTURE)
    table.remove(rows[::2])
    again = table.add(range(50), 3, 4)
    assert sorted(again) == sorted(rows[::2])
    table.check_integrity(rows)
    with pytest.raises(AssertionError):
        table.check_integrity(rows[:-1])
