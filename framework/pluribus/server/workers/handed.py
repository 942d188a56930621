"""HTTP over connections that the first process has accepted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from pluribus.server.http import UvicornServer
from pluribus.server.limits import EXCESS
from pluribus.server.protocol import HttpProtocol

EXPECTED, ONE_TOO_MANY = b"\0", b"\1"
"""What comes with a connection: whether it is over ``server.max_connections``."""


class HandedServer(UvicornServer):
    """Serves connections as they are handed over.

    Args:
        config: uvicorn's.
        connections: where they come from, each with one byte.
        on_start: called once they are taken.
        on_closed: called at the end of each.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        connections: socket.socket,
        on_start: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        super().__init__(config)
        connections.setblocking(False)
        self._connections = connections
        self._on_start = on_start
        self._on_closed = on_closed
        self._opening: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_reader(self._connections, self._take)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and end those that there are."""
        asyncio.get_running_loop().remove_reader(self._connections)
        await super().shutdown(sockets)

    def _take(self) -> None:
        """Take one connection: a byte never comes with more."""
        try:
            mark, numbers, *_ = socket.recv_fds(self._connections, 1, 1)
        except BlockingIOError:
            return
        if not mark:
            asyncio.get_running_loop().remove_reader(self._connections)
        for number in numbers:
            sock = socket.socket(fileno=number)
            task = asyncio.create_task(self._open(sock, is_excess=mark == ONE_TOO_MANY))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket, *, is_excess: bool) -> None:
        sock.setblocking(False)
        state = {EXCESS: True} if is_excess else {}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: HandedProtocol(self, state, self._on_closed), sock, ssl=self.config.ssl
            )
        except OSError:  # it was closed, or never spoke TLS
            self._on_closed()


class HandedProtocol(HttpProtocol):
    """Speaks HTTP with one client, and tells when that is over."""

    def __init__(
        self, server: HandedServer, state: dict[str, Any], on_closed: Callable[[], None]
    ) -> None:
        super().__init__(server.config, server.server_state, state)
        self._on_closed = on_closed

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that it is over."""
        super().connection_lost(exc)
        self._on_closed()
