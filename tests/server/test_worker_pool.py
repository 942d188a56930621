"""Workers are kept running, within reason, and what they say cannot hurt the others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from pluribus.companion import Companion
from pluribus.engine.async_channel import AsyncChannel, connect
from pluribus.errors import PluribusError
from pluribus.server.config import ServerConfig
from pluribus.server.run import bind
from pluribus.server.workers import worker as worker_module
from pluribus.server.workers.desk import Desk, WorkerChannel
from pluribus.server.workers.messages import Failed, FromFirst, FromWorker, Ping, Pong, Ready
from pluribus.server.workers.pool import MAX_RESTARTS, WorkerPool
from pluribus.server.workers.remote import FirstChannel
from pluribus.server.workers.worker import Worker
from server.fakes import FakeService


class NoProcess:
    """Notes that it was killed."""

    exit_code = None

    def __init__(self) -> None:
        self.was_killed = asyncio.Event()

    async def kill(self) -> None:
        self.was_killed.set()


class ByHand(Worker):
    """A worker whose other end a test plays."""

    def __init__(self, channel: WorkerChannel, other: socket.socket, index: int = 0) -> None:
        self.killed = NoProcess()
        service = FakeService()
        desk = Desk(service, cast(Any, None), channel)
        connections, self._their_connections = socket.socketpair()
        process = cast(Companion, self.killed)
        super().__init__(index, process, channel, connections, desk)
        self.other = other

    @classmethod
    async def made(cls, index: int = 0) -> ByHand:
        ours, theirs = socket.socketpair()
        channel: WorkerChannel = AsyncChannel(*await connect(ours), FromWorker)
        return cls(channel, theirs, index)

    async def theirs(self) -> FirstChannel:
        return AsyncChannel(*await connect(self.other), FromFirst)

    async def end(self) -> None:
        await super().end()
        self._their_connections.close()


def alive(test: Callable[[ByHand, FirstChannel], Coroutine[Any, Any, None]]) -> None:
    """Run a test while a worker lives, and end that."""

    async def life() -> None:
        worker = await ByHand.made()
        theirs = await worker.theirs()
        living = asyncio.create_task(worker.live(lambda: None))
        try:
            await asyncio.wait_for(test(worker, theirs), 10)
        finally:
            theirs.close()
            await asyncio.wait_for(living, 10)
            await worker.end()

    asyncio.run(life())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "SECONDS_BETWEEN_PINGS", 0.02)
    monkeypatch.setattr(worker_module, "SECONDS_TO_ANSWER", 0.05)


@pytest.mark.usefixtures("impatient")
def test_one_that_says_nothing_is_killed() -> None:
    async def test(worker: ByHand, theirs: FirstChannel) -> None:
        theirs.send(Ready())
        await worker.killed.was_killed.wait()

    alive(test)


@pytest.mark.usefixtures("impatient")
def test_one_that_answers_each_second_time_lives() -> None:
    async def test(worker: ByHand, theirs: FirstChannel) -> None:
        theirs.send(Ready())
        num_pings = 0
        async for message in theirs.messages():
            assert isinstance(message, Ping)
            num_pings += 1
            if num_pings % 2 == 0:
                theirs.send(Pong())
            if num_pings == 10:
                break
        assert not worker.killed.was_killed.is_set()

    alive(test)


@pytest.mark.usefixtures("impatient")
def test_one_that_is_being_prepared_may_take_its_time() -> None:
    async def test(worker: ByHand, theirs: FirstChannel) -> None:
        await asyncio.sleep(0.5)
        assert not worker.killed.was_killed.is_set()

    alive(test)


def test_nonsense_ends_the_worker_that_says_it() -> None:
    async def life() -> None:
        worker = await ByHand.made()
        worker.other.sendall(b"\x03\x00\x00\x00\xff\xff\xff")
        await asyncio.wait_for(worker.live(lambda: None), 10)
        worker.other.close()
        await worker.end()
        assert worker.killed.was_killed.is_set()

    asyncio.run(life())


@contextmanager
def pool(num_workers: int, config: str = "") -> Iterator[WorkerPool]:
    service = FakeService()
    cast(Any, service.parts).config = config
    settings = ServerConfig(port=0, workers=num_workers)
    with bind(settings) as listener:
        yield WorkerPool(service, settings, None, listener)


def test_what_no_worker_can_serve_is_said_and_not_tried_again() -> None:
    async def life(workers: WorkerPool) -> None:
        with pytest.raises(PluribusError, match="server must be a section"):
            await asyncio.wait_for(workers.serve(lambda: None), 60)
        await workers.close()

    with pool(1, "batcher: nonsense") as workers:
        asyncio.run(life(workers))


def test_one_that_keeps_dying_is_given_up_and_the_others_finish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[ByHand] = []

    async def start(begin: Any, make_desk: Any) -> ByHand:
        worker = await ByHand.made(begin.index)
        started.append(worker)
        if begin.index == 0:
            worker.other.close()
        return worker

    async def life(workers: WorkerPool) -> None:
        with pytest.raises(PluribusError, match=f"worker 0 has died {MAX_RESTARTS + 1} times"):
            await asyncio.wait_for(workers.serve(lambda: None), 10)
        [other] = [worker for worker in started if worker.index == 1]
        assert not other.killed.was_killed.is_set()
        await workers.close()
        assert other.killed.was_killed.is_set()
        other.other.close()

    monkeypatch.setattr(Worker, "start", start)
    with pool(2) as workers:
        asyncio.run(life(workers))
    assert len(started) == MAX_RESTARTS + 2


def test_it_is_open_once_all_are_ready_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ByHand] = []
    opened: list[int] = []

    async def start(begin: Any, make_desk: Any) -> ByHand:
        started.append(await ByHand.made(begin.index))
        return started[-1]

    async def life(workers: WorkerPool) -> None:
        serving = asyncio.create_task(workers.serve(lambda: opened.append(len(started))))
        await asyncio.sleep(0.05)
        channels = [await worker.theirs() for worker in started]
        channels[0].send(Ready())
        await asyncio.sleep(0.05)
        assert opened == []
        channels[1].send(Ready())
        await asyncio.sleep(0.05)
        assert opened == [2]
        channels[0].send(Failed("no"))
        channels[0].close()
        with pytest.raises(PluribusError, match="no"):
            await asyncio.wait_for(serving, 10)
        channels[1].close()
        await workers.close()
        assert opened == [2]

    monkeypatch.setattr(Worker, "start", start)
    with pool(2) as workers:
        asyncio.run(life(workers))
