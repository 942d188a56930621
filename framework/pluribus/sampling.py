"""From logits to token ids.

Sampling is Gumbel-max in the form of an exponential race: token ``i`` wins with probability
``p_i`` when ``logit_i - log(E_i)`` is largest, ``E_i`` being independent standard exponentials
(Gumbel, 1954; Maddison et al., "A* sampling", 2014). Each ``E_i`` is a hash of (seed,
position, token id), so a seeded answer depends on nothing that shares its batch, and a rank or
a filter that looks at some of the tokens only sees the same noise for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 1024
"""How many of the likeliest tokens top-p looks at before it sorts the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How to choose each row's token; every tensor is [num_rows].

    Attributes:
        temperature: float32; 0 is greedy.
        top_k: int64; 0 is all tokens.
        top_p: float32; 1 is all tokens.
        seed: int64.
        position: of the token to be chosen, int64.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor
    position: Tensor

    def select(self, rows: Tensor) -> SamplingRows:
        """Return the rows at these indices."""
        return SamplingRows(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.seed[rows],
            self.position[rows],
        )


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Choose a token for each row.

    Args:
        logits: [num_rows, num_token_ids], any floating dtype.
        rows: how to choose.

    Returns:
        Token ids, int64, [num_rows].
    """
    tokens = logits.argmax(dim=-1)
    sampled = rows.temperature > 0
    filtered = sampled & ((rows.top_k > 0) | (rows.top_p < 1))
    for mask, choose in ((sampled & ~filtered, _sample_all), (filtered, _sample_filtered)):
        chosen = mask.nonzero().squeeze(-1)
        if chosen.numel():
            part = rows.select(chosen)
            scaled = logits[chosen].float() / part.temperature[:, None]
            tokens[chosen] = choose(scaled, part)
    return tokens


def _sample_all(scaled: Tensor, rows: SamplingRows) -> Tensor:
    ids = torch.arange(scaled.shape[-1], dtype=torch.int32, device=scaled.device)
    return (scaled - _log_exponential(rows, ids.expand_as(scaled))).argmax(dim=-1)


def _sample_filtered(scaled: Tensor, rows: SamplingRows) -> Tensor:
    kept, ids = _filter(scaled, rows)
    race = kept - _log_exponential(rows, ids.to(torch.int32))
    return ids.gather(-1, race.argmax(dim=-1, keepdim=True)).squeeze(-1)


def _filter(scaled: Tensor, rows: SamplingRows) -> tuple[Tensor, Tensor]:
    """Return logits, highest first and -inf where top-k or top-p drops them, and their ids."""
    vocab = scaled.shape[-1]
    no_k = rows.top_k == 0
    width = min(vocab, max(CANDIDATES if bool(no_k.any()) else 1, int(rows.top_k.max())))
    while True:
        values, ids = scaled.topk(width, dim=-1)
        rank = torch.arange(width, device=scaled.device)
        values = values.masked_fill(~no_k[:, None] & (rank >= rows.top_k[:, None]), -torch.inf)
        # Top-p counts probabilities among what top-k has left.
        total = torch.where(no_k, scaled.logsumexp(-1), values.logsumexp(-1))
        probabilities = (values - total[:, None]).exp()
        before = probabilities.cumsum(-1) - probabilities
        if width == vocab or not bool((no_k & (probabilities.sum(-1) < rows.top_p)).any()):
            break
        width = vocab
    dropped = (before >= rows.top_p[:, None]) & (rows.top_p[:, None] < 1)
    dropped[:, 0] = False
    return values.masked_fill(dropped, -torch.inf), ids


def _log_exponential(rows: SamplingRows, ids: Tensor) -> Tensor:
    """Return log(E) for standard exponentials E keyed by seed, position and id."""
    key = _mix64(rows.seed ^ _mix64(rows.position))
    low, high = key.to(torch.int32)[:, None], (key >> 32).to(torch.int32)[:, None]
    bits = _mix32(_mix32(ids * -1640531535 + low) ^ high)
    # In (0, 1); small values keep full precision, and they are the ones that win the race.
    uniform = ((bits.to(torch.float32) + 2.0**31).clamp_(max=2.0**32 - 512) + 0.5) * 2.0**-32
    return torch.log(-torch.log1p(-uniform))


def _mix64(x: Tensor) -> Tensor:
    """Finalise 64 bits: splitmix64 (Steele, Lea and Flood, 2014), in wrapping int64."""
    x = x + -7046029254386353131
    x = (x ^ _shift(x, 30, 64)) * -4658895280553007687
    x = (x ^ _shift(x, 27, 64)) * -7723592293110705685
    return x ^ _shift(x, 31, 64)


def _mix32(x: Tensor) -> Tensor:
    """Finalise 32 bits: murmur3's fmix32 (Appleby, 2011), in wrapping int32."""
    x = (x ^ _shift(x, 16, 32)) * -2048144789
    x = (x ^ _shift(x, 13, 32)) * -1028477387
    return x ^ _shift(x, 16, 32)


def _shift(x: Tensor, by: int, width: int) -> Tensor:
    """Shift right, filling with zeros: torch has no unsigned arithmetic."""
    return (x >> by) & ((1 << (width - by)) - 1)
