"""What bodies have in common, and those of errors and probes.

Bodies that come in are pydantic's, for its errors; bodies that go out are msgspec's, for its
speed. What comes in is strict the way JSON Schema is: 1.0 is an integer, true and "5" are not.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pluribus.supervisor import State

MAX_TIMEOUT = 86400


def to_whole(value: object) -> object:
    """Return a whole number as an integer, and anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Behind Field() in an annotation: in front, the schema would lose minimum and maximum.
Whole = BeforeValidator(to_whole)

# For arrays of any length: telling what is wrong with each item would hold everybody up.
FirstErrorAlone = Field(fail_fast=True)

Timeout = Annotated[
    Annotated[float, Field(gt=0, le=MAX_TIMEOUT)] | None,
    Field(description="Seconds after which to give up, with status 504.", examples=[60]),
]


class RequestBody(BaseModel):
    """A request body: strict types, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ResponseBody(Struct, frozen=True, kw_only=True):
    """A response body, or a part of one."""


Note = (
    Annotated[
        str,
        Meta(description="What to know about every answer of this model. Absent where nothing is."),
    ]
    | UnsetType
)


def note_of(notes: tuple[str, ...]) -> Note:
    """Return a model's notes as one."""
    return " ".join(notes) or UNSET


class StatusResponse(ResponseBody, frozen=True, kw_only=True):
    """Where the service stands."""

    state: Annotated[State, Meta(description="Requests are answered while this is `ready`.")]
    detail: Annotated[str, Meta(description="The same in words, for people.")]


class HealthResponse(StatusResponse, frozen=True, kw_only=True):
    """Where the service stands, and what it is."""

    model: Annotated[str, Meta(description="Name of the model served.")]
    version: Annotated[str, Meta(description="Version of Pluribus.")]
    replicas: Annotated[
        list[StatusResponse], Meta(description="Each engine's; requests are answered while one is.")
    ]


class VersionResponse(ResponseBody, frozen=True, kw_only=True):
    """Versions of what runs here."""

    version: Annotated[str, Meta(description="Version of Pluribus.")]
    python: Annotated[str, Meta(description="Version of Python.")]
    torch: Annotated[str, Meta(description="Version of PyTorch.")]


class PluginsResponse(ResponseBody, frozen=True, kw_only=True):
    """The plugins in use."""

    plugins: Annotated[list[dict[str, Any]], Meta(description="One entry for each plugin.")]


class ErrorDetail(ResponseBody, frozen=True, kw_only=True):
    """What went wrong."""

    message: Annotated[str, Meta(description="What was given, what is allowed, what to change.")]
    type: Annotated[str, Meta(description="`invalid_request_error` or `server_error`.")]
    param: Annotated[str | None, Meta(description="The field at fault, if it is one field.")]
    code: Annotated[str | None, Meta(description="The kind of error, for a program to tell.")]


class ErrorResponse(ResponseBody, frozen=True, kw_only=True):
    """An error, in the shape that OpenAI's clients read."""

    error: Annotated[ErrorDetail, Meta(description="What went wrong.")]
