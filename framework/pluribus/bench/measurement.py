"""What is measured of one run of a workload."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pluribus.bench.stopwatch import ForwardPass
from pluribus.bench.turns import Turn


@dataclass(eq=False, slots=True)
class Course:
    """How one request's tokens came; seconds since all requests were sent."""

    first: float = 0.0
    last: float = 0.0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a workload.

    Attributes:
        seconds: until the last token.
        courses: of the requests, in their order.
        steps: seconds of each.
        passes: of the network, one for each step; none where they cannot be timed.
        turns: of a device that runs ahead; none where there is no such device.
    """

    seconds: float
    courses: Sequence[Course]
    steps: Sequence[float]
    passes: Sequence[ForwardPass]
    turns: Sequence[Turn] = ()

    @property
    def num_tokens(self) -> int:
        """Output tokens of all requests."""
        return sum(course.num_tokens for course in self.courses)

    @property
    def engine_seconds(self) -> list[float]:
        """The engine's own of each step but the first."""
        if not self.turns:
            return between(self.passes)
        return [turn.seconds_since(before) for before, turn in itertools.pairwise(self.turns)]

    @property
    def engine_seconds_a_pass(self) -> list[float]:
        """The same of each pass of a step."""
        passes = [turn.passes for turn in self.turns[1:]] or [1] * len(self.engine_seconds)
        return [seconds / count for seconds, count in zip(self.engine_seconds, passes, strict=True)]

    @property
    def passes_a_step(self) -> float | None:
        """How many passes steps have had, on average; None where it is not known."""
        if self.turns:
            return round(sum(turn.passes for turn in self.turns) / len(self.turns), 2)
        return 1.0 if self.passes else None

    def report(self) -> dict[str, Any]:
        """Return what there is to print."""
        courses = self.courses
        decodes = [(c.last - c.first) / (c.num_tokens - 1) for c in courses if c.num_tokens > 1]
        return {
            "seconds": round(self.seconds, 4),
            "output_tokens": self.num_tokens,
            "output_tokens_per_second": round(self.num_tokens / self.seconds, 2),
            "steps": len(self.steps),
            "passes_a_step": self.passes_a_step,
            "step_ms": milliseconds(self.steps),
            "model_ms": milliseconds([p.ended - p.started for p in self.passes]),
            "choosing_ms": milliseconds([p.choosing for p in self.passes]),
            "engine_ms": milliseconds(self.engine_seconds),
            "engine_ms_a_pass": milliseconds(self.engine_seconds_a_pass),
            "ttft_ms": milliseconds([course.first for course in courses]),
            "tpot_ms": milliseconds(decodes),
        }


def between(passes: Sequence[ForwardPass]) -> list[float]:
    """Return the seconds between the model's work for each step and its work for the next."""
    return [
        after.started - before.ended - before.choosing
        for before, after in itertools.pairwise(passes)
    ]


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return the median and the 99th percentile; None of nothing."""
    if not seconds:
        return None
    return {
        name: round(1000 * quantile(seconds, at), 3) for name, at in (("p50", 0.5), ("p99", 0.99))
    }


def quantile(values: Sequence[float], at: float) -> float:
    """Return the value that the share ``at`` of all values lie below."""
    return sorted(values)[min(len(values) - 1, int(at * len(values)))]
