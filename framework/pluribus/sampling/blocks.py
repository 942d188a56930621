"""Wide rows, a block of ids at a time: what is slow over a vocabulary is done over its blocks."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Ids in a block."""


def block_maxima(logits: Tensor) -> Tensor:
    """Return the highest logit of each block; the last block may be short."""
    num_rows, num_ids = logits.shape
    whole, rest = divmod(num_ids, BLOCK)
    maxima = logits[:, : whole * BLOCK].view(num_rows, whole, BLOCK).amax(-1)
    if rest:
        last = logits[:, whole * BLOCK :].amax(-1, keepdim=True)
        maxima = torch.cat([maxima, last], dim=-1)
    return maxima


def ids_of(blocks: Tensor, num_ids: int) -> Tensor:
    """Return the ids in ``blocks`` [num_rows, n], [num_rows, n * BLOCK].

    A short last block repeats the last id.
    """
    inside = torch.arange(BLOCK, device=blocks.device)
    return (blocks[..., None] * BLOCK + inside).flatten(1).clamp_(max=num_ids - 1)


def argmax(logits: Tensor) -> Tensor:
    """Return the id of each row's highest logit, the lowest such id."""
    ids = ids_of(block_maxima(logits).argmax(-1, keepdim=True), logits.shape[-1])
    return ids.gather(1, logits.gather(1, ids).argmax(-1, keepdim=True)).squeeze(1)


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return each row's ``count`` highest logits and their ids, highest first.

    Of equal logits the lower id comes first, so that fewer are always the beginning of more.
    """
    num_ids = logits.shape[-1]
    if 2 * count * BLOCK >= num_ids:
        ids = _first(_order(logits), count)
    else:
        # A block with fewer than ``count`` blocks ahead of it holds all that can count.
        blocks = _first(_order(block_maxima(logits)), count).sort(-1).values
        candidates = ids_of(blocks, num_ids)
        order = _order(logits.gather(1, candidates))
        if num_ids % BLOCK:
            # In a short last block the last id's repetitions are not further candidates.
            repeated = candidates[:, 1:] == candidates[:, :-1]
            order[:, 1:].masked_fill_(repeated, torch.iinfo(torch.int64).min)
        ids = candidates.gather(1, _first(order, count))
    return logits.gather(1, ids), ids


def _order(values: Tensor) -> Tensor:
    """Return int64 keys in the order of ``values``, of equal ones the first highest."""
    bits = values.to(torch.float32).view(torch.int32)
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    index = torch.arange(values.shape[-1], device=values.device)
    return (ascending.to(torch.int64) << 32) | (0xFFFFFFFF - index)


def _first(order: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest keys, highest first."""
    return 0xFFFFFFFF - (order.topk(count, dim=-1).values & 0xFFFFFFFF)
