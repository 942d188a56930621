"""Generations join and leave at every step; prompts are computed in chunks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pluribus import Batch, Batcher, Capability, ConfigError, Generation, KVLedger


@dataclass(frozen=True, slots=True)
class ContinuousConfig:
    """Settings of ``batcher=continuous`` and ``batcher=fair``.

    Attributes:
        max_batch_size: generations that run at once, at most.
        max_batch_tokens: tokens that a step computes, at most.
    """

    max_batch_size: int = 64
    max_batch_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigError(
                f"batcher.max_batch_size must be at least 1, got {self.max_batch_size}"
            )
        if self.max_batch_tokens < self.max_batch_size:
            raise ConfigError(
                f"batcher.max_batch_tokens ({self.max_batch_tokens}) must be at least "
                f"batcher.max_batch_size ({self.max_batch_size}): every running generation "
                "gets a token in each step"
            )


class AdmissionQueue(Protocol):
    """Who waits, and whose turn it is."""

    def __len__(self) -> int: ...

    def add(self, generation: Generation) -> None:
        """Let a generation wait behind the others, as the order has it."""

    def head(self) -> Generation:
        """Return whose turn it is; somebody waits."""

    def remove(self, generation: Generation) -> None:
        """Let a generation leave, because it is admitted or because it was cancelled."""

    def charge(self, generation: Generation, num_tokens: int) -> None:
        """Note that so many tokens of an admitted generation's prompt are planned for a step."""

    def forget(self, generation: Generation) -> None:
        """Note that a generation, added once and waiting no more, is over."""


class ArrivalQueue:
    """First come, first served."""

    def __init__(self) -> None:
        self._waiting: deque[Generation] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, generation: Generation) -> None:
        """Let a generation wait behind all others."""
        self._waiting.append(generation)

    def head(self) -> Generation:
        """Return who has waited longest."""
        return self._waiting[0]

    def remove(self, generation: Generation) -> None:
        """Let a generation leave."""
        self._waiting.remove(generation)

    def charge(self, generation: Generation, num_tokens: int) -> None:
        """Do nothing: who was served before does not matter."""

    def forget(self, generation: Generation) -> None:
        """Do nothing: nobody is remembered."""


class ContinuousBatcher(Batcher):
    """Fill every step: a token for each that decodes, then prompts in turn, in chunks.

    A generation is admitted when its whole length is reserved or promised, so none ever has to
    make room for another; one whose promised room others still hold waits for a step or more.
    While there is no room for the head of the queue, nobody overtakes it.
    """

    Config = ContinuousConfig
    requires = frozenset({Capability.JOIN, Capability.CHUNK})
    queue_class: ClassVar[type[AdmissionQueue]] = ArrivalQueue

    @classmethod
    def most_tokens(cls, config: ContinuousConfig, max_length: int) -> int:
        """Return how many tokens a step computes, at most."""
        return min(config.max_batch_tokens, config.max_batch_size * max_length)

    def __init__(self, config: ContinuousConfig, ledger: KVLedger) -> None:
        self._config = config
        self._ledger = ledger
        self._waiting = self.queue_class()
        # One at most: nobody is admitted while there is more of a prompt than room in a step.
        self._prefilling: Generation | None = None
        # Each with the num_scheduled at which its last token is under way.
        self._decoding: dict[Generation, int] = {}

    def add(self, generation: Generation) -> None:
        """Take a generation into the queue."""
        self._waiting.add(generation)

    def next_batch(self) -> Batch | None:
        """Return who decodes and who is prefilled, or None while the last ones are under way."""
        num_tokens = {g: 1 for g, end in self._decoding.items() if g.num_scheduled < end}
        for limited, limit in self._ledger.limits.items():
            if limited.num_scheduled >= limit:
                num_tokens.pop(limited, None)
        budget = self._config.max_batch_tokens - len(num_tokens)
        while budget and (generation := self._prefilling or self._admit()):
            chunk = num_tokens[generation] = self._prefill(generation, budget)
            budget -= chunk
        return Batch(num_tokens) if num_tokens else None

    def repeat(self, batch: Batch, most: int) -> int:
        """Run a batch as often as the device can, or until its last generation is complete."""
        longest = 1
        for generation in batch.num_tokens:
            longest = max(longest, self._decoding[generation] - generation.num_scheduled)
            if longest >= most:
                return most
        return longest

    def finish(self, generation: Generation) -> None:
        """Let a generation leave, waiting or running."""
        if generation is self._prefilling:
            self._prefilling = None
            self._ledger.release(generation)
        elif self._decoding.pop(generation, None) is not None:
            self._ledger.release(generation)
        else:
            self._waiting.remove(generation)
        self._waiting.forget(generation)

    @property
    def num_waiting(self) -> int:
        """Generations in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Generations admitted that have not finished."""
        return len(self._decoding) + (self._prefilling is not None)

    def _admit(self) -> Generation | None:
        """Reserve for the head of the queue and let it in, if there is one and it fits."""
        if not self._waiting or self.num_running == self._config.max_batch_size:
            return None
        head = self._waiting.head()
        if not self._ledger.try_promise(head):
            return None
        self._waiting.remove(head)
        return head

    def _prefill(self, generation: Generation, budget: int) -> int:
        """Return how many tokens of its prompt to compute now; after the last it decodes."""
        rest = generation.num_unscheduled
        chunk = min(rest, budget)
        self._waiting.charge(generation, chunk)
        if chunk < rest:
            self._prefilling = generation
        else:
            self._prefilling = None
            self._decoding[generation] = generation.last
        return chunk
