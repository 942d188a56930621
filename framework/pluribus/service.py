"""The front: prompts in, answers out, whatever happens to the engine behind it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from pluribus.assembly import Parts
from pluribus.detokenizer import Detokenizer, Unread
from pluribus.engine.client import EngineHost
from pluribus.engine.messages import Output, Refused, Stepped, Submit
from pluribus.errors import (
    ConfigError,
    EngineError,
    PluribusError,
    QueueFullError,
    RequestError,
)
from pluribus.fleet import Fleet
from pluribus.flight import Flight
from pluribus.front import Front, Health
from pluribus.generation import SamplingParams
from pluribus.interfaces import Query
from pluribus.observer import Refusal, ServiceObserver
from pluribus.plugins import Plugins
from pluribus.reply import Reply
from pluribus.routing import Router
from pluribus.supervisor import State, Status
from pluribus.tenants import ANONYMOUS, Limiter, Tenant

MAX_ATTEMPTS = 2
"""Engines that may die over one generation before it is not tried again."""

_random = random.SystemRandom()


class Service(Front):
    """Answers prompts through engines that may die and come back. Belongs to one event loop.

    Args:
        parts: what is served; see ``assembly.assemble``.
        plugins: for ``/plugins``.
        hosts: where engines run, one for each replica.
        reads_answers: whether those who ask want text; where not, only what stop strings may
            end is read.

    Attributes:
        fleet: keeps the engines running and spreads generations over them.
        observer: told of what happens; of nobody's interest until it is set.
    """

    def __init__(
        self, parts: Parts, plugins: Plugins, *hosts: EngineHost, reads_answers: bool = True
    ) -> None:
        super().__init__(parts, plugins, len(hosts))
        self.observer = ServiceObserver()
        router = _router(parts, len(hosts))
        self.fleet = Fleet(self.spec.name, hosts, parts.engine, router, self)
        self._reads_answers = reads_answers
        self._cache = parts.response_cache
        for request in self._cache.pinned:
            self._cache.pin(self._pinned_query(request))
        self._limiter = Limiter()
        self._flights: dict[int, Flight] = {}
        self._all_landed = asyncio.Event()
        self._shared: dict[tuple[str, Query], Flight] = {}
        self._num_flights = self._num_begun = 0

    @property
    def status(self) -> Status:
        """Where the service is in its life."""
        return self.fleet.status

    @property
    def num_flights(self) -> int:
        """Generations that wait or run."""
        return len(self._flights)

    def start(self) -> None:
        """Begin to load; returns at once. Call it in the event loop."""
        self.fleet.start()

    async def drain(self, timeout: float) -> None:
        """Take no more requests, and wait for those under way, ``timeout`` seconds at most."""
        self.fleet.retire()
        if self._flights:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_landed.wait(), timeout)

    async def stop(self) -> None:
        """End the engines; what has not been answered fails."""
        self.fleet.retire()
        for flight in list(self._flights.values()):
            self._end(flight, EngineError("the service was stopped before the answer was complete"))
        await self.fleet.stop()

    async def health(self) -> Health:
        fleet = self.fleet
        return Health(
            status=fleet.status,
            is_advancing=fleet.is_advancing(),
            replicas=tuple(replica.supervisor.status for replica in fleet.replicas),
        )

    def ask_all(self, queries: Sequence[Query], tenant: Tenant = ANONYMOUS) -> list[Reply]:
        replies: list[Reply] = []
        num_begun = self._num_begun
        try:
            for query in queries:
                replies.append(self._ask(query, tenant))
        except PluribusError:
            for reply in replies:
                reply.close()
            self._limiter.forgive(tenant, self._num_begun - num_begun)
            raise
        return replies

    def _ask(self, query: Query, tenant: Tenant) -> Reply:
        if self.status.state is not State.READY:
            self.observer.request_refused(Refusal.NOT_READY)
            raise EngineError(f"the service is {self.status.state}: {self.status.detail}")
        if (answer := self._cache.get(query)) is not None:
            flight = self._flight(query, tenant)
            flight.land(answer)
            self.observer.response_cache_hit()
            return self._reply(flight)
        if (shared := self._shared.get((tenant.name, query))) is not None:
            self.observer.generation_shared()
            return self._reply(shared)
        return self._reply(self._begin(query, tenant))

    def _reply(self, flight: Flight) -> Reply:
        return Reply(flight, partial(self._abandon, flight))

    def _pinned_query(self, request: dict[str, Any]) -> Query:
        fields = dict(request)
        try:
            return self.query(
                fields.pop("prompt"), SamplingParams(**fields), fit="max_tokens" not in fields
            )
        except (KeyError, TypeError, RequestError) as error:
            raise ConfigError(f"cache.response.pinned: {request}: {error}") from error

    def engine_spoke(self, replica: int, message: Stepped | Refused) -> None:
        """Hand on what came of a step; see fleet.Listener."""
        if isinstance(message, Refused):
            if flight := self._flights.get(message.id):
                self._end(flight, RequestError(message.message, param=message.param))
            return
        self.observer.engine_spoke(replica, message.stats)
        for output in message.outputs:
            if flight := self._flights.get(output.id):
                self._extend(flight, output)

    def generations_lost(self, ids: Sequence[int], reason: str) -> None:
        """Fail for those who have been shown something, and run again for the others."""
        error = EngineError(f"the engine died: {reason}")
        gives_up = not self.fleet.has_future
        for flight in [self._flights[id_] for id_ in ids]:
            flight.fail_delivered(error)
            if gives_up or not flight.listeners or flight.num_attempts >= MAX_ATTEMPTS:
                self._end(flight, error)
            else:
                flight.restart()
                self._launch(flight)

    def _extend(self, flight: Flight, output: Output) -> None:
        self.observer.tokens_came(flight, len(output.tokens))
        flight.extend(output)
        if flight.is_over:
            if output.finish_reason is None:
                # A stop string: the engine knows no text.
                self.fleet.cancel(output.id)
            self._cache.put(flight.query, flight.answer())
            self._forget(flight)
            self.observer.generation_ended(flight)

    def _abandon(self, flight: Flight) -> None:
        """Cancel a generation unless somebody still listens or it is over."""
        if not flight.listeners and flight.submit.id in self._flights:
            self.fleet.cancel(flight.submit.id)
            self._forget(flight)
            self.observer.generation_cancelled(flight)

    def _begin(self, query: Query, tenant: Tenant) -> Flight:
        if len(self._flights) >= self.max_flights:
            self.observer.request_refused(Refusal.QUEUE_FULL)
            raise QueueFullError(
                f"{len(self._flights)} requests are waiting or running, as many as "
                "queue.max_size and batcher.max_batch_size allow; try again later"
            )
        try:
            self._limiter.enter(tenant, time.monotonic())
        except QueueFullError:
            self.observer.request_refused(Refusal.TENANT_LIMIT)
            raise
        self._num_begun += 1
        flight = self._flight(query, tenant)
        self._flights[flight.submit.id] = flight
        self._all_landed.clear()
        if query.params.is_reproducible:
            self._shared[tenant.name, query] = flight
        self._launch(flight)
        self.observer.generation_began(flight)
        return flight

    def _flight(self, query: Query, tenant: Tenant) -> Flight:
        seed = query.params.seed
        if seed is None:
            # Drawn here, so that a generation that has to start again comes out the same.
            seed = _random.getrandbits(63)
        self._num_flights += 1
        submit = Submit(
            self._num_flights,
            query.prompt,
            replace(query.params, seed=seed, stop=()),  # the engine knows no text
            tenant.name,
            tenant.weight,
            salt=tenant.name,
            request_id=structlog.contextvars.get_contextvars().get("request_id", ""),
        )
        return Flight(
            query=query, tenant=tenant, submit=submit, detokenizer=self._detokenizer(query)
        )

    def _detokenizer(self, query: Query) -> Detokenizer:
        # Where an answer ends is decided once, for all who wait for it.
        if self._reads_answers or query.params.stop:
            return super()._detokenizer(query)
        return Unread()

    def _launch(self, flight: Flight) -> None:
        flight.num_attempts += 1
        self.fleet.submit(flight.submit)

    def _end(self, flight: Flight, error: PluribusError) -> None:
        self._forget(flight)
        flight.fail(error)
        self.observer.generation_ended(flight)

    def _forget(self, flight: Flight) -> None:
        self._limiter.leave(flight.tenant)
        del self._flights[flight.submit.id]
        self.fleet.forget(flight.submit.id)
        if not self._flights:
            self._all_landed.set()
        shared = (flight.tenant.name, flight.query)
        if self._shared.get(shared) is flight:
            del self._shared[shared]


def _router(parts: Parts, num_replicas: int) -> Router:
    """Return who chooses among replicas; a busy one is passed by a quarter of a batch early."""
    block_size = parts.kv_cache.prefix_block_size if num_replicas > 1 else 0
    return Router(block_size, max_lead=max(1, parts.batcher_config.max_batch_size // 4))
