"""``/generation``: one prompt, one answer, as EnergonAI's tutorial has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

from msgspec import UNSET, Meta, UnsetType
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from pluribus.generation import MAX_INT, MAX_SEED, FinishReason, SamplingParams
from pluribus.reply import Reply
from pluribus.server.asking import cache_headers, deadline, read_prompts, tenant_of
from pluribus.server.body import answer
from pluribus.server.disconnect import unless_disconnected
from pluribus.server.events import EventStream
from pluribus.server.schema import Note, RequestBody, ResponseBody, Timeout, Whole, note_of

if TYPE_CHECKING:
    from pluribus.front import Front


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
    stream: bool = Field(
        default=False,
        description="Send the continuation piece by piece, as server-sent events.",
        examples=[False],
    )
    timeout: Timeout = None

    def params(self) -> SamplingParams:
        """Return how to choose tokens."""
        fields = self.model_dump(exclude={"prompt", "stream", "timeout"}, exclude_none=True)
        return SamplingParams(**fields)


class GenerationResponse(ResponseBody, frozen=True, kw_only=True):
    """The prompt, continued."""

    text: Annotated[str, Meta(description="The prompt and its continuation.")]
    note: Note = UNSET


class GenerationEvent(ResponseBody, frozen=True, kw_only=True):
    """A piece of the continuation."""

    text: str
    finish_reason: FinishReason | UnsetType = UNSET
    note: Note = UNSET


class GenerationEndpoint:
    """Continues one prompt.

    Args:
        service: answers.
        stream_interval: seconds between two events of a stream, at least.
    """

    def __init__(self, service: Front, stream_interval: float) -> None:
        self._service = service
        self._stream_interval = stream_interval
        self._note = note_of(service.spec.notes)

    async def generate(self, request: Request, body: GenerationRequest) -> Response:
        """Continue a prompt.

        Samples at temperature 1 among all tokens unless told otherwise; `top_k: 1` or
        `temperature: 0` always takes the likeliest token. A prompt that does not fit the
        model is refused, never cut.

        With `stream: true` events `{"text": "..."}` carry the continuation, piece by piece and
        without the prompt; the last piece has a `finish_reason`, and `[DONE]` follows.
        """
        if body.stream:
            return EventStream(request, lambda events: self._stream(events, request, body))
        return await unless_disconnected(request, self._answer(request, body))

    async def _answer(self, request: Request, body: GenerationRequest) -> Response:
        async with self._ask(request, body) as reply:
            await reply.wait()
        text = body.prompt + reply.completion(body.prompt).text
        return answer(GenerationResponse(text=text, note=self._note), headers=cache_headers(reply))

    async def _stream(self, events: EventStream, request: Request, body: GenerationRequest) -> None:
        async with self._ask(request, body) as reply:
            events.headers.update(cache_headers(reply))
            async for delta in reply.deltas(self._stream_interval):
                is_last = delta.finish_reason is not None
                event = GenerationEvent(
                    text=delta.text,
                    finish_reason=delta.finish_reason or UNSET,
                    note=self._note if is_last else UNSET,
                )
                await events.send(event)
        await events.end()

    @asynccontextmanager
    async def _ask(self, request: Request, body: GenerationRequest) -> AsyncIterator[Reply]:
        """Begin an answer, to be given up at the end of the context or of its time."""
        params, fit = body.params(), body.max_tokens is None
        async with deadline(body.timeout):
            query = await read_prompts(
                [body.prompt], lambda: self._service.query(body.prompt, params, fit=fit)
            )
            with self._service.ask(query, tenant_of(request)) as reply:
                await reply.begun()
                yield reply
