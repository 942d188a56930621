"""Linear layers of few rows: a matter of reading the weights once, as fast as memory gives them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.following import early, follow

MAX_ROWS = 16
"""Rows of one tile of the tensor cores."""


Config = tuple[int, int, int, int]
"""Outputs and inputs of a tile, warps and pipeline stages of a program."""


def skinny_config(num_rows: int, out_features: int, in_features: int) -> Config | None:
    """Return how ``skinny_linear`` is fastest; None where cuBLAS is faster, or it cannot.

    Measured on an H100 at the shapes of OPT-125M to 6.7B, for 1, 8 and 16 rows in float16.
    """
    if num_rows > MAX_ROWS:
        return None
    if out_features >= 2 * in_features:
        return (64, 128, 4, 4)
    if in_features > out_features:
        if out_features <= 1024:
            return (8, 256, 4, 4)
        return (16, 512, 4, 3) if out_features >= 4096 else None
    return (16, 256, 4, 4) if out_features <= 2048 else (32, 256, 4, 4)


def skinny_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool, config: Config
) -> Tensor:
    """Return ``x weight^T + bias``, after ReLU if asked for, for 16 rows or fewer.

    Args:
        x: [num_rows, in_features], contiguous.
        weight: [out_features, in_features], contiguous.
        bias: [out_features].
        relu: whether negative outputs become 0.
        config: see ``skinny_config``.
    """
    num_rows, in_features = x.shape
    out_features = weight.shape[0]
    y = torch.empty(num_rows, out_features, dtype=x.dtype, device=x.device)
    outputs, inputs, num_warps, num_stages = config
    _skinny_linear[(triton.cdiv(out_features, outputs),)](
        x,
        weight,
        weight if bias is None else bias,
        y,
        num_rows,
        in_features,
        out_features,
        ROWS=MAX_ROWS,
        OUTPUTS=outputs,
        INPUTS=inputs,
        HAS_BIAS=bias is not None,
        RELU=relu,
        num_warps=num_warps,
        num_stages=num_stages,
        **early(x),
    )
    return y


@triton.jit
def _skinny_linear(
    x, weight, bias, y, num_rows, in_features, out_features,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    out = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    at = tl.arange(0, INPUTS)
    x_at = x + row[:, None] * in_features + at[None, :]
    w_at = weight + out[:, None].to(tl.int64) * in_features + at[None, :]
    is_row = row[:, None] < num_rows
    is_out = out[:, None] < out_features
    # The weights' first tile does not wait for the kernel that makes the inputs.
    inside = at[None, :] < in_features
    w = tl.load(w_at, mask=is_out & inside, other=0.0)
    follow(EARLY)
    v = tl.load(x_at, mask=is_row & inside, other=0.0)
    total = tl.dot(w, v.T)
    for start in range(INPUTS, in_features, INPUTS):
        inside = (start + at)[None, :] < in_features
        w = tl.load(w_at + start, mask=is_out & inside, other=0.0)
        v = tl.load(x_at + start, mask=is_row & inside, other=0.0)
        total = tl.dot(w, v.T, total)
    if HAS_BIAS:
        total += tl.load(bias + out, mask=out < out_features, other=0.0).to(tl.float32)[:, None]
    if RELU:
        total = tl.maximum(total, 0.0)
    y_at = y + row[None, :] * out_features + out[:, None]
    mask = (row[None, :] < num_rows) & (out[:, None] < out_features)
    tl.store(y_at, total.to(y.dtype.element_ty), mask=mask)
