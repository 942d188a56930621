"""``batcher=continuous``: everybody joins as soon as there is room, in order of arrival."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import hypothesis
import pytest
from omegaconf import OmegaConf

from batchers.steps import FIND_ONLY, StepMachine
from pluribus import Batch, Capability, ConfigError, Generation, KVLedger, SamplingParams
from pluribus.testing import BatcherContract, RoomFor, generation, run_step
from pluribus_batchers.continuous import ArrivalQueue, ContinuousBatcher, ContinuousConfig
from pluribus_batchers.fair import FairBatcher

CONF = Path(__file__).parents[2] / "conf"


def batcher_of(
    *members: Generation, ledger: KVLedger | None = None, max_batch_size: int = 2
) -> ContinuousBatcher:
    config = ContinuousConfig(max_batch_size=max_batch_size, max_batch_tokens=4)
    batcher = ContinuousBatcher(config, ledger or RoomFor(10_000))
    for member in members:
        batcher.add(member)
    return batcher


def run_counts(batcher: ContinuousBatcher) -> dict[int, int]:
    """Run a step; return the tokens of each id."""
    batch = batcher.next_batch()
    if batch is None:
        return {}
    for member, num_tokens in batch.num_tokens.items():
        member.num_scheduled += num_tokens
    return {member.id: num_tokens for member, num_tokens in batch.num_tokens.items()}


class TestContinuousBatcher(BatcherContract):
    machine = StepMachine

    def make(self, ledger: KVLedger) -> ContinuousBatcher:
        config = ContinuousConfig(self.max_batch_size, StepMachine.max_batch_tokens)
        return ContinuousBatcher(config, ledger)


def test_generations_join_and_leave_at_every_step() -> None:
    first, second, third = (generation(number, prompt=(2,)) for number in (1, 2, 3))
    batcher = batcher_of(first)
    assert run_step(batcher) == [1]
    batcher.add(second)
    batcher.add(third)
    assert run_step(batcher) == [1, 2]
    batcher.finish(first)
    assert run_step(batcher) == [2, 3]


def test_who_waits_for_promised_room_is_left_out_until_it_is_there() -> None:
    members = [generation(number, prompt=(2,)) for number in (1, 2)]
    ledger = RoomFor(100)
    batcher = batcher_of(*members, ledger=ledger)
    assert run_counts(batcher) == {1: 1, 2: 1}
    ledger.limits[members[0]] = 2
    assert [run_counts(batcher) for _ in range(2)] == [{1: 1, 2: 1}, {2: 1}]
    ledger.limits[members[1]] = 3
    assert batcher.next_batch() is None
    ledger.limits.clear()
    assert run_counts(batcher) == {1: 1, 2: 1}


def test_a_long_prompt_is_computed_in_chunks_that_cover_it_exactly() -> None:
    batcher = batcher_of(only := generation(1, prompt=(2,) * 10))
    steps = [run_counts(batcher) for _ in range(6)]
    assert steps == [{1: 4}, {1: 4}, {1: 2}, {1: 1}, {1: 1}, {1: 1}]
    assert not only.num_unscheduled
    assert batcher.next_batch() is None


def test_who_decodes_gets_a_token_in_every_step_however_many_prompts_wait() -> None:
    first = generation(1, prompt=(2,), params=SamplingParams(max_tokens=6))
    batcher = batcher_of(first, *(generation(n, prompt=(2,) * 9) for n in range(2, 9)))
    assert run_counts(batcher) == {1: 1, 2: 3}
    steps = [run_counts(batcher) for _ in range(3)]
    assert steps == [{1: 1, 2: 3}, {1: 1, 2: 3}, {1: 1, 2: 1}]


def test_prompts_share_a_step_without_exceeding_its_budget() -> None:
    batcher = batcher_of(*(generation(n, prompt=(2,) * 3) for n in (1, 2, 3)), max_batch_size=3)
    assert [run_counts(batcher) for _ in range(3)] == [
        {1: 3, 2: 1},
        {1: 1, 2: 2, 3: 1},
        {1: 1, 2: 1, 3: 2},
    ]


def test_what_the_cache_holds_of_a_prompt_is_not_computed_again() -> None:
    batcher = batcher_of(generation(1, prompt=(2,) * 9), ledger=RoomFor(100, num_stored=7))
    assert [run_counts(batcher) for _ in range(2)] == [{1: 2}, {1: 1}]


def test_a_generation_that_is_only_scored_runs_its_prompt_and_no_more() -> None:
    scored = SamplingParams(max_tokens=0, prompt_logprobs=0)
    batcher = batcher_of(generation(1, prompt=(2,) * 6, params=scored))
    assert [run_counts(batcher) for _ in range(3)] == [{1: 4}, {1: 2}, {}]
    assert batcher.num_running == 1


def test_a_big_request_runs_although_small_ones_keep_coming() -> None:
    first, second, big = generation(1), generation(2), generation(3, prompt=(2,) * 96)
    batcher = batcher_of(first, second, big, ledger=(ledger := RoomFor(big.max_length)))
    for number in range(4, 12):
        batcher.add(small := generation(number))
        run_counts(batcher)
        for member in (first, second):
            if not member.num_unscheduled and member in ledger.held:
                batcher.finish(member)
    assert ledger.held == {big}
    assert small.num_scheduled == 0


def test_a_step_is_as_large_as_its_budget_at_most() -> None:
    config = ContinuousConfig(max_batch_size=4, max_batch_tokens=256)
    assert ContinuousBatcher.most_tokens(config, max_length=2048) == 256
    assert FairBatcher.most_tokens(config, max_length=40) == 160


def test_it_needs_a_cache_that_lets_generations_join_in_chunks() -> None:
    assert ContinuousBatcher.requires == {Capability.JOIN, Capability.CHUNK}


class DecodesWithWhatPromptsLeave(ContinuousBatcher):
    def next_batch(self) -> Batch | None:
        decoding = [g for g in self._decoding if g.num_unscheduled]
        num_tokens: dict[Generation, int] = {}
        budget = self._config.max_batch_tokens
        while budget and (generation := self._prefilling or self._admit()):
            num_tokens[generation] = self._prefill(generation, budget)
            budget -= num_tokens[generation]
        num_tokens |= dict.fromkeys(decoding[:budget], 1)
        return Batch(num_tokens) if num_tokens else None


class OverspendsTheBudget(ContinuousBatcher):
    def __init__(self, config: ContinuousConfig, ledger: KVLedger) -> None:
        super().__init__(replace(config, max_batch_tokens=config.max_batch_tokens + 1), ledger)


class ComputesWhatTheCacheHolds(ContinuousBatcher):
    def _prefill(self, generation: Generation, budget: int) -> int:
        super()._prefill(generation, budget)
        return min(budget, len(generation.prompt))


class TriesTheNextWhenTheHeadDoesNotFit(ContinuousBatcher):
    def _admit(self) -> Generation | None:
        admitted = super()._admit()
        if admitted is None and isinstance(self._waiting, ArrivalQueue):
            self._waiting._waiting.rotate(-1)
            admitted = super()._admit()
        return admitted


class AdmitsOneAStep(ContinuousBatcher):
    def next_batch(self) -> Batch | None:
        self._has_admitted = False
        return super().next_batch()

    def _admit(self) -> Generation | None:
        if self._has_admitted:
            return None
        self._has_admitted = True
        return super()._admit()


class IgnoresTheLimits(ContinuousBatcher):
    def next_batch(self) -> Batch | None:
        ledger = self._ledger
        assert isinstance(ledger, RoomFor)
        limits = dict(ledger.limits)
        ledger.limits.clear()
        batch = super().next_batch()
        ledger.limits.update(limits)
        return batch


def step_contract(batcher: type[ContinuousBatcher]) -> BatcherContract:
    class Contract(BatcherContract):
        machine = StepMachine
        settings: ClassVar[hypothesis.settings] = FIND_ONLY

        def make(self, ledger: KVLedger) -> ContinuousBatcher:
            return batcher(ContinuousConfig(self.max_batch_size, 4), ledger)

    return Contract()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (DecodesWithWhatPromptsLeave, "too few"),
        (OverspendsTheBudget, "too many|overspent"),
        (ComputesWhatTheCacheHolds, "num_unscheduled"),
        (TriesTheNextWhenTheHeadDoesNotFit, "overtook"),
        (AdmitsOneAStep, "could have joined"),
        (IgnoresTheLimits, "beyond its limit"),
        (FairBatcher, "overtook"),
    ],
)
def test_the_machine_refuses_a_batcher_that(
    broken: type[ContinuousBatcher], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        step_contract(broken).test_every_promise_whatever_happens()


@pytest.mark.parametrize("name", ["continuous", "fair"])
def test_defaults_are_those_of_the_configuration_file(name: str) -> None:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "batcher" / f"{name}.yaml"))
    defaults = ContinuousConfig()
    assert settings == {
        "name": name,
        "max_batch_size": defaults.max_batch_size,
        "max_batch_tokens": defaults.max_batch_tokens,
    }


def test_a_batch_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^batcher\.max_batch_size must be at least 1, got 0$"):
        ContinuousConfig(max_batch_size=0)


def test_a_step_too_small_for_the_batch_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        ContinuousConfig(max_batch_size=64, max_batch_tokens=63)
    assert str(refusal.value) == (
        "batcher.max_batch_tokens (63) must be at least batcher.max_batch_size (64): "
        "every running generation gets a token in each step"
    )


def test_a_batch_is_repeated_until_its_last_generation_is_complete() -> None:
    batcher = ContinuousBatcher(ContinuousConfig(max_batch_size=2), RoomFor(100))
    for number, max_tokens in ((1, 3), (2, 6)):
        params = SamplingParams(max_tokens=max_tokens)
        batcher.add(generation(number, prompt=(2,), params=params))
    batch = batcher.next_batch()
    assert batch is not None
    assert [batcher.repeat(batch, most) for most in (1, 2, 4, 6, 8)] == [1, 2, 4, 6, 6]
