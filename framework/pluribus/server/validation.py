"""Says what is wrong with a request's fields: the field, the value given, and the limit."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pluribus.server.errors import ApiError, shorten

MAX_REPORTED = 3

_NOUNS = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}

_BROKEN_LIMITS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda limit: f"is not above {_number(limit['gt'])}",
    "greater_than_equal": lambda limit: f"is below the minimum, {_number(limit['ge'])}",
    "less_than_equal": lambda limit: f"is above the maximum, {_number(limit['le'])}",
    "string_too_short": lambda limit: f"is too short; the minimum length is {limit['min_length']}",
    "string_unicode": lambda _: "holds half a surrogate pair, which is not a character",
}


def explain(model: type[BaseModel], error: ValidationError) -> ApiError:
    """Return the answer to a body that is not what ``model`` allows."""
    details = error.errors(include_url=False)
    messages = [_message(model, detail) for detail in details[:MAX_REPORTED]]
    if len(details) > MAX_REPORTED:
        messages.append(f"and {len(details) - MAX_REPORTED} more")
    return ApiError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "; ".join(messages),
        param=_path(details[0]) or None,
        code=_code(details[0]["type"]),
    )


def _code(kind: str) -> str:
    known = {"missing": "missing_field", "extra_forbidden": "unknown_field"}
    return known.get(kind, "invalid_value")


def _path(detail: ErrorDetails) -> str:
    return shorten(".".join(str(part) for part in detail["loc"]))


def _message(model: type[BaseModel], detail: ErrorDetails) -> str:
    path, kind, given = _path(detail), detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown(path, list(model.model_fields))
    if kind == "missing":
        return f"{path}: is required; give {_allowed(model, path)}"
    if not path:
        return f"the body is {_show(given)}; send an object"
    if kind in _BROKEN_LIMITS:
        return f"{path}: {_show(given)} {_BROKEN_LIMITS[kind](detail.get('ctx', {}))}"
    return f"{path}: {_show(given)} is not {_allowed(model, path)}"


def _unknown(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
    return f"unknown field '{name}'{hint}; allowed: {', '.join(known)}"


def _show(value: object) -> str:
    # Arrays and objects are named, not shown: they may be nested deeper than Python can print.
    if isinstance(value, list):
        return _NOUNS["array"]
    if isinstance(value, dict):
        return _NOUNS["object"]
    return shorten(json.dumps(value, ensure_ascii=False))


def _allowed(model: type[BaseModel], name: str) -> str:
    schema = model.model_json_schema()["properties"][name]
    choices = schema.get("anyOf", [schema])
    return " or ".join(_NOUNS[choice["type"]] + _limits(choice) for choice in choices)


def _limits(schema: Mapping[str, Any]) -> str:
    low, above, high = (
        _number(schema[key]) if key in schema else None
        for key in ("minimum", "exclusiveMinimum", "maximum")
    )
    if low is not None:
        return f" from {low} to {high}"
    if above is not None:
        return f" above {above} and at most {high}"
    return ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
