"""What a step must hold, whoever's turn it is; and an engine small enough to follow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import hypothesis
from hypothesis import HealthCheck, Phase

from pluribus import Batch, Generation, SamplingParams
from pluribus.testing import BatcherMachine, RoomFor, generation
from pluribus_batchers.continuous import ContinuousBatcher, ContinuousConfig

FIND_ONLY = hypothesis.settings(
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=300,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

TENANTS = {"plain": 1.0, "light": 0.5, "heavy": 3.0}
"""Each with its weight."""


class StepMachine(BatcherMachine):
    """Checks every number of tokens, and that no room is left over while somebody could run."""

    max_batch_tokens: ClassVar[int] = 4

    def check_batch(self, batch: Batch, joining: list[Generation]) -> None:
        super().check_batch(batch, joining)
        expected = {g: 1 for g in self.running if self.num_allowed(g) and not is_prefilling(g)}
        budget = self.max_batch_tokens - len(expected)
        for member in [g for g in self.running if is_prefilling(g)] + joining:
            assert budget, "the token budget was overspent"
            expected[member] = min(member.num_unscheduled, budget)
            budget -= expected[member]
        assert dict(batch.num_tokens) == expected, "somebody got too few tokens, or too many"
        if budget and len(self.running) + len(joining) < self.max_batch_size:
            heads = [line[0] for line in self._lines_without(joining) if line]
            has_room = bool(heads) and all(map(self.ledger.would_reserve, heads))
            assert not has_room, "somebody could have joined"

    def _lines_without(self, joining: list[Generation]) -> list[list[Generation]]:
        return [[g for g in line if g not in joining] for line in self.lines()]


def is_prefilling(member: Generation) -> bool:
    return member.num_scheduled < len(member.prompt)


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests of one tenant that come at once, before step number ``step``."""

    step: int
    tenant: str
    count: int
    prompt_length: int
    max_tokens: int


class Simulation:
    """An engine with nothing under way between steps; nobody stops before its last token.

    Attributes:
        waiting: added and not run yet.
        running: have run and have not finished.
        served: tokens computed for each tenant.
    """

    def __init__(
        self, batcher: type[ContinuousBatcher], config: ContinuousConfig, num_tokens: int
    ) -> None:
        self.batcher = batcher(config, RoomFor(num_tokens))
        self.waiting: list[Generation] = []
        self.running: list[Generation] = []
        self.served: Counter[str] = Counter()
        self._num_added = 0

    def add(self, burst: Burst) -> None:
        params = SamplingParams(max_tokens=burst.max_tokens)
        for _ in range(burst.count):
            added = generation(
                self._num_added,
                prompt=(2,) * burst.prompt_length,
                params=params,
                tenant=burst.tenant,
                weight=TENANTS.get(burst.tenant, 1.0),
            )
            self._num_added += 1
            self.batcher.add(added)
            self.waiting.append(added)

    def is_waiting(self, tenant: str) -> bool:
        return any(member.tenant == tenant for member in self.waiting)

    def step(self) -> dict[int, int]:
        """Run a step; return the tokens of each id, in row order."""
        batch = self.batcher.next_batch()
        if batch is None:
            assert not self.waiting
            return {}
        for member, num_tokens in batch.num_tokens.items():
            if member not in self.running:
                self.waiting.remove(member)
                self.running.append(member)
            member.num_scheduled += num_tokens
            self.served[member.tenant] += num_tokens
            if not member.num_unscheduled:
                self.running.remove(member)
                self.batcher.finish(member)
        return {member.id: num_tokens for member, num_tokens in batch.num_tokens.items()}
