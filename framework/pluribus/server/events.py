"""Answers that come piece by piece, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pluribus.server.disconnect import unless_disconnected
from pluribus.server.errors import refusal
from pluribus.server.schema import ResponseBody

_encoder = msgspec.json.Encoder()


class EventStream(Response):
    """Server-sent events, each sent as soon as it is there.

    An error before the first event is answered as any other; one after it becomes the last
    event. A client that leaves takes the production of events with it.

    Args:
        request: what is answered; its body has been read.
        produce: calls ``send`` for each event, then ``end``.
    """

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, produce: Callable[[EventStream], Coroutine[Any, Any, None]]
    ) -> None:
        self.status_code = 200
        self.background = None
        # Proxies pass events on as they come if told so, and not once they have enough.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._request = request
        self._produce = produce
        self._has_started = False
        self._send_message: Send | None = None

    async def send(self, event: ResponseBody) -> None:
        """Send one event."""
        await self._send_data(_encoder.encode(event))

    async def end(self) -> None:
        """Say, as OpenAI does, that nothing more will come."""
        await self._send_data(b"[DONE]")

    async def _send_data(self, data: bytes) -> None:
        assert self._send_message is not None
        if not self._has_started:
            self._has_started = True
            await self._send_message(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
        body = b"data: " + data + b"\n\n"
        await self._send_message({"type": "http.response.body", "body": body, "more_body": True})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        self._send_message = send
        try:
            await unless_disconnected(self._request, self._produce(self))
        except ClientDisconnect:
            if not self._has_started:
                raise
            return
        except Exception as error:
            response = refusal(error)
            if not self._has_started or response is None:
                raise
            await self._send_data(bytes(response.body))
        await send({"type": "http.response.body", "body": b""})


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do several things at once; the first that fails ends the others, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
