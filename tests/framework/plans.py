"""Plans of overrides, as ``pluribus plan`` makes them."""

from __future__ import annotations

from pluribus import assembly, composition
from pluribus.plan.fit import Plan
from pluribus.plan.planner import Planner
from pluribus.plugins import discover

MODELS = ("opt-125m", "opt-350m", "opt-6.7b", "opt-13b", "opt-30b", "opt-66b", "opt-175b")


def planner(*overrides: str) -> Planner:
    config, plugins = composition.load("plan", overrides), discover()
    return Planner(config, plugins, assembly.describe(config, plugins))


def plan(*overrides: str) -> Plan:
    return planner(*overrides).plan()
