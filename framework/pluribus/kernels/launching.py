"""How kernels are launched: early, and, while what they need is compiled, not at all.

A kernel that begins with ``follow`` may be launched while the one before it still runs
(programmatic dependent launch): what stands before the call overlaps with the end of the kernel
before, so it may read weights and nothing that is ever written.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

_asked_for: ContextVar[dict[Hashable, Any] | None] = ContextVar("asked_for", default=None)
"""What Triton gave for what has been asked to be compiled; None where kernels are launched."""


def launch(kernel: Any, grid: Sequence[int], *args: object, **options: object) -> None:
    """Launch a kernel, or have it compiled, as ``compiling`` says."""
    asked_for = _asked_for.get()
    if asked_for is None:
        kernel[grid](*args, **options)
        return
    # Every layer asks for the same, and Triton takes long to find that out.
    asked = (id(kernel), *map(_kind, args), *options.values())
    if asked not in asked_for:
        asked_for[asked] = kernel.warmup(*args, grid=grid, **options)


def _kind(arg: object) -> Hashable:
    """Return all that a compiled kernel may depend on, and maybe more, of an argument."""
    if isinstance(arg, Tensor):
        return arg.dtype, arg.data_ptr() % 16
    if isinstance(arg, TensorDescriptor):
        return arg.base.dtype, *arg.block_shape
    assert isinstance(arg, Hashable)
    return type(arg), arg


@contextmanager
def compiling() -> Iterator[None]:
    """Compile kernels side by side in place of launching them, and load them: they write nothing.

    What torch itself launches meanwhile does run.

    One after another, as they are launched for the first time, they take many times as long.
    """
    asked_for: dict[Hashable, Any] = {}
    token = _asked_for.set(asked_for)
    try:
        with _threads() as threads:
            with triton.AsyncCompileMode(threads):
                yield
            list(threads.map(_load, _alike(asked_for.values())))
    finally:
        _asked_for.reset(token)


def _threads() -> ThreadPoolExecutor:
    """Return threads that work for this one's device."""
    if not torch.cuda.is_available():
        return ThreadPoolExecutor(os.cpu_count())
    device = torch.cuda.current_device()
    return ThreadPoolExecutor(os.cpu_count(), initializer=torch.cuda.set_device, initargs=(device,))


def _alike(given: Iterable[Any]) -> list[list[Any]]:
    """Return compiled kernels, those together that are launched by the same code."""
    alike: dict[str, list[Any]] = {}
    for each in given:
        # It is the kernel itself where that has been compiled before.
        kernel = each.result() if hasattr(each, "result") else each
        alike.setdefault(str(kernel.src.signature), []).append(kernel)
    return list(alike.values())


def _load(kernels: Iterable[Any]) -> None:
    """Do what Triton would do when each of these kernels is launched for the first time.

    It loads the kernel, and builds what launches it with a C compiler unless that is in its cache:
    of two that need the same, the second finds it there. An error is left to the launch.
    """
    for kernel in kernels:
        with suppress(Exception):
            getattr(kernel, "run")  # noqa: B009 - a property that loads


def early(x: Tensor) -> dict[str, bool]:
    """Return the arguments that launch a kernel early, where ``x``'s device can do that."""
    return _early(x.device)


@cache
def _early(device: torch.device) -> dict[str, bool]:
    can = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if can else {"EARLY": False}


@cache
def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory of each of a device's multiprocessors; 0 if it has none."""
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_multiprocessor)


@triton.jit
def follow(EARLY: tl.constexpr):
    """Wait for the kernel before, then let the next one be launched."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def fetch(at):
    """Bring what these pointers point to into the second-level cache, a line each."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [at.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
