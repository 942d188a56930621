"""Errors as HTTP answers: every one has a status, a message, and OpenAI's shape."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pluribus.errors import EngineError, QueueFullError, RequestError
from pluribus.server.schema import ErrorDetail, ErrorResponse

CLIENT_CLOSED_REQUEST = 499
"""Logged for a client that left before its answer; nobody receives it."""

MAX_SHOWN = 60


class ApiError(Exception):
    """A refusal with its HTTP status.

    Attributes:
        status: of the answer.
        param: the field at fault, or None for the whole request.
        code: the kind of error, for a program to tell.
    """

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def shorten(text: str) -> str:
    """Return ``text``, its middle left out where it is long."""
    if len(text) <= MAX_SHOWN:
        return text
    half = MAX_SHOWN // 2
    return f"{text[:half]}...{text[-half:]}"


def error_response(
    status: int,
    message: str,
    *,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error in OpenAI's shape."""
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    detail = ErrorDetail(
        message=_encodable(message),
        type=kind,
        param=_encodable(param) if param else None,
        code=code,
    )
    body = msgspec.json.encode(ErrorResponse(error=detail))
    return Response(body, status, headers, media_type="application/json")


def _encodable(text: str) -> str:
    # What a client sent may hold half a surrogate pair, which UTF-8 cannot carry back.
    return text.encode(errors="backslashreplace").decode()


def _refused(error: ApiError) -> Response:
    return error_response(error.status, str(error), code=error.code, param=error.param)


def _unservable(error: RequestError) -> Response:
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return error_response(status, str(error), code="invalid_value", param=error.param)


def _queue_full(error: QueueFullError) -> Response:
    headers = {"Retry-After": str(math.ceil(error.retry_after))}
    if error.is_tenant:
        status, code = HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded"
    else:
        status, code = HTTPStatus.SERVICE_UNAVAILABLE, "queue_full"
    return error_response(status, str(error), code=code, headers=headers)


def _not_ready(error: EngineError) -> Response:
    status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "5"}
    return error_response(status, str(error), code="not_ready", headers=headers)


_REFUSALS: Mapping[type[Exception], Callable[[Any], Response]] = {
    ApiError: _refused,
    RequestError: _unservable,
    QueueFullError: _queue_full,
    EngineError: _not_ready,
}


def refusal(error: Exception) -> Response | None:
    """Return the answer to a request that fails with ``error``, or None if nobody foresaw it."""
    return next((make(error) for kind, make in _REFUSALS.items() if isinstance(error, kind)), None)


async def _refuse(_: Request, error: Exception) -> Response:
    response = refusal(error)
    assert response is not None
    return response


async def _routing(request: Request, error: HTTPException) -> Response:
    path = shorten(request.url.path)
    headers = dict(error.headers or {})
    message, code = error.detail, "http_error"
    if error.status_code == HTTPStatus.NOT_FOUND:
        message, code = f"there is nothing at {path}; /docs lists what there is", "not_found"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
        method = shorten(request.method)
        message = f"{method} is not allowed at {path}; allowed: {headers['Allow']}"
        code = "method_not_allowed"
    return error_response(error.status_code, message, code=code, headers=headers)


async def _client_left(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


EXCEPTION_HANDLERS: Mapping[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    **dict.fromkeys(_REFUSALS, _refuse),
    HTTPException: _routing,
    ClientDisconnect: _client_left,
}
