"""Stop working for clients that have left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

Result = TypeVar("Result")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of ``work``, which is cancelled as soon as the client leaves.

    The request's body must have been read: waiting for the client to leave would swallow it.

    Raises:
        ClientDisconnect: the client left first.
    """
    asking = asyncio.current_task()
    assert asking is not None
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        await _disconnected(request)
        has_left = True
        asking.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and asking.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
