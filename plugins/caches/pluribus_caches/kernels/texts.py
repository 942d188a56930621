"""Where texts lie in a paged KV cache on CUDA devices, and how their tokens come there.

The pool of one layer is [2, heads, tokens, head_dim]: keys, then values. A text's tokens lie in
blocks of the pool that its row of the block table names. Every grid is fixed by the shapes alone
and lengths are read on the device, so that a launch can be captured and replayed while texts grow.
Programs begin in the order of rows: with the longest text first, all end at about the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import launch

NOTHING = tl.constexpr(-1.0e30)
"""Less than any score, and still a number: its differences are."""
LOG2_E = tl.constexpr(1.4426950408889634)
"""exp(x) is exp2(x * LOG2_E), which the hardware has."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Where texts lie.

    Attributes:
        table: block numbers, int32, [num_slots, max_blocks].
        block_size: tokens of a block.
    """

    table: Tensor
    block_size: int


def places(pool: Tensor, texts: Texts, slots: Tensor, positions: Tensor) -> tuple[object, ...]:
    """Return what says to a kernel where tokens lie."""
    table = texts.table
    return pool, pool.shape[2], table, table.stride(0), slots, positions


def write(
    key: Tensor, value: Tensor, pool: Tensor, texts: Texts, slots: Tensor, positions: Tensor
) -> None:
    """Write keys and values into the pool.

    Args:
        key, value: [num_tokens, num_heads, head_dim] with unit last stride and equal strides.
        pool: of this layer, [2, num_heads, num_tokens, head_dim], contiguous.
        texts: where each slot's text lies.
        slots, positions: of each token, int64, [num_tokens].
    """
    num_tokens, num_heads, head_dim = key.shape
    launch(
        _write,
        (num_tokens,),
        key,
        value,
        key.stride(0),
        *places(pool, texts, slots, positions),
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        HEADS_WIDTH=triton.next_power_of_2(num_heads),
        WIDTH=triton.next_power_of_2(head_dim),
        BLOCK_SIZE=texts.block_size,
        num_warps=4,
    )


@triton.jit
def _write(
    key, value, row_stride, pool, pool_tokens, table, table_stride, slots, positions,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEADS_WIDTH: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + row)
    blocks = table + tl.load(slots + row) * table_stride
    block = tl.load(blocks + position // BLOCK_SIZE).to(tl.int64)
    head = tl.arange(0, HEADS_WIDTH)[:, None]
    dim = tl.arange(0, WIDTH)[None, :]
    mask = (head < HEADS) & (dim < HEAD_DIM)
    token = block * BLOCK_SIZE + position % BLOCK_SIZE
    to = pool + (head * pool_tokens.to(tl.int64) + token) * HEAD_DIM + dim
    of = row * row_stride + head * HEAD_DIM + dim
    tl.store(to, tl.load(key + of, mask=mask), mask=mask)
    to += HEADS * pool_tokens.to(tl.int64) * HEAD_DIM
    tl.store(to, tl.load(value + of, mask=mask), mask=mask)
