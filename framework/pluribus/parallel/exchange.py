"""How the ranks of a tensor-parallel group add up and put together what each has computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pluribus import ops

TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for each other: loading takes some of them longer. Lost ranks are
noticed by whoever watches their processes, much sooner."""


class Exchange(ABC):
    """Every rank makes the same calls in the same order, with tensors of one shape and dtype."""

    @abstractmethod
    def all_reduce(self, x: Tensor) -> None:
        """Sum ``x``, contiguous, over the ranks, in place: to the same bits on each of them."""

    def add_layer_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``x`` plus the sum of ``delta``, which is lost, and that normalised.

        ``x`` and the rest are alike on all ranks, and so are the results; see ops.add_layer_norm.
        """
        self.all_reduce(delta)
        return ops.add_layer_norm(x, delta, weight, bias, eps)

    @abstractmethod
    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate every rank's ``x`` along the last dimension."""


@dataclass(frozen=True, slots=True)
class ProcessGroupExchange(Exchange):
    """By torch's process group, between any machines and devices.

    Attributes:
        group: Gloo's or NCCL's.
    """

    group: dist.ProcessGroup

    def all_reduce(self, x: Tensor) -> None:
        """Sum ``x`` in place; see Exchange."""
        dist.all_reduce(x, group=self.group)

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate along the last dimension; see Exchange."""
        parts = [torch.empty_like(x) for _ in range(self.group.size())]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)
