"""HTTP on one connection: uvicorn's, with our limits and our errors.

It is always h11's, also where uvicorn would find a parser that knows no limits.
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pluribus.server.errors import error_response
from pluribus.server.limits import EXCESS

MAX_GATHERED = 1 << 16
"""Bytes held back, lest a writer that never waits fill the memory."""


class HttpProtocol(H11Protocol):
    """Speaks HTTP with one client.

    ``limit_concurrency`` and ``timeout_keep_alive`` of uvicorn's configuration mean more
    here: a connection over the limit is marked for the application to answer, and the time
    for a request's head runs from the start, and until all of the head is there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections, self.limit_concurrency = self.limit_concurrency, None

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        gathering: Any = GatheringTransport(transport, self.loop)
        super().connection_made(gathering)
        if self._max_connections is not None and len(self.connections) > self._max_connections:
            self.app_state = {**self.app_state, EXCESS: True}
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """Take what the client sends; uvicorn's would wait for ever after the first byte."""
        self.conn.receive_data(data)
        self.handle_events()

    def eof_received(self) -> None:
        """Take the end of what the client sends for its leaving, and close the connection.

        One that only sends no more would still read its answer, but one that has left looks
        the same until something is written to it, which an answer in one piece does when it
        is complete: too late to cancel it. nginx and uvicorn do so too.
        """

    def on_response_complete(self) -> None:
        """Send what is left of the response before its request is logged and counted."""
        transport: Any = self.transport
        transport.flush()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless a request is being answered."""
        if self.cycle is None or self.cycle.response_complete:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Tell the client that this is not HTTP, or too long."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(self._refusal(status))
        self.transport.close()

    def _refusal(self, status: int) -> bytes:
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            message = "the request's head is too long (server.max_header_bytes)"
            response = error_response(status, message, code="headers_too_large")
        else:
            response = error_response(status, "this is not HTTP/1.1", code="invalid_http")
        response.headers["Connection"] = "close"
        sent = [
            self.conn.send(h11.Response(status_code=status, headers=response.raw_headers)),
            self.conn.send(h11.Data(data=bytes(response.body))),
            self.conn.send(h11.EndOfMessage()),
        ]
        return b"".join(filter(None, sent))


class GatheringTransport:
    """Sends what is written in one turn of the event loop in one piece.

    A head and the body after it would each wake the client up, as would the last events of a
    stream, and while it runs, nothing else does on its processor.

    Args:
        transport: to send with; whatever is not told here is its own.
        loop: whose turns they are.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._num_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send ``data`` with all else of this turn, or as soon as there is much of it."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_GATHERED:
            self.flush()

    def close(self) -> None:
        """Send what has been written, and close the connection."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what has been written."""
        pieces, self._pieces, self._num_bytes = self._pieces, [], 0
        if pieces:
            self._transport.write(b"".join(pieces))
