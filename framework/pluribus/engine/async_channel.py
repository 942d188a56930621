"""Frames on a socket, as in ``channel``, for an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, Generic

import msgspec

from pluribus.engine.channel import HEADER, Received, Sent

MAX_FRAME = 1 << 30


class AsyncChannel(Generic[Sent, Received]):
    """One end. Belongs to one event loop.

    Args:
        reader, writer: of a connected socket; see ``connect``.
        receives: the type, or union of types, of what comes; anything else is an error.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, receives: Any
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._frames: list[bytes] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(receives)

    def send(self, message: Sent) -> None:
        """Send a message; never waits. A message to somebody who is gone is lost.

        It leaves at the end of this turn of the event loop, with all others of the turn: whoever
        it wakes up may take this processor, from work that would be missed.
        """
        body = self._encoder.encode(message)
        if not self._frames:
            self._loop.call_soon(self._flush)
        self._frames += (HEADER.pack(len(body)), body)

    async def messages(self) -> AsyncIterator[Received]:
        """Yield what the other side says, until it is gone."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
                yield self._decoder.decode(await self._reader.readexactly(size))

    def close(self) -> None:
        """Send what is left, and close this end."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if frames:
            self._writer.write(b"".join(frames))


async def connect(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the streams of a connected socket, which is closed with them."""
    sock.setblocking(False)
    return await asyncio.open_unix_connection(sock=sock, limit=MAX_FRAME)
