"""Attention of many tokens a row over a paged KV cache on CUDA devices, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.interfaces.device_store import Tiles
from pluribus.kernels.launching import launch
from pluribus_caches.kernels.texts import LOG2_E, NOTHING, Texts, places

TILE = 64
"""Tokens of a prompt that one program attends with."""
NARROWEST = 16
"""What tensor cores multiply, at least."""


def prefill(
    query: Tensor,
    pool: Tensor,
    texts: Texts,
    slots: Tensor,
    positions: Tensor,
    tiles: Tiles,
    out: Tensor,
) -> None:
    """Attend with many tokens a row, each to its text up to itself; all of it is in the pool.

    Args:
        query: not scaled, [num_tokens, num_heads, head_dim] with unit last stride.
        pool: of this layer, [2, num_heads, num_tokens, head_dim], contiguous.
        texts: where each slot's text lies.
        slots, positions: of each token, int64, [num_tokens].
        tiles: of the tokens.
        out: where results go, [num_tokens, num_heads, head_dim].
    """
    _, num_heads, head_dim = query.shape
    width = max(NARROWEST, triton.next_power_of_2(head_dim))
    launch(
        _prefill,
        (num_heads, len(tiles.starts)),
        query,
        query.stride(0),
        *places(pool, texts, slots, positions),
        tiles.starts,
        tiles.ends,
        out,
        head_dim**-0.5,
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        WIDTH=width,
        BLOCK_SIZE=texts.block_size,
        TILE=TILE,
        KEYS=64,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
    )


@triton.jit
def _prefill(
    query, row_stride, pool, pool_tokens, table, table_stride, slots, positions, starts, ends, out,
    scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    tile = tl.program_id(1)
    start = tl.load(starts + tile)
    index = start + tl.arange(0, TILE)
    end = tl.load(ends + tile)
    if start >= end:
        return
    is_mine = index < end
    blocks = table + tl.load(slots + start) * table_stride
    position = tl.load(positions + index, mask=is_mine, other=-1).to(tl.int32)
    length = tl.max(position, 0) + 1
    dim = tl.arange(0, WIDTH)
    is_dim = dim < HEAD_DIM
    mask = is_mine[:, None] & is_dim[None, :]
    query_at = index.to(tl.int64)[:, None] * row_stride + head * HEAD_DIM + dim[None, :]
    q = tl.load(query + query_at, mask=mask, other=0.0)
    keys = pool + head.to(tl.int64) * pool_tokens * HEAD_DIM
    values = keys + HEADS * pool_tokens.to(tl.int64) * HEAD_DIM
    highest = tl.full((TILE,), NOTHING, tl.float32)
    weight_sum = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE, WIDTH), tl.float32)
    inside = tl.arange(0, KEYS)
    for first in range(0, length, KEYS):
        token = first + inside
        is_token = token < length
        block = tl.load(blocks + token // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64)
        at = (block * BLOCK_SIZE + token % BLOCK_SIZE)[:, None] * HEAD_DIM + dim[None, :]
        both = is_token[:, None] & is_dim[None, :]
        k = tl.load(keys + at, mask=both, other=0.0)
        v = tl.load(values + at, mask=both, other=0.0)
        score = tl.dot(q, k.T, input_precision=PRECISION) * (scale * LOG2_E)
        score = tl.where(token[None, :] <= position[:, None], score, NOTHING)
        new_highest = tl.maximum(highest, tl.max(score, 1))
        shrink = tl.exp2(highest - new_highest)
        weight = tl.exp2(score - new_highest[:, None])
        weight_sum = weight_sum * shrink + tl.sum(weight, 1)
        weight = weight.to(v.dtype)
        total = tl.dot(weight, v, total * shrink[:, None], input_precision=PRECISION)
        highest = new_highest
    out_at = index.to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + dim[None, :]
    tl.store(out + out_at, (total / weight_sum[:, None]).to(out.dtype.element_ty), mask=mask)
