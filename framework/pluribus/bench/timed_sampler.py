"""A sampler whose arithmetic on logits is timed, setting it up left out."""

from __future__ import annotations

import time

from torch import Tensor

from pluribus.bench.stopwatch import ForwardPass
from pluribus.sampler import NextTokens, Sampler
from pluribus.slots import SlotState


class TimedSampler(Sampler):
    """Notes how long each pass's logits take to become tokens."""

    def __init__(self, state: SlotState, passes: list[ForwardPass]) -> None:
        super().__init__(state)
        self._passes = passes

    def choose_alike(self, logits: Tensor, following: NextTokens) -> Tensor:
        started = time.perf_counter()
        tokens = super().choose_alike(logits, following)
        self._passes[-1].choosing += time.perf_counter() - started
        return tokens
