"""``batcher=fair``: the bounds that ``pluribus_batchers.fair`` promises hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from math import inf

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import invariant

from batchers.steps import FIND_ONLY, TENANTS, Burst, Simulation, StepMachine
from pluribus import Batch, Batcher, Generation, KVLedger, SamplingParams
from pluribus.testing import BatcherContract, RoomFor, generation, run_step
from pluribus.testing.batcher import NUM_TOKENS, WEIGHTS
from pluribus_batchers.continuous import (
    AdmissionQueue,
    ArrivalQueue,
    ContinuousBatcher,
    ContinuousConfig,
)
from pluribus_batchers.fair import FairBatcher, FairQueue

MAX_LENGTH = 12
MANY = hypothesis.settings(deadline=None, max_examples=100)

configs = st.builds(ContinuousConfig, st.integers(1, 4), st.integers(4, 10))
rooms = st.integers(MAX_LENGTH, 4 * MAX_LENGTH)
bursts = st.builds(
    Burst,
    step=st.integers(0, 60),
    tenant=st.sampled_from(sorted(TENANTS)),
    count=st.integers(1, 60),
    prompt_length=st.integers(1, MAX_LENGTH - 4),
    max_tokens=st.integers(1, 4),
)
floods = st.lists(bursts, min_size=2, max_size=6)


class Watch:
    """Holds what tenants were served against the first bound, while steps go by."""

    def __init__(self, weights: Mapping[str, float], held: int) -> None:
        self._weights = weights
        self._held = held
        self._starts: dict[tuple[str, str], float] = {}

    def check(
        self,
        served: Mapping[str, int],
        waiting: Sequence[Generation],
        running: Sequence[Generation],
    ) -> None:
        """Compare every tenant that waits to every other; ``served`` counts from the start."""
        has_waiting = {member.tenant for member in waiting}
        for pair in permutations(self._weights, 2):
            if pair[0] not in has_waiting:
                self._starts.pop(pair, None)
                continue
            shares = [served[tenant] / self._weights[tenant] for tenant in pair]
            lead = shares[1] - shares[0]
            head_start = 0.0 if pair[1] in has_waiting else self._rest(pair[1], running)
            start = min(lead + head_start, self._starts.get(pair, inf))
            self._starts[pair] = start
            bound = sum(self._held / self._weights[tenant] for tenant in pair)
            assert lead - start <= bound + 1e-6, "a tenant got too far ahead"

    def _rest(self, tenant: str, running: Sequence[Generation]) -> float:
        left = (m.max_length - m.num_scheduled for m in running if m.tenant == tenant)
        return sum(left) / self._weights[tenant]


class FairMachine(StepMachine):
    order_within = "tenant"

    def __init__(self, make: Callable[[KVLedger], Batcher], max_batch_size: int) -> None:
        super().__init__(make, max_batch_size)
        self.served: Counter[str] = Counter()
        self.watch = Watch(WEIGHTS, held=min(max_batch_size * 11, NUM_TOKENS))

    def check_batch(self, batch: Batch, joining: list[Generation]) -> None:
        super().check_batch(batch, joining)
        for member, num_tokens in batch.num_tokens.items():
            self.served[member.tenant] += num_tokens

    def check_repeats(self, again: list[Generation]) -> None:
        self.served.update(member.tenant for member in again)

    @invariant()
    def nobody_gets_too_far_ahead(self) -> None:
        self.watch.check(self.served, self.waiting, self.running)


class TestFairBatcher(BatcherContract):
    machine = FairMachine

    def make(self, ledger: KVLedger) -> ContinuousBatcher:
        config = ContinuousConfig(self.max_batch_size, StepMachine.max_batch_tokens)
        return FairBatcher(config, ledger)


def run_flood(engine: Simulation, flood: list[Burst], num_steps: int) -> Iterator[None]:
    """Run steps as requests come, yielding before each step."""
    for number in range(num_steps):
        for burst in flood:
            if burst.step == number:
                engine.add(burst)
        yield
        engine.step()


def check_shares(batcher: type[ContinuousBatcher], settings: hypothesis.settings) -> None:
    @settings
    @given(config=configs, room=rooms, flood=floods)
    def check(config: ContinuousConfig, room: int, flood: list[Burst]) -> None:
        engine = Simulation(batcher, config, room)
        watch = Watch(TENANTS, held=min(config.max_batch_size * MAX_LENGTH, room))
        for _ in run_flood(engine, flood, num_steps=300):
            watch.check(engine.served, engine.waiting, engine.running)

    check()


def check_wait(batcher: type[ContinuousBatcher], settings: hypothesis.settings) -> None:
    @settings
    @given(config=configs, room=rooms, flood=floods, arrival=st.integers(0, 100))
    def check(config: ContinuousConfig, room: int, flood: list[Burst], arrival: int) -> None:
        engine = Simulation(batcher, config, room)
        newcomer = Burst(arrival, "newcomer", 1, prompt_length=2, max_tokens=2)
        held = min(config.max_batch_size * MAX_LENGTH, room)
        at_arrival = 0
        for number, _ in enumerate(run_flood(engine, [*flood, newcomer], num_steps=1000)):
            if number == arrival:
                at_arrival = engine.served.total()
            if number >= arrival and not engine.is_waiting("newcomer"):
                return
            waited = engine.served.total() - at_arrival
            assert number < arrival or waited <= held + len(TENANTS) * MAX_LENGTH, "it waits on"
        raise AssertionError("it waits for ever")

    check()


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_repeated_tokens_are_served_ones(most: int) -> None:
    """Whoever has had more when both ask again waits; repeats are charged up to the last token."""
    batcher = FairBatcher(ContinuousConfig(1, 8), RoomFor(100))
    params = SamplingParams(max_tokens=4)
    batcher.add(member := generation(1, prompt=(2,), params=params, tenant="plain"))
    served = 0
    while member.num_unscheduled:
        batch = batcher.next_batch()
        assert batch is not None
        passes = batcher.repeat(batch, most)
        served += min(passes, member.max_length - 1 - member.num_scheduled)
        member.num_scheduled = min(member.num_scheduled + passes, member.max_length - 1)
    assert served == 4
    queue = batcher._waiting
    assert isinstance(queue, FairQueue)
    assert queue._accounts["plain"].count() == served


def test_what_tenants_are_served_differs_by_no_more_than_the_bound() -> None:
    check_shares(FairBatcher, MANY)


def test_a_newcomer_waits_for_what_runs_and_one_generation_of_each_other() -> None:
    check_wait(FairBatcher, MANY)


class IgnoresWeights(FairQueue):
    def add(self, generation: Generation) -> None:
        generation.weight = 1.0
        super().add(generation)


class ChargesForPromptsAlone(FairQueue):
    def charge(self, generation: Generation, num_tokens: int) -> None:
        super().charge(generation, num_tokens)
        self._accounts[generation.tenant].running[generation] = generation.max_length


class GivesCreditForIdling(FairQueue):
    def _level(self) -> float:
        return 0.0


class ServesWhoeverWasServedMost(FairQueue):
    def head(self) -> Generation:
        return max(self._backlogged.values(), key=lambda account: account.count()).waiting[0]


def batcher_with(queue: type[AdmissionQueue]) -> type[ContinuousBatcher]:
    class Broken(ContinuousBatcher):
        queue_class = queue

    return Broken


@pytest.mark.parametrize(
    "broken", [IgnoresWeights, ChargesForPromptsAlone, GivesCreditForIdling, ArrivalQueue]
)
def test_the_bound_on_shares_is_broken_by_a_queue_that(broken: type[AdmissionQueue]) -> None:
    with pytest.raises(AssertionError, match="too far ahead"):
        check_shares(batcher_with(broken), FIND_ONLY)


@pytest.mark.parametrize("broken", [ServesWhoeverWasServedMost, ArrivalQueue])
def test_the_bound_on_waiting_is_broken_by_a_queue_that(broken: type[AdmissionQueue]) -> None:
    with pytest.raises(AssertionError, match="it waits"):
        check_wait(batcher_with(broken), FIND_ONLY)


@hypothesis.settings(deadline=None)
@given(config=configs, room=rooms, flood=floods)
def test_a_single_tenant_is_served_as_by_continuous(
    config: ContinuousConfig, room: int, flood: list[Burst]
) -> None:
    alone = [replace(burst, tenant="plain", count=burst.count % 9) for burst in flood]
    fair, continuous = (Simulation(b, config, room) for b in (FairBatcher, ContinuousBatcher))
    for number in range(100):
        for burst in alone:
            if burst.step == number:
                fair.add(burst)
                continuous.add(burst)
        ours, theirs = fair.step(), continuous.step()
        assert list(ours.items()) == list(theirs.items())


def test_tenants_take_turns_within_a_step() -> None:
    batcher = FairBatcher(ContinuousConfig(4, 100), RoomFor(1000))
    for number in range(8):
        batcher.add(generation(number, tenant="first" if number < 6 else "second"))
    assert run_step(batcher) == [0, 6, 1, 7]


def test_a_tenant_of_three_times_the_weight_is_served_three_times_as_much() -> None:
    engine = Simulation(FairBatcher, ContinuousConfig(4, 8), num_tokens=1000)
    flood = [Burst(0, tenant, 1000, 4, 4) for tenant in ("plain", "heavy")]
    for _ in run_flood(engine, flood, num_steps=500):
        pass
    assert engine.served["heavy"] / engine.served["plain"] == pytest.approx(3, rel=0.05)


def test_tokens_found_in_the_cache_are_not_charged() -> None:
    batcher = FairBatcher(ContinuousConfig(1, 100), RoomFor(1000, num_stored=50))
    once = SamplingParams(max_tokens=1)
    finished = []
    for number, tenant in enumerate(["long", "long", "short", "short"]):
        prompt = (2,) * (50 if tenant == "long" else 49)
        batcher.add(generation(number, prompt=prompt, params=once, tenant=tenant))
    while batch := batcher.next_batch():
        (member,) = batch.num_tokens
        member.num_scheduled += batch.num_tokens[member]
        batcher.finish(member)
        finished.append(member.tenant)
    assert finished == ["long", "short", "long", "short"]


def test_tenants_that_are_gone_are_forgotten_and_those_that_run_are_not() -> None:
    batcher = FairBatcher(ContinuousConfig(4, 8), RoomFor(10_000))
    batcher.add(generation(0, tenant="resident", params=SamplingParams(max_tokens=5000)))
    for number in range(1, 1000):
        batcher.add(only := generation(number, tenant=f"tenant-{number}"))
        assert run_step(batcher) == [0, number]
        batcher.finish(only)
    queue = batcher._waiting
    assert isinstance(queue, FairQueue)
    assert len(queue._accounts) < 200


def test_what_a_tenant_has_been_served_is_remembered_while_it_matters() -> None:
    queue = FairQueue()
    patient, served = generation(1, tenant="patient"), generation(2, tenant="served")
    queue.add(patient)
    queue.add(served)
    queue.remove(served)
    queue.charge(served, 100)
    queue.forget(served)
    for number in range(200):
        queue.add(other := generation(number, tenant=f"tenant-{number}"))
        queue.remove(other)
        queue.forget(other)
    queue.add(generation(3, tenant="served"))
    queue.add(new := generation(4, tenant="new"))
    queue.remove(patient)
    assert queue.head() is new


def test_what_runs_counts_before_it_is_over() -> None:
    queue = FairQueue()
    for running in (first := generation(1, tenant="first"), generation(2, tenant="second")):
        queue.add(running)
        queue.remove(running)
        queue.charge(running, 1)
    queue.add(generation(3, tenant="first"))
    queue.add(other := generation(4, tenant="second"))
    first.num_scheduled = 3
    assert queue.head() is other
    queue.forget(first)
    assert queue.head() is other
