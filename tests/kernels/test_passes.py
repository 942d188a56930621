"""How a pass begins and ends on the device."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from kernels.device import DEVICE
from pluribus.kernels.passes import NUM_ENDS, Rows, Texts, begin_pass, end_pass

NUM_SLOTS = 4
PADDING = NUM_SLOTS
WIDTH = 10


def texts() -> Texts:
    """Return texts of which slot s is about to compute its token s + 1, which is 10 s + s + 1."""
    slot = torch.arange(NUM_SLOTS + 1, device=DEVICE)
    position = slot + 1
    position[PADDING] = 0
    return Texts(
        tokens=10 * slot[:, None] + torch.arange(WIDTH, device=DEVICE),
        position=position,
        ends=torch.full((NUM_ENDS, NUM_SLOTS + 1), -1, device=DEVICE),
        last=torch.full((NUM_SLOTS + 1,), 8, device=DEVICE),
        is_over=torch.zeros(NUM_SLOTS + 1, dtype=torch.int64, device=DEVICE),
    )


def rows(*asked: int, max_passes: int = 3) -> Rows:
    made = Rows.make(8, max_passes, DEVICE)
    made.asked.fill_(PADDING)
    made.asked[: len(asked)] = torch.tensor(asked)
    return made.first(len(asked))


def copy(of: Texts) -> Texts:
    return Texts(*(getattr(of, each.name).clone() for each in fields(of)))


def chosen(*tokens: int) -> Tensor:
    return torch.tensor(tokens, device=DEVICE)


def test_a_pass_begins_with_the_token_each_text_is_at() -> None:
    working = rows(2, 0, 3)
    begin_pass(texts(), working)
    assert working.slots.tolist() == [2, 0, 3]
    assert working.positions.tolist() == [3, 1, 4]
    assert working.tokens.tolist() == [23, 1, 34]
    assert working.counter.tolist() == [1]


def test_rows_of_texts_that_are_over_pad() -> None:
    running, working = texts(), rows(2, PADDING, 3)
    running.is_over[2] = 1
    running.position[PADDING] = 7  # as choosing tokens outside of a pass may leave it
    begin_pass(running, working)
    assert working.asked.tolist() == [2, PADDING, 3]
    assert working.slots.tolist() == [PADDING, PADDING, 3]
    assert working.positions.tolist() == [0, 0, 4]


def test_a_pass_ends_with_each_token_in_its_text() -> None:
    running, working = texts(), rows(2, 0, 3)
    before = copy(running)
    begin_pass(running, working)
    end_pass(running, working, chosen(7, 8, 9))
    for slot, token in ((2, 7), (0, 8), (3, 9)):
        before.tokens[slot, before.position[slot] + 1] = token
        before.position[slot] += 1
    for each in fields(running):
        assert getattr(running, each.name).equal(getattr(before, each.name)), each.name
    assert working.answers.tolist() == [[7, 8, 9], [0, 0, 0], [0, 0, 0]]


def test_padding_changes_nothing() -> None:
    running, working = texts(), rows(PADDING, 1, PADDING)
    running.is_over[1] = 1
    before = copy(running)
    begin_pass(running, working)
    end_pass(running, working, chosen(7, 8, 9))
    for each in fields(running):
        assert getattr(running, each.name).equal(getattr(before, each.name)), each.name


def test_a_text_is_over_with_an_end_or_its_last_token() -> None:
    running, working = texts(), rows(0, 1, 2, 3)
    running.ends[0, 0] = 50
    running.ends[NUM_ENDS - 1, 1] = 51
    running.ends[3, 0] = 51
    running.last[2] = 4
    running.last[3] = 6
    begin_pass(running, working)
    end_pass(running, working, chosen(50, 50, 7, 7))
    assert running.is_over.tolist() == [1, 0, 1, 0, 0]
    begin_pass(running, working)
    assert working.slots.tolist() == [PADDING, 1, PADDING, 3]
    end_pass(running, working, chosen(50, 51, 7, 7))
    assert running.is_over.tolist() == [1, 1, 1, 1, 0]


def test_passes_are_counted_and_answer_each_for_itself() -> None:
    running, working = texts(), rows(3, 1)
    for tokens in ((5, 6), (7, 8), (9, 4)):
        begin_pass(running, working)
        end_pass(running, working, chosen(*tokens))
    assert working.answers.tolist() == [[5, 6], [7, 8], [9, 4]]
    assert running.tokens[3, 4:8].tolist() == [34, 5, 7, 9]
    working.counter.zero_()
    begin_pass(running, working)
    end_pass(running, working, chosen(1, 2))
    assert working.answers.tolist() == [[1, 2], [7, 8], [9, 4]]


def test_fewer_rows_are_views_of_the_first() -> None:
    many = Rows.make(6, 2, DEVICE)
    few = many.first(2)
    begin_pass(texts(), few)
    end_pass(texts(), few, chosen(3, 4))
    assert many.answers.tolist() == [[3, 4, 0, 0, 0, 0], [0] * 6]
    assert many.positions.tolist() == [1, 1, 0, 0, 0, 0]
