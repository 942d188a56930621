"""Operations as data: one table gives the routes and the OpenAPI 3.1 document."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pluribus.server.body import MEDIA_TYPE, Body, read_body
from pluribus.server.schema import ErrorResponse

BODY_ERRORS = (400, 413, 415, 422)

Handler = Callable[[Request], Awaitable[Response]]
Json = dict[str, Any]
Use = tuple[type[BaseModel], JsonSchemaMode]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. Made by ``get`` and ``post``.

    Attributes:
        method, path: what it answers to.
        name: its ``operationId``.
        description: for people; the first line is a summary.
        tag: heading it is listed under.
        handler: answers it.
        request: its body, if it takes one.
        response: the body of its answer.
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
    response: type[BaseModel]
    statuses: tuple[int, ...]
    errors: tuple[int, ...]

    def route(self) -> Route:
        """Return the route that answers it."""
        return Route(self.path, self.handler, methods=[self.method], name=self.name)


def get(
    path: str,
    endpoint: Handler,
    response: type[BaseModel],
    *,
    tag: str,
    statuses: tuple[int, ...] = (200,),
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
        statuses=statuses,
        errors=(),
    )


def post(
    path: str,
    endpoint: Callable[[Request, Body], Awaitable[Response]],
    request: type[Body],
    response: type[BaseModel],
    *,
    tag: str,
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
        statuses=(200,),
        errors=BODY_ERRORS + errors,
    )


def _name(endpoint: Callable[..., Any]) -> str:
    return endpoint.__name__


def build_document(operations: Sequence[Operation], *, title: str, version: str) -> Json:
    """Return the OpenAPI 3.1 document of ``operations``."""
    references, definitions = models_json_schema(
        list(dict.fromkeys(_models(operations))), ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Json] = {}
    for operation in operations:
        described = _describe(operation, references)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _models(operations: Sequence[Operation]) -> Iterable[Use]:
    yield ErrorResponse, "serialization"
    for operation in operations:
        yield operation.response, "serialization"
        if operation.request:
            yield operation.request, "validation"


def _describe(operation: Operation, references: Mapping[Any, Json]) -> Json:
    summary, _, description = operation.description.partition("\n")
    answer = _content(references[operation.response, "serialization"])
    error = _content(references[ErrorResponse, "serialization"])
    described: Json = {
        "operationId": operation.name,
        "summary": summary,
        "description": description.strip(),
        "tags": [operation.tag],
        "responses": {str(status): _response(status, answer) for status in operation.statuses}
        | {str(status): _response(status, error) for status in operation.errors},
    }
    if operation.request:
        body = _content(references[operation.request, "validation"])
        described["requestBody"] = {"required": True, "content": body}
    return described


def _content(schema: Json) -> Json:
    return {MEDIA_TYPE: {"schema": schema}}


def _response(status: int, content: Json) -> Json:
    return {"description": HTTPStatus(status).phrase, "content": content}
