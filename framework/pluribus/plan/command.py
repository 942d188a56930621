"""What ``pluribus plan`` prints, and what ``pluribus serve`` asks before it loads anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from pluribus import assembly
from pluribus import config as conf
from pluribus.errors import ConfigError
from pluribus.interfaces import Blueprint
from pluribus.plan.change import USUAL_COUNTS, replaced_by, split_overrides
from pluribus.plan.fit import Plan
from pluribus.plan.planner import PlanConfig, Planner
from pluribus.plan.record import record
from pluribus.plan.report import Report
from pluribus.plugins import Plugins

FORMATS = ("text", "json")
MOST_SPLITS = 8
"""Of the devices that there are; every number up to it is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatConfig:
    """How to answer: ``text`` for people, ``json`` for programs."""

    format: str = "text"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"format must be one of {', '.join(FORMATS)}; got {self.format!r}")


def run(config: DictConfig, plugins: Plugins, given: Sequence[str]) -> int:
    """Print what the configuration takes; return 1 if it does not fit.

    Args:
        given: the overrides that it was composed of.
    """
    answer = conf.pick(config, FormatConfig)
    planner = Planner(config, plugins, assembly.describe(config, plugins))
    plan = planner.plan()
    report = Report(
        plan=plan,
        changes=() if plan.fits else planner.changes(plan),
        others=_other_splits(planner, plan),
        spread=planner.spread,
        given=given,
        disk=conf.section(config, "plan", PlanConfig).disk_speed,
    )
    is_json = answer.format == "json"
    print(json.dumps(record(report), indent=2) if is_json else report.as_text())
    return 0 if plan.fits else 1


def check(config: DictConfig, plugins: Plugins, blueprint: Blueprint, given: Sequence[str]) -> None:
    """Refuse a configuration that does not fit on the devices here.

    Args:
        given: the overrides that it was composed of.

    Raises:
        ConfigError: not even one generation of full length can run; names the smallest change.
    """
    planner = Planner(config, plugins, blueprint)
    plan = planner.plan()
    if plan.fits:
        return
    changes = [change.overrides for change in planner.changes(plan)]
    here = [overrides for overrides in changes if "plan." not in " ".join(overrides)]
    advice = f"; what fits: {_told(here[0], given)}" if here else "; nothing makes it fit here"
    raise ConfigError(
        f"{blueprint.spec.name} does not fit on {plan.site}: {plan.problem}{advice} "
        "(pluribus plan has the details)"
    )


def _told(overrides: Sequence[str], given: Sequence[str]) -> str:
    replaced = replaced_by(overrides, given)
    return " ".join([*overrides, *(("instead of", *replaced) if replaced else ())])


def _other_splits(planner: Planner, plan: Plan) -> Sequence[Plan]:
    """Return what other numbers of ranks would do, each with a device to itself."""
    site, num_heads = plan.site, plan.outline.blueprint.spec.num_heads
    if site.device.type == "cpu":
        return []
    per_replica = site.count // plan.outline.num_replicas
    few = range(1, min(per_replica, MOST_SPLITS) + 1)
    sizes = {*few} if site.is_here else {*few, *USUAL_COUNTS, max(1, per_replica)}
    sizes -= {plan.outline.parallelism.world_size}
    return [
        planner.plan((*_devices(plan, size), *split_overrides(size)))
        for size in sorted(sizes)
        if size <= num_heads
    ]


def _devices(plan: Plan, size: int) -> Sequence[str]:
    """Return the override that provides devices for so many ranks, if there are fewer."""
    count = size * plan.outline.num_replicas
    return (f"plan.count={count}",) if count > plan.site.count else ()
