"""One HTTP worker, as the first process sees it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import msgspec
import structlog

from pluribus.companion import Companion
from pluribus.engine.async_channel import AsyncChannel, connect
from pluribus.server.workers.desk import Desk, WorkerChannel
from pluribus.server.workers.handed import EXPECTED, ONE_TOO_MANY
from pluribus.server.workers.messages import (
    Closed,
    Failed,
    Finish,
    FromWorker,
    Ping,
    Pong,
    Ready,
    Start,
)

MODULE = "pluribus.server.workers.process"
SECONDS_BETWEEN_PINGS = 5.0
SECONDS_TO_ANSWER = 5.0
NUM_PINGS = 2
"""Without an answer to so many, one after the other, a worker is killed: while the first was under
way, all processes may have been paused."""

log = structlog.stdlib.get_logger(__name__)


class Worker:
    """A process that speaks HTTP, until it ends. Belongs to one event loop.

    Attributes:
        index: among the workers, counted from 0.
        is_ready: whether it takes connections.
        num_connections: that it has.
        refusal: why no worker can serve what is configured, or None.
    """

    def __init__(
        self,
        index: int,
        process: Companion,
        channel: WorkerChannel,
        connections: socket.socket,
        desk: Desk,
    ) -> None:
        self.index = index
        self.is_ready = False
        self.num_connections = 0
        self.refusal: str | None = None
        self._process = process
        self._channel = channel
        self._connections = connections
        self._desk = desk
        self._has_spoken = asyncio.Event()

    @property
    def exit_code(self) -> int | None:
        """What the process ended with; see ``Companion``."""
        return self._process.exit_code

    @classmethod
    async def start(cls, start: Start, make_desk: Callable[[WorkerChannel], Desk]) -> Worker:
        """Start a process, which is told ``start``."""
        ours, theirs = socket.socketpair()
        connections, their_connections = socket.socketpair()
        process = Companion(MODULE, [theirs, their_connections])
        connections.setblocking(False)
        channel: WorkerChannel = AsyncChannel(*await connect(ours), FromWorker)
        channel.send(start)
        return cls(start.index, process, channel, connections, make_desk(channel))

    def take(self, sock: socket.socket, *, is_excess: bool) -> bool:
        """Hand over a connection; return whether the worker could take it."""
        mark = ONE_TOO_MANY if is_excess else EXPECTED
        try:
            socket.send_fds(self._connections, [mark], [sock.fileno()])
        except OSError:  # it is full, or nobody is at the other end any more
            return False
        self.num_connections += 1
        return True

    async def live(self, on_ready: Callable[[], None]) -> None:
        """Do what the worker wants until it ends; ``on_ready`` is called when it is ready."""
        watching = asyncio.create_task(self._kill_if_silent())
        try:
            async for message in self._channel.messages():
                self._has_spoken.set()
                match message:
                    case Ready():
                        self.is_ready = True
                        on_ready()
                    case Failed():
                        self.refusal = message.message
                    case Pong():
                        pass  # that it was heard is all there is to it
                    case Closed():
                        self.num_connections -= 1
                    case _:
                        self._desk.hear(message)
        except msgspec.MsgspecError:
            log.exception("an HTTP worker says what nobody understands", worker=self.index)
        finally:
            watching.cancel()

    def finish(self) -> None:
        """Let it send what there is to send, and end."""
        self._desk.tell()
        self._channel.send(Finish())

    async def end(self) -> None:
        """End it at once, if it has not ended, and leave what it had asked for."""
        self.is_ready = False
        self._desk.close()
        self._channel.close()
        self._connections.close()
        await self._process.kill()

    async def _kill_if_silent(self) -> None:
        num_unanswered = 0
        while num_unanswered < NUM_PINGS:
            await asyncio.sleep(SECONDS_BETWEEN_PINGS)
            if self.is_ready:
                num_unanswered = 0 if await self._answers() else num_unanswered + 1
        log.error("an HTTP worker says nothing: killing it", worker=self.index)
        await self._process.kill()

    async def _answers(self) -> bool:
        self._has_spoken.clear()
        self._channel.send(Ping())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_spoken.wait(), SECONDS_TO_ANSWER)
        return self._has_spoken.is_set()
