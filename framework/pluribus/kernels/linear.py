"""Linear layers of few rows: a matter of reading the weights once, as fast as memory gives them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, fetch, follow, launch
from pluribus.kernels.quantized import readable, widen

TILE_ROWS = (16, 64)
"""Rows of a tile; the smallest that holds all is taken. Each more costs seconds at start."""
MAX_ROWS = TILE_ROWS[-1]
MAX_TILES = 1 << 12
"""Tiles of outputs whose sums may be split."""
PROGRAMS_AT_ONCE = 264
"""Two on each of 132 multiprocessors."""
LINE_BITS = tl.constexpr(1024)
"""What the cache is filled by."""


@dataclass(frozen=True, slots=True)
class Config:
    """How ``few_rows_linear`` runs.

    Attributes:
        outputs, inputs: of a tile.
        num_warps, num_stages: of a program.
        splits: programs that share the inputs of a tile of outputs.
        ahead: lines of 128 bytes, of each output's weights, that are brought into the cache while
            the kernel before still runs; a power of two, or 0.
    """

    outputs: int
    inputs: int
    num_warps: int
    num_stages: int
    splits: int = 1
    ahead: int = 0


def few_rows_config(num_rows: int, out_features: int, in_features: int) -> Config | None:
    """Return how ``few_rows_linear`` is fastest; None where cuBLAS is faster, or it cannot.

    Measured in float16, each linear after a norm as in the network, for 1, 8, 32 and 64 rows: on
    an H100 at the shapes of OPT-125M to 6.7B, and on an H200 at what a rank has of OPT-6.7B to
    175B split in two or four.
    """
    if num_rows > MAX_ROWS:
        return None
    if num_rows <= TILE_ROWS[0]:
        return _for_16_rows(out_features, in_features)
    return _for_64_rows(out_features, in_features)


def _for_16_rows(out_features: int, in_features: int) -> Config:
    ahead = 4 if in_features >= 2048 else 0
    if out_features >= 2 * in_features:
        return Config(32 if out_features <= 8192 else 64, 128, 4, 4, ahead=ahead)
    if out_features <= 1024:
        return Config(8, 256, 4, 4) if in_features <= out_features else Config(32, 128, 4, 4, 8)
    if in_features <= out_features < 4096:
        return Config(32, 128, 4, 6, ahead=ahead)
    # As many programs as there is room for at once.
    splits = 1 << max(0, (PROGRAMS_AT_ONCE // triton.cdiv(out_features, 64)).bit_length() - 1)
    return Config(64, 128, 4, 4, min(4, splits), ahead=ahead if out_features > 4096 else 0)


def _for_64_rows(out_features: int, in_features: int) -> Config | None:
    if out_features >= 2 * in_features:
        if in_features == 4096:
            return Config(128, 128, 8, 3) if out_features > 8192 else Config(64, 128, 4, 4)
        if out_features > 8192 or (out_features, in_features) == (4096, 2048):
            return None
        return Config(32 if out_features <= 4096 else 64, 128, 4, 4)
    if out_features <= 1024:
        return Config(32, 128, 4, 4, 4) if in_features <= out_features else Config(64, 128, 4, 4, 8)
    if out_features < 4096:
        return Config(64, 128, 4, 4, 4)
    return Config(64, 128, 4, 4, 2) if out_features == in_features == 4096 else None


def eight_bit_config(num_rows: int, out_features: int, in_features: int) -> Config | None:
    """Return how ``few_rows_linear`` is to run on eight-bit weights; None where it cannot."""
    if not 0 < num_rows <= MAX_ROWS or not in_features:
        return None
    inputs = 512 if num_rows <= 16 else 256 if num_rows <= 32 else 128
    if out_features >= 2 * in_features:
        return Config(64, min(inputs, 256), 4, 4)
    if out_features <= 1024:
        return Config(16, inputs, 4, 4)
    return Config(32, inputs, 4, 4 if num_rows <= 16 else 3)


def few_rows_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    scale: Tensor | None = None,
    relu: bool,
    config: Config,
) -> Tensor:
    """Return ``x weight^T + bias``, after ReLU if asked for, for 64 rows or fewer.

    Args:
        x: [num_rows, in_features], contiguous; float16 or bfloat16.
        weight: [out_features, in_features], contiguous; as x, or int8 or float8_e4m3fn.
        bias: [out_features].
        scale: that rows of the weight are multiplied with, float32, [out_features].
        relu: whether negative outputs become 0.
        config: see ``few_rows_config`` and ``eight_bit_config``.
    """
    num_rows, in_features = x.shape
    out_features = weight.shape[0]
    rows = next(size for size in TILE_ROWS if size >= num_rows)
    num_tiles = triton.cdiv(out_features, config.outputs)
    y = torch.empty(num_rows, out_features, dtype=x.dtype, device=x.device)
    partial, arrived = y, y
    if config.splits > 1:
        size = (num_tiles, config.splits, config.outputs, rows)
        partial = torch.empty(size, dtype=torch.float32, device=x.device)
        arrived = _counters(x.device)
    numbers, from_bits = readable(weight)
    launch(
        _few_rows_linear,
        (num_tiles, config.splits),
        x,
        numbers,
        x if scale is None else scale,
        x if bias is None else bias,
        y,
        partial,
        arrived,
        num_rows,
        in_features,
        out_features,
        ROWS=rows,
        OUTPUTS=config.outputs,
        INPUTS=config.inputs,
        SPLITS=config.splits,
        AHEAD=config.ahead,
        FROM_BITS=from_bits,
        HAS_SCALE=scale is not None,
        HAS_BIAS=bias is not None,
        RELU=relu,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **early(x),
    )
    return y


@cache
def _counters(device: torch.device) -> Tensor:
    """Return how many programs of a tile are done: all 0 between launches, which take turns."""
    return torch.zeros(MAX_TILES, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["num_rows"])
def _few_rows_linear(
    x, weight, scale, bias, y, partial, arrived, num_rows, in_features, out_features,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, SPLITS: tl.constexpr,
    AHEAD: tl.constexpr, FROM_BITS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    split = tl.program_id(1)
    out = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    at = tl.arange(0, INPUTS)
    # Inputs are cut at whole tiles; splits that few inputs leave without any have no work.
    tiles_each = tl.cdiv(tl.cdiv(in_features, INPUTS), SPLITS)
    first = split * tiles_each * INPUTS
    end = tl.minimum(first + tiles_each * INPUTS, in_features)
    x_at = x + row[:, None] * in_features + at[None, :]
    w_at = weight + out[:, None].to(tl.int64) * in_features + at[None, :]
    is_row = row[:, None] < num_rows
    is_out = out[:, None] < out_features
    # The weights do not wait for the kernel that makes the inputs.
    inside = (first + at)[None, :] < end
    dtype: tl.constexpr = x.dtype.element_ty
    BITS: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth
    w = widen(tl.load(w_at + first, mask=is_out & inside, other=0.0), dtype, FROM_BITS)
    if EARLY and AHEAD > 0:
        line = first + INPUTS + tl.arange(0, AHEAD)[None, :] * (LINE_BITS // BITS)
        is_line = is_out & (line < end)
        fetch(weight + tl.where(is_line, out[:, None].to(tl.int64) * in_features + line, 0))
    follow(EARLY)
    v = tl.load(x_at + first, mask=is_row & inside, other=0.0)
    total = tl.dot(w, v.T)
    for start in range(first + INPUTS, end, INPUTS):
        inside = (start + at)[None, :] < end
        loaded = tl.load(w_at + start, mask=is_out & inside, other=0.0)
        v = tl.load(x_at + start, mask=is_row & inside, other=0.0)
        total = tl.dot(widen(loaded, dtype, FROM_BITS), v.T, total)
    is_last = True
    if SPLITS > 1:
        inner = tl.arange(0, OUTPUTS)[:, None] * ROWS + row[None, :]
        parts = partial + tile * SPLITS * OUTPUTS * ROWS + inner
        tl.store(parts + split * OUTPUTS * ROWS, total)
        tl.debug_barrier()
        is_last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLITS - 1
        tl.debug_barrier()
    if is_last:
        if SPLITS > 1:
            tl.store(arrived + tile, 0)
            # In the order of the inputs, whoever is last: the same sum each time.
            total = tl.load(parts)
            for other in tl.static_range(1, SPLITS):
                total += tl.load(parts + other * OUTPUTS * ROWS)
        if HAS_SCALE:
            total *= tl.load(scale + out, mask=out < out_features, other=0.0)[:, None]
        if HAS_BIAS:
            total += tl.load(bias + out, mask=out < out_features, other=0.0).to(tl.float32)[:, None]
        if RELU:
            total = tl.maximum(total, 0.0)
        y_at = y + row[None, :] * out_features + out[:, None]
        mask = (row[None, :] < num_rows) & (out[:, None] < out_features)
        tl.store(y_at, total.to(y.dtype.element_ty), mask=mask)
