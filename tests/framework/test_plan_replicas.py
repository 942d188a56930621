"""Replicas share what there is: a plan counts all of them."""

from __future__ import annotations

import pytest

from framework.plans import plan, planner
from pluribus.plan.devices import GIB
from pluribus.plan.record import record
from pluribus.plan.report import Report
from pluribus.units import format_bytes

ON_HOST = ("model=opt-1.3b", "plan.device=cpu-16g")
ON_GPUS = ("model=opt-13b", "plan.device=h100-80g")


def report(*overrides: str) -> Report:
    return Report(plan=plan(*overrides), changes=(), others=(), spread=(), given=(), disk=10**9)


def test_a_host_is_shared_by_the_ranks_of_all_replicas() -> None:
    assert plan(*ON_HOST).fits
    assert not plan(*ON_HOST, "parallel.replicas=4").fits
    [rank, _] = plan(*ON_HOST, "parallel=tensor", "parallel.replicas=3").ranks
    assert rank.memory == 15 * GIB // 6


def test_each_rank_of_each_replica_needs_a_device() -> None:
    replicas = (*ON_GPUS, "parallel=tensor", "parallel.replicas=3")
    short = plan(*replicas, "plan.count=5")
    assert short.problem == "6 ranks of 3 replicas need a device each, and there are 5"
    assert plan(*replicas, "plan.count=6").fits
    assert plan(*replicas).site.count == 6, "as many as there are ranks"


def test_devices_that_would_be_idle_are_used_by_each_replica() -> None:
    spread = planner(*ON_GPUS, "plan.count=8", "parallel.replicas=3")
    assert spread.spread == ("parallel=tensor", "parallel.size=2")
    assert spread.plan().num_devices == 6
    assert planner(*ON_GPUS, "plan.count=4", "parallel.replicas=4").spread == ()


def test_another_split_has_as_many_replicas() -> None:
    two = planner(*ON_GPUS, "plan.count=4", "parallel.replicas=2")
    assert two.plan(("parallel=pipeline", "parallel.size=2")).outline.num_replicas == 2


@pytest.mark.parametrize(
    ("stuck", "suggested"),
    [
        ((*ON_HOST, "dtype=bfloat16", "parallel.replicas=9"), "4"),
        ((*ON_GPUS, "plan.count=3", "parallel.replicas=4"), "3"),
        ((*ON_GPUS, "plan.count=3", "parallel.replicas=4", "parallel=tensor"), "1"),
        (("model=opt-13b", "plan.device=l4-24g", "plan.count=4", "parallel.replicas=4"), "2"),
    ],
    ids=["host", "GPUs", "split", "split over those that are freed"],
)
def test_as_many_replicas_as_fit_are_suggested(stuck: tuple[str, ...], suggested: str) -> None:
    planned = planner(*stuck)
    changes = {each.kind: each.overrides for each in planned.changes(planned.plan())}
    assert changes["fewer replicas"] == (f"parallel.replicas={suggested}",)


def test_fewer_replicas_may_need_another_split() -> None:
    stuck = ("parallel=pipeline", "parallel.size=4", "parallel.replicas=2", "plan.count=3")
    planned = planner(*ON_GPUS, *stuck)
    changes = {each.kind: each.overrides for each in planned.changes(planned.plan())}
    assert changes["another split"] == ("parallel=single",)
    hungry = planner("model=opt-30b", "plan.device=a100-40g", *stuck)
    changes = {each.kind: each.overrides for each in hungry.changes(hungry.plan())}
    split = ("parallel=tensor", "parallel.size=2")
    assert changes["fewer replicas"] == ("parallel.replicas=1", *split)


def test_more_devices_go_round() -> None:
    small = planner("model=opt-13b", "plan.device=l4-24g", "plan.count=3", "parallel.replicas=3")
    [change] = [each for each in small.changes(small.plan()) if each.kind == "more devices"]
    assert change.overrides == ("plan.count=6", "parallel=tensor", "parallel.size=2")


def test_where_nothing_holds_all_replicas_one_is_suggested() -> None:
    many = planner("model=opt-175b", "plan.device=cpu-16g", "parallel.replicas=40")
    first, *_ = many.changes(many.plan())
    assert first.overrides[0] == "parallel.replicas=1"
    assert plan("model=opt-175b", *first.overrides).fits


def test_what_all_replicas_need_is_told() -> None:
    two = report(*ON_GPUS, "plan.count=4", "parallel=tensor", "parallel.replicas=2")
    total = 4 * two.plan.ranks[0].total
    assert record(two)["replicas"] == {"count": 2, "devices": 4, "bytes": total}
    lines = two.as_text().splitlines()
    assert lines[0] == "opt-13b in float16, 2 replicas of 2 ranks, on 4 x h100-80g: fits"
    assert f"So much for one; all 2 need {format_bytes(total)} on 4 devices." in lines
    assert "Texts, prompt and answer together, that run at once in a replica:" in lines
    on_host = report(*ON_HOST, "dtype=bfloat16", "parallel.replicas=2")
    assert " on cpu-16g.\n" in on_host.as_text()
    assert record(on_host)["replicas"]["devices"] == 1


def test_replicas_copy_what_is_read_once() -> None:
    one, two = (plan(*ON_HOST, "dtype=bfloat16", f"parallel.replicas={n}") for n in (1, 2))
    copying = one.ranks[0].demand.weights / one.site.device.copy_speed
    seconds = two.seconds_to_load(10**9) - one.seconds_to_load(10**9)
    assert seconds == pytest.approx(copying)
