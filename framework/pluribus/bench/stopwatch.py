"""A model whose network's work is timed from outside."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pluribus.interfaces import (
    Blueprint,
    KVStore,
    Model,
    ModelSpec,
    Network,
    Place,
    Progress,
    Tokenizer,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(slots=True)
class ForwardPass:
    """When the network began a step and when it gave its last logits; performance counter.

    ``choosing`` is the seconds after that in which tokens were chosen from logits.
    """

    started: float
    ended: float
    choosing: float = 0.0


class TimedNetwork(Network):
    """Notes when ``network`` works. On a device that runs ahead: when it is given work."""

    def __init__(self, network: Network, passes: list[ForwardPass]) -> None:
        self._network = network
        self._passes = passes

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        started = time.perf_counter()
        x = self._network.embed(tokens, positions)
        self._passes.append(ForwardPass(started, time.perf_counter()))
        return x

    def __call__(self, x: Tensor, kv: KVStore, wanted: Tensor | None = None) -> Tensor:
        hidden = self._network(x, kv, wanted)
        self._passes[-1].ended = time.perf_counter()
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self._network.logits(hidden)
        self._passes[-1].ended = time.perf_counter()
        return logits


class TimedModel(Model):
    """Loads ``model``'s network as a TimedNetwork; is the same in all else.

    Args:
        model: to time.
        passes: where each pass is noted.
    """

    def __init__(self, model: Model, passes: list[ForwardPass]) -> None:
        self._model = model
        self._passes = passes

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    @property
    def blueprint(self) -> Blueprint:
        return self._model.blueprint

    @property
    def fingerprint(self) -> str:
        return self._model.fingerprint

    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer()

    def load(
        self, place: Place, device: torch.device, dtype: torch.dtype, progress: Progress
    ) -> Network:
        return TimedNetwork(self._model.load(place, device, dtype, progress), self._passes)
