"""The front's end of an engine: start one, talk to it, notice its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable

import msgspec

from pluribus.engine.channel import HEADER, Channel
from pluribus.engine.core import EngineCore
from pluribus.engine.loop import run_engine
from pluribus.engine.messages import PROTOCOL_VERSION, FromEngine, FromFront, Start
from pluribus.interfaces import Progress
from pluribus.terminal import companions

MAX_FRAME = 1 << 30


class EngineClient:
    """One engine, for as long as it lives. Belongs to one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: FromFront) -> None:
        """Send a message; never waits. A message to an engine that is gone is lost."""
        body = self._encoder.encode(message)
        self._writer.write(HEADER.pack(len(body)) + body)

    async def messages(self) -> AsyncIterator[FromEngine]:
        """Yield what the engine says, until it is gone."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
                yield self._decoder.decode(await self._reader.readexactly(size))

    def close(self) -> None:
        """Close this end."""
        self._writer.close()


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
    """

    def __init__(self, config: str) -> None:
        self._config = config
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._process.pid if self._process else None

    async def start(self) -> EngineClient:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pluribus.engine.process",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                process_group=0,  # with its ranks; Ctrl-C is for us, who then end them all
            )
        companions.add(self._process.pid)
        client = await _client(ours)
        client.send(Start(PROTOCOL_VERSION, self._config))
        return client

    async def kill(self) -> None:
        if (process := self._process) is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        companions.discard(process.pid)
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
    sock.setblocking(False)
    return EngineClient(*await asyncio.open_unix_connection(sock=sock, limit=MAX_FRAME))
