"""What clients send and what they get back, as JSON.

The models are strict the way JSON Schema is: 1.0 is an integer, true and "5" are not.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from pluribus.generation import MAX_SEED
from pluribus.service import State

MAX_INT = 2**31 - 1


def _to_whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_default(schema: JsonDict) -> None:
    del schema["default"]


# Behind Field() in an annotation: in front, the schema would lose minimum and maximum.
Whole = BeforeValidator(_to_whole)


class RequestBody(BaseModel):
    """A request body: strict types, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class GenerationRequest(RequestBody):
    """A prompt, and how to continue it."""

    prompt: str = Field(
        min_length=1,
        description="Text to continue.",
        examples=["Once upon a time"],
    )
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT), Whole] | None = Field(
        default=None,
        description="Tokens to generate at most. Left out: 64, or fewer if fewer fit.",
        examples=[64],
    )
    top_k: Annotated[int, Field(ge=0, le=MAX_INT), Whole] = Field(
        default=0,
        description="Choose among the k most likely tokens. 0: among all; 1: always the likeliest.",
        examples=[50],
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Choose among the fewest tokens whose probabilities sum to at least this.",
        examples=[0.9],
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Below 1 sharpens the choice, above 1 flattens it. 0: always the likeliest.",
        examples=[0.7],
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), Whole] | None = Field(
        default=None,
        description="Makes the answer repeat exactly. Left out: a new answer each time.",
        examples=[1],
    )


class GenerationResponse(BaseModel):
    """The prompt, continued."""

    text: str = Field(description="The prompt and its continuation.")
    note: str | SkipJsonSchema[None] = Field(
        default=None,
        description="What to know about every answer of this model. Absent where there is nothing.",
        json_schema_extra=_without_default,
    )


class StatusResponse(BaseModel):
    """Where the service stands."""

    state: State = Field(description="Requests are answered while this is `ready`.")
    detail: str = Field(description="The same in words, for people.")


class HealthResponse(StatusResponse):
    """Where the service stands, and what it is."""

    model: str = Field(description="Name of the model served.")
    version: str = Field(description="Version of Pluribus.")


class VersionResponse(BaseModel):
    """Versions of what runs here."""

    version: str = Field(description="Version of Pluribus.")
    python: str = Field(description="Version of Python.")
    torch: str = Field(description="Version of PyTorch.")


class PluginsResponse(BaseModel):
    """The plugins in use."""

    plugins: list[dict[str, Any]] = Field(description="One entry for each plugin.")


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="What was given, what is allowed, what to change.")
    type: str = Field(description="`invalid_request_error` or `server_error`.")
    param: str | None = Field(description="The field at fault, if it is one field.")
    code: str | None = Field(description="The kind of error, for a program to tell.")


class ErrorResponse(BaseModel):
    """An error, in the shape that OpenAI's clients read."""

    error: ErrorDetail
