"""The method of the sampling kernel in plain torch, slow and plainly right."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.chances import Options
from pluribus.sampling.blocks import BLOCK
from pluribus.sampling.noise import exponential


def choose(logits: Tensor, options: Options, seed: Tensor, position: Tensor) -> Tensor:
    """Return an id of each row: raced for among blocks, then inside one, until none refuses it.

    ``top_k`` refuses by the number of likelier ids; beside ``top_p``, it admits them beforehand.
    """
    num_rows, num_ids = logits.shape
    ids = torch.arange(num_ids)
    logits = logits.float()
    weights = ((logits - logits.amax(-1, keepdim=True)) / options.temperature).exp()
    top_k = options.top_k or num_ids
    if options.top_p < 1:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        weights = weights.scatter(1, order[:, top_k:], 0.0)
        top_k = num_ids
    limit = options.top_p * weights.sum(-1) if options.top_p < 1 else torch.full((num_rows,), 1e30)
    racing = (weights >= options.min_p) & (weights > 0)
    left, tokens = torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.int64)
    attempt = 0
    while len(left):
        raced = torch.where(racing[left], weights[left], 0.0)
        winners = _race(raced, seed[left], position[left], attempt)
        tokens[left] = winners
        own = weights[left].gather(1, winners[:, None])
        likelier = (weights[left] > own) | ((weights[left] == own) & (ids < winners[:, None]))
        racing[left] &= likelier
        rest = torch.where(racing[left], weights[left], 0.0).sum(-1)
        is_refused = (rest >= limit[left]) | (racing[left].sum(-1) >= top_k)
        left = left[is_refused & (rest > 0)]
        attempt += 1
    return tokens


def _race(weights: Tensor, seed: Tensor, position: Tensor, attempt: int) -> Tensor:
    num_blocks = -(-weights.shape[1] // BLOCK)
    blocks = torch.nn.functional.pad(weights, (0, num_blocks * BLOCK - weights.shape[1]))
    blocks = blocks.view(len(weights), num_blocks, BLOCK)
    noise = exponential(seed, position, 2 * attempt, torch.arange(num_blocks))
    block = (blocks.sum(-1) / noise).argmax(-1)
    inside = blocks[torch.arange(len(weights)), block]
    noise = exponential(seed, position, 2 * attempt + 1, torch.arange(BLOCK))
    return block * BLOCK + (inside / noise).argmax(-1)
