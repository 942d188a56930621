"""One rank that holds the whole network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pluribus.interfaces import ModelSpec, Parallelism, Place, Share

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SingleRankConfig:
    """Nothing to set."""


class SingleRank(Parallelism):
    """No split at all."""

    Config = SingleRankConfig

    def __init__(self, config: SingleRankConfig) -> None:
        self.config = config

    @property
    def world_size(self) -> int:
        return 1

    def check(self, spec: ModelSpec) -> None:
        """Accept any model."""

    def share(self, rank: int, spec: ModelSpec) -> Share:
        return Share(rank=rank, layers=range(spec.num_layers))

    def place(self, share: Share, device: torch.device, rendezvous: str) -> Place:
        from pluribus.parallel.group import TensorParallel

        return Place(share=share, tensor=TensorParallel())
