"""A service without a model: its engine says the same to everybody."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import uvicorn
from starlette.testclient import TestClient

from pluribus.assembly import EngineConfig, Parts, QueueConfig
from pluribus.engine.client import EngineClient, EngineHost
from pluribus.engine.messages import (
    Beat,
    Cancel,
    Died,
    FromEngine,
    FromFront,
    Loading,
    Output,
    Ready,
    Stats,
    Stepped,
    Stop,
    Submit,
    Timing,
)
from pluribus.errors import PluribusError
from pluribus.front import Prompt
from pluribus.generation import FinishReason, SamplingParams, TokenLogprobs
from pluribus.interfaces import ModelSpec, Query, ResponseCache
from pluribus.plugins import Plugins
from pluribus.reply import Reply
from pluribus.server.app import create_app
from pluribus.server.auth import Keyring
from pluribus.server.config import ServerConfig
from pluribus.server.http import uvicorn_config
from pluribus.server.run import address, bind
from pluribus.service import Service
from pluribus.supervisor import State, Status
from pluribus.tenants import ANONYMOUS, Tenant
from pluribus_batchers.bucket import BucketConfig
from pluribus_caches.response.none import NoResponseCache, NoResponseCacheConfig
from server.byte_tokens import EOS, FIRST_BYTE, ByteTokenizer

logger = logging.getLogger(__name__)

CONTINUATION = " there was a robot."
STATS = Stats(1, 0, 0, 0, 0, 0, 1, 1, 0.0)
TIMING = Timing(queue=0.001, prefill=0.002, decode=0.003, num_cached=1, mean_batch_size=2.0)

SPEC = ModelSpec(
    name="fake",
    num_layers=1,
    hidden_size=8,
    num_heads=2,
    head_dim=4,
    vocab_size=ByteTokenizer.num_token_ids,
    num_token_ids=ByteTokenizer.num_token_ids,
    max_length=1 << 15,
    eos_token_ids=(EOS,),
    pad_token_id=1,
    dtype="float32",
    num_parameters=1,
    num_layer_parameters=1,
    num_head_parameters=1,
)


def logprob(token: int) -> float:
    """Return how likely the fake model finds a token, wherever it comes."""
    return -token / 1000


def told(token: int, num_top: int) -> TokenLogprobs:
    """Return what the fake model tells of a token; the first bytes are its likeliest."""
    top = tuple((id_, logprob(id_)) for id_ in range(FIRST_BYTE, FIRST_BYTE + num_top))
    return TokenLogprobs(token, logprob(token), top)


class FakeModel:
    """A name, bytes for tokens, and no network."""

    fingerprint = "0123456789abcdef"

    def __init__(self, notes: tuple[str, ...]) -> None:
        self.spec = replace(SPEC, notes=notes)

    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()


class FakeEngine(EngineClient):
    """Answers on the event loop, and notes what it is told.

    Args:
        say: gives the answer to a generation, before ``max_tokens`` cuts it.
        seconds: until an answer begins.
        seconds_per_token: from one token to the next; 0 sends all at once.
        dies_after: tokens of an answer; None never dies.
        outcome: what loading ends in.
    """

    def __init__(
        self,
        say: Callable[[Submit], str],
        seconds: float,
        seconds_per_token: float,
        dies_after: int | None,
        outcome: State,
    ) -> None:
        self.service: FakeService | None = None
        self.submitted: list[Submit] = []
        self.running = threading.Event()
        self.cancelled = threading.Event()
        self._say = say
        self._seconds = seconds
        self._seconds_per_token = seconds_per_token
        self._dies_after = dies_after
        self._outcome = outcome
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._is_stopped = asyncio.Event()

    def send(self, message: FromFront) -> None:
        if isinstance(message, Submit):
            self.submitted.append(message)
            self._tasks[message.id] = asyncio.create_task(self._answer(message))
        elif isinstance(message, Cancel) and (task := self._tasks.pop(message.id, None)):
            task.cancel()
            self.cancelled.set()
        elif isinstance(message, Stop):
            self._is_stopped.set()

    async def messages(self) -> AsyncIterator[FromEngine]:
        yield Loading(12, 100)
        if self._outcome is not State.READY:
            yield Died("as was asked", is_final=True)
            return
        yield Ready(1000)
        while not self._is_stopped.is_set():
            yield Beat(0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopped.wait(), 0.5)

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _answer(self, submit: Submit) -> None:
        self.running.set()
        logger.info("answering")
        if self._seconds:
            await asyncio.sleep(self._seconds)
        whole = ByteTokenizer().encode(self._say(submit))[1:]
        tokens, max_tokens = whole[: submit.params.max_tokens], submit.params.max_tokens
        reason = FinishReason.STOP if len(whole) < max_tokens else FinishReason.LENGTH
        size = 1 if self._seconds_per_token else max(1, len(tokens))
        for start in range(0, max(1, len(tokens)), size):
            if start == self._dies_after:
                self._die()
                return
            if start:
                await asyncio.sleep(self._seconds_per_token)
            is_last = start + size >= len(tokens)
            self._tell(submit, tokens[start : start + size], start, reason if is_last else None)
        self._tasks.pop(submit.id, None)

    def _die(self) -> None:
        assert self.service is not None
        self.service.become(State.FAILED, "the engine died")
        self.service.die("as a test wanted")

    def _tell(
        self, submit: Submit, tokens: list[int], start: int, reason: FinishReason | None
    ) -> None:
        assert self.service is not None
        params, about, scores = submit.params, tokens, []
        if reason is FinishReason.STOP:
            about = [*tokens, EOS]
        if params.prompt_logprobs is not None and not start:
            scores = [told(token, params.prompt_logprobs) for token in submit.prompt[1:]]
        output = Output(
            submit.id,
            tuple(tokens),
            () if params.logprobs is None else tuple(told(each, params.logprobs) for each in about),
            tuple(scores),
            reason,
            TIMING if reason else None,
        )
        self.service.replica.engine_spoke(Stepped((output,), STATS))


class FakeHost(EngineHost):
    """Has one engine, which it never really ends."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def start(self) -> EngineClient:
        return self._engine

    async def kill(self) -> None:
        self._engine.close()


class FakeService(Service):
    """The real front on a fake engine; ready at once, or whatever ``outcome`` says if started.

    Args:
        notes: of its model.
        say: what the engine continues a prompt with; ``CONTINUATION`` where None.
        seconds: until an answer begins.
        seconds_per_token: from one token to the next; 0 gives all at once.
        dies_after: tokens of an answer, after which the engine dies for good; None never dies.
        refusal: raised instead of asking the engine.
        outcome: what ``start`` ends in.
        cache: remembers answers; nothing does where None.
        max_waiting: generations that may wait, beside the one that runs.
    """

    def __init__(
        self,
        *,
        notes: tuple[str, ...] = (),
        say: Callable[[Submit], str] | None = None,
        seconds: float = 0,
        seconds_per_token: float = 0,
        dies_after: int | None = None,
        refusal: Exception | None = None,
        outcome: State = State.READY,
        cache: ResponseCache | None = None,
        max_waiting: int = 1000,
    ) -> None:
        self.engine = FakeEngine(
            say or (lambda _: CONTINUATION), seconds, seconds_per_token, dies_after, outcome
        )
        cache = cache or NoResponseCache(NoResponseCacheConfig())
        super().__init__(_parts(notes, cache, max_waiting), Plugins(), FakeHost(self.engine))
        self.engine.service = self
        [self.replica] = self.fleet.replicas
        self.replica.supervisor._client = self.engine
        self.become(State.READY, "as if started")
        self.refusal = refusal
        self.calls: list[tuple[Prompt, SamplingParams, bool]] = []
        self.tenants: list[Tenant] = []

    def become(self, state: State, detail: str = "") -> None:
        """Pretend that the engine is in ``state``."""
        self.replica.supervisor._status = Status(state, detail)
        self.replica.supervisor._is_loaded = state in (State.READY, State.STOPPING)

    def stall(self) -> None:
        """Pretend that the engine has work and has not advanced for very long."""
        self.replica.supervisor.set_has_work(True)
        self.replica.supervisor._advanced = float("-inf")

    def die(self, reason: str) -> None:
        """Pretend that the engine is gone."""
        self.replica.engine_died(reason)

    def query(self, prompt: Prompt, params: SamplingParams, *, fit: bool = False) -> Query:
        self.calls.append((prompt, params, fit))
        return super().query(prompt, params, fit=fit)

    def ask_all(self, queries: Sequence[Query], tenant: Tenant = ANONYMOUS) -> list[Reply]:
        self.tenants.append(tenant)
        if self.refusal is not None:
            raise self.refusal
        return super().ask_all(queries, tenant)


def _parts(notes: tuple[str, ...], cache: ResponseCache, max_waiting: int) -> Parts:
    """Return the parts that a front needs; the others are its engine's."""
    parts = SimpleNamespace(
        model=FakeModel(notes),
        response_cache=cache,
        queue=QueueConfig(max_size=max_waiting),
        engine=EngineConfig(),
        batcher_config=BucketConfig(max_batch_size=1),
    )
    return cast(Parts, parts)


def client_of(service: Service, config: ServerConfig | None = None) -> TestClient:
    """Return a client of ``service`` that needs no socket."""
    return TestClient(create_app(service, config or ServerConfig()))


@contextmanager
def listening(
    service: Service, config: ServerConfig | None = None, keyring: Keyring | None = None
) -> Iterator[str]:
    """Put ``service`` behind a real socket; yield its URL."""
    config = config or ServerConfig()
    app = create_app(service, config, keyring=keyring)
    with bind(ServerConfig(port=0)) as listener:
        server = uvicorn.Server(uvicorn_config(app, config, None))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield address(listener)
        finally:
            server.should_exit = True
            thread.join()


def events_of(response: Any) -> list[Any]:
    """Return the events of a stream that has ended as it should."""
    assert response.headers["Content-Type"].startswith("text/event-stream")
    *events, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def refusing(error: PluribusError) -> TestClient:
    """Return a client of a service that refuses everything with ``error``."""
    return client_of(FakeService(refusal=error))
