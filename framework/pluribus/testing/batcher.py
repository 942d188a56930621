"""What every batcher must do."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pluribus.generation import Batch, Generation, SamplingParams
from pluribus.interfaces import Batcher, KVLedger
from pluribus.testing.fakes import RoomFor, generation, run_step
from pluribus.testing.machine import run_machine

NUM_TOKENS = 40

WEIGHTS = {"": 1.0, "light": 0.5, "heavy": 3.0}
"""Of the tenants that a machine plays."""

prompts = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple)
max_tokens = st.integers(0, 5)
requests = st.tuples(prompts, max_tokens, st.sampled_from(sorted(WEIGHTS)))
sampling = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.7, 1.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([0.9, 1.0]),
)


class BatcherMachine(RuleBasedStateMachine):
    """A random engine: does to a batcher what the engine may do, and checks every answer.

    Subclass it to check more: ``check_batch`` sees every batch before it runs.

    Attributes:
        order_within: who is admitted in order of arrival: ``all``, or each ``tenant``'s own.
        waiting: added and not run yet, in order of arrival.
        running: have run and have not finished, in the order they first ran.
        under_way: for each step submitted and not read, whose tokens it will bring, pass by pass.
    """

    order_within: ClassVar[Literal["all", "tenant"]] = "all"

    def __init__(self, make: Callable[[KVLedger], Batcher], max_batch_size: int) -> None:
        super().__init__()
        self.ledger = RoomFor(NUM_TOKENS)
        self.batcher = make(self.ledger)
        self.max_batch_size = max_batch_size
        self.lookahead = 0
        self.waiting: list[Generation] = []
        self.running: list[Generation] = []
        self.under_way: deque[list[Generation]] = deque()
        self.num_added = 0

    def check_batch(self, batch: Batch, joining: list[Generation]) -> None:
        """Raise AssertionError unless the batch keeps the rules; ``joining`` have not run yet."""
        running = self.running + joining
        assert len(running) <= self.max_batch_size, "more run at once than allowed"
        for line in self.lines():
            joined = [member for member in joining if member in line]
            assert joined == line[: len(joined)], "somebody overtook"
        for member, num_tokens in batch.num_tokens.items():
            assert member in running, f"{member.id} was never added, or is finished"
            assert member in self.ledger.held, f"{member.id} runs without a reservation"
            assert 1 <= num_tokens <= member.num_unscheduled
            assert num_tokens <= self.num_allowed(member), f"{member.id} goes beyond its limit"

    def check_repeats(self, again: list[Generation]) -> None:
        """Raise AssertionError unless it was right to compute one more token of each of these."""

    @initialize(lookahead=st.integers(0, 2), num_stored=st.integers(0, 3))
    def choose_surroundings(self, lookahead: int, num_stored: int) -> None:
        self.lookahead = lookahead
        self.ledger.num_stored = num_stored

    @rule(new=st.lists(requests, min_size=1, max_size=4), alike=sampling)
    def add(self, new: list[tuple[tuple[int, ...], int, str]], alike: SamplingParams) -> None:
        for prompt, most, tenant in new:
            self.num_added += 1
            scores = None if most else 0
            params = replace(alike, max_tokens=most, prompt_logprobs=scores)
            added = generation(
                self.num_added,
                prompt=prompt,
                params=params,
                tenant=tenant,
                weight=WEIGHTS[tenant],
            )
            self.batcher.add(added)
            self.waiting.append(added)

    @rule(is_shut=st.booleans())
    def let_the_ledger_refuse(self, is_shut: bool) -> None:
        self.ledger.is_shut = is_shut

    @precondition(lambda self: self.ledger.promised)
    @rule(data=st.data(), ahead=st.integers(0, 3))
    def let_promised_room_be_late(self, data: st.DataObject, ahead: int) -> None:
        promised = [member for member in self.running if member in self.ledger.promised]
        if promised:
            member = data.draw(st.sampled_from(promised))
            least = max(member.num_scheduled, len(member.prompt) + 1)
            self.ledger.limits[member] = least + ahead

    @rule()
    def let_promised_room_be_there(self) -> None:
        self.ledger.limits.clear()

    @precondition(lambda self: len(self.under_way) <= self.lookahead)
    @rule(max_passes=st.integers(1, 4))
    def submit_step(self, max_passes: int) -> None:
        batch = self.batcher.next_batch()
        if batch is None:
            nobody_could = not any(map(self.num_allowed, self.running))
            may_wait = nobody_could and (bool(self.running) or not self.waiting)
            assert may_wait or self.under_way, "there is work, but nothing runs"
            return
        assert len(batch), "a batch of nobody"
        joining = [member for member in batch.num_tokens if member not in self.running]
        self.check_batch(batch, joining)
        self.running += joining
        self.waiting = [member for member in self.waiting if member not in joining]
        passes = self._passes(batch, max_passes)
        for member, num_tokens in batch.num_tokens.items():
            member.num_scheduled += num_tokens
        brought = [m for m in batch.num_tokens if m.num_scheduled >= len(m.prompt)]
        for _ in range(1, passes):
            again = [member for member in batch.num_tokens if member.num_unscheduled]
            self.check_repeats(again)
            for member in again:
                member.num_scheduled += 1
            brought += again
        self.under_way.append(brought)

    @precondition(lambda self: self.under_way)
    @rule(stopping=st.sets(st.integers(0, 3), max_size=2))
    def read_tokens(self, stopping: set[int]) -> None:
        for row, member in enumerate(self.under_way.popleft()):
            if member not in self.running:
                continue  # finished while the step was under way
            member.tokens.append(0)
            if row in stopping or len(member.tokens) >= member.params.max_tokens:
                self._finish(member)

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._finish(data.draw(st.sampled_from(self.running + self.waiting)))

    @invariant()
    def counts_are_right(self) -> None:
        assert self.batcher.num_waiting == len(self.waiting)
        assert self.batcher.num_running == len(self.running)

    @invariant()
    def only_the_living_hold_cache(self) -> None:
        self.ledger.check_integrity()
        gone = self.ledger.held - {*self.waiting, *self.running}
        assert not gone, "somebody who ended still holds cache"

    def teardown(self) -> None:
        if sys.exception() is None:  # else what failed says more
            self._run_to_the_end()

    def _run_to_the_end(self) -> None:
        self.let_promised_room_be_there()
        work = sum(member.max_length for member in self.waiting + self.running)
        for _ in range(10 * work):  # ten times over, for batchers that preempt
            while self.under_way:
                self.read_tokens(set())
            self.submit_step(max_passes=2)
        assert not self.waiting, "somebody never ran"
        assert not self.running, "somebody never finished"
        self.only_the_living_hold_cache()

    def lines(self) -> list[list[Generation]]:
        """Return who waits, in order of arrival, for each line in which nobody may overtake."""
        if self.order_within == "all":
            return [self.waiting]
        return [[m for m in self.waiting if m.tenant == tenant] for tenant in WEIGHTS]

    def num_allowed(self, member: Generation) -> int:
        """Return how many tokens of one that runs a step may compute."""
        limit = self.ledger.limits.get(member, member.max_length)
        return min(member.num_unscheduled, limit - member.num_scheduled)

    def _passes(self, batch: Batch, most: int) -> int:
        """Return how often the batch runs, which is asked where it may be more than once."""
        for member, num_tokens in batch.num_tokens.items():
            if num_tokens > 1 or member.takes_one_pass:
                return 1
            if limit := self.ledger.limits.get(member):
                most = min(most, limit - member.num_scheduled)
        passes = self.batcher.repeat(batch, most) if most > 1 else 1
        assert 1 <= passes <= most, f"repeated {passes} times where 1 to {most} are possible"
        return passes

    def _finish(self, member: Generation) -> None:
        self.batcher.finish(member)
        queue = self.running if member in self.running else self.waiting
        queue.remove(member)


class BatcherContract(ABC):
    """Subclass in a batcher's tests and return it from ``make``.

    Attributes:
        max_batch_size: what ``make`` must set.
        machine: a subclass of BatcherMachine checks more than the contract.
        settings: for hypothesis.
    """

    max_batch_size: ClassVar[int] = 3
    machine: ClassVar[type[BatcherMachine]] = BatcherMachine
    settings: ClassVar[hypothesis.settings] = hypothesis.settings(deadline=None)

    @abstractmethod
    def make(self, ledger: KVLedger) -> Batcher:
        """Return a batcher that runs ``max_batch_size`` generations at once, at most."""

    def test_nothing_runs_when_nothing_waits(self) -> None:
        assert self.make(RoomFor(100)).next_batch() is None

    @pytest.mark.parametrize("admitted", [True, False], ids=["running", "waiting"])
    def test_finishing_gives_the_cache_back(self, admitted: bool) -> None:
        ledger = RoomFor(100)
        batcher = self.make(ledger)
        batcher.add(only := generation())
        if admitted:
            assert run_step(batcher) == [only.id]
        batcher.finish(only)
        assert ledger.room == 100
        assert batcher.next_batch() is None

    def test_nobody_overtakes_while_the_cache_is_full(self) -> None:
        small, large = generation(1), generation(2, prompt=(2,) * 8)
        batcher = self.make(RoomFor(large.max_length))
        for member in (small, large, generation(3)):
            batcher.add(member)
        assert run_step(batcher) == [1]
        batcher.finish(small)
        assert run_step(batcher) == [2]

    def test_the_last_token_is_scheduled_once(self) -> None:
        batcher = self.make(RoomFor(100))
        batcher.add(only := generation())
        while only.num_unscheduled:
            assert run_step(batcher) == [only.id]
        assert batcher.next_batch() is None
        assert batcher.num_running == 1

    def test_every_promise_whatever_happens(self) -> None:
        run_machine(lambda: self.machine(self.make, self.max_batch_size), self.settings)
