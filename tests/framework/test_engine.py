"""The engine's core and thread, driven by fakes: no model, no tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus import (
    Batch,
    EngineError,
    Executor,
    FinishReason,
    Generation,
    KVShape,
    QueueFullError,
    RequestError,
    SamplingParams,
    Step,
    StepResult,
)
from pluribus.engine.core import EngineCore, Observer
from pluribus.engine.thread import EngineThread
from pluribus.testing import RoomFor
from pluribus_batchers.bucket import BucketBatcher, BucketConfig

EOS = 2


class CountingExecutor(Executor):
    """Answers each row with the position of the token to come; keeps what it was sent.

    ``prompt[0]`` of a generation is the position at which its text ends.
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
        self.failure: Exception | None = None
        self.is_shut_down = False
        self.gate: threading.Event | None = None

    @property
    def kv_shape(self) -> KVShape:
        return self._shape

    def submit(self, step: Step) -> Callable[[], StepResult]:
        if self.gate is not None:
            self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.steps.append(step)
        for slot in step.evicted:
            del self.ends[slot]
        for admission in step.admitted:
            assert admission.slot not in self.ends, "two generations in one slot"
            self.ends[admission.slot] = admission.prompt[0]
        positions = [(row.slot, row.start + row.num_tokens) for row in step.rows if row.samples]
        tokens = tuple(
            EOS if position == self.ends[slot] else 1000 + position for slot, position in positions
        )
        return lambda: StepResult(tokens)

    def shutdown(self) -> None:
        self.is_shut_down = True


def core(
    executor: CountingExecutor, lookahead: int = 0, observer: Observer | None = None
) -> EngineCore:
    ledger = RoomFor(executor.kv_shape.num_tokens)
    batcher = BucketBatcher(BucketConfig(max_batch_size=executor.kv_shape.num_slots), ledger)
    return EngineCore(
        batcher, ledger, executor, frozenset({EOS}), observer or Observer(), lookahead
    )


def ask(id_: int, *, length: int = 3, ends_at: int = 0, **params: int) -> Generation:
    prompt = (ends_at, *range(10, 9 + length))
    return Generation(id=id_, prompt=prompt, params=SamplingParams(**params))


def run(engine: EngineCore) -> None:
    for _ in range(1000):
        if not engine.has_work:
            return
        engine.step()
    raise AssertionError("the engine never came to rest")


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_a_generation_runs_from_its_prompt_to_its_last_token(lookahead: int) -> None:
    executor = CountingExecutor()
    engine = core(executor, lookahead)
    engine.add(generation := ask(1, length=3, max_tokens=4))
    run(engine)
    assert generation.tokens == [1003, 1004, 1005, 1006]
    assert generation.finish_reason is FinishReason.LENGTH
    assert [row.num_tokens for step in executor.steps for row in step.rows] == [3, 1, 1, 1]


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_the_end_of_text_stops_and_is_not_part_of_the_answer(lookahead: int) -> None:
    engine = core(CountingExecutor(), lookahead)
    engine.add(generation := ask(1, length=3, ends_at=5, max_tokens=9))
    run(engine)
    assert generation.tokens == [1003, 1004]
    assert generation.finish_reason is FinishReason.STOP


def test_running_ahead_submits_before_it_reads() -> None:
    executor = CountingExecutor()
    engine = core(executor, lookahead=2)
    engine.add(generation := ask(1, max_tokens=9))
    engine.step()
    engine.step()
    assert len(executor.steps) == 2
    assert generation.tokens == []
    engine.step()
    assert len(executor.steps) == 3
    assert generation.tokens == [1003]


asks = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 14), st.integers(1, 6)), min_size=1, max_size=14
)


@settings(max_examples=100, deadline=None)
@given(asks, st.integers(0, 3), st.randoms(use_true_random=False))
def test_whatever_happens_slots_and_cache_come_back(
    requests: list[tuple[int, int, int]], lookahead: int, chance: Random
) -> None:
    executor = CountingExecutor(num_slots=3)
    engine = core(executor, lookahead)
    generations = [
        ask(index, length=length, ends_at=ends_at, max_tokens=max_tokens)
        for index, (length, ends_at, max_tokens) in enumerate(requests)
    ]
    for generation in generations:
        engine.add(generation)
    cancelled = chance.sample(generations, min(3, len(generations)))
    while engine.has_work:
        engine.step()
        if cancelled and chance.random() < 0.5:
            gone = cancelled.pop()
            if gone.finish_reason is None:
                engine.finish(gone)
        engine.ledger.check_integrity()
    engine.add(last := ask(99, length=1, max_tokens=1))
    run(engine)
    assert last.tokens == [1001]
    assert isinstance(engine.ledger, RoomFor)
    assert not engine.ledger.held
    for generation, (length, ends_at, max_tokens) in zip(generations, requests, strict=True):
        if generation.finish_reason is not None:
            until = min(length + max_tokens, ends_at if ends_at >= length else 10**6)
            assert generation.tokens == [1000 + position for position in range(length, until)]


def test_what_cannot_ever_fit_is_refused_with_the_setting_to_change() -> None:
    engine = core(CountingExecutor())
    with pytest.raises(RequestError, match=r"5003 tokens, more than the 1000 .*cache.kv.memory"):
        engine.add(ask(1, length=3, max_tokens=5000))


def test_a_seed_is_drawn_where_none_is_given() -> None:
    engine = core(CountingExecutor())
    free, seeded = ask(1), ask(2, seed=7)
    engine.add(free)
    engine.add(seeded)
    assert free.params.seed is not None
    assert seeded.params.seed == 7


def test_observers_hear_of_steps_and_ends() -> None:
    class Recorder(Observer):
        def __init__(self) -> None:
            self.events: list[object] = []

        def step_finished(self, batch: Batch, seconds: float) -> None:
            assert seconds >= 0
            self.events.append(len(batch))

        def generation_finished(self, generation: Generation) -> None:
            self.events.append(generation.finish_reason)

    recorder = Recorder()
    engine = core(CountingExecutor(), observer=recorder)
    engine.add(ask(1, max_tokens=2))
    run(engine)
    assert recorder.events == [1, FinishReason.LENGTH, 1]


class Running:
    """An EngineThread on fakes."""

    def __init__(self, executor: CountingExecutor, max_waiting: int = 100) -> None:
        self.ready = threading.Event()
        self.deaths: list[BaseException] = []
        self.thread = EngineThread(
            lambda: core(executor), self.ready.set, self.deaths.append, max_waiting
        )
        self.thread.start()
        assert self.ready.wait(10)


PARAMS = SamplingParams(max_tokens=4)


def test_a_future_brings_the_answer() -> None:
    running = Running(CountingExecutor())
    answer = running.thread.submit((0, 11), PARAMS).result(10)
    assert answer.tokens == (1002, 1003, 1004, 1005)
    running.thread.stop()
    assert not running.deaths


def test_a_refused_generation_does_not_disturb_the_others() -> None:
    running = Running(CountingExecutor())
    good = running.thread.submit((0, 11), PARAMS)
    bad = running.thread.submit((0, 11), replace(PARAMS, max_tokens=5000))
    also_good = running.thread.submit((0, 11), PARAMS)
    with pytest.raises(RequestError):
        bad.result(10)
    assert good.result(10) == also_good.result(10)
    running.thread.stop()


def test_cancelling_a_future_takes_the_generation_out() -> None:
    executor = CountingExecutor()
    executor.gate = threading.Event()
    running = Running(executor)
    slow = running.thread.submit((0, 11), replace(PARAMS, max_tokens=900))
    assert slow.cancel()
    executor.gate.set()
    running.thread.submit((0, 11), PARAMS).result(10)
    assert len(executor.steps) < 20
    running.thread.stop()


def test_a_full_queue_sends_away() -> None:
    executor = CountingExecutor(num_slots=1)
    executor.gate = threading.Event()
    running = Running(executor, max_waiting=3)
    futures = [running.thread.submit((0, 11), PARAMS) for _ in range(3)]
    with pytest.raises(QueueFullError, match=r"3 requests are waiting.*queue.max_size"):
        running.thread.submit((0, 11), PARAMS)
    executor.gate.set()
    for future in futures:
        future.result(10)
    running.thread.submit((0, 11), PARAMS).result(10)
    running.thread.stop()


def test_a_dying_engine_fails_everyone_who_waits_and_everyone_who_comes() -> None:
    executor = CountingExecutor()
    executor.gate = threading.Event()
    running = Running(executor)
    futures = [running.thread.submit((0, 11), PARAMS) for _ in range(9)]
    executor.failure = ValueError("the device is on fire")
    executor.gate.set()
    for future in futures:
        with pytest.raises(EngineError, match="the engine died: the device is on fire"):
            future.result(10)
    with pytest.raises(EngineError, match="takes no more requests"):
        running.thread.submit((0, 11), PARAMS)
    running.thread.stop()
    assert [str(death) for death in running.deaths] == ["the device is on fire"]


def test_stopping_fails_what_is_unfinished_and_frees_the_ranks() -> None:
    executor = CountingExecutor()
    executor.gate = threading.Event()
    running = Running(executor)
    future = running.thread.submit((0, 11), replace(PARAMS, max_tokens=900))
    stopper = threading.Thread(target=running.thread.stop)
    stopper.start()
    executor.gate.set()
    stopper.join(10)
    with pytest.raises(EngineError, match="stopped before the answer was complete"):
        future.result(10)
    assert executor.is_shut_down
    assert not running.thread.is_alive
