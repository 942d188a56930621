"""An answer on its way to whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType

from pluribus.engine.messages import Timing
from pluribus.errors import PluribusError
from pluribus.flight import Draft
from pluribus.generation import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer.

    Attributes:
        prompt: as it was given; decoded, if it was given as token ids.
        text: the continuation alone.
        prompt_tokens: the prompt's ids, beginning-of-text included.
        tokens: the continuation's, the end-of-text id left out.
        logprobs: of ``tokens``, and of the id that ended them, where asked for.
        prompt_logprobs: of ``prompt_tokens`` from the second on, where asked for.
        finish_reason: why it ended.
        cached: whether the response cache had it.
        timing: where the time went; None for an answer from the response cache.
    """

    prompt: str
    text: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    cached: bool = False
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What has been added to an answer since the last one.

    ``finish_reason`` is set on the last, and on that alone.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None


class Reply:
    """An answer on its way to one listener. Leaving it, answered or not, is always safe:
    a generation that nobody listens to any more is cancelled.

    >>> with service.ask(query, tenant) as reply:
    ...     await reply.wait()
    ...     print(reply.completion(prompt).text)
    """

    def __init__(self, flight: Draft, abandon: Callable[[], None]) -> None:
        self.flight = flight
        self._abandon = abandon
        self._changed = asyncio.Event()
        self._changed.set()
        self._notify: Callable[[], object] = self._changed.set
        self._error: PluribusError | None = None
        self._is_delivered = False
        flight.listeners.add(self)

    @property
    def cached(self) -> bool:
        """Whether the response cache had it, once it has begun."""
        return self.flight.cached

    @property
    def error(self) -> PluribusError | None:
        """Why there will be no more of it, or None."""
        return self._error or self.flight.error

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.flight.is_over or self._error is not None

    @property
    def is_delivered(self) -> bool:
        """Whether something of it has been shown; see flight.Listener."""
        return self._is_delivered

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        self.flight.listeners.discard(self)
        self._abandon()

    def listen(self, notify: Callable[[], None]) -> None:
        """Have ``notify`` called at every change, instead of waiting for them."""
        self._notify = notify

    def notify(self) -> None:
        """There is more of it; see flight.Listener."""
        self._notify()

    def fail(self, error: PluribusError) -> None:
        """There will be no more of it; see flight.Listener."""
        self._error = error
        self._notify()

    def deliver(self) -> None:
        """Note that something of it is shown."""
        if not self._is_delivered:
            self.flight.deliver()
            self._is_delivered = True

    async def begun(self) -> None:
        """Wait until it is certain that the answer was begun, and ``cached`` is.

        Raises:
            PluribusError: it was refused.
        """
        await self.flight.begun()

    async def wait(self) -> None:
        """Wait until the answer is complete.

        Raises:
            PluribusError: there will be none.
        """
        await self.flight.over.wait()
        if self.flight.error is not None:
            raise self.flight.error

    async def deltas(self, interval: float) -> AsyncIterator[Delta]:
        """Yield the answer in pieces: the first token at once, then all since the last piece.

        Args:
            interval: seconds between two pieces, at least.

        Raises:
            PluribusError: the answer will not be completed.
        """
        flight, num_chars, num_tokens, last = self.flight, 0, 0, -interval
        while True:
            await self._changed.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(last + interval - time.monotonic()):
                    await flight.over.wait()
            self._changed.clear()
            if self.error is not None:
                raise self.error
            text = flight.detokenizer.text
            if flight.finish_reason is None and len(text) == num_chars:
                continue
            self.deliver()
            delta = Delta(
                text[num_chars:],
                tuple(flight.tokens[num_tokens:]),
                tuple(flight.logprobs[num_tokens:]),
                flight.finish_reason,
            )
            # Before the yield: the answer may grow, or end, while the piece is being sent.
            num_chars, num_tokens = len(text), len(flight.tokens)
            yield delta
            if delta.finish_reason is not None:
                return
            last = time.monotonic()

    def completion(self, prompt: str) -> Completion:
        """Return the whole answer, once it is there."""
        answer = self.flight.answer()
        return Completion(
            prompt=prompt,
            text=self.flight.detokenizer.text,
            prompt_tokens=self.flight.query.prompt,
            tokens=answer.tokens,
            finish_reason=answer.finish_reason,
            logprobs=answer.logprobs,
            prompt_logprobs=answer.prompt_logprobs,
            cached=self.cached,
            timing=self.flight.timing,
        )
