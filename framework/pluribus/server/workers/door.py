"""Where connections come in: each is accepted here and handed to the worker that has fewest."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

MAX_AT_ONCE = 64
"""Connections that are accepted before anything else gets its turn."""
SECONDS_TO_RECOVER = 1.0
"""Before accepting is tried again where there were too many open files."""
SECONDS_TO_TAKE = 0.01
"""Before a connection is offered again to workers that were all too busy to take it."""

_SCARCE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

log = structlog.stdlib.get_logger(__name__)


class Taker(Protocol):
    """Who takes connections.

    Attributes:
        num_connections: that it has.
    """

    num_connections: int

    def take(self, sock: socket.socket, *, is_excess: bool) -> bool:
        """Take a connection, its socket's number alone; return whether it could."""


class Door:
    """Accepts connections while there is somebody to take them. Belongs to one event loop.

    Args:
        listener: is closed with it.
        takers: returns those who take connections now.
        max_connections: on more, those that come are marked as being too many.
    """

    def __init__(
        self,
        listener: socket.socket,
        takers: Callable[[], Sequence[Taker]],
        max_connections: int,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._takers = takers
        self._max_connections = max_connections
        self._held: socket.socket | None = None
        self._reopening: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._turn = 0

    def open(self) -> None:
        """Accept, as there is somebody again; others wait, unaccepted, until then."""
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            self._accept()

    def close(self) -> None:
        """Accept no more, for good."""
        if self._is_closed:
            return
        self._shut()
        self._is_closed = True
        self._listener.close()
        if self._held is not None:
            self._held.close()

    def _accept(self) -> None:
        for _ in range(MAX_AT_ONCE):
            if not (takers := self._takers()):
                self._shut()
                return
            self._held = self._held or self._next()
            if self._held is None:
                return
            if not self._hand_over(self._held, takers):
                self._shut(SECONDS_TO_TAKE)
                return
            self._held.close()  # the worker has its own
            self._held = None

    def _next(self) -> socket.socket | None:
        """Return a connection, or None if there is none now."""
        try:
            return self._listener.accept()[0]
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError as error:
            if error.errno not in _SCARCE:
                raise
            log.error("connections have to wait", reason=error.strerror)
            self._shut(SECONDS_TO_RECOVER)
            return None

    def _hand_over(self, sock: socket.socket, takers: Sequence[Taker]) -> bool:
        is_excess = sum(taker.num_connections for taker in takers) >= self._max_connections
        # Of those that have as many, another one each time.
        self._turn += 1
        start = self._turn % len(takers)
        in_turn = [*takers[start:], *takers[:start]]
        for taker in sorted(in_turn, key=lambda taker: taker.num_connections):
            if taker.take(sock, is_excess=is_excess):
                return True
        return False

    def _shut(self, seconds: float | None = None) -> None:
        """Accept nothing, until told to or for so many seconds."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None
        if seconds is not None:
            self._reopening = loop.call_later(seconds, self.open)
