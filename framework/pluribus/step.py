"""What the engine tells every rank about one step. Plain data: it may cross a socket.

Ranks keep the state of running generations - tokens, positions, sampling parameters - on
their device, by slot. The engine sends changes only, so it never needs a token's value to
plan the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pluribus.generation import SamplingParams, TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A generation enters ``slot``.

    Attributes:
        slot: row of the device's state.
        prompt: its token ids.
        max_length: tokens of prompt and answer at most.
        params: how to choose its tokens; its seed is set.
        ends: ids that end it; none may come up before ``params.min_tokens`` have been generated.
        placement: what the KV ledger promised it, for the KV store.
    """

    slot: int
    prompt: tuple[int, ...]
    max_length: int
    params: SamplingParams
    ends: tuple[int, ...]
    placement: tuple[int, ...]


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Compute ``num_tokens`` tokens of ``slot``, from position ``start``.

    ``samples`` says that they reach the end of what is known, so that a token follows;
    ``scores`` that how likely each prompt token among them makes its successor is wanted.

    A struct that the garbage collector need not know of: each step makes one for each generation.
    """

    slot: int
    start: int
    num_tokens: int
    samples: bool
    scores: bool = False

    def after(self, passes: int) -> Row:
        """Return what the row computes after so many passes."""
        return Row(self.slot, self.start + passes, self.num_tokens, self.samples, self.scores)


@dataclass(frozen=True, slots=True)
class Step:
    """One step, the same on every rank: first evict, then admit, then run the rows.

    ``number`` counts from 0; changes and rows apply at exactly this step. The engine has the
    results of the first ``num_read`` steps: what ranks sent each other for them can be taken in
    without waiting for anybody, and need not be kept.

    Rows of one token that sample may run several times over: in each of the ``passes`` but the
    first, every row computes the token that it sampled in the one before.
    """

    number: int
    evicted: tuple[int, ...]
    admitted: tuple[Admission, ...]
    rows: tuple[Row, ...]
    passes: int = 1
    num_read: int = 0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step.

    Attributes:
        tokens: for each row that samples, in row order, one token id for each pass.
        logprobs: of each of them where its slot asked for logprobs, else None; or empty where
            no slot did; there is but one pass where any does.
        scores: for each row that scores, in row order, the logprobs of the prompt tokens at
            positions ``start + 1`` to ``start + num_tokens``, as far as the prompt goes.
    """

    tokens: Sequence[tuple[int, ...]]
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    scores: tuple[tuple[TokenLogprobs, ...], ...] = ()
