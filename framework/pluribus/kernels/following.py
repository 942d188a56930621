"""Launching a kernel while the one before it still runs (programmatic dependent launch).

A kernel that begins with ``follow`` may be launched early: what stands before the call overlaps
with the end of the kernel before, so it may read weights and nothing that is ever written.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor


def early(x: Tensor) -> dict[str, bool]:
    """Return the arguments that launch a kernel early, where ``x``'s device can do that."""
    return _early(x.device)


@cache
def _early(device: torch.device) -> dict[str, bool]:
    can = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if can else {"EARLY": False}


@triton.jit
def follow(EARLY: tl.constexpr):
    """Wait for the kernel before, then let the next one be launched."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
