"""``/v1/completions``: OpenAI's completions API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pluribus.reply import Completion, Delta, Reply
from pluribus.server.asking import cache_headers, deadline, read_prompts, tenant_of
from pluribus.server.body import answer
from pluribus.server.completion_params import (
    includes_usage,
    num_candidates,
    num_choices,
    read_queries,
)
from pluribus.server.completion_schema import Choice, CompletionRequest, CompletionResponse
from pluribus.server.disconnect import unless_disconnected
from pluribus.server.events import EventStream, together
from pluribus.server.logprobs import LogprobsWriter, TokenTexts
from pluribus.server.models import check_model
from pluribus.server.schema import note_of
from pluribus.server.usage import Usage, count_usage
from pluribus.tenants import Tenant

if TYPE_CHECKING:
    from pluribus.front import Front


class CompletionEndpoint:
    """Continues prompts.

    Args:
        service: answers.
        stream_interval: seconds between two pieces of a choice, at least.
    """

    def __init__(self, service: Front, stream_interval: float) -> None:
        self.service = service
        self.stream_interval = stream_interval
        self.texts = TokenTexts(service)
        self.note = note_of(service.spec.notes)
        self.fingerprint = f"fp_{service.fingerprint[:12]}"

    async def complete(self, request: Request, body: CompletionRequest) -> Response:
        """Continue prompts, as OpenAI's completions API does.

        Several prompts run at once, each with `n` choices; choice `j` of prompt `i` has index
        `i * n + j`. A prompt that does not fit the model is refused, never cut. `echo` with
        `logprobs` and `max_tokens: 0` scores the prompt.

        With `stream: true` each event is a piece of one choice; `[DONE]` follows the last. An
        error after the first event is an event `{"error": ...}`, the last one.
        """
        check_model(self.service.spec, body.model)
        call = CompletionCall(self, body, tenant_of(request))
        if body.stream:
            return EventStream(request, call.stream)
        return await unless_disconnected(request, call.answer())


class CompletionCall:
    """One call: a number of generations for each prompt, and the answer made of them."""

    def __init__(
        self, endpoint: CompletionEndpoint, body: CompletionRequest, tenant: Tenant
    ) -> None:
        self._endpoint = endpoint
        self._service = endpoint.service
        self._body = body
        self._tenant = tenant
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def answer(self) -> Response:
        """Return the whole answer."""
        with ExitStack() as stack:
            async with deadline(self._body.timeout):
                replies = await self._ask(stack)
                for reply in replies:
                    await reply.wait()
        choices = [
            self._writer(index, reply).write(reply.completion(""))
            for index, reply in enumerate(self._best(replies))
        ]
        content = self._response(choices, usage=self._usage(replies), is_last=True)
        return answer(content, headers=cache_headers(*replies))

    async def stream(self, events: EventStream) -> None:
        """Send the answer piece by piece."""
        with ExitStack() as stack:
            async with deadline(self._body.timeout):
                replies = await self._ask(stack)
                events.headers.update(cache_headers(*replies))
                await together(
                    self._stream_choice(events, index, reply) for index, reply in enumerate(replies)
                )
        if includes_usage(self._body):
            await events.send(self._response([], usage=self._usage(replies), is_last=True))
        await events.end()

    async def _ask(self, stack: ExitStack) -> list[Reply]:
        """Begin everything, to be given up when ``stack`` ends."""
        body = self._body
        texts = [*body.prompt, *(body.stop or ())]
        queries = await read_prompts(texts, lambda: read_queries(self._service, body, self._tenant))
        replies = self._service.ask_all(queries, self._tenant)
        for reply in replies:
            stack.enter_context(reply)
        for reply in replies:
            await reply.begun()
        return replies

    async def _stream_choice(self, events: EventStream, index: int, reply: Reply) -> None:
        writer = self._writer(index, reply)
        usage = None if includes_usage(self._body) else UNSET
        async for delta in reply.deltas(self._endpoint.stream_interval):
            is_last = delta.finish_reason is not None
            piece = self._response([writer.write(delta)], usage=usage, is_last=is_last)
            await events.send(piece)

    def _best(self, replies: Sequence[Reply]) -> Iterator[Reply]:
        """Yield the choices among the candidates, prompt by prompt."""
        num, given = num_choices(self._body), num_candidates(self._body)
        for start in range(0, len(replies), given):
            candidates = replies[start : start + given]
            if given > num:
                candidates = sorted(candidates, key=_mean_logprob, reverse=True)
            yield from candidates[:num]

    def _writer(self, index: int, reply: Reply) -> ChoiceWriter:
        prompt = None
        if self._body.echo:
            given = self._body.prompt[index // num_choices(self._body)]
            prompt = given if isinstance(given, str) else self._service.decode(given)
        logprobs = None if self._body.logprobs is None else LogprobsWriter(self._endpoint.texts)
        return ChoiceWriter(index, reply, prompt, logprobs)

    def _usage(self, replies: Sequence[Reply]) -> Usage:
        return count_usage(replies, num_candidates(self._body), timing=bool(self._body.timing))

    def _response(
        self, choices: list[Choice], *, usage: Usage | UnsetType | None, is_last: bool
    ) -> CompletionResponse:
        return CompletionResponse(
            id=self._id,
            created=self._created,
            model=self._service.spec.name,
            system_fingerprint=self._endpoint.fingerprint,
            choices=choices,
            usage=usage,
            note=self._endpoint.note if is_last else UNSET,
        )


class ChoiceWriter:
    """Makes a choice of an answer, whole or piece by piece.

    Args:
        index: of the choice.
        reply: the answer.
        prompt: to begin with, or None.
        logprobs: writes them, if they are wanted.
    """

    def __init__(
        self, index: int, reply: Reply, prompt: str | None, logprobs: LogprobsWriter | None
    ) -> None:
        self._index = index
        self._reply = reply
        self._prompt = prompt
        self._logprobs = logprobs

    def write(self, piece: Completion | Delta) -> Choice:
        """Return the choice that holds ``piece``, after the prompt if it is the first."""
        prompt, self._prompt = self._prompt, None
        logprobs = None
        if self._logprobs is not None:
            if prompt is not None:
                flight = self._reply.flight
                told = flight.prompt_logprobs
                self._logprobs.write_prompt(flight.query.prompt, told, len(prompt))
            self._logprobs.write(piece.logprobs)
            logprobs = self._logprobs.take()
        return Choice(
            index=self._index,
            text=(prompt or "") + piece.text,
            logprobs=logprobs,
            finish_reason=piece.finish_reason,
        )


def _mean_logprob(reply: Reply) -> float:
    told = reply.flight.logprobs
    return fmean(each.logprob for each in told) if told else float("-inf")
