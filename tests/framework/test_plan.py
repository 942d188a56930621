"""A plan holds what it says, and more memory never fits less."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.plans import MODELS, plan, planner
from pluribus import ConfigError
from pluribus.plan.demand import COLLECTIVES, LINK
from pluribus.plan.devices import GIB, GPUS, Device, Site
from pluribus.plan.fit import make_plan, shortage
from pluribus.plan.outline import Outline
from pluribus.plan.report import lengths

H200S = ("model=opt-175b", "plan.device=h200-141g", "plan.count=4")


@cache
def outline(*overrides: str) -> Outline:
    return plan("plan.device=cpu-64g", *overrides).outline


def on(memory: int, *, device_type: str = "cuda", count: int = 1) -> Site:
    device = Device(name="some", type=device_type, memory=memory, copy_speed=1e10)
    return Site(device=device, count=count, is_here=False)


def test_175b_fits_on_four_h200s() -> None:
    on_four = plan(*H200S)
    assert on_four.fits
    assert len(on_four.ranks) == 4
    assert on_four.ranks[0].demand.weights == pytest.approx(350e9 / 4, rel=0.01)
    assert on_four.num_generations(2048) >= 16


sizes = st.sampled_from(MODELS)
memories = st.integers(1, 800 * GIB)


@given(sizes, st.integers(1, 8), memories, memories, st.sampled_from(["cpu", "cuda"]))
@settings(deadline=None, max_examples=50)
def test_more_memory_never_fits_less(
    model: str, size: int, some: int, more: int, device_type: str
) -> None:
    if some > more:
        some, more = more, some
    of = outline(f"model={model}", "parallel=tensor", f"parallel.size={size}")
    count = 1 if device_type == "cpu" else size
    less, ample = (
        make_plan(of, on(memory, device_type=device_type, count=count)) for memory in (some, more)
    )
    assert less.fits <= ample.fits
    assert less.num_tokens <= ample.num_tokens
    for length in (256, 2048):
        assert less.num_generations(length) <= ample.num_generations(length)


@given(sizes, st.integers(1, 8), memories, st.sampled_from(["cpu", "cuda"]))
@settings(deadline=None, max_examples=50)
def test_what_fits_is_no_more_than_there_is(
    model: str, size: int, memory: int, device_type: str
) -> None:
    of = outline(f"model={model}", "parallel=tensor", f"parallel.size={size}")
    planned = make_plan(of, on(memory, device_type=device_type, count=size))
    if planned.fits:
        assert all(rank.total <= rank.memory for rank in planned.ranks)
        assert planned.num_generations(2048) >= 1
    else:
        assert planned.num_generations(2048) == planned.num_tokens == 0


def test_longer_texts_are_fewer() -> None:
    on_four = plan(*H200S)
    counts = [on_four.num_generations(length) for length in lengths(on_four)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 64
    assert counts[-1] == on_four.num_tokens // 2048


def test_ranks_beyond_the_devices_do_not_fit() -> None:
    planned = plan("plan.device=h100-80g", "plan.count=2", "parallel=tensor", "parallel.size=3")
    assert planned.problem == "3 ranks need a device each, and there are 2"


def test_devices_that_would_be_idle_are_used() -> None:
    spread = planner("plan.device=h100-80g", "plan.count=3")
    assert spread.spread == ("parallel=tensor", "parallel.size=3")
    assert len(spread.plan().ranks) == 3
    assert planner("plan.device=h100-80g", "plan.count=3", "parallel=tensor").spread == ()
    more_than_heads = planner("plan.device=h100-80g", "plan.count=8")
    assert more_than_heads.spread == ("parallel=tensor", "parallel.size=6")


def test_loading_takes_longer_from_a_slower_disk() -> None:
    planned = plan("model=opt-13b", "plan.device=h100-80g")
    fast, slow = planned.seconds_to_load(4 * 10**9), planned.seconds_to_load(10**9)
    assert slow - fast == pytest.approx(2 * 12.85e9 * (1 / 1e9 - 1 / 4e9), rel=0.01)
    made_up = plan("model=opt-13b", "model.checkpoint=random", "plan.device=h100-80g")
    assert made_up.seconds_to_load(1) < 60


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["plan.count=2"], r"plan\.count=2 is of devices that plan\.device names"),
        (["plan.count=0", "plan.device=t4-16g"], r"plan\.count must be null or at least 1, got 0"),
        (["plan.disk=fast"], r"plan\.disk must be a size .*'fast'"),
        (["plan.device=t4-16g", "device=cpu"], r"device=cpu contradicts plan\.device=t4-16g"),
        (["plan.device=t4-16g", "dtype=int8"], r"dtype must be one of"),
        (
            ["plan.device=t4-16g", "parallel=tensor", "parallel.size=99"],
            r"parallel\.size=99: .* attention heads",
        ),
        (["plan.device=t4-16g", "cache/kv=contiguous"], r"batcher=continuous needs a KV cache"),
        (["model.checkpoint=null"], r"model\.checkpoint is not set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_named(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(*overrides)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_every_gpu_runs_the_smallest_model(gpu: Device) -> None:
    assert plan("model=opt-125m", f"plan.device={gpu.name}").fits


def test_a_rank_whose_own_device_is_too_small_is_named() -> None:
    of = outline("model=opt-13b", "parallel=tensor", "parallel.size=3")
    assert shortage(of, [40 * GIB] * 3, "cuda") is None
    short = shortage(of, [40 * GIB, 40 * GIB, 5 * GIB], "cuda")
    assert short is not None
    assert re.fullmatch(
        r"rank 2 needs [\d.]+GiB for weights and [\d.]+MiB of work space, and its device has "
        r"5GiB free",
        short,
    )
    no_room = shortage(of, [40 * GIB, int(8.6 * GIB), 40 * GIB], "cuda")
    assert no_room is not None
    assert "on rank 1's device, room for " in no_room
    assert "one generation of full length takes 2048" in no_room


@given(sizes, st.integers(1, 8), memories)
@settings(deadline=None, max_examples=30)
def test_ranks_refuse_what_a_plan_refuses(model: str, size: int, memory: int) -> None:
    of = outline(f"model={model}", "parallel=tensor", f"parallel.size={size}")
    planned = make_plan(of, on(memory, count=size))
    free = [memory - rank.demand.runtime for rank in planned.ranks]
    assert (shortage(of, free, "cuda") is None) == planned.fits


@pytest.mark.parametrize(
    ("split", "num_groups", "num_links"),
    [
        ((), 0, 0),
        (("parallel=tensor",), 1, 0),
        (("parallel=pipeline",), 1, 2),
        (("parallel=hybrid",), 2, 2),
    ],
    ids=["single", "tensor", "pipeline", "hybrid"],
)
def test_what_ranks_keep_to_talk_is_counted(
    split: tuple[str, ...], num_groups: int, num_links: int
) -> None:
    planned = plan("model=opt-30b", "plan.device=h200-141g", *split)
    kept = num_groups * COLLECTIVES + num_links * LINK
    assert {rank.demand.collectives for rank in planned.ranks} == {kept}
    assert plan("plan.device=cpu-64g", *split).ranks[0].demand.collectives == 0


def test_graphs_hold_the_activations_of_the_largest_of_them() -> None:
    of = ("model=opt-30b", "plan.device=h200-141g")
    few, many = (
        plan(*of, f"batcher.max_batch_tokens={count}").ranks[0].demand for count in (500, 2048)
    )
    huge = plan(*of, "batcher.max_batch_tokens=20000").ranks[0].demand
    logits = few.graphs - few.activations * 512 // 500
    assert logits == 64 * 50272 * 2
    assert many.graphs == many.activations + logits, "captured first"
    assert huge.graphs == huge.activations * 8192 // 20000 + logits, "more are launched"
    [first, last] = plan(*of, "parallel=pipeline").ranks
    assert first.demand.graphs < many.graphs / 10, "stages launch their prompts"
    assert last.demand.graphs == first.demand.graphs + logits
    assert plan("model=opt-30b", "plan.device=cpu-512g").ranks[0].demand.graphs == 0
