"""Frames on a socket, read by a thread: it blocks when idle and only looks when busy.

A frame is its length in four bytes, little-endian, then one MessagePack message.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import Any, Generic, TypeVar

import msgspec

HEADER = struct.Struct("<I")
CHUNK = 1 << 16

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class ChannelClosed(Exception):
    """The other side is gone."""


class Channel(Generic[Sent, Received]):
    """One end. ``receive`` belongs to one thread; ``send`` may come from several.

    Args:
        sock: connected; closed with the channel.
        receives: the type, or union of types, of what comes; anything else is an error.
    """

    def __init__(self, sock: socket.socket, receives: Any) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._received = bytearray()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(receives)
        self._sending = threading.Lock()

    def send(self, message: Sent) -> None:
        """Send one message.

        Raises:
            ChannelClosed: nobody is there to read it.
        """
        body = self._encoder.encode(message)
        try:
            with self._sending:
                self._socket.sendall(HEADER.pack(len(body)) + body)
        except OSError as error:
            raise ChannelClosed from error

    def receive(self, *, block: bool) -> list[Received]:
        """Return the messages that have come; wait for one if ``block`` and there is none.

        Raises:
            ChannelClosed: the other side is gone.
        """
        messages = self._split()
        while block and not messages:
            self._read()
            messages = self._split()
        while select.select([self._socket], [], [], 0)[0]:
            try:
                self._read()
            except ChannelClosed:
                if not messages:
                    raise
                break  # what was said last comes first; the next call says the rest
            messages += self._split()
        return messages

    def fileno(self) -> int:
        """Return the socket's number, to wait on several at once."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let the other side see the end."""
        self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except OSError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        self._received += data

    def _split(self) -> list[Received]:
        messages: list[Received] = []
        at = 0
        while len(self._received) - at >= HEADER.size:
            (size,) = HEADER.unpack_from(self._received, at)
            end = at + HEADER.size + size
            if end > len(self._received):
                break
            messages.append(self._decoder.decode(self._received[at + HEADER.size : end]))
            at = end
        del self._received[:at]
        return messages
