"""The engine: schedule, run, update."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from pluribus.errors import RequestError
from pluribus.generation import Batch, FinishReason, Generation
from pluribus.interfaces import Batcher, Executor, KVLedger
from pluribus.step import Admission, Row, Step, StepResult

logger = logging.getLogger(__name__)


class Observer:
    """Told of what the engine does, in its thread. Override what is of interest."""

    def step_finished(self, batch: Batch, seconds: float) -> None:
        """Observe a step and the time from its submission to its result."""

    def generation_finished(self, generation: Generation) -> None:
        """Observe a generation that ended by itself."""


@dataclass(frozen=True, slots=True)
class StepUnderWay:
    """A step that has been submitted and whose result has not been read."""

    batch: Batch
    sampling: tuple[Generation, ...]
    result: Callable[[], StepResult]
    submitted: float


class EngineCore:
    """Drives generations from their prompt to their end. Belongs to one thread.

    Steps are planned from counts alone, so up to ``lookahead`` of them may be under way
    before the tokens of the first are known.
    """

    def __init__(
        self,
        batcher: Batcher,
        ledger: KVLedger,
        executor: Executor,
        eos_token_ids: frozenset[int],
        observer: Observer,
        lookahead: int = 0,
    ) -> None:
        self.batcher = batcher
        self.ledger = ledger
        self.executor = executor
        self.eos_token_ids = eos_token_ids
        self.observer = observer
        self.lookahead = lookahead
        self._under_way: deque[StepUnderWay] = deque()
        self._free_slots = list(reversed(range(executor.kv_shape.num_slots)))
        self._evicted: list[int] = []
        self._num_steps = 0

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has anything to do."""
        return bool(self._under_way or self.batcher.num_waiting or self.batcher.num_running)

    def add(self, generation: Generation) -> None:
        """Queue a generation.

        Raises:
            RequestError: it could not run even if it were alone.
        """
        if not self.ledger.fits(generation.max_length):
            raise RequestError(
                f"max_tokens: prompt and answer may take {generation.max_length} tokens, more than "
                f"the {self.executor.kv_shape.num_tokens} that the KV cache holds; "
                "ask for less, or raise cache.kv.memory",
                param="max_tokens",
            )
        if generation.params.seed is None:
            generation.params = replace(generation.params, seed=_fresh_seed())
        self.batcher.add(generation)

    def step(self) -> list[Generation]:
        """Schedule, run, update; return the generations that gained a token or ended."""
        batch = self.batcher.next_batch()
        if batch is not None:
            self._under_way.append(self._submit(batch))
        if self._under_way and (batch is None or len(self._under_way) > self.lookahead):
            return self._update(self._under_way.popleft())
        return []

    def finish(self, generation: Generation) -> None:
        """Take a generation out, waiting or running, and give back what it held."""
        self.batcher.finish(generation)
        if generation.slot is not None:
            self._evicted.append(generation.slot)
            self._free_slots.append(generation.slot)
            generation.slot = None

    def _submit(self, batch: Batch) -> StepUnderWay:
        evicted, self._evicted = tuple(self._evicted), []
        admitted = tuple(self._admit(g) for g in batch.num_tokens if g.slot is None)
        rows = tuple(self._advance(g, count) for g, count in batch.num_tokens.items())
        step = Step(self._num_steps, evicted, admitted, rows)
        self._num_steps += 1
        sampling = tuple(g for g, row in zip(batch.num_tokens, rows, strict=True) if row.samples)
        submitted = time.perf_counter()
        return StepUnderWay(batch, sampling, self.executor.submit(step), submitted)

    def _admit(self, generation: Generation) -> Admission:
        generation.slot = self._free_slots.pop()
        params = generation.params
        assert params.seed is not None
        return Admission(
            slot=generation.slot,
            prompt=generation.prompt,
            max_length=generation.max_length,
            temperature=0.0 if params.is_greedy else params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            seed=params.seed,
            placement=self.ledger.placement(generation),
        )

    def _advance(self, generation: Generation, num_tokens: int) -> Row:
        start = generation.num_scheduled
        assert generation.slot is not None
        assert 0 < num_tokens <= generation.num_unscheduled
        generation.num_scheduled += num_tokens
        samples = generation.num_scheduled >= len(generation.prompt)
        return Row(generation.slot, start, num_tokens, samples)

    def _update(self, step: StepUnderWay) -> list[Generation]:
        result = step.result()
        # Who ended while the step was under way has no slot any more: its token is dropped.
        changed = [
            (generation, token)
            for generation, token in zip(step.sampling, result.tokens, strict=True)
            if generation.slot is not None
        ]
        for generation, token in changed:
            self._append(generation, token)
        self.observer.step_finished(step.batch, time.perf_counter() - step.submitted)
        return [generation for generation, _ in changed]

    def _append(self, generation: Generation, token: int) -> None:
        if token in self.eos_token_ids:
            generation.finish_reason = FinishReason.STOP
        else:
            generation.tokens.append(token)
            if len(generation.tokens) == generation.params.max_tokens:
                generation.finish_reason = FinishReason.LENGTH
        if generation.finish_reason is not None:
            self.finish(generation)
            self.observer.generation_finished(generation)


def _fresh_seed() -> int:
    return random.SystemRandom().getrandbits(63)
