"""Eight-bit weights made plain: half the bytes of float16 to read."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch

BLOCK = 1024
"""Numbers that a program makes plain at a time."""


def dequantize(weight: Tensor, scale: Tensor, plain: Tensor) -> None:
    """Fill ``plain`` with the weight times its rows' scales.

    Args:
        weight: [out_features, in_features], contiguous; int8 or float8_e4m3fn.
        scale: [out_features], float32.
        plain: shaped as the weight, contiguous.
    """
    out_features, in_features = weight.shape
    numbers, from_bits = readable(weight)
    grid = (out_features, triton.cdiv(in_features, BLOCK))
    launch(
        _dequantize,
        grid,
        numbers,
        scale,
        plain,
        in_features,
        BLOCK=BLOCK,
        FROM_BITS=from_bits,
        **early(plain),
    )


def readable(weight: Tensor) -> tuple[Tensor, bool]:
    """Return a weight as this device can load it, and whether that is the bits of float8."""
    if weight.dtype != torch.float8_e4m3fn or _has_float8(weight.device):
        return weight, False
    return weight.view(torch.uint8), True


@cache
def _has_float8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@triton.jit
def _dequantize(
    weight, scale, plain, in_features,
    BLOCK: tl.constexpr, FROM_BITS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    out = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < in_features
    start = out.to(tl.int64) * in_features
    factor = tl.load(scale + out)
    w = tl.load(weight + start + at, mask=inside, other=0.0)
    # Who reads what was there before may be running still.
    follow(EARLY)
    value = widen(w, tl.float32, FROM_BITS) * factor
    tl.store(plain + start + at, value.to(plain.dtype.element_ty), mask=inside)


@triton.jit
def widen(w, dtype: tl.constexpr, FROM_BITS: tl.constexpr):
    """Return numbers as those of a dtype that holds them exactly: of eight bits, or of its own."""
    if FROM_BITS:
        # In the bits of float16, e4m3's are the same number but for 8 in the exponent.
        bits = w.to(tl.uint16)
        half = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True)
        w = half * 256.0
    elif w.dtype == tl.int8 and dtype != tl.float32:
        # To convert integers is slow. A byte with its sign turned is 128 more, and in the last
        # bits of 1024, or of 2**23, it is added to that.
        byte = w.to(tl.uint8, bitcast=True)
        if dtype == tl.float16:
            w = (byte.to(tl.uint16) ^ 0x6480).to(tl.float16, bitcast=True) - 1152.0
        else:
            w = (byte.to(tl.uint32) ^ 0x4B000080).to(tl.float32, bitcast=True) - 8388736.0
    elif w.dtype != tl.bfloat16 and dtype == tl.bfloat16:
        # From float8, which the hardware makes float16: from there straight on is slow.
        w = w.to(tl.float32)
    return w.to(dtype)
