"""Where a step enters and leaves a rank: what a pipeline's stages do differently.

Only the first stage needs to know tokens, to embed them; only the last one chooses them. So the
last stage sends what it chooses back to the first, which also has to tell the engine, and keeps
what it needs for penalties; nobody else hears of it. What a stage sends never waits to be
received, and what it receives was computed from earlier steps alone, so that no order of steps
makes stages wait for each other in a circle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.interfaces import Place
from pluribus.kernels.upload import upload
from pluribus.logits_plan import Outcome, Task
from pluribus.parallel.ring import Ring
from pluribus.slots import SlotState
from pluribus.step import Step, StepResult

Embed = Callable[[Task], Tensor]
Finish = Callable[[Task, Tensor], Outcome]
Result = Callable[[], StepResult]
Tell = Callable[[Outcome], Result]
"""Takes an outcome that has come; returns what waits until the host knows it."""


class Stage(ABC):
    """A rank's place among the stages. Each step enters and leaves once, in order.

    Attributes:
        is_last: whether what its last layer returns is for logits alone.
    """

    is_last: ClassVar[bool] = False

    @abstractmethod
    def enter(self, step: Step, task: Task, embed: Embed) -> Tensor:
        """Return what this rank's first layer takes, [num_tokens, hidden_size]."""

    @abstractmethod
    def leave(self, step: Step, task: Task, hidden: Tensor, finish: Finish) -> Result:
        """Take what its last layer returns; return what waits for the result of the step.

        The result is whole on the first and on the last stage, and empty between them.
        """


class OnlyStage(Stage):
    """All layers on one rank, or shared by all ranks."""

    is_last = True

    def enter(self, step: Step, task: Task, embed: Embed) -> Tensor:
        """Embed the tokens."""
        return embed(task)

    def leave(self, step: Step, task: Task, hidden: Tensor, finish: Finish) -> Result:
        """Choose the next ones."""
        return finish(task, hidden).read


@dataclass(eq=False, slots=True)
class Awaited:
    """A step whose outcome is still to come from the last stage, or has."""

    number: int
    task: Task
    result: Result | None = None


class FirstStage(Stage):
    """Embeds, and takes in what the last stage has chosen once somebody needs it.

    Args:
        ring: from the last stage, to the next.
        state: of the slots, where chosen tokens belong.
        tell: hands outcomes to the host.
    """

    def __init__(self, ring: Ring, state: SlotState, tell: Tell) -> None:
        self._ring = ring
        self._state = state
        self._tell = tell
        self._awaited: deque[Awaited] = deque()
        # Numbers of steps, by slot: the one that admitted it, and the last that samples for it.
        self._admitted: dict[int, int] = {}
        self._sampled: dict[int, int] = {}

    def enter(self, step: Step, task: Task, embed: Embed) -> Tensor:
        """Wait for the tokens that the step begins from, and embed them."""
        self._ring.outlet.settle(step.num_read)
        for admission in step.admitted:
            self._admitted[admission.slot] = step.number
            self._sampled.pop(admission.slot, None)
        needed = max(self._sampled.get(row.slot, -1) for row in step.rows)
        self._receive_before(max(needed + 1, step.num_read))
        return embed(task)

    def leave(self, step: Step, task: Task, hidden: Tensor, finish: Finish) -> Result:
        """Send the step on; its result will come from the last stage."""
        self._ring.outlet.send(hidden, step.number)
        self._sampled.update(dict.fromkeys(task.plan.owners, step.number))
        awaited = Awaited(step.number, task)
        self._awaited.append(awaited)
        return partial(self._result, awaited)

    def _result(self, awaited: Awaited) -> StepResult:
        self._receive_before(awaited.number + 1)
        assert awaited.result is not None
        return awaited.result()

    def _receive_before(self, number: int) -> None:
        """Take in the outcomes of all steps before this one."""
        while self._awaited and self._awaited[0].number < number:
            awaited = self._awaited.popleft()
            outcome = Outcome.receive(awaited.task.plan, self._ring.inlet.receive)
            awaited.result = self._tell(outcome)
            self._write(awaited, outcome.tokens)

    def _write(self, awaited: Awaited, tokens: Tensor) -> None:
        """Put tokens into their slots' texts, unless somebody else has moved in since."""
        task, plan = awaited.task, awaited.task.plan
        ends = task.wanted[: len(plan.owners)]
        rows = [r for r, slot in enumerate(plan.owners) if self._admitted[slot] <= awaited.number]
        if len(rows) < len(plan.owners):
            [index] = upload(tokens.device, rows)
            ends, tokens = ends[index], tokens[index]
        self._state.tokens[task.layout.slots[ends], task.positions[ends] + 1] = tokens


class LaterStage(Stage):
    """Takes what the stage before returns.

    Args:
        ring: from the stage before, to the next.
        hidden_size, dtype: of what stages hand on.
    """

    def __init__(self, ring: Ring, hidden_size: int, dtype: torch.dtype) -> None:
        self._ring = ring
        self._hidden_size = hidden_size
        self._dtype = dtype

    def enter(self, step: Step, task: Task, embed: Embed) -> Tensor:
        """Wait for the stage before."""
        self._ring.outlet.settle(step.num_read)
        shape = (len(task.positions), self._hidden_size)
        return self._ring.inlet.receive(shape, self._dtype)


class MiddleStage(LaterStage):
    """Hands on what it computes."""

    def leave(self, step: Step, task: Task, hidden: Tensor, finish: Finish) -> Result:
        """Send the step on."""
        self._ring.outlet.send(hidden, step.number)
        return _nothing


class LastStage(LaterStage):
    """Chooses tokens and tells the first stage."""

    is_last = True

    def leave(self, step: Step, task: Task, hidden: Tensor, finish: Finish) -> Result:
        """Finish the step and send back what came of it."""
        outcome = finish(task, hidden)
        for x in outcome.tensors():
            self._ring.outlet.send(x, step.number)
        return outcome.read


def read_later(outcome: Outcome) -> Result:
    """Leave an outcome where it is until it is read."""
    return outcome.read


def stage_of(
    place: Place,
    state: SlotState,
    hidden_size: int,
    dtype: torch.dtype,
    tell: Tell = read_later,
) -> Stage:
    """Return the stage that a rank is.

    Args:
        place: the rank's.
        state: of its slots.
        hidden_size, dtype: of what stages hand on.
        tell: hands outcomes to the host.
    """
    if place.ring is None:
        return OnlyStage()
    if place.share.is_first:
        return FirstStage(place.ring, state, tell)
    later = LastStage if place.share.is_last else MiddleStage
    return later(place.ring, hidden_size, dtype)


def _nothing() -> StepResult:
    return StepResult(())
