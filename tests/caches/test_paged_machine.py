"""The ledger of ``cache/kv=paged`` against a model of what every block holds."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pluribus import Generation, SamplingParams
from pluribus.testing.machine import run_machine
from pluribus_caches.kv.paged_ledger import PagedLedger


class PagedLedgerMachine(RuleBasedStateMachine):
    """Plays engine and store: knows what every block holds, and checks what others find there.

    Attributes:
        contents: for each block and place in it, the salt and the text up to the token there.
        texts: what each generation's text is, its unread tokens included.
    """

    num_blocks = 12
    block_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.ledger = PagedLedger(self.num_blocks, self.block_size, prefix_caching=True)
        self.contents: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}
        self.texts: dict[Generation, list[int]] = {}

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple),
        max_tokens=st.integers(1, 6),
        salt=st.sampled_from(["", "a"]),
    )
    def reserve(self, prompt: tuple[int, ...], max_tokens: int, salt: str) -> None:
        params = SamplingParams(max_tokens=max_tokens)
        member = Generation(id=0, prompt=prompt, params=params, salt=salt)
        held = {block for other in self.texts for block in self.ledger.placement(other)}
        num_needed = -(-member.max_length // self.block_size)
        if not self.ledger.try_reserve(member):
            assert num_needed > self.num_blocks - len(held), "there was room"
            return
        self.texts[member] = list(prompt)
        blocks = self.ledger.placement(member)
        assert len(blocks) == num_needed
        assert not held & set(blocks[member.num_cached // self.block_size :]), "somebody's block"
        for position in range(member.num_cached):
            assert self.contents[self.place(member, position)] == (salt, prompt[: position + 1])

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), most=st.integers(1, 5))
    def plan_step(self, data: st.DataObject, most: int) -> None:
        member = data.draw(st.sampled_from(list(self.texts)))
        text = self.texts[member]
        for _ in range(min(most, member.num_unscheduled)):
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
        member = data.draw(st.sampled_from(list(self.texts)))
        del self.texts[member]
        self.ledger.release(member)

    @invariant()
    def it_adds_up(self) -> None:
        self.ledger.check_integrity()
        held = {block for member in self.texts for block in self.ledger.placement(member)}
        assert self.ledger.num_used_tokens == len(held) * self.block_size

    def place(self, member: Generation, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.block_size)
        return self.ledger.placement(member)[index], offset


def test_what_is_found_is_what_was_asked_for_whatever_happens() -> None:
    run_machine(PagedLedgerMachine, settings(deadline=None, max_examples=200))
