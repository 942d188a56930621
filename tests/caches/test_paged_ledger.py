"""The ledger of ``cache/kv=paged``: who holds which block, and what can be found in it."""

from __future__ import annotations

from random import Random

import pytest

from pluribus import Generation, SamplingParams
from pluribus_caches.kv.paged_ledger import PATIENCE, PagedLedger

BLOCK_SIZE = 4


def ledger_of(
    num_blocks: int, *, block_size: int = BLOCK_SIZE, prefix_caching: bool = True
) -> PagedLedger:
    return PagedLedger(num_blocks, block_size, prefix_caching)


def generation(
    prompt: range, max_tokens: int = 4, *, salt: str = "", prompt_logprobs: int | None = None
) -> Generation:
    params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)
    return Generation(id=0, prompt=tuple(prompt), params=params, salt=salt)


def plan(ledger: PagedLedger, member: Generation, num_tokens: int) -> None:
    member.num_scheduled += num_tokens
    ledger.advance(member)


def start(ledger: PagedLedger, member: Generation) -> Generation:
    """Reserve, and plan the step that computes the whole prompt."""
    assert ledger.try_reserve(member)
    plan(ledger, member, member.num_unscheduled)
    return member


def run_to_the_end(ledger: PagedLedger, member: Generation) -> None:
    """Run a generation that answers with the numbers that follow its prompt."""
    start(ledger, member)
    first = member.prompt[-1] + 1
    member.tokens += range(first, first + member.params.max_tokens)
    member.num_scheduled = max(len(member.prompt), member.max_length - 1)
    ledger.advance(member)
    ledger.release(member)


def num_found(ledger: PagedLedger, prompt: range, *, salt: str = "") -> int:
    """Reserve a prompt for a moment, and return how many of its tokens are found."""
    probe = generation(prompt, max_tokens=1, salt=salt)
    assert ledger.try_reserve(probe)
    ledger.release(probe)
    return probe.num_cached


@pytest.mark.parametrize(("length", "num_cached"), [(4, 0), (5, 4), (8, 4), (9, 8), (12, 8)])
def test_whole_blocks_are_reused_but_never_the_whole_prompt(length: int, num_cached: int) -> None:
    ledger = ledger_of(16)
    first = start(ledger, generation(range(length)))
    second = generation(range(length))
    assert ledger.try_reserve(second)
    assert second.num_cached == second.num_scheduled == num_cached
    shared = num_cached // BLOCK_SIZE
    assert ledger.placement(second)[:shared] == ledger.placement(first)[:shared]
    assert not {*ledger.placement(second)[shared:]} & {*ledger.placement(first)}


def test_a_prompt_that_goes_on_differently_shares_what_is_alike() -> None:
    ledger = ledger_of(16)
    start(ledger, generation(range(12)))
    params = SamplingParams(max_tokens=1)
    other = Generation(id=1, prompt=(*range(8), 90, 91, 92, 93, 94), params=params)
    assert ledger.try_reserve(other)
    assert other.num_cached == 8


def test_a_block_is_found_only_after_the_same_beginning() -> None:
    ledger = ledger_of(16)
    start(ledger, generation(range(12)))
    assert num_found(ledger, range(4, 13)) == 0


def test_generations_with_another_salt_share_nothing() -> None:
    ledger = ledger_of(16)
    start(ledger, generation(range(9), salt="a"))
    assert num_found(ledger, range(9), salt="a") == 8
    assert num_found(ledger, range(9), salt="b") == 0
    assert num_found(ledger, range(9)) == 0


def test_a_prompt_that_is_scored_is_computed_whole_and_found_by_others() -> None:
    ledger = ledger_of(16)
    for _ in range(2):
        scored = generation(range(9), prompt_logprobs=0)
        assert ledger.try_reserve(scored)
        assert scored.num_cached == scored.num_scheduled == 0
        plan(ledger, scored, 9)
    assert num_found(ledger, range(9)) == 8


def test_nothing_is_found_when_prefix_caching_is_off() -> None:
    ledger = ledger_of(16, prefix_caching=False)
    run_to_the_end(ledger, generation(range(9)))
    start(ledger, generation(range(9)))
    assert num_found(ledger, range(9)) == 0
    ledger.check_integrity()


def test_a_block_is_found_once_the_step_that_fills_it_is_planned() -> None:
    ledger = ledger_of(16)
    first = generation(range(12))
    assert ledger.try_reserve(first)
    assert num_found(ledger, range(12)) == 0
    for num_tokens, found in [(3, 0), (1, 4), (5, 8)]:
        plan(ledger, first, num_tokens)
        assert num_found(ledger, range(12)) == found


def test_an_answer_is_found_when_it_has_ended_except_what_was_not_computed() -> None:
    ledger = ledger_of(16)
    run_to_the_end(ledger, generation(range(6), max_tokens=6))  # 12 tokens, 11 computed
    assert num_found(ledger, range(20)) == 8
    run_to_the_end(ledger, generation(range(30, 36), max_tokens=7))
    assert num_found(ledger, range(30, 50)) == 12


def test_what_nobody_has_read_is_not_found() -> None:
    ledger = ledger_of(16)
    cancelled = start(ledger, generation(range(6), max_tokens=8))
    cancelled.tokens.append(6)
    plan(ledger, cancelled, 6)
    ledger.release(cancelled)
    assert num_found(ledger, range(20)) == 4


def test_a_prompt_cancelled_half_way_is_found_as_far_as_it_went() -> None:
    ledger = ledger_of(16)
    cancelled = generation(range(12))
    assert ledger.try_reserve(cancelled)
    plan(ledger, cancelled, 6)
    ledger.release(cancelled)
    assert num_found(ledger, range(12)) == 4


def test_shared_blocks_take_room_once() -> None:
    ledger = ledger_of(5)
    start(ledger, generation(range(12)))
    assert ledger.num_used_tokens == 16
    assert not ledger.try_reserve(generation(range(50, 59), max_tokens=3))
    assert ledger.try_reserve(generation(range(9), max_tokens=3))
    assert ledger.num_used_tokens == 20


def test_a_shared_block_is_free_when_its_last_holder_has_gone() -> None:
    ledger = ledger_of(5)
    first = start(ledger, generation(range(8)))
    second = start(ledger, generation(range(8)))
    ledger.release(first)
    assert ledger.num_used_tokens == 12
    ledger.release(second)
    assert ledger.num_used_tokens == 0


def test_a_reservation_is_whole_or_not_at_all() -> None:
    ledger = ledger_of(5)
    start(ledger, generation(range(8)))
    refused = generation(range(8), max_tokens=9)  # one block shared, four more wanted
    assert not ledger.try_reserve(refused)
    assert refused.num_cached == refused.num_scheduled == 0
    assert ledger.num_used_tokens == 12
    ledger.check_integrity()


def test_free_blocks_that_would_be_shared_are_not_counted_as_room_for_others() -> None:
    ledger = ledger_of(4)
    run_to_the_end(ledger, generation(range(8)))
    start(ledger, generation(range(50, 53), max_tokens=1))
    assert not ledger.try_reserve(generation(range(9), max_tokens=4))
    assert ledger.try_reserve(generation(range(9), max_tokens=3))


def test_a_known_prefix_is_kept_while_there_are_empty_blocks() -> None:
    ledger = ledger_of(7)
    run_to_the_end(ledger, generation(range(8), max_tokens=1))
    start(ledger, generation(range(50, 62)))  # takes four of the five others
    assert num_found(ledger, range(8)) == 4


def test_the_prefix_used_longest_ago_goes_first_and_its_end_before_its_beginning() -> None:
    ledger = ledger_of(6)
    for first in (0, 50):
        scored = generation(range(first, first + 12), max_tokens=0, prompt_logprobs=0)
        run_to_the_end(ledger, scored)
    assert num_found(ledger, range(9)) == 8  # used again, so the other is older now
    start(ledger, generation(range(80, 85), max_tokens=3))  # takes two blocks
    assert num_found(ledger, range(9)) == 8
    assert num_found(ledger, range(50, 59)) == 4


def test_two_that_compute_the_same_at_once_both_keep_their_blocks() -> None:
    ledger = ledger_of(8)
    twins = [generation(range(8)) for _ in range(2)]
    for twin in twins:
        assert ledger.try_reserve(twin)
    for twin in twins:
        plan(ledger, twin, 8)
    ledger.release(twins[0])
    ledger.release(twins[1])
    ledger.check_integrity()
    assert num_found(ledger, range(9)) == 8
    assert ledger.num_used_tokens == 0


def test_a_text_lies_in_one_run_where_there_is_one() -> None:
    ledger = ledger_of(12)
    texts = [start(ledger, generation(range(n, n + 12))) for n in (0, 20, 40)]
    ledger.release(texts[1])
    late = generation(range(60, 72))
    assert ledger.try_reserve(late)
    blocks = ledger.placement(late)
    assert blocks == tuple(range(blocks[0], blocks[0] + 4))


def promised(ledger: PagedLedger, member: Generation) -> Generation:
    """Let a generation be promised room, and plan the step that computes its prompt."""
    assert ledger.try_promise(member)
    plan(ledger, member, member.num_unscheduled)
    return member


def run_a_step(ledger: PagedLedger, member: Generation, *, times: int = 1) -> None:
    for _ in range(times):
        member.tokens.append(member.prompt[-1] + 1 + len(member.tokens))
        plan(ledger, member, 1)
    ledger.check_integrity()


def test_while_half_of_the_room_is_free_promises_are_reservations() -> None:
    ledger = ledger_of(24)
    texts = [promised(ledger, generation(range(n, n + 8), max_tokens=16)) for n in (0, 50)]
    for text in texts:
        blocks = ledger.placement(text)
        assert blocks == tuple(range(blocks[0], blocks[0] + 6))
    assert ledger.limits == {}
    promised(ledger, generation(range(90, 93), max_tokens=1))
    assert ledger.num_used_tokens == 12 * BLOCK_SIZE
    assert ledger.limits.keys() <= {*texts}
    assert ledger.limits


def test_a_short_one_is_given_what_a_long_one_needs_later() -> None:
    ledger = ledger_of(12)
    long = promised(ledger, generation(range(4), max_tokens=36))
    short = promised(ledger, generation(range(50, 57), max_tokens=5))
    assert ledger.num_used_tokens == 11 * BLOCK_SIZE
    assert ledger.limits == {long: 20}
    ledger.check_integrity()
    ledger.release(short)
    assert ledger.limits == {}
    assert ledger.num_used_tokens == 10 * BLOCK_SIZE


def test_reserving_takes_nothing_that_is_promised() -> None:
    ledger = ledger_of(12)
    promised(ledger, generation(range(4), max_tokens=36))
    assert not ledger.try_reserve(generation(range(50, 59), max_tokens=1))
    assert ledger.try_reserve(generation(range(50, 57), max_tokens=1))


def test_an_ample_ledger_promises_nothing() -> None:
    ledger = PagedLedger(12, BLOCK_SIZE, prefix_caching=True, is_ample=True)
    promised(ledger, generation(range(4), max_tokens=36))
    assert not ledger.try_promise(generation(range(50, 57), max_tokens=5))


def test_what_a_prompt_fills_is_not_shared_in_time_so_others_can_find_it() -> None:
    ledger = ledger_of(24)
    first = promised(ledger, generation(range(20), max_tokens=24))
    second = promised(ledger, generation(range(20), max_tokens=24))
    assert second.num_cached == 16
    assert ledger.placement(second)[:4] == ledger.placement(first)[:4]
    third = promised(ledger, generation(range(50, 53), max_tokens=1))
    prompts = {*ledger.placement(first)[:5], *ledger.placement(second)[:5]}
    assert not {*ledger.placement(third)} & prompts
    ledger.check_integrity()


def test_a_block_that_others_wait_for_is_not_found_when_its_holder_has_ended() -> None:
    ledger = ledger_of(13)
    long = promised(ledger, generation(range(4), max_tokens=36))
    short = promised(ledger, generation(range(50, 54), max_tokens=9))
    shared = {*ledger.placement(long)} & {*ledger.placement(short)[1:]}
    assert shared
    run_a_step(ledger, short, times=8)
    ledger.release(short)
    assert {*ledger.placement(long)} >= shared
    assert num_found(ledger, range(50, 61)) == 4
    ledger.check_integrity()


def test_who_was_refused_is_looked_at_again_when_somebody_has_gone() -> None:
    ledger = ledger_of(12)
    others = [promised(ledger, generation(range(n, n + 19), max_tokens=1)) for n in (0, 50)]
    refused = generation(range(100, 119), max_tokens=1)
    assert not ledger.try_promise(refused)
    ledger.release(others[0])
    assert ledger.try_promise(refused)


def test_who_was_refused_is_looked_at_again_after_a_while() -> None:
    """Then more needs of a newcomer come after what runs is over."""
    ledger = ledger_of(10, prefix_caching=False)
    first = promised(ledger, generation(range(4), max_tokens=20))
    second = generation(range(50, 54), max_tokens=16)
    assert not ledger.try_promise(second)
    run_a_step(ledger, first, times=19)
    asked = [ledger.try_promise(second) for _ in range(PATIENCE)]
    assert asked == [False] * (PATIENCE - 1) + [True]
    assert ledger.limits == {second: 16}
    ledger.check_integrity()
    ledger.release(first)
    assert ledger.limits == {}


@pytest.mark.parametrize("seed", range(3))
def test_uneven_requests_run_all_at_once_though_their_lengths_exceed_the_room(seed: int) -> None:
    """The requests of ``mix512`` in benchmarks/compare.py, on the room that OPT-6.7B leaves."""
    chance = Random(seed)
    ledger = ledger_of(124_672 // 16, block_size=16, prefix_caching=False)
    crowd = []
    for _ in range(512):
        num_prompt = min(1024, max(4, int(chance.lognormvariate(4.6, 1.1))))
        num_answer = min(768, max(4, int(chance.lognormvariate(4.9, 0.9))))
        crowd.append(generation(range(num_prompt), num_answer))
        assert ledger.try_promise(crowd[-1])
        for _ in range(num_prompt - 1):
            chance.randrange(4, 50_000)  # as there, so that the lengths are the same
    ledger.check_integrity()
    assert sum(member.max_length for member in crowd) > 1.3 * 124_672
    while crowd:
        limits = ledger.limits
        for member in crowd:
            assert member.num_scheduled < limits.get(member, member.max_length), "it has to wait"
            member.num_scheduled += member.num_unscheduled
        for member in [member for member in crowd if not member.num_unscheduled]:
            ledger.release(member)
            crowd.remove(member)
    assert ledger.num_used_tokens == 0


def test_a_prompt_that_is_only_scored_may_have_nothing_to_share_in_time() -> None:
    ledger = ledger_of(12)
    promised(ledger, generation(range(4), max_tokens=36))
    scored = promised(ledger, generation(range(50, 58), max_tokens=0, prompt_logprobs=0))
    assert ledger.num_used_tokens == 12 * BLOCK_SIZE
    ledger.check_integrity()
    ledger.release(scored)
    assert ledger.num_used_tokens == 10 * BLOCK_SIZE
