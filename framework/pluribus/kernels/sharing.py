"""Programs that share a result: the last of them to be done adds up what all have stored."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.linear_config import NUM_PROCESSORS


@cache
def counters(device: torch.device) -> Tensor:
    """Return how many programs of a tile are done: all 0 between launches, which take turns."""
    return torch.zeros(NUM_PROCESSORS, dtype=torch.int32, device=device)


@triton.jit
def arrive(arrived, SPLITS: tl.constexpr):
    """Return whether all others that share a result have stored their part, as this one has."""
    tl.debug_barrier()
    is_last = tl.atomic_add(arrived, 1, sem="acq_rel") == SPLITS - 1
    tl.debug_barrier()
    return is_last
