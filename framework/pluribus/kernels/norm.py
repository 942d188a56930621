"""A residual's sum and the norm of it, in one pass over the row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch


def add_layer_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return ``x + delta`` and its LayerNorm, with the sum rounded to x's dtype in between.

    Args:
        x, delta: [num_rows, size], contiguous; no delta adds nothing.
        weight, bias: [size]; both or neither.
        eps: added to the variance. Statistics are in float32.
    """
    num_rows, size = x.shape
    total = x if delta is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    block = triton.next_power_of_2(size)
    launch(
        _add_layer_norm,
        (num_rows,),
        x,
        x if delta is None else delta,
        x if weight is None else weight,
        x if bias is None else bias,
        total,
        normed,
        eps,
        size,
        BLOCK=block,
        ADDS=delta is not None,
        AFFINE=weight is not None,
        num_warps=warps_of_row(block),
        **early(x),
    )
    return total, normed


def warps_of_row(block: int) -> int:
    """Return how many warps a program takes whose rows fill a block."""
    return min(16, max(1, block // 512))


@triton.jit
def _add_layer_norm(
    x, delta, weight, bias, total, normed, eps, size,
    BLOCK: tl.constexpr, ADDS: tl.constexpr, AFFINE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * size
    at = tl.arange(0, BLOCK)
    inside = at < size
    if AFFINE:
        scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    follow(EARLY)
    value = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(delta + row + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    result = normalise(value, inside, size, eps)
    if AFFINE:
        result = result * scale + shift
    tl.store(normed + row + at, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def normalise(value, inside, size, eps):
    """Return numbers of a row, in float32, less their mean and over their deviation."""
    # Rounded as it should be: what numbers of 30,000 differ by is lost otherwise.
    mean = tl.div_rn(tl.sum(value, 0), tl.cast(size, tl.float32))
    centred = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / size
    return centred * tl.rsqrt(variance + eps)
