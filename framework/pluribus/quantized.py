"""Weights of eight bits: a small number each, and a scale for each row, which is an output."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
)
"""What the formats are called, and what their numbers are kept in."""

LARGEST: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
)
"""The largest number used of each: int8's -128 has no opposite."""

BLOCK = 2**19
"""Weights that a CPU makes plain at a time: what its caches hold."""
ROWS = 256
"""Rows that it multiplies with them at a time, so that sums in float32 take little memory."""


def scale_for(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the scales of rows whose largest magnitudes are ``largest``, in float32."""
    # Nor is a row of zeros divided by zero.
    return (largest.float() / LARGEST[dtype]).clamp_min(torch.finfo(torch.float32).tiny)


def quantize(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``values / scale``, rounded to the nearest numbers of a dtype.

    Args:
        values: [num_rows, num_columns], float32.
        scale: [num_rows], from ``scale_for``.
        dtype: one of ``DTYPES``.
    """
    scaled = (values / scale.unsqueeze(1)).clamp_(-LARGEST[dtype], LARGEST[dtype])
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype)


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight as plain numbers of a dtype, computed in float32."""
    return weight.float().mul_(scale.unsqueeze(1)).to(dtype)


def scaled_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *, relu: bool
) -> Tensor:
    """Return what ``ops.scaled_linear`` does, on a CPU, with sums in float32."""
    y = x.new_empty(len(x), len(weight))
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        product = _product(x[rows].float(), weight).mul_(scale.unsqueeze(1))
        if bias is not None:
            product += bias.unsqueeze(1)
        y[rows] = (product.relu_() if relu else product).t()
    return y


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``weight x^T``, some of the weight made plain at a time."""
    num_outputs, num_inputs = weight.shape
    product = x.new_empty(num_outputs, len(x))
    step = max(1, BLOCK // max(1, num_inputs))
    plain = x.new_empty(min(step, num_outputs), num_inputs)
    for start in range(0, num_outputs, step):
        block = weight[start : start + step]
        torch.mm(_read(block, plain[: len(block)]), x.t(), out=product[start : start + step])
    return product


def _read(weight: Tensor, plain: Tensor) -> Tensor:
    """Fill ``plain`` with numbers of eight bits, exactly."""
    if weight.dtype == torch.int8:
        return plain.copy_(weight)
    # In the bits of float16, e4m3's are the same number but for 8 in the exponent. torch's own
    # way takes ten times as long.
    bits = weight.view(torch.int8).to(torch.int16)
    half = ((bits & 0x7F) << 7).bitwise_or_(bits.bitwise_and_(-0x8000)).view(torch.float16)
    return plain.copy_(half).mul_(256)
