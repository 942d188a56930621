"""Whatever engines do, each generation is at one that lives, or waits, or its loss is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pluribus import EngineError
from pluribus.assembly import EngineConfig
from pluribus.engine.client import EngineClient, EngineHost
from pluribus.engine.messages import Cancel, FromFront, Ready, Stats, Stepped, Submit
from pluribus.fleet import Fleet
from pluribus.generation import SamplingParams
from pluribus.routing import Router
from pluribus.supervisor import State, Status

BLOCK, MAX_LEAD = 2, 2
UNUSED = cast(EngineHost, None)


class Inbox(EngineClient):
    """An engine of which only matters what it was told."""

    def __init__(self) -> None:
        self.ids: set[int] = set()

    def send(self, message: FromFront) -> None:
        if isinstance(message, Submit):
            assert message.id not in self.ids
            self.ids.add(message.id)
        elif isinstance(message, Cancel):
            self.ids.remove(message.id)


class Losses:
    def __init__(self) -> None:
        self.ids: list[int] = []

    def engine_spoke(self, replica: int, message: object) -> None:
        pass

    def generations_lost(self, ids: Sequence[int], reason: str) -> None:
        self.ids += ids


def fleet(num_replicas: int, losses: Losses | None = None) -> Fleet:
    """Return a fleet whose supervisors are played by hand: see ``become``."""
    return Fleet(
        "fake",
        [UNUSED] * num_replicas,
        EngineConfig(),
        Router(BLOCK, MAX_LEAD),
        losses or Losses(),
    )


def become(fleet: Fleet, index: int, state: State, detail: str = "") -> None:
    """Let a replica's supervisor come to ``state``."""
    supervisor = fleet.replicas[index].supervisor
    supervisor._is_loaded = state is State.READY
    supervisor._client = Inbox() if state is State.READY else None
    supervisor._status = Status(state, detail)
    for watcher in supervisor._watchers:
        watcher(supervisor._status)
    if state is State.READY:
        fleet.replicas[index].engine_ready(Ready(100))


def submit(id_: int, prompt: tuple[int, ...] = (2, 3, 4)) -> Submit:
    return Submit(id_, prompt, SamplingParams(seed=1), "somebody", 1.0, "salt")


class Life(RuleBasedStateMachine):
    """Engines come and die, generations come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = Losses()
        self.fleet = fleet(3, self.losses)
        for index in range(3):
            become(self.fleet, index, State.LOADING)
        self.ids: set[int] = set()
        self.next_id = 0

    @rule(prompt=st.lists(st.integers(0, 1), max_size=6).map(tuple))
    def ask(self, prompt: tuple[int, ...]) -> None:
        self.next_id += 1
        before = self.loads()
        if not self.fleet.has_future:
            return
        self.ids.add(self.next_id)
        self.fleet.submit(submit(self.next_id, prompt))
        grown = [index for index, load in self.loads().items() if load > before[index]]
        assert len(grown) == bool(before)
        assert all(before[index] <= min(before.values()) + MAX_LEAD for index in grown)

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), is_over=st.booleans())
    def end(self, data: st.DataObject, is_over: bool) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.ids)))
        self.ids.remove(id_)
        if is_over:
            for inbox in self.inboxes():
                inbox.ids.discard(id_)
            self.fleet.forget(id_)
        else:
            self.fleet.cancel(id_)

    @rule(index=st.integers(0, 2))
    def load(self, index: int) -> None:
        if self.state(index) is State.LOADING:
            become(self.fleet, index, State.READY)

    @rule(index=st.integers(0, 2), is_given_up=st.booleans())
    def die(self, index: int, is_given_up: bool) -> None:
        if self.state(index) is not State.FAILED:
            become(self.fleet, index, State.FAILED if is_given_up else State.LOADING)
            self.fleet.replicas[index].engine_died("as a test wanted")
            lost, self.losses.ids = self.losses.ids, []
            assert self.ids.issuperset(lost)
            if not self.fleet.has_future:
                self.ids.difference_update(lost)
                return
            for id_ in lost:
                self.fleet.submit(submit(id_))

    def state(self, index: int) -> State:
        return self.fleet.replicas[index].supervisor.status.state

    def inboxes(self) -> list[Inbox]:
        clients = [replica.supervisor._client for replica in self.fleet.replicas]
        return [client for client in clients if isinstance(client, Inbox)]

    def loads(self) -> dict[int, int]:
        return {
            replica.index: replica.num_generations
            for replica in self.fleet.replicas
            if replica.supervisor.is_loaded
        }

    @invariant()
    def each_is_in_one_place(self) -> None:
        held = [id_ for inbox in self.inboxes() for id_ in inbox.ids]
        waiting = [*self.fleet._waiting]
        assert sorted(held + waiting) == sorted(self.ids)
        assert not (waiting and held)
        assert sum(self.loads().values()) == len(held)

    @invariant()
    def the_whole_is_as_good_as_the_best(self) -> None:
        states = [self.state(index) for index in range(3)]
        best = min(states, key=[State.READY, State.LOADING, State.FAILED].index)
        assert self.fleet.status.state is best
        assert self.fleet.has_future is (best is not State.FAILED)


Life.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


def test_all_told_it_is_ready_once_one_is_and_says_how_many_are() -> None:
    three, told = fleet(3), list[Status]()
    three.watch(told.append)
    for index in range(3):
        become(three, index, State.LOADING, "starting")
    become(three, 1, State.READY)
    become(three, 0, State.LOADING, "7 % of the weights are read")
    become(three, 0, State.READY)
    become(three, 2, State.FAILED, "on fire")
    become(three, 1, State.FAILED, "on fire")
    become(three, 0, State.FAILED, "the last")
    assert [(status.state, status.detail) for status in told] == [
        (State.LOADING, "starting"),
        (State.READY, "serving fake with 1 of 3 replicas"),
        (State.READY, "serving fake with 2 of 3 replicas"),
        (State.READY, "serving fake with 1 of 3 replicas"),
        (State.FAILED, "the last"),
    ]
    assert not three.is_advancing()


def test_one_alone_speaks_for_itself() -> None:
    one = fleet(1)
    become(one, 0, State.READY, "serving it")
    assert one.status == Status(State.READY, "serving it")


def test_stopping_is_told_once() -> None:
    two, told = fleet(2), list[State]()
    for index in range(2):
        become(two, index, State.READY)
    two.watch(lambda status: told.append(status.state))
    two.retire()
    assert told == [State.STOPPING]


def test_a_configuration_that_one_refuses_is_refused() -> None:
    """As nothing that comes later will mend it."""
    two = fleet(2)
    become(two, 0, State.READY)
    two.replicas[1].supervisor.is_refused = True
    become(two, 1, State.FAILED, "there is no such device")
    assert two.status == Status(State.FAILED, "there is no such device")
    with pytest.raises(EngineError, match="no such device"):
        asyncio.run(two.wait_ready())


def test_one_that_does_not_advance_is_told_of_though_others_do() -> None:
    two = fleet(2)
    for index in range(2):
        become(two, index, State.READY)
    two.submit(submit(1))
    assert two.is_advancing()
    two.replicas[0].supervisor._advanced = float("-inf")
    assert not two.is_advancing()
    become(two, 0, State.FAILED)
    assert two.is_advancing()


def test_an_engine_that_hangs_is_noticed_though_all_have_left() -> None:
    """What the front has forgotten, the engine may be busy with: it has to say that it is not."""
    one = fleet(1)
    become(one, 0, State.READY)
    [replica] = one.replicas
    one.submit(submit(1))
    one.cancel(1)
    replica.supervisor._advanced = float("-inf")
    assert not one.is_advancing()
    replica.engine_spoke(Stepped((), Stats(1, 1, 0, 32, 40, 16, 1, 1, 0.1)))
    assert not one.is_advancing()
    replica.engine_spoke(Stepped((), Stats(1, 0, 0, 0, 40, 16, 1, 1, 0.1)))
    assert one.is_advancing()


def test_an_engine_has_work_until_it_has_answered_what_it_was_sent() -> None:
    one = fleet(1)
    become(one, 0, State.READY)
    [replica] = one.replicas
    one.submit(submit(1))
    replica.engine_spoke(Stepped((), Stats(1, 0, 0, 0, 40, 16, 1, 1, 0.1)))  # said before it came
    replica.supervisor._advanced = float("-inf")
    assert not one.is_advancing()


def test_what_engines_have_done_is_summed_and_outlives_them() -> None:
    two = fleet(2)
    for index in range(2):
        become(two, index, State.READY)
        two.replicas[index].engine_spoke(Stepped((), Stats(1, 2, 0, 32, 40, 16, 1, 1, 0.1)))
    readings = two.readings
    assert (readings.num_running, readings.num_kv_tokens, readings.num_kv_tokens_used) == (
        4,
        200,
        64,
    )
    assert (readings.num_prompt_tokens, readings.num_cached_tokens) == (80, 32)
    become(two, 0, State.LOADING)
    two.replicas[0].engine_died("as a test wanted")
    readings = two.readings
    assert (readings.num_running, readings.num_kv_tokens_used) == (2, 32)
    assert (readings.num_prompt_tokens, readings.num_cached_tokens) == (80, 32)
