"""What the service answers to."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from pluribus.server.completion_schema import CompletionRequest, CompletionResponse
from pluribus.server.completions import CompletionEndpoint
from pluribus.server.config import ServerConfig
from pluribus.server.generation import GenerationEndpoint, GenerationRequest, GenerationResponse
from pluribus.server.models import ModelEndpoints, ModelResponse, ModelsResponse
from pluribus.server.openapi import Operation, get, post
from pluribus.server.probes import ProbeEndpoints
from pluribus.server.schema import HealthResponse, PluginsResponse, StatusResponse, VersionResponse
from pluribus.server.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenEndpoints,
    TokenizeRequest,
    TokenizeResponse,
)

if TYPE_CHECKING:
    from pluribus.front import Front

OK_OR_NOT = (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE)
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def operations(service: Front, config: ServerConfig) -> list[Operation]:
    """Return everything that ``service`` answers to."""
    return [*_text(service, config), *_models(service), *_tokens(service), *_status(service)]


def _text(service: Front, config: ServerConfig) -> list[Operation]:
    generation = GenerationEndpoint(service, config.stream_interval)
    completion = CompletionEndpoint(service, config.stream_interval)
    return [
        post(
            "/generation",
            generation.generate,
            GenerationRequest,
            GenerationResponse,
            tag="Text",
            streams=True,
            errors=(*BUSY, HTTPStatus.GATEWAY_TIMEOUT),
        ),
        post(
            "/v1/completions",
            completion.complete,
            CompletionRequest,
            CompletionResponse,
            tag="Text",
            streams=True,
            errors=(HTTPStatus.NOT_FOUND, *BUSY, HTTPStatus.GATEWAY_TIMEOUT),
        ),
    ]


def _models(service: Front) -> list[Operation]:
    models = ModelEndpoints(service)
    one = "/v1/models/{model:path}"  # a name may hold a slash
    return [
        get("/v1/models", models.list_models, ModelsResponse, tag="Models"),
        get(one, models.retrieve_model, ModelResponse, tag="Models", errors=(404,)),
    ]


def _tokens(service: Front) -> list[Operation]:
    tokens = TokenEndpoints(service)
    return [
        post("/tokenize", tokens.tokenize, TokenizeRequest, TokenizeResponse, tag="Tokens"),
        post("/detokenize", tokens.detokenize, DetokenizeRequest, DetokenizeResponse, tag="Tokens"),
    ]


def _status(service: Front) -> list[Operation]:
    probes = ProbeEndpoints(service)
    return [
        get("/livez", probes.livez, StatusResponse, tag="Status", statuses=OK_OR_NOT),
        get("/readyz", probes.readyz, StatusResponse, tag="Status", statuses=OK_OR_NOT),
        get("/health", probes.health, HealthResponse, tag="Status", statuses=OK_OR_NOT),
        get("/version", probes.version, VersionResponse, tag="Status"),
        get("/plugins", probes.plugins, PluginsResponse, tag="Status"),
    ]
