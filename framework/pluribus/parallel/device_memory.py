"""What ranks on the GPUs of one host exchange through each other's memory."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pluribus.kernels import all_reduce as kernels
from pluribus.kernels.all_reduce import Peers
from pluribus.parallel.agreement import everybodys, smallest
from pluribus.parallel.exchange import Exchange, ProcessGroupExchange

CAPACITY = 2**22
"""Bytes of the largest tensor: of 224 rows of OPT-66B, more than most decode passes have.

Those of prompts go through NCCL. Without a norm it was faster by 4 % for 256 such rows on four
H200s; with one, ours is faster up to this size, and larger ones have not been measured.
"""

logger = logging.getLogger(__name__)


class DeviceMemory(Exchange):
    """Sums of few rows in one launch, the rest by the process group.

    Args:
        mapped: what keeps every rank's memory where it is, for as long as this.
        addresses: of every rank's, int64, [size].
        num_processors: multiprocessors of the smallest of their devices.
        group: NCCL's, of the same ranks.
    """

    def __init__(
        self,
        mapped: object,
        addresses: Tensor,
        num_processors: int,
        group: dist.ProcessGroup,
    ) -> None:
        self._mapped = mapped
        self._peers = Peers.new(addresses, group.rank(), CAPACITY, num_processors)
        self._others = ProcessGroupExchange(group)

    def all_reduce(self, x: Tensor) -> None:
        """Sum ``x`` in place; see Exchange."""
        if x.nbytes <= CAPACITY:
            kernels.all_reduce(x, self._peers)
        else:
            self._others.all_reduce(x)

    def add_layer_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Sum, add and normalise in the same launch; see Exchange."""
        if delta.nbytes <= CAPACITY:
            return kernels.add_layer_norm(x, delta, weight, bias, eps, self._peers)
        return self._others.add_layer_norm(x, delta, weight, bias, eps)

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate along the last dimension; see Exchange."""
        return self._others.all_gather(x)


def share_device_memory(group: dist.ProcessGroup, device: torch.device) -> DeviceMemory | None:
    """Return an exchange through memory, or None on every rank where one of them cannot.

    Every rank of the group calls it at the same time.
    """
    if not _is_one_host(group, device):
        return None
    num_processors = torch.cuda.get_device_properties(device).multi_processor_count
    problem = None
    try:
        mapped, addresses = _map_memory(group, device)
    except RuntimeError as error:
        problem, num_processors = error, 0
    num_processors = smallest(num_processors, device, group)
    if not num_processors:
        logger.warning("sums go through NCCL: GPUs do not see each other's memory: %s", problem)
        return None
    return DeviceMemory(mapped, addresses, num_processors, group)


def _map_memory(group: dist.ProcessGroup, device: torch.device) -> tuple[object, Tensor]:
    """Return what keeps the memory of all ranks mapped, zeros at first, and its addresses."""
    # It takes no part in this, and where it is refused, mapping fails with it.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    from torch.distributed import _symmetric_memory as symmetric

    memory = symmetric.empty(
        kernels.num_bytes(group.size(), CAPACITY), dtype=torch.uint8, device=device
    )
    handle = symmetric.rendezvous(memory, group)
    memory.zero_()
    return (memory, handle), torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=device)


def _is_one_host(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Return whether all ranks run under the same system."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    host = uuid.UUID(boot_id.strip()).int & (2**63 - 1)
    return all(each == host for each in everybodys(host, device, group))
