"""The ledger of ``cache/kv=paged``: who holds which block, and what can be found in it."""

from __future__ import annotations

import pytest

from pluribus import Generation, SamplingParams
from pluribus_caches.kv.paged_ledger import PagedLedger

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
