"""How long the host is at work on each step of a device that runs ahead of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pluribus.interfaces import Executor, KVShape
from pluribus.step import Step, StepResult


@dataclass(frozen=True, slots=True)
class Turn:
    """A step, as the host has seen it.

    Attributes:
        read: when its result had been read; performance counter.
        waited: seconds that the host had waited for the device by then, in all.
        passes: of the step.
    """

    read: float
    waited: float
    passes: int

    def seconds_since(self, before: Turn) -> float:
        """Return how long the host was at work since the turn before."""
        return (self.read - before.read) - (self.waited - before.waited)


class TimedExecutor(Executor):
    """Notes a turn for each result that is read; is ``executor`` in all else.

    Nothing is waited for that would not be waited for without it.
    """

    def __init__(self, executor: Executor, turns: list[Turn]) -> None:
        self._executor = executor
        self._turns = turns
        self.phases = executor.phases

    @property
    def kv_shape(self) -> KVShape:
        return self._executor.kv_shape

    @property
    def lookahead(self) -> int:
        return self._executor.lookahead

    @property
    def max_passes(self) -> int:
        return self._executor.max_passes

    @property
    def seconds_waited(self) -> float:
        return self._executor.seconds_waited

    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Run the step and note when its result is read."""
        wait = self._executor.submit(step)

        def read() -> StepResult:
            result = wait()
            turn = Turn(time.perf_counter(), self.seconds_waited, step.passes)
            self._turns.append(turn)
            return result

        return read

    def shutdown(self) -> None:
        """Shut the executor down."""
        self._executor.shutdown()
