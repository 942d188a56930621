"""What the service answers to."""

from __future__ import annotations

import platform
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from pluribus.generation import SamplingParams
from pluribus.server.body import MEDIA_TYPE
from pluribus.server.disconnect import unless_disconnected
from pluribus.server.openapi import Operation, get, post
from pluribus.server.schema import (
    GenerationRequest,
    GenerationResponse,
    HealthResponse,
    PluginsResponse,
    StatusResponse,
    VersionResponse,
)
from pluribus.service import State

if TYPE_CHECKING:
    from pluribus.service import Service

OK_OR_NOT = (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE)


def operations(service: Service) -> list[Operation]:
    """Return everything that ``service`` answers to."""
    text, probes = TextEndpoints(service), ProbeEndpoints(service)
    return [
        post(
            "/generation",
            text.generate,
            GenerationRequest,
            GenerationResponse,
            tag="Text",
            errors=(HTTPStatus.SERVICE_UNAVAILABLE,),
        ),
        get("/livez", probes.livez, StatusResponse, tag="Status", statuses=OK_OR_NOT),
        get("/readyz", probes.readyz, StatusResponse, tag="Status", statuses=OK_OR_NOT),
        get("/health", probes.health, HealthResponse, tag="Status", statuses=OK_OR_NOT),
        get("/version", probes.version, VersionResponse, tag="Status"),
        get("/plugins", probes.plugins, PluginsResponse, tag="Status"),
    ]


class TextEndpoints:
    """Endpoints that continue prompts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def generate(self, request: Request, body: GenerationRequest) -> Response:
        """Continue a prompt.

        Samples at temperature 1 among all tokens unless told otherwise; `top_k: 1` or
        `temperature: 0` always takes the likeliest token. A prompt that does not fit the
        model is refused, never cut.
        """
        completion = await unless_disconnected(
            request,
            self._service.complete(body.prompt, _params(body), fit=body.max_tokens is None),
        )
        text = completion.prompt + completion.text
        note = " ".join(self._service.spec.notes) or None
        return _answer(GenerationResponse(text=text, note=note))


class ProbeEndpoints:
    """Endpoints that tell what the service is and how it is."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def livez(self, _: Request) -> Response:
        """Tell whether the process works; if not, restart it.

        200 also while the model is loading.
        """
        return _answer(self._status(), ok=self._service.is_alive())

    async def readyz(self, _: Request) -> Response:
        """Tell whether requests are answered now."""
        return _answer(self._status(), ok=self._is_ready())

    async def health(self, _: Request) -> Response:
        """Tell whether requests are answered now, by which model and version."""
        response = HealthResponse(
            **self._status().model_dump(),
            model=self._service.spec.name,
            version=version("pluribus"),
        )
        return _answer(response, ok=self._is_ready())

    async def version(self, _: Request) -> Response:
        """Tell the versions of what runs here."""
        response = VersionResponse(
            version=version("pluribus"),
            python=platform.python_version(),
            torch=version("torch"),
        )
        return _answer(response)

    async def plugins(self, _: Request) -> Response:
        """List the plugins in use."""
        return _answer(PluginsResponse(plugins=self._service.plugins.describe()))

    def _status(self) -> StatusResponse:
        status = self._service.status
        return StatusResponse(state=status.state, detail=status.detail)

    def _is_ready(self) -> bool:
        return self._service.status.state is State.READY


def _params(body: GenerationRequest) -> SamplingParams:
    return SamplingParams(**body.model_dump(exclude={"prompt"}, exclude_none=True))


def _answer(content: BaseModel, *, ok: bool = True) -> Response:
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(content.model_dump_json(exclude_none=True), status, media_type=MEDIA_TYPE)
