"""Choosing each row's token from its logits.

Sampling is an exponential race: of independent standard exponentials ``E_i``, ``p_i / E_i`` is
largest at ``i`` with probability ``p_i / sum(p)`` (the Gumbel-max trick without logarithms).
Over a whole vocabulary it is run twice: among blocks of ids, by the blocks' probabilities,
then among the ids of the block that won. That is exact, since ``P(id) = P(block) P(id | block)``,
and needs noise for hundreds of candidates instead of tens of thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.sampling.blocks import BLOCK, argmax, top
from pluribus.sampling.noise import exponential

PIECE = 2**19
"""Logits that a CPU goes through at a time: 2 MiB, so that its caches hold what it does to them."""


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How to choose each row's token; every tensor is [num_rows].

    Attributes:
        temperature: float32, above 0.
        top_k: int64, at least 1; matters to ``ranked`` alone.
        top_p, min_p: float32.
        seed: int64.
        position: of the token to be chosen, int64.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    position: Tensor

    def select(self, rows: Tensor | slice) -> SamplingRows:
        """Return some of the rows."""
        return SamplingRows(
            temperature=self.temperature[rows],
            top_k=self.top_k[rows],
            top_p=self.top_p[rows],
            min_p=self.min_p[rows],
            seed=self.seed[rows],
            position=self.position[rows],
        )


def greedy(logits: Tensor) -> Tensor:
    """Return each row's likeliest id."""
    return argmax(logits)


def free(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Return an id of each row by temperature alone: ``top_p`` and ``min_p`` play no part."""
    return _in_pieces(_free, logits, rows)


def cut(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Return an id of each row by temperature, ``top_p`` and ``min_p``.

    An id is drawn from all, and kept if those likelier than it sum to less than ``top_p``.
    If not, no id as unlikely can be kept either: the next draw is from the likelier ones. The
    ids to keep are always among those drawn from, in proportion, so the answer is exact, and
    no row is sorted. A row takes ``1 / top_p`` draws or fewer on average.
    """
    return _in_pieces(_cut, logits, rows)


def ranked(logits: Tensor, rows: SamplingRows, widest: int) -> Tensor:
    """Return an id of each row by temperature, ``top_k``, ``top_p`` and ``min_p``.

    ``widest`` is the largest ``top_k`` among the rows, or more, and at most the number of ids.
    """
    values, ids = top(logits.float(), widest)
    weights = ((values - values[:, :1]) / rows.temperature[:, None]).exp()
    rank = torch.arange(widest, device=logits.device)
    weights = torch.where(rank < rows.top_k[:, None], weights, 0.0)
    upto = weights.cumsum(-1)  # in this order, so that the width changes no sum
    likelier = upto - weights
    dropped = (likelier >= rows.top_p[:, None] * upto[:, -1:]) & (rows.top_p < 1)[:, None]
    dropped |= weights < rows.min_p[:, None]
    weights = weights.masked_fill(dropped, 0.0)
    race = weights / exponential(rows.seed, rows.position, 0, ids)
    return ids.gather(1, race.argmax(-1, keepdim=True)).squeeze(1)


def _in_pieces(
    draw: Callable[[Tensor, SamplingRows], Tensor], logits: Tensor, rows: SamplingRows
) -> Tensor:
    size = max(1, PIECE // logits.shape[1])
    if len(logits) <= size or logits.device.type != "cpu":
        return draw(logits, rows)
    pieces = [slice(start, start + size) for start in range(0, len(logits), size)]
    return torch.cat([draw(logits[piece], rows.select(piece)) for piece in pieces])


def _free(logits: Tensor, rows: SamplingRows) -> Tensor:
    probabilities = _probabilities(logits, rows.temperature)
    return _Draw.make(probabilities, probabilities.sum(-1), rows, 0).ids


def _cut(logits: Tensor, rows: SamplingRows) -> Tensor:
    probabilities = _probabilities(logits, rows.temperature)
    floor = _below(probabilities.amax((-2, -1)) * rows.min_p)
    probabilities = _above(floor[:, None, None], probabilities)
    sums = probabilities.sum(-1)
    # What is likelier may round to a sum of 1 without there being anything to leave out.
    limit = torch.where(rows.top_p < 1, rows.top_p, torch.inf)
    ids = torch.empty_like(rows.seed)
    left = torch.arange(len(ids), device=ids.device)
    attempt = 0
    while True:
        draw = _Draw.make(probabilities, sums, rows, attempt)
        ids[left] = draw.ids
        likelier = draw.likelier(probabilities)
        sums = likelier.sum(-1)
        again = (sums.sum(-1) >= limit).nonzero().squeeze(1)
        if not len(again):
            return ids
        left, limit, rows = left[again], limit[again], rows.select(again)
        probabilities, sums = likelier[again], sums[again]
        attempt += 1


def _probabilities(logits: Tensor, temperature: Tensor) -> Tensor:
    """Return each id's probability by block, [num_rows, num_blocks, BLOCK]."""
    num_rows, num_ids = logits.shape
    num_blocks = -(-num_ids // BLOCK)
    scaled = torch.empty(num_rows, num_blocks * BLOCK, device=logits.device)
    scaled[:, num_ids:] = -torch.inf
    torch.div(logits, temperature[:, None], out=scaled[:, :num_ids])
    return scaled.softmax(-1).view(num_rows, num_blocks, BLOCK)


@dataclass(frozen=True, slots=True)
class _Draw:
    """An id of each row: in which block, where in it, and how likely; each [num_rows, 1]."""

    block: Tensor
    inside: Tensor
    probability: Tensor

    @classmethod
    def make(cls, probabilities: Tensor, sums: Tensor, rows: SamplingRows, attempt: int) -> _Draw:
        """Run the race among blocks, then the one inside the block."""
        blocks = torch.arange(sums.shape[-1], device=sums.device)
        noise = exponential(rows.seed, rows.position, 2 * attempt, blocks)
        block = (sums / noise).argmax(-1, keepdim=True)
        candidates = _block(probabilities, block)
        insides = torch.arange(BLOCK, device=sums.device)
        noise = exponential(rows.seed, rows.position, 2 * attempt + 1, insides)
        inside = (candidates / noise).argmax(-1, keepdim=True)
        return cls(block, inside, candidates.gather(1, inside))

    @property
    def ids(self) -> Tensor:
        """[num_rows]."""
        return (self.block * BLOCK + self.inside).squeeze(1)

    def likelier(self, probabilities: Tensor) -> Tensor:
        """Return ``probabilities`` where they are higher than this one, else 0.

        Of equal ones the lower id counts as the likelier.
        """
        device = probabilities.device
        before = torch.arange(probabilities.shape[1], device=device) < self.block
        bound = torch.where(before, _below(self.probability), self.probability)
        likelier = _above(bound[..., None], probabilities)
        own = _block(probabilities, self.block)
        before = torch.arange(BLOCK, device=device) < self.inside
        kept = (own > self.probability) | (before & (own == self.probability))
        index = self.block[..., None].expand(-1, 1, BLOCK)
        return likelier.scatter_(1, index, torch.where(kept, own, 0.0)[:, None])


def _above(bound: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` where they are above ``bound``, else 0."""
    # On CPUs a comparison into the numbers' own type is several times faster than into bool.
    return torch.gt(values, bound, out=torch.empty_like(values)).mul_(values)


def _below(x: Tensor) -> Tensor:
    """Return the next number below, so that what is equal to ``x`` is above it."""
    return x.nextafter(x.new_tensor(-1.0))


def _block(probabilities: Tensor, block: Tensor) -> Tensor:
    """Return one block of each row, [num_rows, BLOCK]."""
    return probabilities.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1)
