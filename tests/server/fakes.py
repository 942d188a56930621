"""A service that needs no model, and ways to put it behind real sockets."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.testclient import TestClient

from pluribus.errors import EngineError, PluribusError
from pluribus.generation import FinishReason, SamplingParams
from pluribus.interfaces import ModelSpec
from pluribus.plugins import Plugins
from pluribus.server.app import create_app
from pluribus.server.config import ServerConfig
from pluribus.server.run import address, bind
from pluribus.service import Completion, Prompt, Service, State, Status

logger = logging.getLogger(__name__)

CONTINUATION = " there was a robot."


class FakeService(Service):
    """Continues every prompt with the same words.

    Args:
        notes: of its model.
        seconds: that every answer takes.
        refusal: raised instead of answering.
        outcome: what ``start`` ends in.
    """

    def __init__(
        self,
        *,
        notes: tuple[str, ...] = (),
        seconds: float = 0,
        refusal: Exception | None = None,
        outcome: State = State.READY,
    ) -> None:
        self.plugins = Plugins()
        self._notes = notes
        self._seconds = seconds
        self._refusal = refusal
        self._outcome = outcome
        self._status = Status(State.READY, "as if started")
        self._watchers: list[Callable[[Status], None]] = []
        self.alive = True
        self.calls: list[tuple[str | Sequence[int], SamplingParams, bool]] = []
        self.running = threading.Event()
        self.cancelled = threading.Event()

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            name="fake",
            num_layers=1,
            hidden_size=8,
            num_heads=2,
            head_dim=4,
            vocab_size=16,
            num_token_ids=16,
            max_length=128,
            eos_token_ids=(2,),
            pad_token_id=1,
            dtype="float32",
            num_parameters=1,
            notes=self._notes,
        )

    @property
    def status(self) -> Status:
        return self._status

    def become(self, state: State, detail: str = "") -> None:
        self._status = Status(state, detail)
        for callback in self._watchers:
            callback(self._status)

    def is_alive(self) -> bool:
        return self.alive

    def watch(self, callback: Callable[[Status], None]) -> None:
        self._watchers.append(callback)

    def start(self) -> None:
        self.become(State.LOADING, "12 % of the weights")
        threading.Thread(target=self.become, args=(self._outcome, "as was asked")).start()

    async def stop(self) -> None:
        self.become(State.STOPPING)

    async def complete(
        self, prompt: Prompt, params: SamplingParams, *, fit: bool = False
    ) -> Completion:
        self.calls.append((prompt, params, fit))
        if self._refusal is not None:
            raise self._refusal
        if self._status.state is not State.READY:
            raise EngineError(f"the service is {self._status.state}")
        self.running.set()
        logger.info("answering")
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Completion(
            prompt=str(prompt),
            text=CONTINUATION,
            tokens=(5, 6, 7),
            num_prompt_tokens=3,
            finish_reason=FinishReason.STOP,
            cached=False,
        )


def client_of(service: Service, config: ServerConfig | None = None) -> TestClient:
    """Return a client of ``service`` that needs no socket."""
    return TestClient(create_app(service, config or ServerConfig()))


@contextmanager
def listening(service: Service, config: ServerConfig | None = None) -> Iterator[str]:
    """Put ``service`` behind a real socket; yield its URL."""
    app = create_app(service, config or ServerConfig())
    with bind(ServerConfig(port=0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield address(listener)
        finally:
            server.should_exit = True
            thread.join()


def refusing(error: PluribusError) -> TestClient:
    """Return a client of a service that refuses everything with ``error``."""
    return client_of(FakeService(refusal=error))
