"""``cache/response=lru`` and ``cache/response=none``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pluribus import Answer, ConfigError, FinishReason, Query, SamplingParams
from pluribus.testing import ResponseCacheContract
from pluribus_caches.response.lru import LRUConfig, LRUResponseCache
from pluribus_caches.response.none import NoResponseCache, NoResponseCacheConfig

CONF = Path(__file__).parents[2] / "conf" / "cache" / "response"
SAMPLED = SamplingParams()
GREEDY = SamplingParams(temperature=0)
SEEDED = SamplingParams(seed=7)


def query(number: int, params: SamplingParams = GREEDY) -> Query:
    return Query("opt", (2, number), params)


def answer(number: int) -> Answer:
    return Answer((number,), FinishReason.STOP)


def lru(size: int = 50, list_size: int = 2) -> LRUResponseCache:
    return LRUResponseCache(LRUConfig(size, list_size), Random(0))


class TestLRUResponseCache(ResponseCacheContract):
    def make(self) -> LRUResponseCache:
        return lru(size=2)  # small, so that threads evict what others are using


class TestNoResponseCache(ResponseCacheContract):
    def make(self) -> NoResponseCache:
        return NoResponseCache(NoResponseCacheConfig())


def test_none_remembers_nothing() -> None:
    cache = NoResponseCache(NoResponseCacheConfig())
    cache.put(query(1), answer(1))
    assert cache.get(query(1)) is None


def test_a_sampled_query_is_computed_until_its_list_is_full() -> None:
    cache = lru(list_size=3)
    for number in range(3):
        assert cache.get(query(1, SAMPLED)) is None
        cache.put(query(1, SAMPLED), answer(number))
    assert cache.get(query(1, SAMPLED)) in {answer(number) for number in range(3)}


def test_every_answer_in_the_list_is_returned_now_and_then() -> None:
    cache = lru(list_size=3)
    for number in range(3):
        cache.put(query(1, SAMPLED), answer(number))
    assert {cache.get(query(1, SAMPLED)) for _ in range(100)} == {
        answer(number) for number in range(3)
    }


def test_equal_samples_fill_the_list() -> None:
    cache = lru(list_size=2)
    cache.put(query(1, SAMPLED), answer(1))
    cache.put(query(1, SAMPLED), answer(1))
    assert cache.get(query(1, SAMPLED)) == answer(1)


def test_a_full_list_stays_as_it_is() -> None:
    cache = lru(list_size=2)
    for number in range(9):
        cache.put(query(1, SAMPLED), answer(number))
    assert {cache.get(query(1, SAMPLED)) for _ in range(100)} == {answer(0), answer(1)}


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_reproducible_query_needs_one_answer(params: SamplingParams) -> None:
    cache = lru(list_size=5)
    cache.put(query(1, params), answer(1))
    assert cache.get(query(1, params)) == answer(1)


def test_the_same_random_source_gives_the_same_choices() -> None:
    choices = []
    for _ in range(2):
        cache = lru()
        cache.put(query(1, SAMPLED), answer(1))
        cache.put(query(1, SAMPLED), answer(2))
        choices.append([cache.get(query(1, SAMPLED)) for _ in range(20)])
    assert choices[0] == choices[1]


def test_the_query_used_longest_ago_is_forgotten() -> None:
    cache = lru(size=2)
    for number in (1, 2, 3):
        cache.put(query(number), answer(number))
    assert [cache.get(query(number)) for number in (1, 2, 3)] == [None, answer(2), answer(3)]


@pytest.mark.parametrize("use", ["get", "put"])
def test_use_keeps_a_query(use: str) -> None:
    cache = lru(size=2)
    cache.put(query(1), answer(1))
    cache.put(query(2), answer(2))
    if use == "get":
        cache.get(query(1))
    else:
        cache.put(query(1), answer(1))
    cache.put(query(3), answer(3))
    assert cache.get(query(1)) == answer(1)
    assert cache.get(query(2)) is None


def test_asking_before_the_list_is_full_is_use_too() -> None:
    cache = lru(size=2)
    cache.put(query(1, SAMPLED), answer(1))
    cache.put(query(2), answer(2))
    assert cache.get(query(1, SAMPLED)) is None
    cache.put(query(3), answer(3))
    cache.put(query(1, SAMPLED), answer(1))
    assert cache.get(query(1, SAMPLED)) == answer(1)


def test_pinned_queries_stay_and_take_no_room() -> None:
    cache = lru(size=2)
    cache.pin(query(0))
    for number in range(3):
        cache.put(query(number), answer(number))
    assert [cache.get(query(number)) for number in range(3)] == [answer(0), answer(1), answer(2)]
    for number in range(3, 9):
        cache.put(query(number), answer(number))
    assert cache.get(query(0)) == answer(0)


def test_pinning_keeps_the_answers_there_are() -> None:
    cache = lru(size=1)
    cache.put(query(1), answer(1))
    cache.pin(query(1))
    cache.pin(query(1))
    cache.put(query(2), answer(2))
    assert cache.get(query(1)) == answer(1)


@given(st.lists(st.tuples(st.sampled_from(["get", "put", "pin"]), st.integers(0, 6))))
def test_it_remembers_what_a_plain_model_of_it_remembers(uses: list[tuple[str, int]]) -> None:
    size = 3
    cache = lru(size=size)
    recent: list[int] = []  # used last comes last
    pinned: dict[int, bool] = {}  # whether there is an answer
    for use, number in uses:
        if use == "pin":
            cache.pin(query(number))
            pinned.setdefault(number, number in recent)
            recent = [other for other in recent if other != number]
            continue
        if use == "put":
            cache.put(query(number), answer(number))
            if number in pinned:
                pinned[number] = True
            else:
                recent = [*(other for other in recent if other != number), number][-size:]
            continue
        known = number in recent or pinned.get(number, False)
        assert cache.get(query(number)) == (answer(number) if known else None)
        if number in recent:
            recent = [*(other for other in recent if other != number), number]


def test_defaults_are_those_of_the_configuration_files() -> None:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "lru.yaml"))
    assert settings == {"name": "lru", **asdict(LRUConfig())}
    assert OmegaConf.to_container(OmegaConf.load(CONF / "none.yaml")) == {"name": "none"}


def test_the_pinned_requests_are_told_to_the_framework() -> None:
    cache = LRUResponseCache(LRUConfig(pinned=[{"prompt": "Once"}]))
    assert cache.pinned == [{"prompt": "Once"}]


@pytest.mark.parametrize("setting", ["size", "list_size"])
def test_sizes_below_one_are_refused(setting: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^cache\.response\.{setting} must be at least 1, got 0"
    ):
        LRUConfig(**{setting: 0})  # type: ignore[arg-type]
