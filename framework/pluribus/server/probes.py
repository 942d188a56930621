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
    from pluribus.service import Service


class ProbeEndpoints:
    """Tells what the service is and how it is."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def livez(self, _: Request) -> Response:
        """Tell whether the process works; if not, restart it.

        200 also while the model is loading.
        """
        return answer(self._status(), ok=self._service.fleet.is_advancing())

    async def readyz(self, _: Request) -> Response:
        """Tell whether requests are answered now."""
        return answer(self._status(), ok=self._is_ready())

    async def health(self, _: Request) -> Response:
        """Tell whether requests are answered now, by which model and version."""
        status = self._service.status
        response = HealthResponse(
            state=status.state,
            detail=status.detail,
            model=self._service.spec.name,
            version=version("pluribus"),
            replicas=[
                _response(replica.supervisor.status) for replica in self._service.fleet.replicas
            ],
        )
        return answer(response, ok=self._is_ready())

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

    def _status(self) -> StatusResponse:
        return _response(self._service.status)

    def _is_ready(self) -> bool:
        return self._service.status.state is State.READY


def _response(status: Status) -> StatusResponse:
    return StatusResponse(state=status.state, detail=status.detail)
