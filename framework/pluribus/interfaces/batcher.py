"""Who runs next: the batcher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pluribus.generation import Batch, Generation
from pluribus.interfaces.kv_cache import Capability, KVLedger


class Batcher(ABC):
    """Decides which generations run in the next step, with how many tokens.

    Used by the engine's thread alone. A step may be asked for before the tokens of the last
    one are known, so decide from counts (``num_unscheduled``), never from token values.
    """

    Config: ClassVar[type[Any]]
    """Dataclass of the settings in the ``batcher`` section, less ``name``.

    It has a ``max_batch_size``: generations that run at once, at most.
    """
    requires: ClassVar[frozenset[Capability]] = frozenset()

    @abstractmethod
    def __init__(self, config: Any, ledger: KVLedger) -> None: ...

    @classmethod
    def most_tokens(cls, config: Any, max_length: int) -> int:
        """Return how many tokens a step computes, at most; memory is planned for that many.

        Args:
            config: an instance of ``Config``.
            max_length: tokens of one generation, at most.
        """
        most: int = config.max_batch_size * max_length
        return most

    @abstractmethod
    def add(self, generation: Generation) -> None:
        """Take a generation into the queue; the engine has checked that it fits the cache."""

    @abstractmethod
    def next_batch(self) -> Batch | None:
        """Return the next step's batch, or None when nothing can run.

        Reserve a generation in the ledger before it runs for the first time: ``try_reserve``,
        or ``try_promise`` and then no tokens beyond the ledger's ``limits``. When anything is
        waiting and nothing is running or under way, this must return a batch; nor may it be
        None when nothing is under way and anybody running could go on. The engine advances
        ``num_scheduled`` itself.
        """

    def repeat(self, batch: Batch, most: int) -> int:
        """Return how many times to run the batch just planned before planning the next.

        Asked where every generation in it computes one token, the last it has; each time is one
        more for each. A batcher that counts tokens counts these here, or by ``num_scheduled``
        when it is asked again.

        Args:
            batch: what ``next_batch`` has just returned.
            most: times that the device can run it without the engine.

        Returns:
            From 1 to ``most``. A generation that is complete sooner is left out from then on.
        """
        return 1

    @abstractmethod
    def finish(self, generation: Generation) -> None:
        """Forget a generation that ended or was cancelled, waiting or running.

        Release it in the ledger if it had been reserved.
        """

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """Generations added that have not run yet."""

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Generations that have run and have not finished."""
