"""Numbers that ranks tell each other, so that all go on alike."""

from __future__ import annotations

import torch
import torch.distributed as dist


def smallest(value: int, device: torch.device, group: dist.ProcessGroup | None = None) -> int:
    """Return the smallest ``value`` of a group's ranks; without one, of all."""
    if not dist.is_initialized():
        return value
    values = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(values, dist.ReduceOp.MIN, group=group)
    return int(values)


def everybodys(
    value: int, device: torch.device, group: dist.ProcessGroup | None = None
) -> list[int]:
    """Return the ``value`` of each rank of a group, in their order; without one, of all."""
    if not dist.is_initialized():
        return [value]
    mine = torch.tensor([value], dtype=torch.int64, device=device)
    values = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(values, mine, group=group)
    return [int(each) for each in values]
