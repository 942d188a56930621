"""What ``/v1/completions`` takes and gives: OpenAI's fields, and a few more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from pluribus.generation import MAX_IDS, MAX_INT, MAX_LOGPROBS, MAX_SEED, FinishReason
from pluribus.server.logprobs import Logprobs
from pluribus.server.schema import (
    FirstErrorAlone,
    Note,
    RequestBody,
    ResponseBody,
    Timeout,
    Whole,
    to_whole,
)
from pluribus.server.usage import Usage
from pluribus.server.validation import refused

MAX_CHOICES = 128

_ID_PATTERN = r"^(0|[1-9][0-9]{0,9})$"
_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1},
    ]
}
_STOP_SCHEMA = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, {"type": "null"}]}
_BIAS_SCHEMA = {
    "type": "object",
    "patternProperties": {_ID_PATTERN: {"type": "number", "minimum": -100, "maximum": 100}},
    "additionalProperties": False,
    "maxProperties": MAX_IDS,
}


def _read_prompts(given: Any) -> list[str | list[int]]:
    """Return one prompt or several as several."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise PydanticCustomError("prompt_type", "not a prompt")
    if not given:
        raise refused("is an empty array; give at least one prompt")
    items = [_to_whole_ids(item) for item in given]
    if type(items[0]) in (int, float):
        _check_items(items, _is_id, "an integer, a token id,")
        return [items]
    if isinstance(items[0], list):
        _check_items(items, _are_ids, "an array of integers, token ids,")
    else:
        _check_items(items, lambda item: isinstance(item, str), "a string")
    return items


def _check_items(items: list[Any], is_right: Callable[[Any], bool], kind: str) -> None:
    for index, item in enumerate(items):
        if not is_right(item):
            raise refused(f"item {index} is not {kind}" + (" like those before" if index else ""))


def _to_whole_ids(item: object) -> Any:
    return list(map(to_whole, item)) if isinstance(item, list) else to_whole(item)


def _is_id(item: object) -> bool:
    return type(item) is int  # true is an int, but no id


def _are_ids(item: object) -> bool:
    return isinstance(item, list) and all(map(_is_id, item))


def _several(given: object) -> object:
    return [given] if isinstance(given, str) else given


def _refuse_suffix(given: object) -> None:
    if given is not None:
        raise refused(
            "is not supported: the model continues a text, it fills no gaps; leave it out"
        )


Count = Annotated[int, Field(ge=1, le=MAX_CHOICES), Whole]
Penalty = Annotated[float, Field(ge=-2, le=2)]
NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole]


class StreamOptions(RequestBody):
    """What a stream tells beside the text."""

    include_usage: bool = Field(
        default=False, description="End with an event that has `usage` and no choices."
    )


class CompletionRequest(RequestBody):
    """Prompts, and how to continue them. null is as good as left out, but for the prompt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0.7}]
        }
    )

    model: str | None = Field(default=None, description="The model's name, if it is given.")
    prompt: Annotated[
        list[str | list[int]], PlainValidator(_read_prompts), WithJsonSchema(_PROMPT_SCHEMA)
    ] = Field(
        description="A text or several, or the token ids of one or of several, which are used "
        "as they are.",
    )
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT), Whole] | None = Field(
        default=None,
        description="Tokens to generate at most. Left out: 16, or fewer if fewer fit. 0, with "
        "`echo`, only scores the prompt.",
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None,
        description="Below 1, the default, sharpens the choice, above 1 flattens it. 0: always "
        "the likeliest.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Choose among the fewest tokens whose probabilities sum to at least this.",
    )
    n: Count | None = Field(
        default=None, description="Choices for each prompt; 1 by default. They are numbered on."
    )
    best_of: Count | None = Field(
        default=None,
        description="Generate so many and give the `n` of the highest mean log probability of a "
        "token. `usage` counts all. Not for streams.",
    )
    stream: bool | None = Field(default=None, description="Send server-sent events.")
    stream_options: StreamOptions | None = Field(
        default=None, description="What a stream tells beside the text."
    )
    logprobs: NumLogprobs | None = Field(
        default=None,
        description="How many of the likeliest tokens to tell for each token, beside the one that "
        "was taken. OpenAI's limit is 5.",
    )
    echo: bool | None = Field(
        default=None, description="Begin with the prompt, and with its `logprobs`."
    )
    stop: Annotated[
        Annotated[list[Annotated[str, Field(min_length=1)]], FirstErrorAlone] | None,
        BeforeValidator(_several),
        WithJsonSchema(_STOP_SCHEMA),
    ] = Field(
        default=None, description="Texts that end the answer and are not part of it; any number."
    )
    presence_penalty: Penalty | None = Field(
        default=None, description="Taken from the logits of tokens that are in the answer."
    )
    frequency_penalty: Penalty | None = Field(
        default=None, description="Taken from them once for each time they are."
    )
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(pattern=_ID_PATTERN)],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            WithJsonSchema(_BIAS_SCHEMA),
        ]
        | None
    ) = Field(default=None, description="Added to the logits of token ids, which are strings.")
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED), Whole] | None = Field(
        default=None,
        description="Makes the answer repeat exactly; choice `j` of a prompt is that of "
        "`seed` + `j`. Left out: a new answer each time.",
    )
    user: str | None = Field(default=None, description="Taken for OpenAI's sake; changes nothing.")
    suffix: Annotated[None, BeforeValidator(_refuse_suffix)] = Field(
        default=None, description="Not supported: the model fills no gaps."
    )
    top_k: Annotated[int, Field(ge=0, le=MAX_INT), Whole] | None = Field(
        default=None,
        description="Choose among the k most likely tokens. 0, the default: among all; 1: always "
        "the likeliest.",
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Choose among tokens at least this times as likely as the first."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = Field(
        default=None,
        description="Above 1, makes less likely what is in prompt or answer; 1 by default.",
    )
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT), Whole] | None = Field(
        default=None, description="Tokens to generate before anything may end the answer."
    )
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0, le=MAX_INT), Whole]], FirstErrorAlone] | None
    ) = Field(
        default=None,
        description="Token ids that end the answer and are not part of it.",
        json_schema_extra={"maxItems": MAX_IDS},
    )
    ignore_eos: bool | None = Field(
        default=None, description="Take the end-of-text id for an id like any other."
    )
    timeout: Timeout = None
    timing: bool | None = Field(default=None, description="Tell `usage.timing`.")


class Choice(ResponseBody, frozen=True, kw_only=True):
    """One continuation, or a piece of it."""

    index: Annotated[int, Meta(description="`n` x the prompt's index + the choice's.")]
    text: Annotated[str, Meta(description="The continuation, or the piece.")]
    logprobs: Annotated[Logprobs | None, Meta(description="If they were asked for.")] = None
    finish_reason: Annotated[
        FinishReason | None,
        Meta(description="`stop` or `length`; null in all pieces but the last."),
    ] = None


class CompletionResponse(ResponseBody, frozen=True, kw_only=True):
    """Continuations, or a piece of one."""

    id: Annotated[str, Meta(description="The same in all pieces of a stream.")]
    object: Annotated[Literal["text_completion"], Meta(description="Always the same.")] = (
        "text_completion"
    )
    created: Annotated[int, Meta(description="In seconds since 1970.")]
    model: Annotated[str, Meta(description="The model's name.")]
    system_fingerprint: Annotated[
        str, Meta(description="Differs whenever weights or tokenizer may differ.")
    ]
    choices: Annotated[list[Choice], Meta(description="The continuations.")]
    usage: Annotated[
        Usage | UnsetType | None,
        Meta(description="What it took. In a stream only if asked for, and in its last event."),
    ] = UNSET
    note: Note = UNSET
