"""Linear layers of few rows: a matter of reading the weights once, as fast as memory gives them."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pluribus.kernels.launching import early, fetch, follow, launch, shared_memory
from pluribus.kernels.linear_config import (
    COLUMN_MAJOR,
    H100,
    NUM_PROCESSORS,
    TILE_ROWS,
    Config,
    Multiprocessor,
)
from pluribus.kernels.quantized import readable, widen
from pluribus.kernels.sharing import arrive, counters

ALIGNMENT = 16
"""Of inputs, where the hardware copies tiles: rows begin at a multiple of 16 bytes then."""
LINE_BITS = tl.constexpr(1024)
"""What the cache is filled by."""
AHEAD = tl.constexpr(4)
"""Lines of each output's weights that are brought into the cache while the kernel before runs."""


def arranged(weight: Tensor) -> Tensor:
    """Return a weight stored as products with it are fastest: a copy, or itself."""
    if is_column_major(weight) or (*weight.shape,) not in COLUMN_MAJOR:
        return weight
    return weight.t().contiguous().t()


def is_column_major(weight: Tensor) -> bool:
    """Return whether all weights of an input lie side by side, and not those of an output."""
    return not weight.is_contiguous() and weight.t().is_contiguous()


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
        weight: [out_features, in_features]; as x, contiguous or column-major, or contiguous int8
            or float8_e4m3fn.
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
        assert num_tiles <= NUM_PROCESSORS, "so many tiles keep all busy, unsplit"
        size = (num_tiles, config.splits, config.outputs, rows)
        partial = torch.empty(size, dtype=torch.float32, device=x.device)
        arrived = counters(x.device)
    numbers, from_bits = readable(weight)
    processor = _processor(x.device)
    by_columns = is_column_major(numbers)
    width = out_features if by_columns else in_features
    copies = processor.copies_tiles and in_features % ALIGNMENT == width % ALIGNMENT == 0
    x_tiles, weight_tiles = x, numbers
    if copies:
        x_tiles = _tiles(x, [rows, config.inputs])
        tile = [config.outputs, config.inputs]
        weight_tiles = _tiles(numbers.t(), tile[::-1]) if by_columns else _tiles(numbers, tile)
    launch(
        _few_rows_linear,
        (num_tiles, config.splits),
        x_tiles,
        weight_tiles,
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
        COPIES=copies,
        BY_COLUMNS=by_columns,
        WAITS=processor.reads_registers_late and numbers.itemsize < x.itemsize,
        FROM_BITS=from_bits,
        HAS_SCALE=scale is not None,
        HAS_BIAS=bias is not None,
        RELU=relu,
        num_warps=config.num_warps,
        num_stages=processor.num_stages(config, rows, numbers.itemsize),
        **early(x),
    )
    return y


def _tiles(matrix: Tensor, size: list[int]) -> TensorDescriptor:
    """Return what a contiguous matrix's tiles are copied by."""
    return TensorDescriptor(matrix, [*matrix.shape], [matrix.shape[1], 1], size)


@cache
def _processor(device: torch.device) -> Multiprocessor:
    if device.type != "cuda":
        return H100
    return Multiprocessor(torch.cuda.get_device_capability(device)[0], shared_memory(device))


@triton.jit(do_not_specialize=["num_rows"])
def _few_rows_linear(
    x_tiles, weight_tiles, x, weight, scale, bias, y, partial, arrived,
    num_rows, in_features, out_features,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, SPLITS: tl.constexpr,
    COPIES: tl.constexpr, BY_COLUMNS: tl.constexpr, WAITS: tl.constexpr, FROM_BITS: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    split = tl.program_id(1)
    out = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    is_out = out[:, None] < out_features
    w_at = out[:, None].to(tl.int64)
    if not BY_COLUMNS:
        w_at *= in_features
    # Inputs are cut at whole tiles; splits that few inputs leave without any have no work.
    tiles_each = tl.cdiv(tl.cdiv(in_features, INPUTS), SPLITS)
    first = split * tiles_each * INPUTS
    end = tl.minimum(first + tiles_each * INPUTS, in_features)
    if EARLY:
        # The weights do not wait for the kernel that makes the inputs.
        LINE: tl.constexpr = LINE_BITS // weight.dtype.element_ty.primitive_bitwidth
        if BY_COLUMNS:
            LINES: tl.constexpr = (OUTPUTS + LINE - 1) // LINE
            soon = first + tl.arange(0, AHEAD * LINE)[:, None]
            line = tile * OUTPUTS + tl.arange(0, LINES)[None, :] * LINE
            inside = (soon < end) & (line < out_features)
            fetch(weight + tl.where(inside, soon.to(tl.int64) * out_features + line, 0))
        else:
            line = first + tl.arange(0, AHEAD)[None, :] * LINE
            fetch(weight + tl.where(is_out & (line < end), w_at + line, 0))
    follow(EARLY)
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in range(first, end, INPUTS):
        # Zeros beyond the last output, row and input.
        if COPIES:
            if BY_COLUMNS:
                w = weight_tiles.load([start, tile * OUTPUTS]).T
            else:
                w = weight_tiles.load([tile * OUTPUTS, start])
            v = x_tiles.load([0, start])
        else:
            at = start + tl.arange(0, INPUTS)[None, :]
            is_row = row[:, None] < num_rows
            step = at.to(tl.int64) * out_features if BY_COLUMNS else at
            w = tl.load(weight + w_at + step, mask=is_out & (at < end), other=0.0)
            v = tl.load(x + row[:, None] * in_features + at, mask=is_row & (at < end), other=0.0)
        total = tl.dot(widen(w, y.dtype.element_ty, FROM_BITS), v.T, total)
        if WAITS:
            # A product that is used, were it for nothing, is waited for.
            total = tl.where(start < end, total, 0.0)
    is_last = True
    if SPLITS > 1:
        inner = tl.arange(0, OUTPUTS)[:, None] * ROWS + row[None, :]
        parts = partial + tile * SPLITS * OUTPUTS * ROWS + inner
        tl.store(parts + split * OUTPUTS * ROWS, total)
        is_last = arrive(arrived + tile, SPLITS)
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
