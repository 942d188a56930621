"""Generations go to who knows their prompt, as long as that is fair to those who do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pluribus.routing import Router

BLOCK = 4
IDLE = {0: 0, 1: 0, 2: 0}

replicas = st.integers(0, 4)
loads = st.dictionaries(replicas, st.integers(0, 20), min_size=1)
prompts = st.lists(st.integers(0, 2), max_size=6 * BLOCK).map(tuple)
questions = st.lists(st.tuples(loads, st.sampled_from(["", "other"]), prompts), max_size=30)


@given(questions, st.integers(0, 5))
def test_only_who_is_there_is_chosen_and_nobody_far_busier_than_the_least(
    asked: list[tuple[dict[int, int], str, tuple[int, ...]]], max_lead: int
) -> None:
    router = Router(BLOCK, max_lead)
    for loads, salt, prompt in asked:
        chosen = router.choose(loads, salt, prompt)
        assert loads[chosen] <= min(loads.values()) + max_lead


@given(questions)
def test_without_blocks_the_least_loaded_is_chosen(
    asked: list[tuple[dict[int, int], str, tuple[int, ...]]],
) -> None:
    router = Router(0, max_lead=5)
    for loads, salt, prompt in asked:
        assert loads[router.choose(loads, salt, prompt)] == min(loads.values())


@given(prompts.filter(lambda prompt: len(prompt) >= BLOCK), prompts, prompts, loads)
def test_a_beginning_that_is_known_is_gone_on_with_where_it_is(
    beginning: tuple[int, ...], end: tuple[int, ...], other: tuple[int, ...], loads: dict[int, int]
) -> None:
    router = Router(BLOCK, max_lead=100)
    router.choose(loads, "", (3, *other))
    first = router.choose(loads, "", beginning)
    router.choose(loads, "", (3, *end))
    assert router.choose(loads, "", beginning + end) == first


@given(prompts, st.integers(0, 10))
def test_no_more_is_remembered_than_was_agreed(prompt: tuple[int, ...], max_known: int) -> None:
    router = Router(BLOCK, 1, max_known)
    router.choose(IDLE, "", prompt)
    assert len(router._holders) == min(max_known, len(prompt) // BLOCK)


def test_the_end_of_a_text_is_forgotten_before_its_beginning() -> None:
    router = Router(BLOCK, max_lead=9, max_known=3)
    first = router.choose(IDLE, "", (1,) * 2 * BLOCK)
    assert router.choose(IDLE, "", (2,) * 2 * BLOCK) != first
    assert router.choose(IDLE, "", (1,) * BLOCK + (3,) * BLOCK) == first


def test_a_prompt_that_is_known_may_wait_a_little_longer() -> None:
    prompt = tuple(range(BLOCK))
    for lead, is_kept in ((2, True), (3, False)):
        router = Router(BLOCK, max_lead=2)
        first = router.choose({0: 0, 1: 0}, "", prompt)
        assert (router.choose({first: lead, 1 - first: 0}, "", prompt) == first) is is_kept


def test_a_prompt_that_had_to_move_is_known_where_it_went() -> None:
    router = Router(BLOCK, max_lead=2)
    prompt = tuple(range(BLOCK))
    first = router.choose({0: 0, 1: 0}, "", prompt)
    assert router.choose({first: 9, 1 - first: 0}, "", prompt) == 1 - first
    assert router.choose({0: 0, 1: 0}, "", prompt) == 1 - first


def test_tenants_do_not_meet_through_what_they_ask() -> None:
    router = Router(BLOCK, max_lead=9)
    prompt = tuple(range(BLOCK))
    assert [router.choose(IDLE, tenant, prompt) for tenant in ("a", "b", "a")] == [0, 1, 0]


def test_what_is_rare_is_spread() -> None:
    router = Router(BLOCK, max_lead=9)
    assert [router.choose(IDLE, "", (token,) * BLOCK) for token in range(6)] == [0, 1, 2] * 2


def test_an_engine_that_is_gone_knows_nothing() -> None:
    router = Router(BLOCK, max_lead=9)
    prompt = tuple(range(BLOCK))
    assert router.choose({0: 0, 1: 0}, "", prompt) == 0
    router.forget(0)
    assert router.choose({0: 0, 1: 0}, "", prompt) == 1
