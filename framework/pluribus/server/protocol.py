"""HTTP on one connection: uvicorn's, with our limits and our errors.

It is always h11's, also where uvicorn would find a parser that knows no limits.
"""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pluribus.server.errors import error_response
from pluribus.server.limits import EXCESS


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
        super().connection_made(transport)
        if self._max_connections is not None and len(self.connections) > self._max_connections:
            self.app_state = {**self.app_state, EXCESS: True}
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """Take what the client sends; uvicorn's would wait for ever after the first byte."""
        self.conn.receive_data(data)
        self.handle_events()

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
