"""Every layer split over all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pluribus.errors import ConfigError
from pluribus.interfaces import ModelSpec, Parallelism, Place, Share

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallelismConfig:
    """Settings of ``parallel=tensor``.

    Attributes:
        size: ranks that share each layer.
    """

    size: int = 2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"parallel.size must be at least 1, got {self.size}")


class TensorParallelism(Parallelism):
    """Megatron-style (Shoeybi et al., 2019): two all-reduces a layer, heads split over ranks."""

    Config = TensorParallelismConfig

    def __init__(self, config: TensorParallelismConfig) -> None:
        self.config = config

    @property
    def world_size(self) -> int:
        return self.config.size

    def check(self, spec: ModelSpec) -> None:
        if self.config.size > spec.num_heads:
            raise ConfigError(
                f"parallel.size={self.config.size}: {spec.name} has {spec.num_heads} attention "
                f"heads, and every rank needs one; choose parallel.size={spec.num_heads} or less"
            )

    def share(self, rank: int, spec: ModelSpec) -> Share:
        return Share(
            rank=rank,
            layers=range(spec.num_layers),
            tensor_rank=rank,
            tensor_size=self.config.size,
        )

    def place(self, share: Share, device: torch.device, rendezvous: str) -> Place:
        from pluribus.parallel.group import TensorParallel, meet

        group = meet(share.rank, self.world_size, device, rendezvous)
        return Place(
            share=share, tensor=TensorParallel(share.tensor_rank, share.tensor_size, group)
        )
