"""Tenants keep within what they may have, each by itself."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.errors import ConfigError, QueueFullError
from pluribus.tenants import ANONYMOUS, MINUTE, Limiter, Tenant, is_tenant_name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0}, "weight must be above 0, got 0"),
        ({"weight": -1.5}, "weight must be above 0, got -1.5"),
        ({"weight": float("nan")}, "weight must be above 0"),
        ({"weight": float("inf")}, "weight must be above 0"),
        ({"max_requests": 0}, "max_requests must be at least 1, got 0"),
        ({"requests_per_minute": 0}, "requests_per_minute must be at least 1, got 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tenant(name="alice", **settings)


@pytest.mark.parametrize("name", ["a", "Team-7", "a.b_c-d", "x" * 64])
def test_sane_names_name_tenants(name: str) -> None:
    assert is_tenant_name(name)


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a\n", "é", "a/b", 'a"b'])
def test_other_names_do_not(name: str) -> None:
    assert not is_tenant_name(name)


def test_a_tenant_without_limits_has_none() -> None:
    limiter = Limiter()
    for _ in range(1000):
        limiter.enter(ANONYMOUS, now=0.0)


def test_a_request_that_is_over_makes_room_for_another() -> None:
    limiter, alice = Limiter(), Tenant(name="alice", max_requests=2)
    limiter.enter(alice, now=0.0)
    limiter.enter(alice, now=0.0)
    with pytest.raises(QueueFullError, match="2 of your requests are waiting or running") as full:
        limiter.enter(alice, now=0.0)
    assert full.value.is_tenant
    limiter.leave(alice)
    limiter.enter(alice, now=0.0)


def test_a_tenant_at_its_limit_is_in_nobody_elses_way() -> None:
    limiter = Limiter()
    alice, bob = (Tenant(name=name, max_requests=1, requests_per_minute=1) for name in "ab")
    limiter.enter(alice, now=0.0)
    limiter.enter(bob, now=0.0)
    for tenant in (alice, bob):
        with pytest.raises(QueueFullError):
            limiter.enter(tenant, now=0.0)


def test_the_wait_that_is_told_is_the_wait_that_is_needed() -> None:
    limiter, alice = Limiter(), Tenant(name="alice", requests_per_minute=2)
    limiter.enter(alice, now=100.0)
    limiter.enter(alice, now=120.0)
    with pytest.raises(QueueFullError, match="2 of your requests have begun") as full:
        limiter.enter(alice, now=130.0)
    assert full.value.retry_after == 30
    limiter.enter(alice, now=130.0 + full.value.retry_after)


def test_what_was_refused_does_not_count() -> None:
    limiter, alice = Limiter(), Tenant(name="alice", max_requests=1, requests_per_minute=2)
    limiter.enter(alice, now=0.0)
    for _ in range(5):
        with pytest.raises(QueueFullError):
            limiter.enter(alice, now=1.0)
    limiter.leave(alice)
    limiter.enter(alice, now=2.0)


@given(
    gaps=st.lists(st.floats(min_value=0, max_value=30), max_size=60),
    limit=st.integers(min_value=1, max_value=5),
)
def test_no_minute_has_more_than_the_limit(gaps: list[float], limit: int) -> None:
    limiter, alice = Limiter(), Tenant(name="alice", requests_per_minute=limit)
    begun, refused = [], []
    for now in itertools.accumulate(gaps):
        try:
            limiter.enter(alice, now)
        except QueueFullError as full:
            refused.append(full.retry_after)
        else:
            begun.append(now)
    assert all(0 < wait <= MINUTE for wait in refused)
    for first, next_ in zip(begun, begun[limit:], strict=False):
        assert next_ - first >= MINUTE


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({}, None),
        ({"max_requests": 4}, (4, "max_requests")),
        ({"requests_per_minute": 9}, (9, "requests_per_minute")),
        ({"max_requests": 4, "requests_per_minute": 3}, (3, "requests_per_minute")),
    ],
    ids=str,
)
def test_the_tightest_limit_says_how_many_can_ever_begin_together(
    limits: dict[str, int], most: tuple[int, str] | None
) -> None:
    assert Tenant(name="alice", **limits).most_at_once == most


def test_what_nothing_comes_of_is_not_counted() -> None:
    limiter, tenant = Limiter(), Tenant(name="alice", requests_per_minute=2)
    for _ in range(5):
        for _ in range(2):
            limiter.enter(tenant, 0)
            limiter.leave(tenant)
        limiter.forgive(tenant, 2)
    limiter.forgive(ANONYMOUS, 3)
    limiter.enter(tenant, 0)
