"""Endpoints that tell what the service is and how it is."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from pluribus.server.body import answer
from pluribus.server.schema import (
    HealthResponse,
    PluginsResponse,
    StatusResponse,
    VersionResponse,
)
from pluribus.supervisor import State, Status

if TYPE_CHECKING:
    from pluribus.front import Front, Health


class ProbeEndpoints:
    """Tells what the service is and how it is."""

    def __init__(self, service: Front) -> None:
        self._service = service

    async def livez(self, _: Request) -> Response:
        """Tell whether the process works; if not, restart it.

        200 also while the model is loading.
        """
        health = await self._service.health()
        return answer(_response(health.status), ok=health.is_advancing)

    async def readyz(self, _: Request) -> Response:
        """Tell whether requests are answered now."""
        health = await self._service.health()
        return answer(_response(health.status), ok=_is_ready(health))

    async def health(self, _: Request) -> Response:
        """Tell whether requests are answered now, by which model and version."""
        health = await self._service.health()
        response = HealthResponse(
            state=health.status.state,
            detail=health.status.detail,
            model=self._service.spec.name,
            version=version("pluribus"),
            replicas=[_response(status) for status in health.replicas],
        )
        return answer(response, ok=_is_ready(health))

    async def version(self, _: Request) -> Response:
        """Tell the versions of what runs here."""
        response = VersionResponse(
            version=version("pluribus"),
            python=platform.python_version(),
            torch=version("torch"),
        )
        return answer(response)

    async def plugins(self, _: Request) -> Response:
        """List the plugins in use."""
        return answer(PluginsResponse(plugins=self._service.plugins.describe()))


def _is_ready(health: Health) -> bool:
    return health.status.state is State.READY


def _response(status: Status) -> StatusResponse:
    return StatusResponse(state=status.state, detail=status.detail)
