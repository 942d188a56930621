"""``/tokenize`` and ``/detokenize``: text to token ids and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta
from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from pluribus.errors import RequestError
from pluribus.server.asking import read_prompts
from pluribus.server.body import answer
from pluribus.server.schema import FirstErrorAlone, RequestBody, ResponseBody, Whole

if TYPE_CHECKING:
    from pluribus.front import Front


class TokenizeRequest(RequestBody):
    """A text to make token ids of."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Once upon a time"}]})

    prompt: str | None = Field(default=None, description="The text; it may be empty.")
    text: str | None = Field(default=None, description="Another name for `prompt`.")
    add_special_tokens: bool = Field(
        default=True, description="Put in front what goes in front of a prompt: `</s>` for OPT."
    )


class TokenizeResponse(ResponseBody, frozen=True, kw_only=True):
    """The token ids of a text."""

    tokens: Annotated[list[int], Meta(description="The ids.")]
    count: Annotated[int, Meta(description="How many there are.")]
    max_model_len: Annotated[
        int, Meta(description="Tokens of prompt and answer together that the model takes.")
    ]


class DetokenizeRequest(RequestBody):
    """Token ids to make text of."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [2, 5, 6]}]})

    tokens: Annotated[list[Annotated[int, Whole]], FirstErrorAlone] = Field(description="The ids.")


class DetokenizeResponse(ResponseBody, frozen=True, kw_only=True):
    """The text of token ids."""

    text: Annotated[str, Meta(description="The text, special tokens left out.")]


class TokenEndpoints:
    """Shows how the model's tokenizer sees a text."""

    def __init__(self, service: Front) -> None:
        self._service = service

    async def tokenize(self, _: Request, body: TokenizeRequest) -> Response:
        """Make token ids of a text, as a prompt's are made.

        Special tokens spelt out in it are ordinary text.
        """
        given = [text for text in (body.prompt, body.text) if text is not None]
        if len(given) != 1:
            raise RequestError("prompt: give it, or text, and not both", param="prompt")
        ids = await read_prompts(given, lambda: self._service.encode(given[0]))
        if not body.add_special_tokens:
            ids = ids[len(self._service.encode("")) :]
        max_length = self._service.spec.max_length
        return answer(TokenizeResponse(tokens=ids, count=len(ids), max_model_len=max_length))

    async def detokenize(self, _: Request, body: DetokenizeRequest) -> Response:
        """Make text of token ids."""
        text = await read_prompts([body.tokens], lambda: self._service.decode(body.tokens))
        return answer(DetokenizeResponse(text=text))
