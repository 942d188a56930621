"""What HTTP does is counted, and ``/metrics`` tells of it and of all else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OTHER = "other"
"""Stands for paths where there is nothing, and for tenants over a number of them."""
CLIENT_LEFT = 499


@dataclass(frozen=True, slots=True)
class Exposition:
    """All metrics as they are now, in a format that was asked for."""

    body: bytes
    media_type: str


class Meter(ABC):
    """Counts what HTTP does, and knows what all else has done."""

    @abstractmethod
    def request_answered(self, endpoint: str, status: int) -> None:
        """Count an HTTP request."""

    @abstractmethod
    async def expose(self, accept: str) -> Exposition:
        """Return all metrics, for a request with this header ``Accept``."""


def metrics_route(meter: Meter) -> Route:
    """Return the route of ``/metrics``."""

    async def metrics(request: Request) -> Response:
        told = await meter.expose(request.headers.get("accept", ""))
        return Response(told.body, headers={"Content-Type": told.media_type})

    return Route("/metrics", metrics)


class CountRequests:
    """Counts every request by its route and status."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        status = CLIENT_LEFT

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            endpoint = getattr(scope.get("route"), "path", OTHER)
            self._meter.request_answered(endpoint, status)
