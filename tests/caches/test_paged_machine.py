"""The ledger of ``cache/kv=paged`` against a model of what every block holds."""

from __future__ import annotations

import sys
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pluribus import Generation, SamplingParams
from pluribus.testing.machine import run_machine
from pluribus_caches.kv import free_blocks
from pluribus_caches.kv.paged_ledger import PagedLedger


class PagedLedgerMachine(RuleBasedStateMachine):
    """Plays engine and store: knows what every block holds, and checks what others find there.

    Whoever was promised room goes on within its limit, at any pace.

    Attributes:
        contents: for each block and place in it, the salt and the text up to the token there.
        texts: what each generation's text is, its unread tokens included.
        reserved: those who were not promised room but given it.
    """

    num_blocks = 16
    block_size = 2

    def __init__(self, *, prefix_caching: bool) -> None:
        super().__init__()
        self.ledger = PagedLedger(self.num_blocks, self.block_size, prefix_caching)
        self.contents: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}
        self.texts: dict[Generation, list[int]] = {}
        self.reserved: set[Generation] = set()

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple),
        max_tokens=st.sampled_from([1, 2, 3, 5, 8, 12, 20]),
        salt=st.sampled_from(["", "a"]),
        promise=st.sampled_from([True, True, True, False]),
    )
    def reserve(
        self, prompt: tuple[int, ...], max_tokens: int, salt: str, *, promise: bool
    ) -> None:
        params = SamplingParams(max_tokens=max_tokens)
        member = Generation(id=0, prompt=prompt, params=params, salt=salt)
        held = {block for other in self.texts for block in self.ledger.placement(other)}
        num_needed = -(-member.max_length // self.block_size)
        if not (self.ledger.try_promise if promise else self.ledger.try_reserve)(member):
            assert num_needed > self.num_blocks - len(held), "there was room"
            return
        self.texts[member] = list(prompt)
        if not promise:
            self.reserved.add(member)
        blocks = self.ledger.placement(member)
        assert len(blocks) == num_needed
        limit = self.limit(member)
        assert limit > len(prompt), "not even the first token has room"
        own = blocks[member.num_cached // self.block_size : -(-limit // self.block_size)]
        if not promise:
            assert not held & set(own), "somebody's block"
        for position in range(member.num_cached):
            assert self.contents[self.place(member, position)] == (salt, prompt[: position + 1])

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), most=st.integers(1, 5))
    def plan_step(self, data: st.DataObject, most: int) -> None:
        member = data.draw(st.sampled_from(list(self.texts)))
        text = self.texts[member]
        for _ in range(most):
            if not self.can_go_on(member):
                break
            position = member.num_scheduled
            member.num_scheduled += 1
            self.contents[self.place(member, position)] = member.salt, tuple(text[: position + 1])
            if member.num_scheduled == len(text):
                text.append(hash(tuple(text)) & 1)
        self.ledger.advance(member)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), most=st.integers(1, 3))
    def read_tokens(self, data: st.DataObject, most: int) -> None:
        member = data.draw(st.sampled_from(list(self.texts)))
        first = len(member.prompt) + len(member.tokens)
        member.tokens += self.texts[member][first : first + most]

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(list(self.texts))))

    @invariant()
    def it_adds_up(self) -> None:
        self.ledger.check_integrity()
        held = {block for member in self.texts for block in self.ledger.placement(member)}
        assert self.ledger.num_used_tokens == len(held) * self.block_size
        assert self.ledger.limits.keys() <= self.texts.keys() - self.reserved

    @invariant()
    def nobody_loses_anything(self) -> None:
        for member, text in self.texts.items():
            for position in range(member.num_scheduled):
                content = member.salt, tuple(text[: position + 1])
                assert self.contents[self.place(member, position)] == content, "written over"

    def teardown(self) -> None:
        """Let everybody who can go on do so to the end, one by one: all of them can in the end."""
        while self.texts and sys.exception() is None:  # else what failed says more
            ended = []
            for member in self.texts:
                while self.can_go_on(member):
                    member.num_scheduled += 1
                if not member.num_unscheduled:
                    ended.append(member)
            assert ended, "they wait for each other"
            self.end(ended[-1])
            self.ledger.check_integrity()

    def end(self, member: Generation) -> None:
        del self.texts[member]
        self.reserved.discard(member)
        self.ledger.release(member)

    def limit(self, member: Generation) -> int:
        return self.ledger.limits.get(member, member.max_length)

    def can_go_on(self, member: Generation) -> bool:
        return bool(member.num_unscheduled) and member.num_scheduled < self.limit(member)

    def place(self, member: Generation, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.block_size)
        return self.ledger.placement(member)[index], offset


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["prefixes", "no-prefixes"])
@pytest.mark.parametrize("segment", [5, free_blocks.SEGMENT])
def test_what_is_found_is_what_was_asked_for_whatever_happens(
    segment: int, prefix_caching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_blocks, "SEGMENT", segment)
    run_machine(
        partial(PagedLedgerMachine, prefix_caching=prefix_caching),
        settings(deadline=None, max_examples=200, stateful_step_count=60),
    )
