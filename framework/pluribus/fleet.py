"""Replicas as one: each generation goes to one of them, and to another if that one dies."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pluribus.assembly import EngineConfig
from pluribus.engine.client import EngineHost
from pluribus.engine.messages import Refused, Stepped, Submit
from pluribus.errors import EngineError
from pluribus.progress import log_progress, report_progress
from pluribus.replica import Readings, Replica
from pluribus.routing import Router
from pluribus.supervisor import State, Status

PRECEDENCE = (State.STOPPING, State.READY, State.LOADING, State.FAILED)
"""Which replica speaks for all of them."""

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Who is told what comes of generations."""

    def engine_spoke(self, replica: int, message: Stepped | Refused) -> None:
        """A replica's engine says what came of its work."""

    def generations_lost(self, ids: Sequence[int], reason: str) -> None:
        """An engine is gone, and with it these generations."""


class Fleet:
    """Keeps replicas running and spreads generations over them. Belongs to one event loop.

    Args:
        name: of the model, for people.
        hosts: where engines run, one for each replica.
        config: when to give a replica up.
        router: chooses who gets what.
        listener: who is told.
    """

    def __init__(
        self,
        name: str,
        hosts: Sequence[EngineHost],
        config: EngineConfig,
        router: Router,
        listener: Listener,
    ) -> None:
        # Several bars at once would draw over each other.
        report = report_progress if len(hosts) == 1 else log_progress
        self.replicas = tuple(
            Replica(index, name, host, config, self, report) for index, host in enumerate(hosts)
        )
        self._name = name
        self._router = router
        self._listener = listener
        self._replica_of: dict[int, Replica] = {}
        self._waiting: dict[int, Submit] = {}
        self._watchers: list[Callable[[Status], None]] = []
        self._told: Status | None = None
        for replica in self.replicas:
            replica.supervisor.watch(lambda _: self._tell())

    @property
    def status(self) -> Status:
        """Where all of them together are: ready as soon as, and as long as, one is."""
        supervisors = [replica.supervisor for replica in self.replicas]
        for supervisor in supervisors:
            if supervisor.is_refused:
                return supervisor.status
        statuses = (supervisor.status for supervisor in supervisors)
        status = min(statuses, key=lambda status: PRECEDENCE.index(status.state))
        if status.state is State.READY and len(supervisors) > 1:
            of_how_many = f"{self.num_in_state[State.READY]} of {len(supervisors)} replicas"
            return Status(State.READY, f"serving {self._name} with {of_how_many}")
        return status

    @property
    def num_in_state(self) -> Counter[State]:
        """Replicas in each state."""
        return Counter(replica.supervisor.status.state for replica in self.replicas)

    @property
    def num_restarts(self) -> int:
        """Engines started again after one had died."""
        return sum(replica.supervisor.num_restarts for replica in self.replicas)

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds that each part of the start of an engine that is loaded has taken."""
        loaded = (replica.supervisor for replica in self.replicas if replica.supervisor.is_loaded)
        return next((supervisor.phases for supervisor in loaded), {})

    @property
    def readings(self) -> Readings:
        """What all engines hold and have done."""
        return sum((replica.readings for replica in self.replicas), Readings())

    @property
    def has_future(self) -> bool:
        """Whether there is an engine to take a generation, or one is coming."""
        return any(
            replica.supervisor.is_loaded or replica.supervisor.status.state is State.LOADING
            for replica in self.replicas
        )

    def watch(self, callback: Callable[[Status], None]) -> None:
        """Call ``callback`` at every change of status."""
        self._watchers.append(callback)

    def is_advancing(self) -> bool:
        """Whether all that are not given up get on with their work, as far as they have any."""
        if self.status.state is State.FAILED:
            return False
        return all(
            replica.supervisor.is_advancing()
            for replica in self.replicas
            if replica.supervisor.status.state is not State.FAILED
        )

    def start(self) -> None:
        """Begin to load; returns at once."""
        for replica in self.replicas:
            replica.supervisor.start()

    async def wait_ready(self) -> None:
        """Wait until no replica loads any more.

        Raises:
            EngineError: none is ready or ever will be, and why.
        """
        waits = (replica.supervisor.wait_ready() for replica in self.replicas)
        await asyncio.gather(*waits, return_exceptions=True)
        if self.status.state is not State.READY:
            raise EngineError(self.status.detail)

    def retire(self) -> None:
        """Start no more engines, and let those that run finish."""
        for replica in self.replicas:
            replica.supervisor.retire()

    async def stop(self) -> None:
        """End all engines; see Supervisor.stop."""
        await asyncio.gather(*(replica.supervisor.stop() for replica in self.replicas))

    def submit(self, message: Submit) -> None:
        """Give a generation to a replica, now or as soon as one is there."""
        loads = {
            replica.index: replica.num_generations
            for replica in self.replicas
            if replica.supervisor.is_loaded
        }
        if not loads:
            self._waiting[message.id] = message
            return
        replica = self.replicas[self._router.choose(loads, message.salt, message.prompt)]
        self._replica_of[message.id] = replica
        replica.submit(message)

    def cancel(self, id_: int) -> None:
        """Let whoever works on a generation stop."""
        if replica := self._replica_of.get(id_):
            replica.cancel(id_)
        self.forget(id_)

    def forget(self, id_: int) -> None:
        """A generation is over, if it was not already."""
        self._waiting.pop(id_, None)
        if replica := self._replica_of.pop(id_, None):
            replica.forget(id_)

    def replica_ready(self, replica: Replica) -> None:
        """Start what waits for an engine; see replica.Fleet."""
        waiting, self._waiting = self._waiting, {}
        for message in waiting.values():
            self.submit(message)

    def replica_spoke(self, replica: Replica, message: Stepped | Refused) -> None:
        """Hand on what came of a step; see replica.Fleet."""
        self._listener.engine_spoke(replica.index, message)

    def replica_died(self, replica: Replica, lost: list[int], reason: str) -> None:
        """Tell what is lost; see replica.Fleet."""
        self._router.forget(replica.index)
        for id_ in lost:
            del self._replica_of[id_]
        if not self.has_future:
            lost = [*lost, *self._waiting]
            self._waiting.clear()
        if len(self.replicas) > 1:
            state = replica.supervisor.status.state
            logger.error("replica %d is %s: its engine died: %s", replica.index, state, reason)
        self._listener.generations_lost(lost, reason)

    def _tell(self) -> None:
        """Tell of a change, but not of what changes in a replica while others serve."""
        status = self.status
        if status != self._told:
            self._told = status
            for watcher in self._watchers:
                watcher(status)
