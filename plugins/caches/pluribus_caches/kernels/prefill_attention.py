"""Attention of many tokens a row over a paged KV cache on CUDA devices, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.interfaces.device_store import Tiles
from pluribus.kernels.launching import launch, shared_memory
from pluribus_caches.kernels.texts import LOG2_E, NOTHING, Texts, places

TILE = 64
"""Tokens of a prompt that one program attends with."""
KEYS = {torch.float32: 16, torch.float16: 64, torch.bfloat16: 64}
"""Tokens that it attends to at a time. In float32 each product is an instruction: 64 take 11 s to
compile, 16 take 2."""
NARROWEST = 16
"""What tensor cores multiply, at least."""
RESERVED_BYTES = 1024
"""Of shared memory, that a device takes for each program."""


def prefill(
    qkv: tuple[Tensor, Tensor, Tensor],
    pool: Tensor,
    texts: Texts,
    slots: Tensor,
    positions: Tensor,
    tiles: Tiles,
    out: Tensor,
) -> None:
    """Attend with many tokens a row, each to its text up to itself.

    What comes before a row is in the pool; what the row itself adds to its text is taken from where
    it has just been computed, which lies together.

    Args:
        qkv: query, not scaled, key and value, [num_tokens, num_heads, head_dim] each, with unit
            last stride and equal strides.
        pool: of this layer, [2, num_heads, num_tokens, head_dim], contiguous.
        texts: where each slot's text lies.
        slots, positions: of each token, int64, [num_tokens].
        tiles: of the tokens.
        out: where results go, [num_tokens, num_heads, head_dim].
    """
    query, key, value = qkv
    _, num_heads, head_dim = query.shape
    width = max(NARROWEST, triton.next_power_of_2(head_dim))
    keys = KEYS[query.dtype]
    # Queries, and of keys and values those at hand and two more tiles under way.
    most_bytes = (TILE + 6 * keys) * width * query.element_size() + RESERVED_BYTES
    has_room = shared_memory(query.device) >= 2 * most_bytes  # two programs run side by side
    launch(
        _prefill,
        (num_heads, len(tiles.starts)),
        query,
        key,
        value,
        query.stride(0),
        *places(pool, texts, slots, positions),
        tiles.rows,
        tiles.starts,
        tiles.ends,
        out,
        head_dim**-0.5,
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        WIDTH=width,
        BLOCK_SIZE=texts.block_size,
        TILE=TILE,
        KEYS=keys,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3 if has_room else 2,
    )


@triton.jit
def _prefill(
    query, key, value, row_stride, pool, pool_tokens, table, table_stride, slots, positions,
    rows, starts, ends, out, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    tile = tl.program_id(1)
    start = tl.load(starts + tile)
    end = tl.load(ends + tile)
    if start >= end:
        return
    row = tl.load(rows + tile)
    mine = (start - row).to(tl.int32) + tl.arange(0, TILE)  # counted from the row's first token
    dim = tl.arange(0, WIDTH)
    is_dim = dim < HEAD_DIM
    mask = (mine < end - row)[:, None] & is_dim[None, :]
    first_token = row * row_stride + head * HEAD_DIM
    q = tl.load(query + first_token + mine[:, None] * row_stride + dim, mask=mask, other=0.0)
    highest = tl.full((TILE,), NOTHING, tl.float32)
    weight_sum = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE, WIDTH), tl.float32)
    scale *= LOG2_E
    inside = tl.arange(0, KEYS)

    blocks = table + tl.load(slots + start) * table_stride
    keys = pool + head.to(tl.int64) * pool_tokens * HEAD_DIM
    values = keys + HEADS * pool_tokens.to(tl.int64) * HEAD_DIM
    num_before = tl.load(positions + row).to(tl.int32)
    for first in range(0, num_before, KEYS):
        token = first + inside
        is_token = token < num_before
        block = tl.load(blocks + token // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64)
        at = (block * BLOCK_SIZE + token % BLOCK_SIZE)[:, None] * HEAD_DIM + dim
        both = is_token[:, None] & is_dim
        k = tl.load(keys + at, mask=both, other=0.0)
        v = tl.load(values + at, mask=both, other=0.0)
        highest, weight_sum, total = _attend(
            q, k, v, is_token[None, :], scale, highest, weight_sum, total, PRECISION
        )

    num_own = tl.minimum(start + TILE, end) - row
    for first in range(0, num_own.to(tl.int32), KEYS):
        token = first + inside
        at = first_token + token[:, None] * row_stride + dim
        both = (token < num_own)[:, None] & is_dim
        k = tl.load(key + at, mask=both, other=0.0)
        v = tl.load(value + at, mask=both, other=0.0)
        is_seen = token[None, :] <= mine[:, None]
        highest, weight_sum, total = _attend(
            q, k, v, is_seen, scale, highest, weight_sum, total, PRECISION
        )

    to = (row + mine).to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + dim
    tl.store(out + to, (total / weight_sum[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _attend(q, k, v, is_seen, scale, highest, weight_sum, total, PRECISION: tl.constexpr):
    """Take more keys and values into a softmax that has no end yet (Dao et al., 2022)."""
    score = tl.where(is_seen, tl.dot(q, k.T, input_precision=PRECISION), NOTHING)
    new_highest = tl.maximum(highest, tl.max(score, 1) * scale)
    weight = tl.exp2(score * scale - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    weight_sum = weight_sum * shrink + tl.sum(weight, 1)
    weight = weight.to(v.dtype)
    total = tl.dot(weight, v, total * shrink[:, None], input_precision=PRECISION)
    return new_highest, weight_sum, total
