"""Says what is wrong with a request's fields: the field, the value given, and the limit."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pluribus.server.errors import ApiError, shorten

MAX_REPORTED = 3

_OWN = "own"

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

Json = Mapping[str, Any]


def refused(message: str) -> PydanticCustomError:
    """Return what a validator raises to say more than that the type is wrong."""
    return PydanticCustomError(_OWN, "{message}", {"message": message})


def explain(model: type[BaseModel], error: ValidationError) -> ApiError:
    """Return the answer to a body that is not what ``model`` allows."""
    details = error.errors(include_url=False)
    messages = [_message(model, detail) for detail in details[:MAX_REPORTED]]
    if len(details) > MAX_REPORTED:
        messages.append(f"and {len(details) - MAX_REPORTED} more")
    return ApiError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "; ".join(messages),
        param=_path(details[0]["loc"]) or None,
        code=_code(details[0]["type"]),
    )


def _code(kind: str) -> str:
    known = {"missing": "missing_field", "extra_forbidden": "unknown_field"}
    return known.get(kind, "invalid_value")


def _path(place: Sequence[int | str]) -> str:
    return shorten(".".join(str(part) for part in place if part != "[key]"))


def _message(model: type[BaseModel], detail: ErrorDetails) -> str:
    place, kind, given = detail["loc"], detail["type"], detail["input"]
    path = _path(place)
    if kind == "extra_forbidden":
        return _unknown(path, [*_fields(model, place[:-1])])
    if kind == "missing":
        return f"{path}: is required; give {_allowed(model, place)}"
    if kind == _OWN:
        return f"{path}: {detail['msg']}"
    if not path:
        return f"the body is {_show(given)}; send an object"
    if kind == "string_pattern_mismatch":
        return f'{_path(place[:-2])}: {_show(given)} is not a token id in a string, such as "50"'
    if kind in _BROKEN_LIMITS:
        return f"{path}: {_show(given)} {_BROKEN_LIMITS[kind](detail.get('ctx', {}))}"
    return f"{path}: {_show(given)} is not {_allowed(model, place)}"


def _unknown(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
    return f"unknown field '{name}'{hint}; allowed: {', '.join(known)}"


def _show(value: object) -> str:
    # Arrays and objects are named, not shown: they may be nested deeper than Python can print.
    if isinstance(value, list):
        return _NOUNS["array"]
    if isinstance(value, dict):
        return _NOUNS["object"]
    return shorten(json.dumps(value, ensure_ascii=False))


def _allowed(model: type[BaseModel], place: Sequence[int | str]) -> str:
    return " or ".join(_noun(choice) + _limits(choice) for choice in _choices(model, place))


def _fields(model: type[BaseModel], place: Sequence[int | str]) -> Iterable[str]:
    return (name for choice in _choices(model, place) for name in choice.get("properties", ()))


def _choices(model: type[BaseModel], place: Sequence[int | str]) -> list[Json]:
    """Return the schemas of what may be at ``place``, a path into the body."""
    root = model.model_json_schema()
    choices: list[Json] = [root]
    for part in place:
        choices = [
            choice
            for outer in choices
            if (inner := _inner(outer, part)) is not None
            for choice in inner.get("anyOf", [inner])
        ]
        choices = [
            root["$defs"][choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
            for choice in choices
        ]
    return choices


def _inner(schema: Json, part: int | str) -> Any:
    if isinstance(part, int):
        return schema.get("items")
    patterns = schema.get("patternProperties", {})
    return schema.get("properties", {}).get(part) or next(iter(patterns.values()), None)


def _noun(schema: Json) -> str:
    noun, items = _NOUNS[schema["type"]], schema.get("items")
    while items:
        noun += f" of {items['type']}s"
        items = items.get("items")
    return noun


def _limits(schema: Json) -> str:
    low, above, high = (
        _number(schema[key]) if key in schema else None
        for key in ("minimum", "exclusiveMinimum", "maximum")
    )
    if low is not None:
        return f" from {low}" + (f" to {high}" if high is not None else " up")
    if above is not None:
        return f" above {above} and at most {high}"
    return ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
