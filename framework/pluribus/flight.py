"""A generation under way, as the front sees it: shared by all who asked for the same."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol

from pluribus.detokenizer import Detokenizer
from pluribus.engine.messages import Output, Submit, Timing
from pluribus.errors import PluribusError
from pluribus.generation import FinishReason, TokenLogprobs
from pluribus.interfaces import Answer, Query
from pluribus.tenants import Tenant


class Listener(Protocol):
    """Somebody who waits for an answer."""

    @property
    def is_delivered(self) -> bool:
        """Whether something of it has been shown: for this one it cannot begin anew."""

    def notify(self) -> None:
        """There is more of it."""

    def fail(self, error: PluribusError) -> None:
        """There will be no more of it, for this one."""


@dataclass(eq=False, slots=True, kw_only=True)
class Draft:
    """An answer as far as it is known. Belongs to one event loop.

    Attributes:
        query: what it depends on.
        detokenizer: makes its text.
        tokens, logprobs, prompt_logprobs, finish_reason, timing: as far as they are known.
        error: why there will be no answer, or None.
        listeners: told of every change.
        over: set when nothing more will come.
        num_restarts: how often it has started again.
        cached: whether the response cache had it.
    """

    query: Query
    detokenizer: Detokenizer
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    timing: Timing | None = None
    error: PluribusError | None = None
    num_restarts: int = 0
    cached: bool = False
    listeners: set[Listener] = field(default_factory=set)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.over.is_set()

    def extend(self, output: Output) -> None:
        """Take what an engine's step brought."""
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        reason = output.finish_reason
        if self.query.params.stop:
            reason = self._extend_to_stop(output) or reason
        else:
            self.tokens += output.tokens
            self.logprobs += output.logprobs
            self.detokenizer.append(output.tokens)
        if reason is None:
            self._notify()
        else:
            self.timing = output.timing
            self._finish(reason)

    def _extend_to_stop(self, output: Output) -> FinishReason | None:
        """Take token by token, so that none after a stop string counts as generated."""
        for index, token in enumerate(output.tokens):
            self.tokens.append(token)
            self.logprobs += output.logprobs[index : index + 1]
            may_stop = len(self.tokens) > self.query.params.min_tokens
            self.detokenizer.append([token], may_stop=may_stop)
            if self.detokenizer.is_stopped:
                return FinishReason.STOP
        self.logprobs += output.logprobs[len(output.tokens) :]
        return None

    async def begun(self) -> None:
        """Wait until it is certain that the answer was begun, and ``cached`` tells from where.

        Raises:
            PluribusError: it was refused.
        """

    @property
    def is_delivered(self) -> bool:
        """Whether something of it has been shown to somebody."""
        return any(listener.is_delivered for listener in self.listeners)

    def deliver(self) -> None:
        """Something of it is about to be shown to somebody for the first time."""

    def fail_delivered(self, error: PluribusError) -> None:
        """End for those who have been shown something of it, and for nobody else."""
        for listener in [each for each in self.listeners if each.is_delivered]:
            self.listeners.discard(listener)
            listener.fail(error)

    def fail(self, error: PluribusError) -> None:
        """End without an answer."""
        self.error = error
        self.over.set()
        self._notify()

    def restart(self) -> None:
        """Forget what a dead engine brought; nobody has seen any of it."""
        assert not self.is_delivered
        self.num_restarts += 1
        self.tokens.clear()
        self.logprobs.clear()
        self.prompt_logprobs = ()
        self.detokenizer = self.detokenizer.fresh()
        self._notify()

    def answer(self) -> Answer:
        """Return the whole answer, once it is there."""
        assert self.finish_reason is not None
        return Answer(
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason,
            logprobs=tuple(self.logprobs),
            prompt_logprobs=self.prompt_logprobs,
        )

    def _finish(self, reason: FinishReason) -> None:
        self.detokenizer.finish()
        self.finish_reason = FinishReason.STOP if self.detokenizer.is_stopped else reason
        self.over.set()
        self._notify()

    def _notify(self) -> None:
        for listener in self.listeners:
            listener.notify()


@dataclass(eq=False, slots=True, kw_only=True)
class Flight(Draft):
    """A generation under way, and what has come of it.

    Attributes:
        tenant: who asked for it first, and is charged.
        submit: the message that starts it, and starts it again if an engine dies.
        num_attempts: engines that have had it.
        began, advanced: when it was asked for and when its last token came, in seconds on the
            monotonic clock; for the observer.
    """

    tenant: Tenant
    submit: Submit
    num_attempts: int = 0
    began: float = field(default_factory=time.monotonic)
    advanced: float | None = None

    def land(self, answer: Answer) -> None:
        """Take a whole answer that was remembered."""
        self.cached = True
        self.extend(
            Output(
                self.submit.id,
                answer.tokens,
                answer.logprobs,
                answer.prompt_logprobs,
                answer.finish_reason,
                None,
            )
        )

    def restart(self) -> None:
        Draft.restart(self)  # slots make a new class, which super() does not know
        self.advanced = None
