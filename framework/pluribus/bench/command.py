"""What ``pluribus bench`` does: run a workload again and again, print a line for each time."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pluribus import config as conf
from pluribus.bench.engine import BenchEngine
from pluribus.bench.workloads import WORKLOADS, Workload
from pluribus.errors import ConfigError
from pluribus.plugins import Plugins

SECTIONS = ("model", "parallel", "launcher", "batcher", "cache", "engine", "device", "dtype")
"""Of the configuration: what may make a difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """The settings at the top level of ``conf/bench.yaml``.

    Attributes:
        workload: one of WORKLOADS.
        num_requests, prompt_tokens, output_tokens: instead of the workload's own; where
            lengths are mixed, the median.
        temperature: 0 is greedy.
        warmups, repeats: runs of the whole workload, unmeasured and measured.

    Raises:
        ConfigError: a value is out of its range.
    """

    workload: str
    num_requests: int | None
    prompt_tokens: int | None
    output_tokens: int | None
    temperature: float
    warmups: int
    repeats: int

    def __post_init__(self) -> None:
        if self.workload not in WORKLOADS:
            known = ", ".join(WORKLOADS)
            raise ConfigError(f"workload must be one of {known}; got {self.workload!r}")
        if not 0 <= self.temperature <= 2:
            raise ConfigError(f"temperature must be from 0 to 2, got {self.temperature}")
        limits = {"num_requests": 1, "prompt_tokens": 2, "output_tokens": 1, "repeats": 1}
        for name, least in {**limits, "warmups": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")

    def chosen(self) -> Workload:
        """Return the workload, with what the settings change of it."""
        named = WORKLOADS[self.workload]
        return replace(
            named,
            num_requests=self.num_requests or named.num_requests,
            prompt=replace(named.prompt, median=self.prompt_tokens or named.prompt.median),
            output=replace(named.output, median=self.output_tokens or named.output.median),
        )


def run(config: DictConfig, plugins: Plugins) -> int:
    """Measure what ``conf/bench.yaml`` and its overrides ask for; print JSON lines."""
    settings = conf.pick(config, BenchConfig)
    engine = BenchEngine(config, plugins)
    return engine.parts.launcher.run(partial(_measure, config, settings, engine))


def _measure(config: DictConfig, settings: BenchConfig, engine: BenchEngine) -> int:
    workload = settings.chosen()
    rounds = [engine.requests(workload, i) for i in range(settings.warmups + settings.repeats)]
    reports: list[dict[str, Any]] = []
    with engine:
        for requests in rounds[: settings.warmups]:
            engine.measure(requests, settings.temperature)
        for requests in rounds[settings.warmups :]:
            reports.append(engine.measure(requests, settings.temperature).report())
            _print({"record": "repeat", "repeat": len(reports), **reports[-1]})
    summary = {"record": "summary", "workload": settings.workload, "repeats": len(reports)}
    _print({**summary, **_medians(reports), **_circumstances(config, engine)})
    for note in engine.parts.model.spec.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _print(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def _medians(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each number over all reports."""
    medians: dict[str, Any] = {}
    for key, value in reports[0].items():
        values = [report[key] for report in reports]
        if isinstance(value, dict):
            medians[key] = _medians(values)
        else:
            medians[key] = value if len(set(values)) == 1 else round(statistics.median(values), 4)
    return medians


def _circumstances(config: DictConfig, engine: BenchEngine) -> dict[str, Any]:
    """Return what was measured, on what, at what cost in memory."""
    import torch

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spec = engine.parts.model.spec
    whole = OmegaConf.to_container(config, resolve=True)
    assert isinstance(whole, dict)
    return {
        "peak_rss_mib": max(usage.ru_maxrss for usage in usages) // 1024,  # of one process
        "model": {"name": spec.name, "parameters": spec.num_parameters},
        "config": {section: whole[section] for section in SECTIONS},
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "pluribus": version("pluribus"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
