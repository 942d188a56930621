"""What every endpoint does that continues prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TypeVar

from starlette.requests import Request

from pluribus.reply import Reply
from pluribus.server.errors import ApiError
from pluribus.tenants import Tenant

T = TypeVar("T")

SHORT = 2048
"""Characters, or ids, that are read faster here than another thread could be asked to."""


def tenant_of(request: Request) -> Tenant:
    """Return on whose behalf ``request`` came."""
    tenant: Tenant = request.state.tenant  # Admission left it there
    return tenant


def cache_headers(*replies: Reply) -> Mapping[str, str]:
    """Return the headers that tell whether the response cache had it all."""
    return {"X-Cache": "hit"} if all(reply.cached for reply in replies) else {}


async def read_prompts(texts: Sequence[str | Sequence[int]], read: Callable[[], T]) -> T:
    """Return what ``read`` makes of ``texts`` or ids; long ones do not hold up the event loop."""
    if sum(map(len, texts)) <= SHORT:
        return read()
    return await asyncio.to_thread(read)


@asynccontextmanager
async def deadline(seconds: float | None) -> AsyncIterator[None]:
    """Give up what is inside after ``seconds``, if there are any.

    Raises:
        ApiError: the time is over.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ApiError(
            HTTPStatus.GATEWAY_TIMEOUT,
            f"timeout: the answer was not complete after {seconds:g} seconds; allow more, "
            "or ask for less with max_tokens",
            code="timeout",
            param="timeout",
        ) from None
