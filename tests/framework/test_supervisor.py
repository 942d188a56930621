"""Engines are watched: one that dies, hangs or lies is noticed, and what comes next is told."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec
import pytest

from pluribus import EngineError
from pluribus.assembly import EngineConfig
from pluribus.engine.channel import HEADER, Channel, ChannelClosed
from pluribus.engine.client import EngineClient, EngineHost
from pluribus.engine.loop import EngineChannel
from pluribus.engine.messages import (
    Beat,
    Cancel,
    Died,
    FromEngine,
    FromFront,
    Loading,
    Ready,
    Stats,
    Stepped,
    Submit,
)
from pluribus.generation import SamplingParams
from pluribus.supervisor import State, Supervisor

STATS = Stats(1, 0, 0, 0, 0, 0, 0, 0, 0.0)
SUBMIT = Submit(7, (2, 3), SamplingParams(seed=1, stop=("é",)), "somebody", 1.0, "salt")


class ByHand(EngineHost):
    """Engines that a test plays."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.num_killed = 0

    async def start(self) -> EngineClient:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.sockets.append(theirs)
        return EngineClient(*await asyncio.open_unix_connection(sock=ours))

    async def kill(self) -> None:
        if self.sockets[-1].fileno() >= 0:
            self.sockets[-1].close()
            self.num_killed += 1

    def say(self, message: FromEngine) -> None:
        body = msgspec.msgpack.encode(message)
        self.sockets[-1].sendall(HEADER.pack(len(body)) + body)

    def die(self) -> None:
        self.sockets[-1].close()


class Recorder:
    def __init__(self) -> None:
        self.events: list[object] = []

    def engine_ready(self, message: Ready) -> None:
        self.events.append("ready")

    def engine_spoke(self, message: object) -> None:
        self.events.append(type(message).__name__)

    def engine_died(self, reason: str) -> None:
        self.events.append(reason)


Play = Callable[[Supervisor, ByHand, Recorder], Coroutine[Any, Any, None]]


def play(test: Play, **config: Any) -> None:
    """Run a test with an engine that loads."""

    async def life() -> None:
        host, recorder = ByHand(), Recorder()
        supervisor = Supervisor("tiny", host, EngineConfig(**config), recorder)
        supervisor.start()
        await until(lambda: len(host.sockets) == 1)
        try:
            await asyncio.wait_for(test(supervisor, host, recorder), 20)
        finally:
            host.die()
            await supervisor.stop()

    asyncio.run(life())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_loading_is_told_in_per_cent_and_then_it_is_ready() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        host.say(Loading(25, 100))
        await until(lambda: supervisor.status.detail == "25 % of the weights are read")
        host.say(Ready(1000))
        await supervisor.wait_ready()
        assert supervisor.status.state is State.READY
        assert recorder.events == ["ready"]

    play(test)


def test_an_engine_that_refuses_its_configuration_is_not_started_again() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        host.say(Died("dtype=int3 is no dtype", is_final=True))
        host.die()
        with pytest.raises(EngineError, match="dtype=int3 is no dtype"):
            await supervisor.wait_ready()
        assert supervisor.status.state is State.FAILED
        assert len(host.sockets) == 1

    play(test)


def test_an_engine_that_ends_without_a_word_is_replaced() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        host.say(Ready(1000))
        await supervisor.wait_ready()
        host.die()
        await until(lambda: len(host.sockets) == 2)
        assert supervisor.status.state is State.LOADING
        assert "ended without a word" in supervisor.status.detail
        host.say(Ready(1000))
        await supervisor.wait_ready()
        assert recorder.events == ["ready", "it ended without a word", "ready"]

    play(test)


def test_restarts_are_bounded() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        for number in range(1, 4):
            await until(lambda number=number: len(host.sockets) == number)  # type: ignore[misc]
            host.die()
        await until(lambda: supervisor.status.state is State.FAILED)
        assert supervisor.num_restarts == 2

    play(test, max_restarts=2)


def test_silence_with_work_to_do_is_death() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        host.say(Ready(1000))
        await supervisor.wait_ready()
        supervisor.set_has_work(True)
        for step in range(6):
            host.say(Beat(step))
            await asyncio.sleep(0.3)
        assert host.num_killed == 0
        await until(lambda: len(host.sockets) == 2)
        assert host.num_killed == 1

    play(test, heartbeat_timeout=1.0)


def test_silence_is_what_an_engine_died_of() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        host.say(Ready(1000))
        await supervisor.wait_ready()
        supervisor.set_has_work(True)
        await until(lambda: len(host.sockets) == 2)
        assert re.search(r"it said nothing for 1\.\d s", supervisor.status.detail)

    play(test, heartbeat_timeout=1.0)


def test_an_engine_that_falls_silent_while_it_loads_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pluribus.supervisor.SILENCE_WHILE_LOADING", 1.0)

    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        for _ in range(6):
            host.say(Beat(0))
            await asyncio.sleep(0.3)
        assert host.num_killed == 0
        await until(lambda: len(host.sockets) == 2)
        assert supervisor.status.state is State.LOADING
        host.say(Ready(1000))
        await supervisor.wait_ready()
        await asyncio.sleep(1.5)
        assert host.num_killed == 1

    play(test, heartbeat_timeout=1.0)


def test_an_engine_s_first_word_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluribus.supervisor.SILENCE_WHILE_LOADING", 1.0)

    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        await asyncio.sleep(1.5)
        assert host.num_killed == 0
        host.say(Ready(1000))
        await supervisor.wait_ready()

    play(test, heartbeat_timeout=1.0)


def test_silence_without_work_is_rest() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        host.say(Ready(1000))
        await supervisor.wait_ready()
        await asyncio.sleep(1.5)
        supervisor.set_has_work(True)
        await asyncio.sleep(0.3)
        host.say(Stepped((), STATS))
        supervisor.set_has_work(False)
        await asyncio.sleep(1.5)
        assert host.num_killed == 0
        assert supervisor.status.state is State.READY

    play(test, heartbeat_timeout=1.0)


def test_an_engine_that_beats_but_does_not_advance_is_noticed() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        host.say(Ready(1000))
        await supervisor.wait_ready()
        supervisor.set_has_work(True)
        host.say(Stepped((), STATS))
        await until(lambda: "Stepped" in recorder.events)
        assert supervisor.is_advancing()
        for _ in range(4):
            host.say(Beat(1))
            await asyncio.sleep(0.3)
        assert not supervisor.is_advancing()
        host.say(Stepped((), STATS))
        await until(supervisor.is_advancing)
        supervisor.set_has_work(False)

    play(test, stall_timeout=1.0)


def test_stopping_while_it_loads_does_not_wait() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        await asyncio.wait_for(supervisor.stop(), 1)
        assert host.num_killed == 1
        assert supervisor.status.state is State.STOPPING

    play(test)


def test_messages_cross_whole_however_the_bytes_are_cut() -> None:
    ours, theirs = socket.socketpair()
    channel: EngineChannel = Channel(theirs, FromFront)
    data = b"".join(
        HEADER.pack(len(body)) + body
        for body in (msgspec.msgpack.encode(message) for message in (SUBMIT, Cancel(7), SUBMIT))
    )
    received = []
    for at in range(0, len(data), 5):
        ours.sendall(data[at : at + 5])
        received += channel.receive(block=False)
    assert received == [SUBMIT, Cancel(7), SUBMIT]
    assert channel.receive(block=False) == []
    ours.close()
    with pytest.raises(ChannelClosed):
        channel.receive(block=True)
    with pytest.raises(ChannelClosed):
        channel.send(Beat(1))
    channel.close()


def test_what_comes_is_checked_not_executed() -> None:
    ours, theirs = socket.socketpair()
    channel: EngineChannel = Channel(theirs, FromFront)
    ours.sendall(HEADER.pack(3) + b"\x80\x04.")
    with pytest.raises(msgspec.ValidationError):
        channel.receive(block=True)
    ours.close()
    channel.close()


def test_a_listener_that_fails_is_the_end_and_said() -> None:
    async def test(supervisor: Supervisor, host: ByHand, recorder: Recorder) -> None:
        recorder.events = cast(Any, None)
        host.say(Ready(1000))
        await until(lambda: supervisor.status.state is State.FAILED)
        assert "AttributeError" in supervisor.status.detail

    play(test)
