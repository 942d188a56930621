"""What is suggested where a plan does not fit is small, and fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.plans import MODELS, plan, planner
from pluribus.plan.change import Change, replaced_by


def test_175b_does_not_fit_on_one_and_three_are_suggested() -> None:
    alone = planner("model=opt-175b", "plan.device=h200-141g")
    first, *_ = alone.changes(alone.plan())
    assert first.overrides == ("plan.count=3", "parallel=tensor", "parallel.size=3")


def test_half_the_size_is_suggested_before_more_devices() -> None:
    wide = planner("model=opt-175b", "plan.device=h200-141g", "plan.count=4", "dtype=float32")
    first, *others = wide.changes(wide.plan())
    assert first.overrides == ("dtype=bfloat16",)
    assert not [each for each in others if "dtype=bfloat16" in each.overrides]


def test_a_smaller_batch_is_suggested_where_it_is_enough() -> None:
    tight = ("model=opt-6.7b", "plan.device=t4-16g")
    wasteful = planner(*tight, "batcher.max_batch_tokens=32768")
    assert not wasteful.plan().fits
    first, *_ = wasteful.changes(wasteful.plan())
    assert {each.partition("=")[0] for each in first.overrides} == {"batcher.max_batch_tokens"}


def test_a_size_that_is_enough_is_left_where_a_smaller_batch_is_suggested() -> None:
    wasteful = ("batcher.max_batch_tokens=32768", "cache.kv.memory=1100MiB")
    tight = planner("model=opt-6.7b", "plan.device=t4-16g", *wasteful)
    first, *_ = tight.changes(tight.plan())
    assert first.overrides == ("batcher.max_batch_tokens=1024",)


def test_what_more_devices_need_besides_is_suggested_with_them() -> None:
    small = planner("model=opt-13b", "plan.device=l4-24g", "cache.kv.memory=1MiB")
    first, *_ = small.changes(small.plan())
    on_two = ("plan.count=2", "parallel=tensor", "parallel.size=2")
    assert first.overrides == (*on_two, "cache.kv.memory=auto")


def test_nothing_is_suggested_with_other_devices_that_is_enough_without() -> None:
    small = planner("model=opt-125m", "plan.device=l4-24g", "cache.kv.memory=1MiB")
    assert [change.overrides for change in small.changes(small.plan())] == [
        ("cache.kv.memory=auto",)
    ]


SAMPLES = [
    ("model=opt-175b", "plan.device=h100-80g"),
    ("model=opt-175b", "plan.device=h200-141g", "plan.count=2", "dtype=float32"),
    ("model=opt-66b", "plan.device=a100-40g", "plan.count=2"),
    ("model=opt-30b", "plan.device=l4-24g", "parallel=tensor", "parallel.size=4", "plan.count=2"),
    ("model=opt-13b", "plan.device=cpu-16g"),
    ("model=opt-13b", "plan.device=cpu-32g", "parallel=tensor", "cache.kv.memory=40GiB"),
    ("model=opt-13b", "plan.device=a10g-24g", "batcher=bucket", "cache/kv=contiguous"),
    ("model=opt-6.7b", "plan.device=t4-16g", "batcher.max_batch_tokens=16384"),
    ("model=opt-125m", "plan.device=l4-24g", "cache.kv.memory=1MiB"),
    ("model=opt-125m", "plan.device=l4-24g", "cache.kv.memory=30GiB", "batcher.max_batch_size=999"),
    ("model=opt-13b", "plan.device=l4-24g", "cache.kv.memory=1MiB"),
    ("model=opt-13b", "plan.device=cpu-2g", "parallel=hybrid", "cache.kv.memory=1MiB"),
    ("model=opt-13b", "plan.device=l4-24g", "batcher.max_batch_tokens=1000000"),
    ("model=opt-66b", "plan.device=l4-24g", "batcher=bucket", "batcher.max_batch_size=9999"),
]


@pytest.mark.parametrize("overrides", SAMPLES, ids=" ".join)
def test_every_suggestion_typed_in_fits(overrides: tuple[str, ...]) -> None:
    stuck = planner(*overrides)
    assert not stuck.plan().fits
    changes = stuck.changes(stuck.plan())
    assert changes
    for change in changes:
        assert plan(*typed_in(overrides, change)).fits, change


SPLITS = [
    ("parallel=single",),
    ("parallel=tensor",),
    ("parallel=tensor", "++parallel.size=3"),
    ("parallel=pipeline", "parallel.size=3"),
    ("parallel=hybrid", "parallel.tensor_size=1"),
    ("parallel=hybrid", "parallel.tensor_size=3", "parallel.pipeline_size=2"),
]
DEVICES = ["t4-16g", "l4-24g", "h100-80g", "h200-141g", "cpu-2g", "cpu-64g"]
SETTINGS = [
    (),
    ("dtype=float32",),
    ("batcher=bucket", "cache/kv=contiguous"),
    ("batcher.max_batch_tokens=65536",),
    ("cache.kv.memory=1MiB", "dtype=float32", "batcher.max_batch_tokens=65536"),
]


@pytest.mark.parametrize("split", SPLITS, ids=" ".join)
@given(
    st.sampled_from(MODELS),
    st.sampled_from(DEVICES),
    st.sampled_from(["null", "1", "2", "4"]),
    st.sampled_from([1, 1, 2, 3, 20]),
    st.sampled_from(SETTINGS),
)
@settings(deadline=None, max_examples=5)
def test_whatever_is_suggested_fits_from_any_split(
    split: tuple[str, ...],
    model: str,
    device: str,
    count: str,
    num_replicas: int,
    chosen: tuple[str, ...],
) -> None:
    count = "null" if device.startswith("cpu") else count
    on = (f"plan.device={device}", f"plan.count={count}", f"parallel.replicas={num_replicas}")
    overrides = (f"model={model}", *on, *split, *chosen)
    perhaps_stuck = planner(*overrides)
    planned = perhaps_stuck.plan()
    if planned.fits:
        return
    changes = perhaps_stuck.changes(planned)
    assert changes
    for change in changes:
        assert plan(*typed_in(overrides, change)).fits, change


def typed_in(overrides: tuple[str, ...], change: Change) -> list[str]:
    """Return overrides with a change made as it says."""
    replaced = replaced_by(change.overrides, overrides)
    return [each for each in overrides if each not in replaced] + [*change.overrides]
