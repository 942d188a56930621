"""Batches in order of arrival, whatever their members ask for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from pluribus import Batch, Batcher, ConfigError, Generation, KVLedger


@dataclass(frozen=True, slots=True)
class ConvoyConfig:
    """Settings of ``batcher=convoy``."""

    max_batch_size: int = 8

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigError(
                f"batcher.max_batch_size must be at least 1, got {self.max_batch_size}"
            )


class ConvoyBatcher(Batcher):
    """Let whoever waits set off together; nobody joins on the way."""

    Config = ConvoyConfig

    def __init__(self, config: ConvoyConfig, ledger: KVLedger) -> None:
        self._config, self._ledger = config, ledger
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []

    def add(self, generation: Generation) -> None:
        self._waiting.append(generation)

    def next_batch(self) -> Batch | None:
        if not self._running:
            convoy = self._waiting[: self._config.max_batch_size]
            self._running = list(takewhile(self._ledger.try_reserve, convoy))
            del self._waiting[: len(self._running)]
        num_tokens = {g: g.num_unscheduled for g in self._running if g.num_unscheduled}
        return Batch(num_tokens) if num_tokens else None

    def finish(self, generation: Generation) -> None:
        if generation in self._waiting:
            self._waiting.remove(generation)
        else:
            self._running.remove(generation)
            self._ledger.release(generation)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)
