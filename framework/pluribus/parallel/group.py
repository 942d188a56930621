"""A tensor-parallel group: the ranks that share each layer, and how they add up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pluribus import ops
from pluribus.interfaces.parallelism import Share
from pluribus.parallel.addresses import interface, talk_through
from pluribus.parallel.exchange import TIMEOUT, Exchange, ProcessGroupExchange
from pluribus.parallel.shared_memory import share_memory
from pluribus.spans import even_span

logger = logging.getLogger(__name__)


def meet(rank: int, world_size: int, device: torch.device, rendezvous: str) -> None:
    """Join the group of all ranks, where there is more than one."""
    if world_size == 1:
        return
    talk_through(interface(rendezvous))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )


def new_group(ranks: Sequence[int]) -> dist.ProcessGroup | None:
    """Make a group of some ranks; every rank calls it, for all groups in the same order."""
    group: dist.ProcessGroup | None = dist.new_group(ranks=list(ranks), timeout=TIMEOUT)
    return group


def tensor_group(share: Share, device: torch.device) -> TensorParallel:
    """Join the ranks that share this rank's layers; every rank calls it at the same time."""
    size, group = share.tensor_size, None
    if size > 1 and share.num_stages == 1:
        group = dist.group.WORLD
    elif size > 1:
        stages = [range(stage * size, (stage + 1) * size) for stage in range(share.num_stages)]
        group = [new_group(ranks) for ranks in stages][share.stage]
    exchange = None if group is None else exchange_of(group, device)
    return TensorParallel(share.tensor_rank, size, exchange)


def exchange_of(group: dist.ProcessGroup, device: torch.device) -> Exchange:
    """Return the fastest way in which all ranks of a group can exchange tensors."""
    exchange: Exchange | None
    if device.type == "cpu":
        exchange = share_memory(group)
    else:
        from pluribus.parallel.device_memory import share_device_memory

        exchange = share_device_memory(group, device)
    if group.rank() == 0:
        how = "torch's process group" if exchange is None else "memory that they share"
        logger.info("%d ranks exchange tensors through %s", group.size(), how)
    return exchange or ProcessGroupExchange(group)


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This rank's place in its group; ``TensorParallel()`` is a single device.

    Attributes:
        rank: within the group, counted from 0.
        size: ranks in the group.
        exchange: with the others; None where ``size`` is 1, or where nothing is exchanged.
    """

    rank: int = 0
    size: int = 1
    exchange: Exchange | None = None

    def span(self, total: int) -> tuple[int, int]:
        """Return where this rank's part of ``total`` begins and ends.

        Parts are as equal as can be, larger ones first; there may be none for the last ranks.
        """
        return even_span(total, self.rank, self.size)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum ``x`` over the group, in place."""
        if self.size > 1:
            self._others.all_reduce(x)
        return x

    def add_layer_norm(
        self,
        x: Tensor,
        delta: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """Return ``x`` plus the sum of ``delta`` over the group, and its LayerNorm.

        Args:
            x: [num_rows, size], alike on all ranks.
            delta: [num_rows, size], this rank's part of what is added, which is lost; None adds
                nothing.
            weight, bias, eps: see ``ops.add_layer_norm``.
        """
        if self.size == 1 or delta is None:
            return ops.add_layer_norm(x, delta, weight, bias, eps)
        return self._others.add_layer_norm(x, delta, weight, bias, eps)

    def all_largest(self, x: Tensor) -> Tensor:
        """Return the largest of every rank's ``x``, a vector, number by number."""
        return self.all_gather(x).view(self.size, -1).amax(0) if self.size > 1 else x

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate every rank's ``x``, all of one shape, along the last dimension."""
        return self._others.all_gather(x) if self.size > 1 else x

    @property
    def _others(self) -> Exchange:
        assert self.exchange is not None, "this rank was placed without the others"
        return self.exchange
