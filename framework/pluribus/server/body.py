"""Bodies: from bytes to a checked model, or an error that says what to change; and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pluribus.server.errors import ApiError, shorten
from pluribus.server.schema import ResponseBody
from pluribus.server.validation import explain

MEDIA_TYPE = "application/json"

MAX_FIELDS = 1000
"""Of one object: telling what is wrong with each of very many would hold everybody up."""

Body = TypeVar("Body", bound=BaseModel)


def answer(
    body: ResponseBody, *, ok: bool = True, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response with this body; if not ``ok``, the service is unavailable."""
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(msgspec.json.encode(body), status, headers, media_type=MEDIA_TYPE)


async def read_body(request: Request, model: type[Body]) -> Body:
    """Return the request's body as a ``model``.

    Raises:
        ApiError: it is not JSON, or not what ``model`` allows.
    """
    _check_media_type(request)
    content = _parse(await request.body())
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise explain(model, error) from None


def _check_media_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"send the header 'Content-Type: {MEDIA_TYPE}', got {shorten(given) or 'none'}",
            code="unsupported_media_type",
        )


def _parse(body: bytes) -> object:
    if not body.strip():
        raise _not_json("the body is empty; send a JSON object")
    try:
        return json.loads(body.decode(), object_pairs_hook=_object)
    except UnicodeEncodeError:
        raise _not_json("a field's name holds half a surrogate pair") from None
    except UnicodeDecodeError as error:
        raise _not_json(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _not_json(f"the body is not JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise _not_json("the body is nested too deeply") from None
    except ValueError:
        raise _not_json("the body holds a number of too many digits") from None


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    if len(pairs) > MAX_FIELDS:
        raise _not_json(f"an object has {len(pairs)} fields; {MAX_FIELDS} are allowed")
    fields: dict[str, object] = {}
    for name, value in pairs:
        name.encode()
        if name in fields:
            raise _not_json(f"field '{shorten(name)}' is given twice", param=shorten(name))
        fields[name] = value
    return fields


def _not_json(message: str, param: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_json", param=param)
