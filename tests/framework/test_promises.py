"""Generations that are promised room which others still hold: the engine on a cache too small."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import torch

from framework.counting import EOS, CountingExecutor, run
from framework.test_worker import SPEC, ours
from pluribus import Admission, Capability, Generation, KVShape, SamplingParams, Step, StepResult
from pluribus.engine.core import EngineCore, Observer
from pluribus.engine.rotation import Rotation
from pluribus.interfaces import Executor
from pluribus.worker import Worker
from pluribus_batchers.continuous import ContinuousBatcher, ContinuousConfig
from pluribus_caches.kv.paged import PagedConfig, PagedKVCache
from pluribus_caches.kv.paged_ledger import PagedLedger

BLOCK_SIZE = 2
NUM_SLOTS = 12
both = pytest.mark.parametrize("prefix_caching", [True, False], ids=["prefixes", "no-prefixes"])


class RememberingExecutor(CountingExecutor):
    """Keeps whose text is in which place of the cache, and finds it there when it is read.

    Every pass writes in the places of its tokens and reads all that come before, as attention
    does. It goes on after the end of a text, as a device does that knows not all of its ends, but
    not beyond what there is room for.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self._admitted: dict[int, Admission] = {}
        self._places: dict[tuple[int, int], tuple[object, int]] = {}

    def submit(self, step: Step) -> Callable[[], StepResult]:
        self._admitted.update({admission.slot: admission for admission in step.admitted})
        for row in step.rows:
            admission = self._admitted[row.slot]
            end = row.start + row.num_tokens + step.passes - 1
            for position in range(row.start, min(end, admission.max_length - 1)):
                self._write(admission, position)
        return super().submit(step)

    def _write(self, admission: Admission, position: int) -> None:
        def place(at: int) -> tuple[int, int]:
            return admission.placement[at // BLOCK_SIZE], at % BLOCK_SIZE

        # Prompts that are alike have the same text; no others share a block.
        text = admission.prompt
        self._places[place(position)] = text, position
        for before in range(position):
            assert self._places[place(before)] == (text, before), "somebody's text is gone"


def engine_of(
    executor: Executor, num_tokens: int, *, prefix_caching: bool, lookahead: int, num_parts: int = 1
) -> EngineCore:
    shape = KVShape(
        num_layers=1,
        num_heads=1,
        head_dim=1,
        num_slots=executor.kv_shape.num_slots,
        max_length=executor.kv_shape.max_length,
        num_tokens=num_tokens,
    )
    ledger = PagedKVCache(PagedConfig("auto", BLOCK_SIZE, prefix_caching)).ledger(shape)
    config = ContinuousConfig(executor.kv_shape.num_slots, max_batch_tokens=16)
    batcher = ContinuousBatcher(config, ledger)
    rotation = Rotation(num_parts, frozenset(Capability))
    return EngineCore(batcher, ledger, executor, (EOS,), Observer(), lookahead, rotation)


def most_at_once(engine: EngineCore) -> int:
    """Run an engine until it has no work; return how many ran at once."""
    most = 0
    for _ in range(5000):
        if not engine.has_work:
            return most
        engine.step()
        engine.ledger.check_integrity()
        most = max(most, engine.batcher.num_running)
    raise AssertionError("the engine never came to rest")


@both
@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize("passes", [1, 8])
def test_nobody_loses_anything(
    passes: int, lookahead: int, num_parts: int, *, prefix_caching: bool
) -> None:
    chance = Random(f"{passes} {lookahead} {num_parts} {prefix_caching}")
    executor = RememberingExecutor(NUM_SLOTS)
    executor.passes = passes
    engine = engine_of(
        executor,
        num_tokens=160,
        prefix_caching=prefix_caching,
        lookahead=lookahead,
        num_parts=num_parts,
    )
    crowd = []
    for number in range(60):
        length = chance.randint(1, 20)
        max_tokens = chance.choice([1, 4, 10, 30, 70])
        ends_at = chance.choice([0, length + chance.randint(1, max_tokens)])
        # The first token says where it ends, beside telling one prompt from all others.
        prompt = (ends_at, *range(100 * number + 100, 100 * number + 99 + length))
        params = SamplingParams(max_tokens=max_tokens, seed=number)
        crowd.append(Generation(id=number, prompt=prompt, params=params))
        engine.add(crowd[-1])
    cancelled = crowd[17]
    engine.step()
    engine.finish(cancelled)
    most_at_once(engine)
    for member in crowd:
        first, end = len(member.prompt), member.max_length
        if member.prompt[0]:
            end = min(end, member.prompt[0])
        if member is not cancelled:
            assert member.tokens == [*range(1000 + first, 1000 + end)]
    assert engine.ledger.num_used_tokens == 0


UNEVEN = (30, 28, 2, 3, 5, 2, 12, 4, 3, 6, 2, 9)
"""Tokens of the answers; with their prompts they take more than the cache they are given."""


def uneven() -> list[Generation]:
    chance = Random(0)
    return [
        Generation(
            id=number,
            prompt=(2, *(chance.randrange(4, 90) for _ in range(chance.randint(2, 6)))),
            params=SamplingParams(max_tokens=count, temperature=0.0, seed=0, ignore_eos=True),
        )
        for number, count in enumerate(UNEVEN)
    ]


def worker_with_room_for(num_tokens: int) -> Worker:
    shape = KVShape(
        num_layers=SPEC.num_layers,
        num_heads=SPEC.num_heads,
        head_dim=SPEC.head_dim,
        num_slots=NUM_SLOTS,
        max_length=SPEC.max_length,
        num_tokens=num_tokens,
    )
    cache, device = PagedKVCache(PagedConfig(block_size=BLOCK_SIZE)), torch.device("cpu")
    return Worker(ours(), cache.store(shape, device, torch.float32), SPEC, shape, device)


@both
@pytest.mark.parametrize("lookahead", [0, 1])
def test_answers_are_those_of_each_alone_and_more_run_at_once(
    lookahead: int, *, prefix_caching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(num_tokens: int) -> EngineCore:
        worker = worker_with_room_for(num_tokens)
        return engine_of(worker, num_tokens, prefix_caching=prefix_caching, lookahead=lookahead)

    alone, expected = engine(400), uneven()
    for member in expected:
        alone.add(member)
        run(alone)
    num_tokens = sum(member.max_length for member in expected) * 2 // 3
    at_once = []
    for promises in (True, False):
        together, crowd = engine(num_tokens), uneven()
        if not promises:
            monkeypatch.setattr(PagedLedger, "try_promise", PagedLedger.try_reserve)
        for member in crowd:
            together.add(member)
        at_once.append(most_at_once(together))
        assert [member.tokens for member in crowd] == [member.tokens for member in expected]
    assert at_once[0] > at_once[1]
