"""A tensor-parallel group: the ranks that share each layer, and how they add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pluribus.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This rank's place in its group; ``TensorParallel()`` is a single device.

    Attributes:
        rank: within the group, counted from 0.
        size: ranks in the group.
        group: torch's process group; None where ``size`` is 1, or where nothing is exchanged.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def share(self, total: int, what: str) -> int:
        """Return this rank's part of ``total``.

        Raises:
            ConfigError: ``total`` does not divide evenly.
        """
        if total % self.size:
            raise ConfigError(f"{what} ({total}) does not divide over parallel.size={self.size}")
        return total // self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum ``x`` over the group, in place."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate every rank's ``x``, all of one shape, along the last dimension."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)
