"""The engine's core, driven by fakes: no model, no tensors."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.counting import EOS, CountingExecutor, ask, core, run
from pluribus import Batch, FinishReason, Generation, PluginError, RequestError
from pluribus.engine.core import EngineCore, Observer
from pluribus.testing import RoomFor
from pluribus_batchers.bucket import BucketBatcher, BucketConfig


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


class Misplanning(BucketBatcher):
    """Plans what a test tells it to."""

    plan: Callable[[Generation], object] = staticmethod(lambda generation: None)

    def add(self, generation: Generation) -> None:
        self.only = generation

    def next_batch(self) -> Batch | None:
        return self.plan(self.only)  # type: ignore[return-value]


def misplanning(plan: Callable[[Generation], object]) -> EngineCore:
    engine = core(CountingExecutor(num_slots=1))
    batcher = Misplanning(BucketConfig(max_batch_size=1), engine.ledger)
    batcher.plan = plan
    engine.batcher = batcher
    return engine


@pytest.mark.parametrize(
    ("plan", "breach"),
    [
        (lambda g: None, "plans no step while there is work and none is under way"),
        (lambda g: Batch({}), "plans a step for no generation"),
        (lambda g: {g: 1}, "plans a dict, not a Batch"),
        (lambda g: Batch({g: 4}), "plans 4 tokens of generation 1, which has 3 to compute"),
        (lambda g: Batch({g: 0}), "plans 0 tokens of generation 1, which has 3 to compute"),
        (lambda g: Batch({ask(7): 1}), "plans a step for generation 7, which has ended"),
    ],
)
def test_a_batcher_that_breaks_its_contract_is_named(
    plan: Callable[[Generation], object], breach: str
) -> None:
    engine = misplanning(plan)
    engine.add(ask(1, length=3))
    with pytest.raises(PluginError) as caught:
        engine.step()
    name = f"{Misplanning.__module__}.Misplanning"
    assert str(caught.value) == f"the batcher {name} {breach}"


def test_a_batcher_that_goes_beyond_a_limit_is_named() -> None:
    engine = misplanning(lambda g: Batch({g: g.num_unscheduled}))
    engine.add(only := ask(1, length=3, max_tokens=9))
    engine.ledger.limits[only] = 4  # type: ignore[index]
    engine.step()
    engine.step()
    with pytest.raises(PluginError) as caught:
        engine.step()
    assert str(caught.value).endswith(
        ".Misplanning plans 1 tokens of generation 1 after 4, which has room in the KV cache for 4 "
        "until others give back what it was promised"
    )


def test_a_batcher_that_starts_too_many_is_named() -> None:
    engine = misplanning(lambda g: Batch(dict.fromkeys(both, 1)))
    both = [ask(1), ask(2)]
    for each in both:
        engine.add(each)
    with pytest.raises(PluginError, match=r"starts 2 generations at once where .* allows 1"):
        engine.step()


def test_a_batcher_may_wait_for_a_step_under_way() -> None:
    engine = core(CountingExecutor(), lookahead=1)
    engine.add(generation := ask(1, max_tokens=1))
    assert engine.step() == []
    assert engine.batcher.next_batch() is None
    run(engine)
    assert generation.finish_reason is FinishReason.LENGTH
    assert engine.step() == []


asks = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 14), st.integers(1, 6)), min_size=1, max_size=14
)


@settings(max_examples=100, deadline=None)
@given(asks, st.integers(0, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_whatever_happens_slots_and_cache_come_back(
    requests: list[tuple[int, int, int]], lookahead: int, passes: int, chance: Random
) -> None:
    executor = CountingExecutor(num_slots=3)
    executor.passes = passes
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


def test_scoring_alone_generates_nothing() -> None:
    engine = core(CountingExecutor())
    engine.add(generation := ask(1, length=3, max_tokens=0, prompt_logprobs=0))
    outputs = run(engine)
    assert generation.finish_reason is FinishReason.LENGTH
    assert generation.tokens == []
    assert [score.token for score in outputs[0].prompt_logprobs] == [1, 2]


def test_every_token_and_logprob_is_reported_once() -> None:
    engine = core(CountingExecutor(), lookahead=1)
    engine.add(ask(1, length=4, max_tokens=5, logprobs=0, prompt_logprobs=0))
    outputs = run(engine)
    assert [token for output in outputs for token in output.tokens] == [
        1004,
        1005,
        1006,
        1007,
        1008,
    ]
    assert [one.token for output in outputs for one in output.logprobs] == [
        1004, 1005, 1006, 1007, 1008,
    ]  # fmt: skip
    assert [len(output.prompt_logprobs) for output in outputs] == [3, 0, 0, 0, 0]
    assert [output.finish_reason for output in outputs] == [None] * 4 + [FinishReason.LENGTH]


def test_other_ids_may_end_a_generation_and_the_end_of_text_may_not() -> None:
    engine = core(CountingExecutor())
    engine.add(stopped := ask(1, stop_token_ids=(1005,), max_tokens=9))
    engine.add(unstopped := ask(2, ends_at=4, ignore_eos=True, max_tokens=3))
    run(engine)
    assert (stopped.tokens, stopped.finish_reason) == ([1003, 1004], FinishReason.STOP)
    assert (unstopped.tokens, unstopped.finish_reason) == ([1003, EOS, 1005], FinishReason.LENGTH)


def test_what_may_end_it_is_banned_until_there_are_enough_tokens() -> None:
    executor = CountingExecutor()
    engine = core(executor)
    engine.add(ask(1, max_tokens=3, min_tokens=2, stop_token_ids=(7,)))
    engine.add(ask(2, max_tokens=3, min_tokens=2, stop_token_ids=(7,), ignore_eos=True))
    engine.add(ask(3, max_tokens=3, stop_token_ids=(7,)))
    engine.step()
    assert [admission.ends for admission in executor.steps[0].admitted] == [
        (7, EOS),
        (7,),
        (7, EOS),
    ]


def test_timing_says_where_the_time_went() -> None:
    engine = core(CountingExecutor())
    engine.add(ask(1, max_tokens=3))
    engine.add(ask(2, max_tokens=1))
    timings = {output.id: output.timing for output in run(engine) if output.timing}
    assert timings[1].mean_batch_size == pytest.approx(4 / 3)
    assert timings[2].mean_batch_size == 2
    assert min(timings[1].queue, timings[1].prefill, timings[1].decode) >= 0


def test_stats_count_what_happened() -> None:
    engine = core(CountingExecutor(num_slots=1))
    engine.add(ask(1, length=3, max_tokens=2))
    engine.add(ask(2, length=5, max_tokens=2))
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_kv_tokens_used) == (1, 1, 5)
    assert (stats.batch_size, stats.num_batch_tokens, stats.num_prompt_tokens) == (1, 3, 3)
    run(engine)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_kv_tokens_used) == (0, 0, 0)
    assert (stats.num_steps, stats.num_prompt_tokens) == (4, 8)


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
