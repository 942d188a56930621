"""What layers are made of, by the kernel that is fastest where the tensors are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus import quantized
from pluribus.packed import packed as packed_on_cpu
from pluribus.packed import packed_linear

HALVES = (torch.float16, torch.bfloat16)


def packed(weight: Tensor) -> Tensor:
    """Return a copy of a matrix that ``linear`` is fastest with, or itself if there is none."""
    if weight.is_cuda and weight.dtype in HALVES:
        from pluribus.kernels.linear import arranged

        return arranged(weight)
    return packed_on_cpu(weight)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    relu: bool = False,
    has_zeros: bool = False,
) -> Tensor:
    """Return ``x weight^T + bias``, after ReLU if asked for.

    Args:
        x: [num_rows, in_features].
        weight: [out_features, in_features]; it may be packed.
        bias: [out_features].
        relu: whether negative outputs become 0.
        has_zeros: whether many of x's numbers are 0, as after ReLU.
    """
    if x.is_cuda and x.dtype in HALVES:
        from pluribus.kernels.linear import few_rows_linear, is_column_major
        from pluribus.kernels.linear_config import few_rows_config
        from pluribus.kernels.sparse_linear import skips_zeros, sparse_linear

        if has_zeros and not relu and skips_zeros(len(x), weight):
            return sparse_linear(x, weight, bias)
        by_columns = is_column_major(weight)
        if config := few_rows_config(len(x), *weight.shape, by_columns=by_columns):
            return few_rows_linear(x, weight, bias, relu=relu, config=config)
        if relu and bias is not None:
            return torch._addmm_activation(bias, x, weight.t())
    if weight.is_mkldnn:
        return packed_linear(x, weight, bias, relu=relu)
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


def scaled_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    relu: bool = False,
    scratch: Tensor | None = None,
) -> Tensor:
    """Return ``x weight^T`` times ``scale``, plus ``bias``, after ReLU if asked for.

    Args:
        x: [num_rows, in_features].
        weight: [out_features, in_features], quantised.
        scale: [out_features], float32.
        bias: [out_features].
        relu: whether negative outputs become 0.
        scratch: room for the weight in x's dtype, which a CUDA device needs. Whatever runs there
            one after another may share it.
    """
    if not x.is_cuda:
        return quantized.scaled_linear(x, weight, scale, bias, relu=relu)
    from pluribus.kernels.linear import few_rows_linear
    from pluribus.kernels.linear_config import eight_bit_config
    from pluribus.kernels.quantized import dequantize

    if x.dtype in HALVES and (config := eight_bit_config(len(x), *weight.shape)):
        return few_rows_linear(x, weight, bias, scale=scale, relu=relu, config=config)
    assert scratch is not None, "there is nowhere to make a weight plain"
    plain = scratch[: weight.numel()].view(weight.shape)
    dequantize(weight, scale, plain)
    return linear(x, plain, bias, relu=relu)


def add_layer_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return ``x + delta`` and its LayerNorm, statistics in float32.

    Args:
        x, delta: [num_rows, size]; no delta adds nothing.
        weight, bias: [size]; both or neither.
        eps: added to the variance.
    """
    if x.is_cuda:
        from pluribus.kernels import norm

        return norm.add_layer_norm(x, delta, weight, bias, eps)
    total = x if delta is None else x + delta
    return total, F.layer_norm(total, (x.shape[-1],), weight, bias, eps)
