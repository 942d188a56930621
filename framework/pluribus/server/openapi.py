"""Operations as data: one table gives the routes and the OpenAPI 3.1 document."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pluribus.server.body import MEDIA_TYPE, Body, read_body
from pluribus.server.schema import ErrorResponse, ResponseBody

BODY_ERRORS = (400, 413, 415, 422)

Handler = Callable[[Request], Awaitable[Response]]
Json = dict[str, Any]

STREAM_TYPE = "text/event-stream"
REFERENCE = "#/components/schemas/"

_PARAMETER = re.compile(r"{(\w+)(:\w+)?}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. Made by ``get`` and ``post``.

    Attributes:
        method, path: what it answers to; the path as Starlette writes it.
        name: its ``operationId``.
        description: for people; the first line is a summary.
        tag: heading it is listed under.
        handler: answers it.
        request: its body, if it takes one.
        response: the body of its answer.
        streams: whether the answer may come as server-sent events.
        statuses: that come with ``response``.
        errors: statuses that come with an error.
    """

    method: str
    path: str
    name: str
    description: str
    tag: str
    handler: Handler
    request: type[BaseModel] | None
    response: type[ResponseBody]
    streams: bool
    statuses: tuple[int, ...]
    errors: tuple[int, ...]

    def route(self) -> Route:
        """Return the route that answers it."""
        return Route(self.path, self.handler, methods=[self.method], name=self.name)


def get(
    path: str,
    endpoint: Handler,
    response: type[ResponseBody],
    *,
    tag: str,
    statuses: tuple[int, ...] = (200,),
    errors: tuple[int, ...] = (),
) -> Operation:
    """Return a GET operation; the endpoint's name and docstring document it."""
    return Operation(
        method="GET",
        path=path,
        name=_name(endpoint),
        description=inspect.getdoc(endpoint) or "",
        tag=tag,
        handler=endpoint,
        request=None,
        response=response,
        streams=False,
        statuses=statuses,
        errors=errors,
    )


def post(
    path: str,
    endpoint: Callable[[Request, Body], Awaitable[Response]],
    request: type[Body],
    response: type[ResponseBody],
    *,
    tag: str,
    streams: bool = False,
    errors: tuple[int, ...] = (),
) -> Operation:
    """Return a POST operation whose endpoint is given the body, checked."""

    async def handler(http: Request) -> Response:
        return await endpoint(http, await read_body(http, request))

    return Operation(
        method="POST",
        path=path,
        name=_name(endpoint),
        description=inspect.getdoc(endpoint) or "",
        tag=tag,
        handler=handler,
        request=request,
        response=response,
        streams=streams,
        statuses=(200,),
        errors=BODY_ERRORS + errors,
    )


def _name(endpoint: Callable[..., Any]) -> str:
    return endpoint.__name__


def build_document(operations: Sequence[Operation], *, title: str, version: str) -> Json:
    """Return the OpenAPI 3.1 document of ``operations``."""
    requests = [operation.request for operation in operations if operation.request]
    _, bodies = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(requests)],
        ref_template=REFERENCE + "{model}",
    )
    responses = [ErrorResponse, *(operation.response for operation in operations)]
    _, answers = msgspec.json.schema_components(responses, ref_template=REFERENCE + "{name}")
    paths: dict[str, Json] = {}
    for operation in operations:
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": bodies["$defs"] | answers},
    }


def _describe(operation: Operation) -> Json:
    summary, _, description = operation.description.partition("\n")
    answer, error = _content(operation.response), _content(ErrorResponse)
    if operation.streams:
        answer[STREAM_TYPE] = {}
    described: Json = {
        "operationId": operation.name,
        "summary": summary,
        "description": description.strip(),
        "tags": [operation.tag],
        "parameters": [_parameter(name) for name, _ in _PARAMETER.findall(operation.path)],
        "responses": {str(status): _response(status, answer) for status in operation.statuses}
        | {str(status): _response(status, error) for status in operation.errors},
    }
    if operation.request:
        described["requestBody"] = {"required": True, "content": _content(operation.request)}
    return described


def _parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _content(body: type[BaseModel | ResponseBody]) -> Json:
    return {MEDIA_TYPE: {"schema": {"$ref": REFERENCE + body.__name__}}}


def _response(status: int, content: Json) -> Json:
    return {"description": HTTPStatus(status).phrase, "content": content}
