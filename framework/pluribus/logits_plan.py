"""Where a step's logits are computed, what for, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from pluribus.generation import TokenLogprobs
from pluribus.interfaces import TokenLayout
from pluribus.sampling import Logprobs
from pluribus.step import StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """A row whose prompt tokens are scored.

    Attributes:
        index: which of the step's rows it is.
        num_tokens: how many tokens the step computes of it.
        num_scored: how many of them, from the first on, are followed by one of the prompt.
        top: how many of the likeliest ids to tell for each.
    """

    index: int
    num_tokens: int
    num_scored: int
    top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsPlan:
    """What a step computes logits for, known to the host before anything has run.

    Attributes:
        num_rows: in all.
        sampling: indices of the rows that sample.
        owners: their slots.
        longest: no row has more tokens when the step has run.
        tops: how many of the likeliest ids each of them tells; None tells nothing.
        scored: the rows whose prompt is scored.
    """

    num_rows: int
    sampling: tuple[int, ...]
    owners: tuple[int, ...]
    longest: int
    tops: tuple[int | None, ...]
    scored: tuple[ScoredRow, ...]

    def wanted(self, layout: TokenLayout) -> Tensor:
        """Return the tokens to compute logits at: where rows sample, then what is scored."""
        last = layout.last
        ends = last
        if len(self.sampling) < self.num_rows:
            ends = last[torch.tensor(self.sampling, dtype=torch.int64, device=last.device)]
        scored = [
            last[row.index] - row.num_tokens + 1 + torch.arange(row.num_scored, device=last.device)
            for row in self.scored
        ]
        return torch.cat([ends, *scored]) if scored else ends


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step, still on the device.

    Attributes:
        plan: what was computed.
        tokens: one for each row that samples, [num_sampling].
        logprobs: of those among them that tell any, or None.
        scores: of all prompt tokens that are scored, or None.
    """

    plan: LogitsPlan
    tokens: Tensor
    logprobs: Logprobs | None
    scores: Logprobs | None

    def to(self, device: torch.device, *, non_blocking: bool) -> Outcome:
        """Return the same on another device."""
        logprobs, scores = (
            part and part.to(device, non_blocking=non_blocking)
            for part in (self.logprobs, self.scores)
        )
        tokens = self.tokens.to(device, non_blocking=non_blocking)
        return Outcome(self.plan, tokens, logprobs, scores)

    def read(self) -> StepResult:
        """Wait for the device and return the result."""
        plan = self.plan
        logprobs: tuple[TokenLogprobs | None, ...] = ()
        if self.logprobs is not None:
            told = self.logprobs.read([top for top in plan.tops if top is not None])
            logprobs = tuple(None if top is None else next(told) for top in plan.tops)
        scores: tuple[tuple[TokenLogprobs, ...], ...] = tuple(() for _ in plan.scored)
        if self.scores is not None:
            told = self.scores.read([row.top for row in plan.scored for _ in range(row.num_scored)])
            scores = tuple(tuple(islice(told, row.num_scored)) for row in plan.scored)
        return StepResult(self.tokens[:, None].tolist(), logprobs, scores)
