"""Where a step's logits are computed, what for, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from pluribus.generation import TokenLogprobs
from pluribus.interfaces import TokenLayout
from pluribus.kernels.upload import upload
from pluribus.sampling import Logprobs
from pluribus.sampling.logprobs import Receive
from pluribus.slots import SlotState
from pluribus.step import Row, StepResult


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

    @classmethod
    def of(cls, rows: Sequence[Row], state: SlotState) -> LogitsPlan:
        """Return what these rows take, their slots being in this state."""
        sampling = tuple(index for index, row in enumerate(rows) if row.samples)
        owners = tuple(rows[index].slot for index in sampling)
        scored = tuple(
            ScoredRow(
                index=index,
                num_tokens=row.num_tokens,
                num_scored=state.num_prompt_successors(row),
                top=state.params[row.slot].prompt_logprobs or 0,
            )
            for index, row in enumerate(rows)
            if row.scores
        )
        return cls(
            num_rows=len(rows),
            sampling=sampling,
            owners=owners,
            longest=max(row.start + row.num_tokens for row in rows),
            tops=tuple(state.params[slot].logprobs for slot in owners),
            scored=scored,
        )

    @property
    def told(self) -> dict[int, int]:
        """The rows that tell, counted among those that sample, and how many ids each."""
        return {row: top for row, top in enumerate(self.tops) if top is not None}

    @property
    def num_scored(self) -> int:
        """Prompt tokens that are scored, of all rows."""
        return sum(row.num_scored for row in self.scored)

    @property
    def top_scored(self) -> int:
        """How many of the likeliest ids any of them asks for."""
        return max(row.top for row in self.scored)

    def wanted(self, layout: TokenLayout) -> Tensor:
        """Return the tokens to compute logits at: where rows sample, then what is scored."""
        ends = last = layout.last
        if len(self.sampling) < self.num_rows:
            [sampling] = upload(last.device, self.sampling)
            ends = last[sampling]
        scored = [
            last[row.index] - row.num_tokens + 1 + torch.arange(row.num_scored, device=last.device)
            for row in self.scored
        ]
        return torch.cat([ends, *scored]) if scored else ends


@dataclass(frozen=True)
class Task:
    """Rows as a rank runs them.

    Attributes:
        plan: what logits are computed for.
        layout: where the tokens sit.
        positions: theirs; 0 for padding, int64, [num_tokens].
    """

    plan: LogitsPlan
    layout: TokenLayout
    positions: Tensor

    @cached_property
    def wanted(self) -> Tensor:
        """The tokens to compute logits at: where rows sample, then what is scored, int64.

        Stages that choose no tokens and hear of none never ask.
        """
        return self.plan.wanted(self.layout)


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

    @classmethod
    def receive(cls, plan: LogitsPlan, receive: Receive) -> Outcome:
        """Return an outcome whose ``tensors`` come from elsewhere, one after another."""
        tokens = receive([len(plan.sampling)], torch.int64)
        chosen = scores = None
        if told := plan.told:
            chosen = Logprobs.receive(len(told), max(told.values()), receive)
        if plan.num_scored:
            scores = Logprobs.receive(plan.num_scored, plan.top_scored, receive)
        return cls(plan, tokens, chosen, scores)

    def tensors(self) -> list[Tensor]:
        """Return all that the plan does not say."""
        both = (self.logprobs, self.scores)
        return [self.tokens, *(x for each in both if each is not None for x in each.tensors())]

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
        return StepResult([(token,) for token in self.tokens.tolist()], logprobs, scores)
