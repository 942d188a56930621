"""Ranks in a grid: stages one after another, and in each of them ranks that share every layer."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pluribus.errors import ConfigError
from pluribus.interfaces import ModelSpec, Parallelism, Place, Share
from pluribus.parallel.split import split_layers

if TYPE_CHECKING:
    import torch


class Grid(Parallelism):
    """What all splits have in common; a rank's number is ``stage * tensor_size + tensor_rank``.

    Tensor parallelism is Megatron's (Shoeybi et al., 2019): two all-reduces a layer, heads split
    over ranks.
    """

    @property
    @abstractmethod
    def tensor_size(self) -> int:
        """Ranks that share each layer."""

    @property
    @abstractmethod
    def num_stages(self) -> int:
        """Stages that the layers are spread over."""

    tensor_setting = "parallel.size"
    """What a message calls ``tensor_size``."""
    pipeline_setting = "parallel.size"
    """What a message calls ``num_stages``."""

    @property
    def world_size(self) -> int:
        return self.tensor_size * self.num_stages

    def check(self, spec: ModelSpec) -> None:
        if self.tensor_size > spec.num_heads:
            raise ConfigError(
                f"{self.tensor_setting}={self.tensor_size}: {spec.name} has {spec.num_heads} "
                "attention heads, and every rank needs one; choose "
                f"{self.tensor_setting}={spec.num_heads} or less"
            )
        if self.num_stages > spec.num_layers:
            raise ConfigError(
                f"{self.pipeline_setting}={self.num_stages}: {spec.name} has {spec.num_layers} "
                "layers, and every stage needs one; choose "
                f"{self.pipeline_setting}={spec.num_layers} or less"
            )

    def share(self, rank: int, spec: ModelSpec) -> Share:
        stage, tensor_rank = divmod(rank, self.tensor_size)
        stages = split_layers(
            spec.num_layers,
            self.num_stages,
            layer_cost=spec.num_layer_parameters,
            head_cost=spec.num_head_parameters,
        )
        return Share(
            rank=rank,
            layers=stages[stage],
            stage=stage,
            num_stages=self.num_stages,
            tensor_rank=tensor_rank,
            tensor_size=self.tensor_size,
        )

    def place(self, share: Share, device: torch.device, rendezvous: str) -> Place:
        from pluribus.parallel.group import meet, tensor_group
        from pluribus.parallel.ring import join_ring

        meet(share.rank, self.world_size, device, rendezvous)
        tensor, ring = tensor_group(share, device), join_ring(share, device)
        return Place(share=share, tensor=tensor, ring=ring)


def check_size(setting: str, size: int) -> None:
    """Raise ConfigError unless there is at least one."""
    if size < 1:
        raise ConfigError(f"{setting} must be at least 1, got {size}")
