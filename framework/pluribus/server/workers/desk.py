"""The first process's end of a worker: has the service answer, and tells what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars

from pluribus.engine.async_channel import AsyncChannel
from pluribus.errors import PluribusError
from pluribus.interfaces import Query
from pluribus.reply import Reply
from pluribus.server.meter import Meter
from pluribus.server.workers.messages import (
    Ask,
    AskHealth,
    AskMetrics,
    Counted,
    Delivered,
    FromFirst,
    FromWorker,
    Gain,
    HealthTold,
    Leave,
    MetricsTold,
    Told,
    Trouble,
    refusal,
)
from pluribus.service import Service

log = structlog.stdlib.get_logger(__name__)

WorkerChannel = AsyncChannel[FromFirst, FromWorker]


class Relay:
    """One answer on its way to a worker, tokens alone.

    Args:
        id_: the worker's name for it.
        reply: the answer.
        changed: called when there is something to take.
    """

    def __init__(self, id_: int, reply: Reply, changed: Callable[[Relay], None]) -> None:
        self.id = id_
        self.reply = reply
        self._num_restarts = reply.flight.num_restarts
        self._num_tokens = self._num_logprobs = 0
        self._has_told_prompt = False
        reply.listen(lambda: changed(self))

    @property
    def is_over(self) -> bool:
        """Whether what is taken next is the last."""
        return self.reply.is_over

    def take(self) -> Gain:
        """Return what has come since the last time."""
        flight = self.reply.flight
        restarted = flight.num_restarts != self._num_restarts
        if restarted:
            self._num_restarts = flight.num_restarts
            self._num_tokens = self._num_logprobs = 0
            self._has_told_prompt = False
        gain = Gain(
            self.id,
            tuple(flight.tokens[self._num_tokens :]),
            tuple(flight.logprobs[self._num_logprobs :]),
            () if self._has_told_prompt else flight.prompt_logprobs,
            flight.finish_reason,
            flight.timing,
            cached=flight.cached,
            restarted=restarted,
            trouble=Trouble.of(error) if (error := self.reply.error) else None,
        )
        self._num_tokens, self._num_logprobs = len(flight.tokens), len(flight.logprobs)
        self._has_told_prompt = bool(flight.prompt_logprobs)
        return gain


class Desk:
    """Asks a service on behalf of one worker. Belongs to the service's event loop.

    What comes of a step, for however many answers, is told in one message.

    Args:
        service: answers.
        meter: counts, and is asked for metrics.
        channel: to the worker.
    """

    def __init__(self, service: Service, meter: Meter, channel: WorkerChannel) -> None:
        self._service = service
        self._meter = meter
        self._channel = channel
        self._relays: dict[int, Relay] = {}
        self._changed: dict[int, Relay] = {}
        self._telling: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def hear(self, message: FromWorker) -> None:
        """Do what the worker wants."""
        match message:
            case Ask():
                self._ask(message)
            case Delivered(id=id_):
                if relay := self._relays.get(id_):
                    relay.reply.deliver()
            case Leave(id=id_):
                self._forget(id_)
            case Counted(endpoint=endpoint, status=status):
                self._meter.request_answered(endpoint, status)
            case AskHealth(id=id_):
                self._begin(self._tell_health(id_))
            case AskMetrics():
                self._begin(self._tell_metrics(message))
            case _:
                raise AssertionError(f"{type(message).__name__} is nothing for a desk")

    def tell(self) -> None:
        """Tell all that has come."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        changed, self._changed = self._changed, {}
        gains = tuple(relay.take() for relay in changed.values())
        for relay in changed.values():
            if relay.is_over:
                self._forget(relay.id)
        if gains:
            self._channel.send(Told(gains))

    def close(self) -> None:
        """Leave all answers: the worker is gone."""
        for id_ in list(self._relays):
            self._forget(id_)
        for task in self._tasks:
            task.cancel()

    def _ask(self, message: Ask) -> None:
        asked, fingerprint = message.asked, self._service.fingerprint
        queries = [Query(fingerprint, each.prompt, each.params) for each in asked]
        try:
            with bound_contextvars(request_id=message.request_id):
                replies = self._service.ask_all(queries, message.tenant)
        except Exception as error:
            if not isinstance(error, PluribusError):
                log.exception("request failed", request_id=message.request_id)
                error = PluribusError("the first process could not begin it; its log says why")
            self._channel.send(Told(tuple(refusal(each.id, error) for each in asked)))
            return
        for each, reply in zip(asked, replies, strict=True):
            self._relays[each.id] = relay = Relay(each.id, reply, self._note)
            self._note(relay)

    def _note(self, relay: Relay) -> None:
        """Tell of ``relay`` once all that comes with it has come."""
        self._changed[relay.id] = relay
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self.tell)

    def _forget(self, id_: int) -> None:
        self._changed.pop(id_, None)
        if relay := self._relays.pop(id_, None):
            relay.reply.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_health(self, id_: int) -> None:
        self._channel.send(HealthTold(id_, await self._service.health()))

    async def _tell_metrics(self, message: AskMetrics) -> None:
        exposition = await self._meter.expose(message.accept)
        self._channel.send(MetricsTold(message.id, exposition))
