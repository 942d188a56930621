"""Static batches of queries that sample alike, in order of arrival."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pluribus import Batch, Batcher, ConfigError, Generation, KVLedger


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """Settings of ``batcher=bucket``.

    Attributes:
        max_batch_size: generations that run at once, at most.
    """

    max_batch_size: int = 16

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigError(
                f"batcher.max_batch_size must be at least 1, got {self.max_batch_size}"
            )


class BucketBatcher(Batcher):
    """Start like queries together and let the batch run to completion.

    A batch takes queries from the head of one queue while each samples as the head does and
    needs no more tokens than it. The first that differs waits, and so does everybody behind
    it. Members leave as they finish; nobody joins before the last has left.
    """

    Config = BucketConfig

    def __init__(self, config: BucketConfig, ledger: KVLedger) -> None:
        self._max_batch_size = config.max_batch_size
        self._ledger = ledger
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []

    def add(self, generation: Generation) -> None:
        """Take a generation into the queue."""
        self._waiting.append(generation)

    def next_batch(self) -> Batch | None:
        """Return every member's next tokens, or None while the last ones are under way."""
        if not self._running:
            self._start_batch()
        # A member whose last token is under way stays, but has nothing left to compute.
        num_tokens = {g: g.num_unscheduled for g in self._running if g.num_unscheduled}
        return Batch(num_tokens) if num_tokens else None

    def finish(self, generation: Generation) -> None:
        """Let a generation leave the batch or the queue."""
        if generation in self._running:
            self._running.remove(generation)
            self._ledger.release(generation)
        else:
            self._waiting.remove(generation)

    @property
    def num_waiting(self) -> int:
        """Generations in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Members of the batch that have not finished."""
        return len(self._running)

    def _start_batch(self) -> None:
        while self._waiting and len(self._running) < self._max_batch_size:
            candidate = self._waiting[0]
            if self._running and not _may_accompany(candidate, self._running[0]):
                return
            if not self._ledger.try_reserve(candidate):
                return
            self._running.append(self._waiting.popleft())


def _may_accompany(candidate: Generation, head: Generation) -> bool:
    ours, theirs = candidate.params, head.params
    return ours.max_tokens <= theirs.max_tokens and (
        (ours.top_k, ours.top_p, ours.temperature)
        == (theirs.top_k, theirs.top_p, theirs.temperature)
    )
