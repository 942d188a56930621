"""When what a device was given to do is done."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pluribus.logits_plan import Outcome
from pluribus.step import StepResult


class Arrival:
    """A point in the device's work, passed once everything before it is done.

    A device that works as it is asked, as CPUs do, has always passed it.
    """

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait until it is passed."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: Arrival) -> float:
        """Return the time between two points that have been passed; 0 where there is none."""
        if self._event is None or earlier._event is None:
            return 0.0
        return float(earlier._event.elapsed_time(self._event)) / 1000


def on_its_way(outcome: Outcome, device: torch.device) -> Callable[[], StepResult]:
    """Copy an outcome to the host as soon as it is there; return what waits for just that."""
    copied = outcome.to(torch.device("cpu"), non_blocking=True)
    arrived = Arrival(device)

    def read() -> StepResult:
        arrived.wait()
        return copied.read()

    return read
