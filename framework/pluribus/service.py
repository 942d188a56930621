"""The front: text in, text out. Tokenizer, response cache, and a way to the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pluribus import runtime
from pluribus.engine.core import EngineCore
from pluribus.engine.thread import EngineThread
from pluribus.errors import ConfigError, EngineError, RequestError
from pluribus.generation import FinishReason, SamplingParams
from pluribus.interfaces import Answer, ModelSpec, Query
from pluribus.plugins import Plugins
from pluribus.progress import report_progress
from pluribus.runtime import Parts


class State(StrEnum):
    """Where a service is in its life."""

    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Status:
    """A state, and a sentence about it for a person."""

    state: State
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer.

    Attributes:
        prompt: as it was given; decoded, if it was given as token ids.
        text: the continuation alone.
        tokens: its ids, the end-of-text id left out.
        num_prompt_tokens: of the prompt, beginning-of-text included.
        finish_reason: why it ended.
        cached: whether the response cache had it.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason
    cached: bool


Prompt = str | Sequence[int]


class Service:
    """Answers prompts. Safe to use from any thread and any event loop.

    Args:
        parts: what to run; see ``runtime.assemble``.
        plugins: for the hooks that observe, and for ``/plugins``.
    """

    def __init__(self, parts: Parts, plugins: Plugins) -> None:
        self.parts = parts
        self.plugins = plugins
        self._tokenizer = parts.model.tokenizer()
        self._num_empty = len(self._tokenizer.encode(""))
        self._cache = parts.response_cache
        for request in self._cache.pinned:
            self._cache.pin(self._pinned_query(request))
        self._engine = EngineThread(self._start_core, self._ready, self._died, parts.queue.max_size)
        self._lock = threading.Lock()
        self._status = Status(State.LOADING, "not started")
        self._watchers: list[Callable[[Status], None]] = []
        self._settled = threading.Event()
        self._death: BaseException | None = None

    @property
    def spec(self) -> ModelSpec:
        """What is served."""
        return self.parts.model.spec

    @property
    def status(self) -> Status:
        """Where the service is in its life."""
        return self._status

    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._engine.is_alive

    def watch(self, callback: Callable[[Status], None]) -> None:
        """Call ``callback`` at every change of status, from whichever thread changes it."""
        self._watchers.append(callback)

    def start(self) -> None:
        """Begin to load; returns at once. See ``status``, ``watch`` and ``wait_ready``."""
        self._change(State.LOADING, "starting")
        self._engine.start()

    def wait_ready(self) -> None:
        """Block until the service is ready.

        Raises:
            BaseException: what loading failed with.
        """
        self._settled.wait()
        if self._death is not None:
            raise self._death

    async def stop(self) -> None:
        """End the engine; requests that have not been answered fail."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the engine; requests that have not been answered fail."""
        if self._status.state is not State.FAILED:
            self._change(State.STOPPING, "shutting down")
        if self._engine.is_alive:
            self._engine.stop()

    async def complete(
        self, prompt: Prompt, params: SamplingParams, *, fit: bool = False
    ) -> Completion:
        """Answer a prompt. Cancelling the awaiting task cancels the generation.

        Args:
            prompt: text, or token ids that are used as they are.
            params: how to choose tokens.
            fit: lower ``max_tokens`` to the room the prompt leaves, for callers who did not
                choose it.

        Raises:
            RequestError: the prompt is empty or too long.
            QueueFullError: too many requests are waiting.
            EngineError: the engine is loading, stopping or dead.
        """
        self._check_ready()
        # Long prompts take a while to encode: not on the event loop.
        query = await asyncio.to_thread(self.query, prompt, params, fit=fit)
        cached = self._cache.get(query)
        if cached is not None:
            return self._completion(prompt, query, cached, cached=True)
        answer = await asyncio.wrap_future(self._submit(query))
        return self._completion(prompt, query, answer, cached=False)

    def complete_all(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams]
    ) -> list[Completion]:
        """Answer prompts from a thread that may block, each with its parameters.

        Raises:
            RequestError: a prompt is empty or too long; nothing has run then.
            EngineError: the engine is loading, stopping or dead.
        """
        self._check_ready()
        queries = [self.query(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
        cached = [self._cache.get(query) for query in queries]
        futures = [
            self._submit(query) if hit is None else _done(hit)
            for query, hit in zip(queries, cached, strict=True)
        ]
        return [
            self._completion(prompt, query, future.result(), cached=hit is not None)
            for prompt, query, future, hit in zip(prompts, queries, futures, cached, strict=True)
        ]

    def query(self, prompt: Prompt, params: SamplingParams, *, fit: bool = False) -> Query:
        """Return what the answer will depend on; arguments as for ``complete``.

        Raises:
            RequestError: the prompt is empty or too long, or has ids the model lacks.
        """
        ids = tuple(self._tokenizer.encode(prompt)) if isinstance(prompt, str) else tuple(prompt)
        self._check_prompt(ids, is_text=isinstance(prompt, str))
        room = self.spec.max_length - len(ids)
        if fit:
            params = replace(params, max_tokens=min(params.max_tokens, room))
        if params.max_tokens > room:
            raise RequestError(
                f"max_tokens: {params.max_tokens} is more than the {room} that fit after a prompt "
                f"of {len(ids)} tokens; {self.spec.name} takes {self.spec.max_length} tokens of "
                "prompt and answer together",
                param="max_tokens",
            )
        return Query(self.parts.model.fingerprint, ids, params)

    def _check_prompt(self, ids: tuple[int, ...], *, is_text: bool) -> None:
        if len(ids) <= (self._num_empty if is_text else 0):
            raise RequestError("prompt: must not be empty", param="prompt")
        if len(ids) >= self.spec.max_length:
            raise RequestError(
                f"prompt: {len(ids)} tokens are too many; {self.spec.name} takes "
                f"{self.spec.max_length} tokens of prompt and answer together, so at most "
                f"{self.spec.max_length - 1} of prompt",
                param="prompt",
            )
        if not is_text and not all(0 <= id_ < self.spec.num_token_ids for id_ in ids):
            raise RequestError(
                f"prompt: token ids must be from 0 to {self.spec.num_token_ids - 1}",
                param="prompt",
            )

    def _submit(self, query: Query) -> Future[Answer]:
        future = self._engine.submit(query.prompt, query.params)
        future.add_done_callback(lambda done: self._remember(query, done))
        return future

    def _remember(self, query: Query, future: Future[Answer]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._cache.put(query, future.result())

    def _completion(
        self, prompt: Prompt, query: Query, answer: Answer, *, cached: bool
    ) -> Completion:
        return Completion(
            prompt=prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt),
            text=self._tokenizer.decode(answer.tokens),
            tokens=answer.tokens,
            num_prompt_tokens=len(query.prompt),
            finish_reason=answer.finish_reason,
            cached=cached,
        )

    def _pinned_query(self, request: dict[str, Any]) -> Query:
        fields = dict(request)
        try:
            return self.query(
                fields.pop("prompt"), SamplingParams(**fields), fit="max_tokens" not in fields
            )
        except (KeyError, TypeError, RequestError) as error:
            raise ConfigError(f"cache.response.pinned: {request}: {error}") from error

    def _check_ready(self) -> None:
        status = self._status
        if status.state is not State.READY:
            raise EngineError(f"the service is {status.state}: {status.detail}")

    def _start_core(self) -> EngineCore:
        with report_progress(self.spec.name) as progress:

            def report(done: int, total: int) -> None:
                progress(done, total)
                self._change(State.LOADING, f"{100 * done // max(total, 1)} % of the weights")

            return runtime.start(self.parts, self.plugins, report)

    def _ready(self) -> None:
        self._change(State.READY, f"serving {self.spec.name}")
        self._settled.set()

    def _died(self, error: BaseException) -> None:
        self._death = error
        self._change(State.FAILED, f"{type(error).__name__}: {error}")
        self._settled.set()

    def _change(self, state: State, detail: str) -> None:
        with self._lock:
            ended = self._status.state in (State.STOPPING, State.FAILED)
            if ended and state is not State.FAILED:
                return
            self._status = Status(state, detail)
        for watcher in self._watchers:
            watcher(Status(state, detail))


def _done(answer: Answer) -> Future[Answer]:
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future
