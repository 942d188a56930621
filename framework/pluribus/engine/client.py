"""The front's end of an engine: start one, talk to it, notice its end."""

from __future__ import annotations

import asyncio
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from pluribus.companion import Companion
from pluribus.engine.async_channel import AsyncChannel, connect
from pluribus.engine.channel import Channel
from pluribus.engine.core import EngineCore
from pluribus.engine.loop import run_engine
from pluribus.engine.messages import PROTOCOL_VERSION, FromEngine, FromFront, Start
from pluribus.engine.spare import SpareProcess
from pluribus.interfaces import Progress


class EngineClient(AsyncChannel[FromFront, FromEngine]):
    """One engine, for as long as it lives. Belongs to one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer, FromEngine)


class EngineHost(ABC):
    """Where engines run."""

    @abstractmethod
    async def start(self) -> EngineClient:
        """Start an engine that loads; there is at most one at a time."""

    @abstractmethod
    async def kill(self) -> None:
        """End the engine at once, if it still runs, and wait until it has ended."""


class ProcessHost(EngineHost):
    """Runs the engine as a process of its own.

    Args:
        config: the whole configuration, in YAML.
        spare: a process that has been started already, for the first engine.
    """

    def __init__(self, config: str, spare: SpareProcess | None = None) -> None:
        self._config = config
        self._spare = spare
        self._process: Companion | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._process.pid if self._process else None

    async def start(self) -> EngineClient:
        started = (self._spare or SpareProcess()).take()
        self._spare = None
        self._process = started.process
        client = await _client(started.socket)
        client.send(Start(PROTOCOL_VERSION, self._config))
        return client

    async def kill(self) -> None:
        if (process := self._process) is None:
            return
        await process.kill()
        if self._process is process:  # whoever found it silent may have waited for it as well
            self._process = None


class ThreadHost(EngineHost):
    """Runs the engine on a thread of this process, for scripts and tests.

    Args:
        start_core: builds the core, in the thread.
    """

    def __init__(self, start_core: Callable[[Progress], EngineCore]) -> None:
        self._start_core = start_core
        self._thread: threading.Thread | None = None

    async def start(self) -> EngineClient:
        ours, theirs = socket.socketpair()
        self._thread = threading.Thread(
            target=run_engine,
            args=(Channel(theirs, FromFront), self._start_core),
            name="engine",
            daemon=True,
        )
        self._thread.start()
        return await _client(ours)

    async def kill(self) -> None:
        """Wait for the thread, which ends with the step under way once nobody listens."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None


async def _client(sock: socket.socket) -> EngineClient:
    return EngineClient(*await connect(sock))
