"""How a pass that only decodes begins and ends, without the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch

NUM_ENDS = 8
"""Ids that the device itself takes for the end of a text; the host knows of any number."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is running, by slot; the last slot is for rows that pad.

    Attributes:
        tokens: ids, int64, [num_slots + 1, max_length + 1].
        position: of the token that a slot computes next, int64, [num_slots + 1].
        ends: ids that end a text, -1 for none, int64, [NUM_ENDS, num_slots + 1].
        last: index of the last token there is room for, int64, [num_slots + 1].
        is_over: whether an end has come up, or the last token, int64, [num_slots + 1].
    """

    tokens: Tensor
    position: Tensor
    ends: Tensor
    last: Tensor
    is_over: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """What the rows of a pass work on; every tensor is int64.

    Attributes:
        asked: slots that the host has put there, [num_rows].
        slots: those, with the padding's in place of texts that are over, [num_rows].
        positions, tokens: of the token that each row computes, [num_rows].
        answers: what came of each pass since the counter was 0, [max_passes, num_rows]; of
            any beyond those nothing is kept.
        counter: passes begun, [1].
    """

    asked: Tensor
    slots: Tensor
    positions: Tensor
    tokens: Tensor
    answers: Tensor
    counter: Tensor

    @classmethod
    def make(cls, num_rows: int, max_passes: int, device: torch.device) -> Rows:
        """Return rows that are yet to be filled."""
        asked, slots, positions, tokens = torch.zeros(4, num_rows, dtype=torch.int64, device=device)
        answers = torch.zeros(max_passes, num_rows, dtype=torch.int64, device=device)
        counter = torch.zeros(1, dtype=torch.int64, device=device)
        return cls(asked, slots, positions, tokens, answers, counter)

    def first(self, num_rows: int) -> Rows:
        """Return the first rows, as views."""
        return Rows(
            asked=self.asked[:num_rows],
            slots=self.slots[:num_rows],
            positions=self.positions[:num_rows],
            tokens=self.tokens[:num_rows],
            answers=self.answers[:, :num_rows],
            counter=self.counter,
        )


def begin_pass(texts: Texts, rows: Rows) -> None:
    """Find each row's token, and count the pass."""
    num_rows = len(rows.asked)
    launch(
        _begin_pass,
        (1,),
        texts.tokens,
        texts.tokens.stride(0),
        texts.position,
        texts.is_over,
        rows.asked,
        rows.slots,
        rows.positions,
        rows.tokens,
        rows.counter,
        num_rows,
        len(texts.position) - 1,
        ROWS=triton.next_power_of_2(len(texts.position) - 1),
        **early(rows.asked),
    )


@triton.jit(do_not_specialize=["num_rows"])
def _begin_pass(
    texts, stride, position, is_over, asked, slots, positions, tokens, counter, num_rows, padding,
    ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.arange(0, ROWS)
    is_row = row < num_rows
    slot = tl.load(asked + row, mask=is_row, other=0)
    slot = tl.where(tl.load(is_over + slot, mask=is_row, other=0) == 0, slot, padding)
    # Rows that pad stay where they are: each pass may leave them a token further.
    at = tl.load(position + slot, mask=is_row & (slot != padding), other=0)
    tl.store(slots + row, slot, mask=is_row)
    tl.store(positions + row, at, mask=is_row)
    tl.store(tokens + row, tl.load(texts + slot * stride + at, mask=is_row, other=0), mask=is_row)
    tl.store(counter, tl.load(counter) + 1)


def end_pass(texts: Texts, rows: Rows, chosen: Tensor) -> None:
    """Append each row's token to its text, note whether it ends it, and keep it for the host.

    Args:
        texts: what is running.
        rows: as ``begin_pass`` has left them.
        chosen: the tokens, int64, [num_rows].
    """
    num_rows = len(rows.asked)
    launch(
        _end_pass,
        (1,),
        texts.tokens,
        texts.tokens.stride(0),
        texts.position,
        texts.ends,
        texts.last,
        texts.is_over,
        rows.slots,
        rows.positions,
        chosen,
        rows.answers,
        rows.answers.stride(0),
        rows.counter,
        len(rows.answers),
        num_rows,
        len(texts.position) - 1,
        ROWS=triton.next_power_of_2(len(texts.position) - 1),
        ENDS=NUM_ENDS,
        **early(rows.asked),
    )


@triton.jit(do_not_specialize=["num_rows", "answers_stride", "max_passes"])
def _end_pass(
    texts, stride, position, ends, last, is_over, slots, positions, chosen, answers, answers_stride,
    counter, max_passes, num_rows, padding,
    ROWS: tl.constexpr, ENDS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.arange(0, ROWS)
    is_row = row < num_rows
    slot = tl.load(slots + row, mask=is_row, other=0)
    after = tl.load(positions + row, mask=is_row, other=0) + 1
    token = tl.load(chosen + row, mask=is_row, other=0)
    index = tl.load(counter) - 1
    is_kept = is_row & (index < max_passes)
    tl.store(answers + index * answers_stride + row, token, mask=is_kept)
    is_text = is_row & (slot != padding)
    tl.store(texts + slot * stride + after, token, mask=is_text)
    tl.store(position + slot, after, mask=is_text)
    each = tl.arange(0, ENDS)
    at = each[None, :] * (padding + 1) + slot[:, None]
    end = tl.load(ends + at, mask=is_text[:, None], other=-1)
    is_end = tl.max((end == token[:, None]).to(tl.int64), 1) > 0
    is_last = after >= tl.load(last + slot, mask=is_text, other=0)
    tl.store(is_over + slot, (is_end | is_last).to(tl.int64), mask=is_text)
