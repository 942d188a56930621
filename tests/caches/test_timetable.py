"""Who holds which block when, and who has to wait."""

from __future__ import annotations

import pytest

from pluribus import Generation, SamplingParams
from pluribus_caches.kv.gaps import NOWHERE
from pluribus_caches.kv.timetable import Timetable

BLOCK_SIZE = 4
LATE = 8
"""Two blocks' worth of steps."""


def generation(num_prompt: int, max_tokens: int) -> Generation:
    return Generation(id=0, prompt=(2,) * num_prompt, params=SamplingParams(max_tokens=max_tokens))


def indices(member: Generation) -> range:
    return range(-(-member.max_length // BLOCK_SIZE))


def enter_with(timetable: Timetable, member: Generation, *blocks: int) -> None:
    """Enter with blocks of its own."""
    timetable.enter(member, indices(member), blocks, timetable.now())
    timetable.check_integrity()


def enter(timetable: Timetable, member: Generation, *blocks: int) -> list[int]:
    """Enter with what gaps there are, and else with these blocks; return where gaps were."""
    now = timetable.now()
    rows, found = timetable.find(member, indices(member), now)
    own = iter(blocks)
    taken = [next(own) if block == NOWHERE else block for block in found]
    timetable.enter(member, indices(member), taken, now, rows)
    timetable.check_integrity()
    return found


def long_one(timetable: Timetable) -> Generation:
    """Let one enter that needs blocks 10 and 11 at time 0, 12 at 4, 13 at 8, ... and 19 at 32."""
    member = generation(4, 36)
    enter_with(timetable, member, *range(10, 20))
    member.num_scheduled = 4
    return member


def test_a_short_one_takes_what_a_long_one_needs_later() -> None:
    timetable = Timetable(BLOCK_SIZE)
    long = long_one(timetable)
    short = generation(6, 2)  # done with everything by time 2 + LATE
    assert enter(timetable, short) == [15, 14]
    assert timetable.limits == {long: 16}
    assert timetable.leave(short) == {14, 15}
    assert timetable.limits == {}


@pytest.mark.parametrize(("max_tokens", "block"), [(3, 19), (4, NOWHERE)])
def test_who_enters_before_another_takes_nothing_that_is_needed_sooner(
    max_tokens: int, block: int
) -> None:
    timetable = Timetable(BLOCK_SIZE)
    long = long_one(timetable)
    long.num_scheduled = 25  # now is 21
    assert enter(timetable, generation(1, max_tokens), 30, 31)[0] == block


def test_a_long_one_waits_for_who_will_be_done_and_goes_on_when_it_is() -> None:
    timetable = Timetable(BLOCK_SIZE)
    short = generation(4, 4)
    enter_with(timetable, short, 1, 2)
    long = generation(4, 20)
    found = enter(timetable, long, *range(20, 26))
    # Prompt and first token are its own; from the time short is noticed to be over, 12, it waits.
    assert found[:4] == [NOWHERE] * 4
    assert sorted(found[4:]) == [1, 2]
    assert timetable.limits == {long: 16}
    assert timetable.leave(short) == {1, 2}
    assert timetable.limits == {}
    assert timetable.leave(long) == set()
    assert timetable.num_holders() == {}
    timetable.check_integrity()


def test_who_leaves_while_it_waits_leaves_no_trace() -> None:
    timetable = Timetable(BLOCK_SIZE)
    short = generation(4, 4)
    enter_with(timetable, short, 1, 2)
    for _ in range(3):
        long = generation(4, 20)
        enter(timetable, long, *range(20, 26))
        assert timetable.leave(long) == {1, 2}
        timetable.check_integrity()
    assert timetable.num_holders() == {1: 1, 2: 1}
    assert timetable.leave(short) == set()


def test_several_may_wait_for_one_block_one_after_another() -> None:
    timetable = Timetable(BLOCK_SIZE)
    first, second, third = generation(1, 3), generation(1, 15), generation(1, 27)
    enter_with(timetable, first, 1)  # until 3 + LATE
    assert enter(timetable, second, 2, 3, 4) == [NOWHERE] * 3 + [1]  # from 11 until 15 + LATE
    found = enter(timetable, third, *range(10, 16))
    assert found == [NOWHERE] * 6 + [1]  # from 23 on
    assert timetable.limits == {second: 12, third: 24}
    timetable.leave(first)
    assert timetable.limits == {third: 24}
    timetable.leave(second)
    assert timetable.limits == {}
    assert timetable.leave(third) == set()


def test_time_goes_on_with_the_furthest_and_back_when_it_has_gone() -> None:
    timetable = Timetable(BLOCK_SIZE)
    assert timetable.now() == 0
    slow, fast = generation(4, 8), generation(2, 8)
    enter_with(timetable, slow, 1, 2, 3)
    enter_with(timetable, fast, 4, 5, 6)
    slow.num_scheduled, fast.num_scheduled = 6, 7
    assert timetable.now() == 5
    timetable.leave(fast)
    assert timetable.now() == 2


def test_who_has_run_already_enters_as_far_as_it_is() -> None:
    timetable = Timetable(BLOCK_SIZE)
    running = generation(4, 36)
    running.num_scheduled = 14
    enter_with(timetable, running, *range(10, 20))
    assert timetable.now() == 0
    short = generation(3, 1)  # done by time 9; block 6 is needed from 24 - 14 on
    assert enter(timetable, short) == [16]
    assert timetable.limits == {running: 24}
