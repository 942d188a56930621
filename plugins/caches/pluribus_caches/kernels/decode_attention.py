"""Attention of one token a row over a paged KV cache on CUDA devices, in Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch
from pluribus.kernels.sharing import arrive
from pluribus_caches.kernels.texts import LOG2_E, NOTHING, Texts, places


@dataclass(frozen=True, slots=True)
class Splits:
    """Room for the partial results of texts that several programs share.

    Attributes:
        count: programs for each row and head.
        partial: float32, [rows, heads, count, head_dim + 2].
        arrived: how many of them are done, int32, [rows, heads]; all 0 between launches.
    """

    count: int
    partial: Tensor
    arrived: Tensor

    @classmethod
    def make(
        cls, num_rows: int, num_heads: int, head_dim: int, num_programs: int, device: torch.device
    ) -> Splits:
        """Return room for as many splits as it takes to have ``num_programs`` of them in all.

        Half as many do once a text is split in 16: parts get too short.
        """
        pairs, count = num_rows * num_heads, 1
        while count < 16 and pairs * count < num_programs:
            count *= 2
        if pairs * count < num_programs // 2:
            count *= 2
        size = (num_rows, num_heads, count, head_dim + 2)
        partial = torch.empty(size if count > 1 else (1,), dtype=torch.float32, device=device)
        arrived = torch.zeros(num_rows, num_heads, dtype=torch.int32, device=device)
        return cls(count, partial, arrived)


def decode(
    qkv: tuple[Tensor, Tensor, Tensor],
    pool: Tensor,
    texts: Texts,
    slots: Tensor,
    positions: Tensor,
    splits: Splits,
) -> Tensor:
    """Write the keys and values of one token a row, and attend to each row's text up to it.

    Args:
        qkv: query, key and value, each [num_rows, num_heads, head_dim] with unit last stride and
            equal strides; the query is not scaled.
        pool: of this layer, [2, num_heads, num_tokens, head_dim], contiguous.
        texts: where each slot's text lies.
        slots, positions: of each row's token, int64, [num_rows].
        splits: made for as many rows, or more.

    Returns:
        [num_rows, num_heads, head_dim].
    """
    query = qkv[0]
    num_rows, num_heads, head_dim = query.shape
    out = torch.empty(num_rows, num_heads, head_dim, dtype=query.dtype, device=query.device)
    launch(
        _decode,
        (splits.count, num_heads, num_rows),
        *qkv,
        query.stride(0),
        *places(pool, texts, slots, positions),
        splits.partial,
        splits.arrived,
        out,
        head_dim**-0.5,
        SPLITS=splits.count,
        **_options(query, texts, splits.count),
    )
    return out


def _options(query: Tensor, texts: Texts, num_splits: int) -> dict[str, int]:
    """Return what a kernel is compiled for."""
    _, num_heads, head_dim = query.shape
    tile, num_warps = _tile(num_splits, head_dim)
    return {
        "HEADS": num_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": triton.next_power_of_2(head_dim),
        "BLOCK_SIZE": texts.block_size,
        "TILE": tile,
        "num_warps": num_warps,
        **early(query),
    }


def _tile(num_splits: int, head_dim: int) -> tuple[int, int]:
    """Return tokens of a tile, and warps that attend to it: what was fastest on an H100.

    Tiles whose values the compiler reads only when it is done with the keys wait twice; it is other
    sizes for other heads that escape that. Of 32 splits, each has too few tokens for larger tiles.
    """
    if num_splits <= 4:
        return 64, 2
    if num_splits > 16 or head_dim <= 64:
        return 16, 1
    return (32, 1) if head_dim >= 128 else (64, 2)


@triton.jit
def _decode(
    query, key, value, row_stride, pool, pool_tokens, table, table_stride, slots, positions,
    partial, arrived, out, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    _decode_row(
        tl.program_id(2), tl.program_id(1), tl.program_id(0),
        query, key, value, row_stride, pool, pool_tokens, table, table_stride, slots, positions,
        partial, arrived, out, scale,
        HEADS, HEAD_DIM, WIDTH, BLOCK_SIZE, TILE, SPLITS,
    )  # fmt: skip


@triton.jit
def _decode_row(
    row, head, split,
    query, key, value, row_stride, pool, pool_tokens, table, table_stride, slots, positions,
    partial, arrived, out, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    slot = tl.load(slots + row)
    position = tl.load(positions + row).to(tl.int32)
    blocks = table + slot * table_stride
    dim = tl.arange(0, WIDTH)
    is_dim = dim < HEAD_DIM
    head_at = row.to(tl.int64) * row_stride + head * HEAD_DIM + dim
    keys = pool + head.to(tl.int64) * pool_tokens * HEAD_DIM
    values = keys + HEADS * pool_tokens.to(tl.int64) * HEAD_DIM

    # Texts are cut at whole tiles; splits that a short text leaves without any have no work.
    num_tiles = position // TILE + 1
    tiles_each = tl.cdiv(num_tiles, SPLITS)
    first = split * tiles_each
    end = tl.minimum(first + tiles_each, num_tiles)
    q = tl.load(query + head_at, mask=is_dim, other=0.0).to(tl.float32) * (scale * LOG2_E)
    highest = NOTHING
    weight_sum = 0.0
    total = tl.zeros((WIDTH,), tl.float32)
    inside = tl.arange(0, TILE)
    for tile in range(first, end):
        token = tile * TILE + inside
        is_token = token < position
        block = tl.load(blocks + token // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64)
        at = (block * BLOCK_SIZE + token % BLOCK_SIZE)[:, None] * HEAD_DIM + dim[None, :]
        mask = is_token[:, None] & is_dim[None, :]
        # Read once a pass: what stays in the cache are weights and what layers hand on.
        k = tl.load(keys + at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        v = tl.load(values + at, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        score = tl.where(is_token, tl.sum(k * q[None, :], 1), NOTHING)
        new_highest = tl.maximum(highest, tl.max(score, 0))
        shrink = tl.exp2(highest - new_highest)
        weight = tl.where(is_token, tl.exp2(score - new_highest), 0.0)
        weight_sum = weight_sum * shrink + tl.sum(weight, 0)
        total = total * shrink + tl.sum(weight[:, None] * v, 0)
        highest = new_highest
    if end == num_tiles and first < end:
        # The row's own token, which nobody has written yet.
        k_new = tl.load(key + head_at, mask=is_dim, other=0.0)
        v_new = tl.load(value + head_at, mask=is_dim, other=0.0)
        block = tl.load(blocks + position // BLOCK_SIZE).to(tl.int64)
        at = (block * BLOCK_SIZE + position % BLOCK_SIZE) * HEAD_DIM + dim
        tl.store(keys + at, k_new, mask=is_dim)
        tl.store(values + at, v_new, mask=is_dim)
        score = tl.sum(q * k_new.to(tl.float32), 0)
        new_highest = tl.maximum(highest, score)
        shrink = tl.exp2(highest - new_highest)
        weight = tl.exp2(score - new_highest)
        weight_sum = weight_sum * shrink + weight
        total = total * shrink + weight * v_new.to(tl.float32)
        highest = new_highest
    out_at = out + (row * HEADS + head).to(tl.int64) * HEAD_DIM + dim
    if SPLITS == 1:
        tl.store(out_at, (total / weight_sum).to(out.dtype.element_ty), mask=is_dim)
    else:
        pair = row * HEADS + head
        mine = partial + (pair * SPLITS + split) * (HEAD_DIM + 2)
        tl.store(mine + dim, total, mask=is_dim)
        tl.store(mine + HEAD_DIM, highest)
        tl.store(mine + HEAD_DIM + 1, weight_sum)
        if arrive(arrived + pair, SPLITS):
            tl.store(arrived + pair, 0)
            each = tl.arange(0, SPLITS)
            parts = partial + (pair * SPLITS + each) * (HEAD_DIM + 2)
            tops = tl.load(parts + HEAD_DIM)
            shrinks = tl.exp2(tops - tl.max(tops, 0))
            sums = tl.sum(tl.load(parts + HEAD_DIM + 1) * shrinks, 0)
            rows = tl.load(parts[:, None] + dim[None, :], mask=is_dim[None, :], other=0.0)
            merged = tl.sum(rows * shrinks[:, None], 0) / sums
            tl.store(out_at, merged.to(out.dtype.element_ty), mask=is_dim)


def decode_alone(
    qkv: tuple[Tensor, Tensor, Tensor],
    pool: Tensor,
    texts: Texts,
    slots: Tensor,
    positions: Tensor,
    alone: Tensor,
    out: Tensor,
) -> None:
    """Do as ``decode`` does for some tokens of a pass, those that are all of their row.

    Args:
        qkv, pool, texts, slots, positions: see ``decode``; of all tokens of the pass.
        alone: indices of those tokens, int64, [num_alone]; -1 from the end of them on.
        out: where their results go, [num_tokens, num_heads, head_dim].
    """
    query = qkv[0]
    _, num_heads, head_dim = query.shape
    launch(
        _decode_alone,
        (num_heads, len(alone)),
        *qkv,
        query.stride(0),
        *places(pool, texts, slots, positions),
        alone,
        out,
        head_dim**-0.5,
        **_options(query, texts, num_splits=1),
    )


@triton.jit
def _decode_alone(
    query, key, value, row_stride, pool, pool_tokens, table, table_stride, slots, positions,
    alone, out, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.load(alone + tl.program_id(1))
    if row < 0:
        return
    _decode_row(
        row, tl.program_id(0), 0,
        query, key, value, row_stride, pool, pool_tokens, table, table_stride, slots, positions,
        out, out, out, scale,
        HEADS, HEAD_DIM, WIDTH, BLOCK_SIZE, TILE, 1,
    )  # fmt: skip
