"""When what a device was given to do is done."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pluribus.logits_plan import Outcome
from pluribus.step import StepResult


class Arrivals:
    """Points in a device's work.

    Attributes:
        seconds_waited: that the host has waited for any of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds_waited = 0.0

    def mark(self) -> Arrival:
        """Return the point that the device's work has now come to."""
        return Arrival(self).mark()

    def then(self, read: Callable[[], StepResult]) -> Callable[[], StepResult]:
        """Return what waits for the work until now, and reads what came of it."""
        arrived = self.mark()

        def wait_and_read() -> StepResult:
            arrived.wait()
            return read()

        return wait_and_read

    def bring(self, outcome: Outcome) -> Callable[[], StepResult]:
        """Copy an outcome to the host as soon as it is there; return what waits for just that."""
        return self.then(outcome.to(torch.device("cpu"), non_blocking=True).read)


class Arrival:
    """A point in the device's work that is marked, and passed once everything before it is done.

    A device that works as it is asked, as CPUs do, has always passed it.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._event: torch.cuda.Event | None = None
        if arrivals.device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def mark(self) -> Arrival:
        """Let it be the point that the device's work has now come to."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._arrivals.device))
        return self

    def wait(self) -> None:
        """Wait until it is passed."""
        if self._event is not None:
            started = time.perf_counter()
            self._event.synchronize()
            self._arrivals.seconds_waited += time.perf_counter() - started

    def seconds_since(self, earlier: Arrival) -> float:
        """Return the time between two points that have been passed; 0 where there is none."""
        if self._event is None or earlier._event is None:
            return 0.0
        return float(earlier._event.elapsed_time(self._event)) / 1000
