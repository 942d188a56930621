"""What changes the logits before a token is chosen. Logits are float32 and change in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Penalties:
    """How much what has come before counts, float32, [num_rows]; see SamplingParams."""

    repetition: Tensor
    presence: Tensor
    frequency: Tensor


@dataclass(frozen=True, slots=True)
class History:
    """What has come before.

    Attributes:
        tokens: prompt and answer, and whatever behind them, int64, [num_rows, length].
        prompt_length: how many of them are the prompt, int64, [num_rows].
        position: how many are prompt and answer, at least 1, int64, [num_rows].
    """

    tokens: Tensor
    prompt_length: Tensor
    position: Tensor


def penalize(logits: Tensor, history: History, penalties: Penalties) -> None:
    """Make what has come before less likely; no count is kept, so none can go wrong.

    Tokens to leave out are replaced by the latest one, which is in any case to be changed, so
    that the same value is written wherever an id comes up more than once.
    """
    index = torch.arange(history.tokens.shape[1], device=logits.device)
    known = index < history.position[:, None]
    in_answer = known & (index >= history.prompt_length[:, None])
    latest = history.tokens.gather(1, history.position[:, None] - 1)

    said = torch.where(known, history.tokens, latest)
    values = logits.gather(1, said)
    factor = penalties.repetition[:, None]
    logits.scatter_(1, said, torch.where(values < 0, values * factor, values / factor))

    times = torch.where(in_answer, penalties.frequency[:, None], 0.0)
    logits.scatter_add_(1, said, -times)

    answered = torch.where(in_answer, history.tokens, latest)
    has_answer = history.position > history.prompt_length
    amount = torch.where(has_answer, penalties.presence, 0.0)
    logits.scatter_(1, answered, logits.gather(1, answered) - amount[:, None])


@dataclass(frozen=True, slots=True)
class Biases:
    """What to add to a few logits of each row; every tensor is [num_rows, n].

    Attributes:
        ids: int64.
        values: float32; 0 does nothing, -inf bans.
        until: the position from which a bias counts no more, int64.
    """

    ids: Tensor
    values: Tensor
    until: Tensor


def add_biases(logits: Tensor, position: Tensor, biases: Biases) -> None:
    """Add the biases that count at ``position``, that of the token to be chosen, [num_rows]."""
    values = torch.where(position[:, None] < biases.until, biases.values, 0.0)
    logits.scatter_add_(1, biases.ids, values)
