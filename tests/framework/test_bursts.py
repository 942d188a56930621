"""Steps of several passes: what the engine asks for, and what it makes of the answers."""

from __future__ import annotations

from typing import Any

import pytest

from framework.counting import CountingExecutor, ask, core, run
from pluribus import Batch, FinishReason, PluginError
from pluribus.testing import RoomFor
from pluribus_batchers.bucket import BucketBatcher, BucketConfig


@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize("passes", [2, 4, 8])
def test_steps_of_several_passes_give_the_same_tokens(passes: int, lookahead: int) -> None:
    executor = CountingExecutor()
    executor.passes = passes
    engine = core(executor, lookahead)
    engine.add(ending := ask(1, length=3, ends_at=9, max_tokens=20))
    engine.add(long := ask(2, length=2, max_tokens=13))
    engine.add(stopped := ask(3, length=4, max_tokens=20, stop_token_ids=(1007, 1006)))
    outputs = run(engine)
    assert (ending.tokens, ending.finish_reason) == ([*range(1003, 1009)], FinishReason.STOP)
    assert (long.tokens, long.finish_reason) == ([*range(1002, 1015)], FinishReason.LENGTH)
    assert (stopped.tokens, stopped.finish_reason) == ([1004, 1005], FinishReason.STOP)
    reported = [token for output in outputs if output.id == 2 for token in output.tokens]
    assert reported == long.tokens
    assert {step.passes for step in executor.steps[1:]} == {passes}
    assert long.num_scheduled == long.max_length - 1


def test_prompts_are_not_repeated() -> None:
    executor = CountingExecutor()
    executor.passes = 4
    engine = core(executor)
    engine.add(ask(1, length=3, max_tokens=9))
    run(engine)
    assert [(step.passes, step.rows[0].start) for step in executor.steps] == [
        (1, 0),
        (4, 3),
        (4, 7),
    ]


@pytest.mark.parametrize(
    "params",
    [
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1.0},
        {"repetition_penalty": 1.1},
        {"logit_bias": {5: 1.0}},
        {"min_tokens": 1},
    ],
    ids=str,
)
def test_who_does_not_end_on_the_device_bounds_the_passes(params: dict[str, Any]) -> None:
    """Such rows are launched for every pass, so none may be beyond what they have room for."""
    executor = CountingExecutor()
    executor.passes = 4
    engine = core(executor)
    engine.add(free := ask(1, length=3, max_tokens=8))
    engine.add(bound := ask(2, length=3, max_tokens=4, **params))
    run(engine)
    assert [step.passes for step in executor.steps] == [1, 3, 4]
    assert [len(bound.tokens), len(free.tokens)] == [4, 8]


@pytest.mark.parametrize("length", [1, 3])
def test_who_has_its_prompt_scored_gets_several_tokens_a_step_after_it(length: int) -> None:
    executor = CountingExecutor()
    executor.passes = 4
    engine = core(executor)
    engine.add(scored := ask(1, length=length, max_tokens=6, prompt_logprobs=1))
    run(engine)
    assert [step.passes for step in executor.steps] == [1, 4, 4]
    assert len(scored.tokens) == 6


def test_who_is_told_logprobs_gets_a_token_a_step() -> None:
    executor = CountingExecutor()
    executor.passes = 4
    engine = core(executor)
    engine.add(ask(1, length=3, max_tokens=6))
    engine.add(told := ask(2, length=3, max_tokens=4, logprobs=0))
    run(engine)
    assert [step.passes for step in executor.steps] == [1, 1, 1, 1, 4]
    assert len(told.tokens) == 4


def test_every_pass_counts() -> None:
    executor = CountingExecutor()
    executor.passes = 4
    engine = core(executor)
    engine.add(ask(1, length=3, max_tokens=9))
    engine.add(ask(2, length=3, max_tokens=1))
    outputs = run(engine)
    assert engine.stats().num_batch_tokens == 4
    [timing] = [output.timing for output in outputs if output.id == 1 and output.timing]
    assert timing.mean_batch_size == pytest.approx(10 / 9)


def test_no_pass_goes_beyond_the_room_there_is() -> None:
    executor = CountingExecutor()
    executor.passes = 8
    engine = core(executor)
    engine.add(free := ask(1, length=3, max_tokens=9))
    engine.add(late := ask(2, length=3, max_tokens=9))
    limits = engine.ledger.limits
    assert isinstance(limits, dict)
    limits[late] = 6
    engine.step()
    engine.step()
    assert executor.steps[-1].passes == 3
    assert late.num_scheduled == 6
    limits.clear()
    run(engine)
    assert late.tokens == free.tokens == [*range(1003, 1012)]


@pytest.mark.parametrize("repeats", [0, -1, 5])
def test_a_batcher_that_repeats_what_it_may_not_is_named(repeats: int) -> None:
    class Overdoing(BucketBatcher):
        def repeat(self, batch: Batch, most: int) -> int:
            return repeats

    executor = CountingExecutor(num_slots=1)
    executor.passes = 4
    engine = core(executor)
    engine.batcher = Overdoing(BucketConfig(max_batch_size=1), engine.ledger)
    engine.add(ask(1, length=1, max_tokens=9))
    with pytest.raises(PluginError) as caught:
        engine.step()
    breach = f"repeats a batch {repeats} times where 1 to 4 are possible"
    assert str(caught.value).startswith("the batcher ")
    assert str(caught.value).endswith(f".Overdoing {breach}")


def test_a_batcher_that_says_nothing_repeats_nothing() -> None:
    batcher = BucketBatcher(BucketConfig(max_batch_size=1), RoomFor(9))
    assert batcher.repeat(Batch({ask(1): 1}), 8) == 1
