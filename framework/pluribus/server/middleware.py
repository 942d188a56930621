"""What happens to every request, around the routes. Pure ASGI, so that streams stay streams."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pluribus.server.errors import error_response
from pluribus.tenants import ANONYMOUS, Tenant

REQUEST_ID_HEADER = "X-Request-Id"
_SANE_REQUEST_ID = re.compile(r"[!-~]{1,128}")

log = structlog.stdlib.get_logger(__name__)


class RequestId:
    """Gives each request an id: the client's if it sent a sane one.

    It is echoed in the answer, and is in every log record made on behalf of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, _adding({REQUEST_ID_HEADER: request_id}, send))


class SecurityHeaders:
    """Tells browsers to take every answer for what it says it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._app(scope, receive, _adding({"X-Content-Type-Options": "nosniff"}, send))


def _adding(headers: Mapping[str, str], send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers


def tenant_of(scope: Scope) -> Tenant:
    """Return on whose behalf a request is, as far as that has been found out."""
    tenant = scope.get("state", {}).get("tenant", ANONYMOUS)
    assert isinstance(tenant, Tenant)
    return tenant


class AccessLog:
    """Logs one line for each request: what was asked and how it went, never what was said."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            log.info(
                "request",
                method=scope["method"],
                path=scope["raw_path"].decode(errors="backslashreplace"),  # no line breaks in it
                status=status,
                tenant=tenant_of(scope).name,
                seconds=round(time.perf_counter() - started, 4),
            )


class UnexpectedErrors:
    """Answers requests that fail in ways nobody foresaw, and those the server gives up on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        has_started = False

        async def watched(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except (Exception, asyncio.CancelledError) as error:
            if has_started or scope["type"] != "http":
                raise
            await _response_to(error)(scope, receive, send)


def _response_to(error: BaseException) -> ASGIApp:
    if isinstance(error, asyncio.CancelledError):
        # Only the server cancels requests: while stopping, once their time to finish is over.
        status, message = HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping"
        return error_response(status, message, code="not_ready", headers={"Retry-After": "5"})
    log.error("request failed", exc_info=error)
    message = "something went wrong here; the server's log has it under this X-Request-Id"
    return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, message, code="internal_error")
