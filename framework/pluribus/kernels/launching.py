"""How kernels are launched: early, and, while what they need is compiled, not at all.

A kernel that begins with ``follow`` may be launched while the one before it still runs
(programmatic dependent launch): what stands before the call overlaps with the end of the kernel
before, so it may read weights and nothing that is ever written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_only_compiles: ContextVar[bool] = ContextVar("only_compiles", default=False)


def launch(kernel: Any, grid: Sequence[int], *args: object, **options: object) -> None:
    """Launch a kernel, or have it compiled, as ``compiling`` says."""
    if _only_compiles.get():
        kernel.warmup(*args, grid=grid, **options)
    else:
        kernel[grid](*args, **options)


@contextmanager
def compiling() -> Iterator[None]:
    """Compile kernels side by side in place of launching them: what they write is not written.

    One after another, as they are launched for the first time, they take many times as long.
    """
    token = _only_compiles.set(True)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as threads, triton.AsyncCompileMode(threads):
            yield
    finally:
        _only_compiles.reset(token)


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
