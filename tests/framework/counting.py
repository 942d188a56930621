"""An executor without a model, for tests of what surrounds one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pluribus import (
    Batch,
    Capability,
    Executor,
    Generation,
    KVShape,
    SamplingParams,
    Step,
    StepResult,
    TokenLogprobs,
)
from pluribus.engine.core import EngineCore, Observer
from pluribus.engine.messages import Output
from pluribus.engine.rotation import Rotation
from pluribus.testing import RoomFor
from pluribus_batchers.bucket import BucketBatcher, BucketConfig

EOS = 2


class CountingExecutor(Executor):
    """Answers each row with the position of the token to come; keeps what it was sent.

    ``prompt[0]`` of a generation is the position at which its text ends. After the end it answers
    with anything, as it does beyond the last token that there is room for.
    """

    def __init__(self, num_slots: int = 4) -> None:
        self._shape = KVShape(
            num_layers=1,
            num_heads=1,
            head_dim=1,
            num_slots=num_slots,
            max_length=100,
            num_tokens=1000,
        )
        self.steps: list[Step] = []
        self.ends: dict[int, int] = {}
        self.passes = 1
        self.failure: Exception | None = None
        self.failure_after = 0
        self.seconds_per_step = 0.0
        self.is_shut_down = False
        self.gate: threading.Event | None = None

    @property
    def kv_shape(self) -> KVShape:
        return self._shape

    @property
    def max_passes(self) -> int:
        return self.passes

    def submit(self, step: Step) -> Callable[[], StepResult]:
        time.sleep(self.seconds_per_step)
        if self.gate is not None:
            self.gate.wait(10)
        if self.failure is not None and len(self.steps) >= self.failure_after:
            raise self.failure
        self.steps.append(step)
        for slot in step.evicted:
            del self.ends[slot]
        for admission in step.admitted:
            assert admission.slot not in self.ends, "two generations in one slot"
            self.ends[admission.slot] = admission.prompt[0]
        assert 1 <= step.passes <= self.passes
        assert step.passes == 1 or all(row.num_tokens == 1 and row.samples for row in step.rows)
        tokens = [
            tuple(self._token(row.slot, row.start + row.num_tokens + n) for n in range(step.passes))
            for row in step.rows
            if row.samples
        ]
        logprobs = tuple(TokenLogprobs(token, -1.0, ()) for [token, *_] in tokens)
        scores = tuple(
            tuple(
                TokenLogprobs(position, -1.0, ())
                for position in range(row.start + 1, row.start + row.num_tokens + (not row.samples))
            )
            for row in step.rows
            if row.scores
        )
        return lambda: StepResult(tokens, logprobs if step.passes == 1 else (), scores)

    def _token(self, slot: int, position: int) -> int:
        return EOS if position == self.ends[slot] else 1000 + position

    def shutdown(self) -> None:
        self.is_shut_down = True


class RepeatingBatcher(BucketBatcher):
    """Repeats every batch as often as may be."""

    def repeat(self, batch: Batch, most: int) -> int:
        return most


def core(
    executor: Executor,
    lookahead: int = 0,
    observer: Observer | None = None,
    num_parts: int = 1,
) -> EngineCore:
    ledger = RoomFor(executor.kv_shape.num_tokens)
    batcher = RepeatingBatcher(BucketConfig(max_batch_size=executor.kv_shape.num_slots), ledger)
    rotation = Rotation(num_parts, frozenset(Capability))
    return EngineCore(
        batcher, ledger, executor, (EOS,), observer or Observer(), lookahead, rotation
    )


def ask(id_: int, *, length: int = 3, ends_at: int = 0, **params: Any) -> Generation:
    prompt = (ends_at, *range(10, 9 + length))
    return Generation(id=id_, prompt=prompt, params=SamplingParams(seed=id_, **params))


def run(engine: EngineCore) -> list[Output]:
    """Step until there is nothing to do; return all that was put out."""
    outputs: list[Output] = []
    for _ in range(1000):
        if not engine.has_work:
            return outputs
        outputs += engine.step()
    raise AssertionError("the engine never came to rest")
