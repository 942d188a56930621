"""How much a client may send, and how slowly. Pure ASGI, so that streams stay streams.

Starlette's and uvicorn's own limits answer in plain text.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pluribus.server.admission import PROBES
from pluribus.server.errors import ApiError, error_response

MAX_HEADERS = 100

EXCESS = "is_excess"
"""In the state of requests on connections over ``server.max_connections``."""


class ConnectionLimit:
    """Sends away, but for the probes, who comes over a connection too many."""

    def __init__(self, app: ASGIApp, max_connections: int) -> None:
        self._app = app
        self._max_connections = max_connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._app
        if scope.get("state", {}).get(EXCESS) and scope["path"] not in PROBES:
            app = error_response(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._max_connections} connections are open, as many as "
                "server.max_connections allows; try again later",
                code="too_many_connections",
                headers={"Retry-After": "1", "Connection": "close"},
            )
        await app(scope, receive, send)


class HeaderLimit:
    """Refuses request heads that are too long, or of too many headers."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._app
        if scope["type"] == "http" and (problem := self._problem(scope)):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            app = error_response(status, problem, code="headers_too_large")
        await app(scope, receive, send)

    def _problem(self, scope: Scope) -> str | None:
        headers = scope["headers"]
        if len(headers) > MAX_HEADERS:
            return f"the request has {len(headers)} headers; {MAX_HEADERS} are allowed"
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in headers)
        if size > self._max_bytes:
            return f"the request's head is over {self._max_bytes} bytes (server.max_header_bytes)"
        return None


class BodyLimit:
    """Refuses request bodies that are too long, announced or sent, or take too long."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope), self._max_bytes, self._timeout)

        async def closing_if_late(message: Message) -> None:
            if body.is_late and message["type"] == "http.response.start":
                # What is left of the body is not waited for.
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, body.receive, closing_if_late)


class _Body:
    """A request's body on its way in."""

    def __init__(self, receive: Receive, headers: Headers, max_bytes: int, timeout: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        announced = headers.get("content-length", "")
        self._num_expected = int(announced) if announced.isdecimal() else 0
        self._num_received = 0
        self._is_complete = False
        self.is_late = False

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        self._check_size(self._num_expected)
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self.is_late = True
            raise ApiError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not come within {self._timeout:g} seconds (server.body_timeout)",
                code="body_too_slow",
            ) from None
        self._num_received += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        self._check_size(self._num_received)
        return message

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise ApiError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is over {self._max_bytes} bytes, the limit (server.max_body_bytes)",
                code="body_too_large",
            )
