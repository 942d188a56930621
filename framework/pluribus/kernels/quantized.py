"""Linear layers with eight-bit weights: half the bytes of float16 to read."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.following import early, follow

MAX_ROWS = 64
"""Beyond, it is faster to make the weight plain first."""
TILE_ROWS = (16, 32, 64)
"""Rows of a tile of the tensor cores; the smallest that holds all is taken."""
BLOCK = 1024
"""Numbers that a program makes plain at a time."""

Config = tuple[int, int, int, int]
"""Outputs and inputs of a tile, warps and pipeline stages of a program."""


def few_rows_config(num_rows: int, out_features: int, in_features: int) -> Config | None:
    """Return how ``few_rows_linear`` is to run; None where it cannot, or is slower."""
    if not 0 < num_rows <= MAX_ROWS or not in_features:
        return None
    inputs = 512 if num_rows <= 16 else 256 if num_rows <= 32 else 128
    if out_features >= 2 * in_features:
        return (64, min(inputs, 256), 4, 4)
    if out_features <= 1024:
        return (16, inputs, 4, 4)
    return (32, inputs, 4, 4) if num_rows <= 16 else (32, inputs, 4, 3)


def few_rows_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    relu: bool,
    config: Config,
) -> Tensor:
    """Return what ``ops.scaled_linear`` does, for few rows of float16 or bfloat16.

    Args:
        x: [num_rows, in_features], contiguous.
        weight: [out_features, in_features], contiguous; int8 or float8_e4m3fn.
        scale: [out_features], float32.
        bias: [out_features].
        relu: whether negative outputs become 0.
        config: see ``few_rows_config``.
    """
    num_rows, in_features = x.shape
    out_features = weight.shape[0]
    y = torch.empty(num_rows, out_features, dtype=x.dtype, device=x.device)
    outputs, inputs, num_warps, num_stages = config
    numbers, from_bits = _readable(weight)
    _few_rows_linear[(triton.cdiv(out_features, outputs),)](
        x,
        numbers,
        scale,
        scale if bias is None else bias,
        y,
        num_rows,
        in_features,
        out_features,
        ROWS=next(size for size in TILE_ROWS if size >= num_rows),
        OUTPUTS=outputs,
        INPUTS=inputs,
        FROM_BITS=from_bits,
        HAS_BIAS=bias is not None,
        RELU=relu,
        num_warps=num_warps,
        num_stages=num_stages,
        **early(x),
    )
    return y


def dequantize(weight: Tensor, scale: Tensor, plain: Tensor) -> None:
    """Fill ``plain`` with the weight times its rows' scales.

    Args:
        weight: [out_features, in_features], contiguous; int8 or float8_e4m3fn.
        scale: [out_features], float32.
        plain: shaped as the weight, contiguous.
    """
    out_features, in_features = weight.shape
    numbers, from_bits = _readable(weight)
    grid = (out_features, triton.cdiv(in_features, BLOCK))
    _dequantize[grid](
        numbers,
        scale,
        plain,
        in_features,
        BLOCK=BLOCK,
        FROM_BITS=from_bits,
        **early(plain),
    )


def _readable(weight: Tensor) -> tuple[Tensor, bool]:
    """Return the weight as this device can load it, and whether that is the bits of float8."""
    if weight.dtype == torch.int8 or _has_float8(weight.device):
        return weight, False
    return weight.view(torch.uint8), True


@cache
def _has_float8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@triton.jit
def _few_rows_linear(
    x, weight, scale, bias, y, num_rows, in_features, out_features,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, FROM_BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    out = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    at = tl.arange(0, INPUTS)
    x_at = x + row[:, None] * in_features + at[None, :]
    w_at = weight + out[:, None].to(tl.int64) * in_features + at[None, :]
    is_row = row[:, None] < num_rows
    is_out = out[:, None] < out_features
    # What is only ever read does not wait for the kernel that makes the inputs.
    factor = tl.load(scale + out, mask=out < out_features, other=0.0)
    inside = at[None, :] < in_features
    w = _plain(tl.load(w_at, mask=is_out & inside, other=0.0), x.dtype.element_ty, FROM_BITS)
    follow(EARLY)
    v = tl.load(x_at, mask=is_row & inside, other=0.0)
    total = tl.dot(w, v.T)
    for start in range(INPUTS, in_features, INPUTS):
        inside = (start + at)[None, :] < in_features
        loaded = tl.load(w_at + start, mask=is_out & inside, other=0.0)
        v = tl.load(x_at + start, mask=is_row & inside, other=0.0)
        total = tl.dot(_plain(loaded, x.dtype.element_ty, FROM_BITS), v.T, total)
    total = total * factor[:, None]
    if HAS_BIAS:
        total += tl.load(bias + out, mask=out < out_features, other=0.0).to(tl.float32)[:, None]
    if RELU:
        total = tl.maximum(total, 0.0)
    y_at = y + row[None, :] * out_features + out[:, None]
    mask = (row[None, :] < num_rows) & (out[:, None] < out_features)
    tl.store(y_at, total.to(y.dtype.element_ty), mask=mask)


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
    value = _plain(w, tl.float32, FROM_BITS) * factor
    tl.store(plain + start + at, value.to(plain.dtype.element_ty), mask=inside)


@triton.jit
def _plain(w, dtype: tl.constexpr, FROM_BITS: tl.constexpr):
    """Return eight-bit numbers as those of a dtype that holds them exactly."""
    if FROM_BITS:
        # In the bits of float16, e4m3's are the same number but for 8 in the exponent.
        bits = w.to(tl.uint16)
        half = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True)
        w = half * 256.0
    return w.to(dtype)
