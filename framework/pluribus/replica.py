"""One engine of several, and what it has been given."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Protocol

from pluribus.assembly import EngineConfig
from pluribus.engine.client import EngineHost
from pluribus.engine.messages import Cancel, Ready, Refused, Stats, Stepped, Submit
from pluribus.progress import Report
from pluribus.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Readings:
    """What engines hold and have done.

    Attributes:
        num_running: generations in their steps, now.
        num_kv_tokens: of room in their KV caches; 0 until it is known.
        num_kv_tokens_used: tokens of it held by generations, now.
        num_prompt_tokens: prompt tokens admitted, by engines that have died too.
        num_cached_tokens: those of them found in the cache.
    """

    num_running: int = 0
    num_kv_tokens: int = 0
    num_kv_tokens_used: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0

    def __add__(self, other: Readings) -> Readings:
        return Readings(*map(sum, zip(astuple(self), astuple(other), strict=True)))


class Fleet(Protocol):
    """Who is told of a replica's life."""

    def replica_ready(self, replica: Replica) -> None:
        """Its engine takes generations."""

    def replica_spoke(self, replica: Replica, message: Stepped | Refused) -> None:
        """Its engine says what came of its work."""

    def replica_died(self, replica: Replica, lost: list[int], reason: str) -> None:
        """Its engine is gone, and with it these generations."""


class Replica:
    """Keeps one engine running and knows what it works on. A ``supervisor.Listener``.

    Args:
        index: among the replicas, counted from 0.
        name: of the model, for people.
        host: where its engines run.
        config: when to give up.
        fleet: who is told.
        report: opens the report on loading.
    """

    def __init__(
        self,
        index: int,
        name: str,
        host: EngineHost,
        config: EngineConfig,
        fleet: Fleet,
        report: Report,
    ) -> None:
        self.index = index
        self.supervisor = Supervisor(name, host, config, self, report)
        self._fleet = fleet
        self._generations: set[int] = set()
        self._num_kv_tokens = 0
        self._stats: Stats | None = None
        self._past = Readings()

    @property
    def num_generations(self) -> int:
        """Generations that wait or run here."""
        return len(self._generations)

    @property
    def readings(self) -> Readings:
        """What its engine holds, and what it and those before it have done."""
        room = Readings(num_kv_tokens=self._num_kv_tokens)
        if (stats := self._stats) is None:
            return self._past + room
        done = Readings(
            num_running=stats.num_running,
            num_kv_tokens_used=stats.num_kv_tokens_used,
            num_prompt_tokens=stats.num_prompt_tokens,
            num_cached_tokens=stats.num_cached_tokens,
        )
        return self._past + room + done

    def submit(self, message: Submit) -> None:
        """Give it a generation; its engine is there."""
        self._generations.add(message.id)
        self.supervisor.set_has_work(True)
        self.supervisor.send(message)

    def cancel(self, id_: int) -> None:
        """Let its engine stop working on a generation."""
        self.supervisor.send(Cancel(id_))

    def forget(self, id_: int) -> None:
        """A generation of its is over, or nobody waits for it any more.

        Whether the engine knows as much, it has to say itself: one that hangs must be noticed
        though all have left.
        """
        self._generations.remove(id_)

    def engine_ready(self, message: Ready) -> None:
        """See supervisor.Listener."""
        self._num_kv_tokens = message.num_kv_tokens
        self._fleet.replica_ready(self)

    def engine_spoke(self, message: Stepped | Refused) -> None:
        """See supervisor.Listener."""
        if isinstance(message, Stepped):
            self._stats = message.stats
        self._fleet.replica_spoke(self, message)
        if isinstance(message, Stepped) and message.stats.is_idle and not self._generations:
            self.supervisor.set_has_work(False)

    def engine_died(self, reason: str) -> None:
        """See supervisor.Listener."""
        readings, self._stats = self.readings, None
        self._past = Readings(
            num_prompt_tokens=readings.num_prompt_tokens,
            num_cached_tokens=readings.num_cached_tokens,
        )
        lost = sorted(self._generations)
        self._generations.clear()
        self.supervisor.set_has_work(False)
        self._fleet.replica_died(self, lost, reason)
