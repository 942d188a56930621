"""A random engine for a KV cache's store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from pluribus.generation import Generation, SamplingParams
from pluribus.interfaces import Capability, TokenLayout
from pluribus.step import Admission, Row
from pluribus.testing.reference import ReferenceKVStore

if TYPE_CHECKING:
    from pluribus.testing.kv_cache import KVCacheContract

# Few different tokens, so that prompts often begin alike, or as an earlier answer went on.
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple)
salts = st.sampled_from(["", "salt"])

Token = tuple[int, int]
"""A slot and a position in its text."""


class StoreMachine(RuleBasedStateMachine):
    """A random engine that sends every step to a store and to the reference store.

    Generations are admitted as far as the ledger allows, run, and end when it pleases
    hypothesis: early, or well after their last token was scheduled, with any number of their
    tokens not read yet.

    Attributes:
        texts: by slot, every token that is computed or will be next, read or not.
    """

    def __init__(self, contract: KVCacheContract) -> None:
        super().__init__()
        cache, shape = contract.make(), contract.shape
        self.provides = cache.provides
        self.contract = contract
        self.ledger = cache.ledger(shape)
        self.store = cache.store(shape, contract.device, contract.dtype)
        self.reference = ReferenceKVStore(contract.device)
        self.running: dict[int, Generation] = {}
        self.texts: dict[int, list[int]] = {}
        self.admitted: list[Admission] = []
        self.evicted: list[int] = []
        self.num_in_reference: dict[int, int] = {}
        self.num_made = 0

    def has_free_slot(self) -> bool:
        return len(self.running) < self.contract.shape.num_slots

    def may_admit(self) -> bool:
        return Capability.JOIN in self.provides or not self.started()

    def started(self) -> list[int]:
        waiting = {admission.slot for admission in self.admitted}
        return [slot for slot in self.running if slot not in waiting]

    @precondition(lambda self: self.has_free_slot() and self.may_admit())
    @rule(prompt=prompts, max_tokens=st.integers(1, 12), salt=salts, promise=st.booleans())
    def admit(self, prompt: tuple[int, ...], max_tokens: int, salt: str, *, promise: bool) -> None:
        self.num_made += 1
        room = self.contract.shape.max_length - len(prompt)
        params = SamplingParams(max_tokens=min(max_tokens, room))
        generation = Generation(id=self.num_made, prompt=prompt, params=params, salt=salt)
        if not (self.ledger.try_promise if promise else self.ledger.try_reserve)(generation):
            return
        slot = min(set(range(self.contract.shape.num_slots)) - self.running.keys())
        self.running[slot] = generation
        self.texts[slot] = list(prompt)
        self.admitted.append(
            Admission(
                slot=slot,
                prompt=prompt,
                max_length=generation.max_length,
                params=params,
                ends=(),
                placement=self.ledger.placement(generation),
            )
        )

    @precondition(lambda self: self.started())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.started()))
        self.ledger.release(self.running.pop(slot))
        self.evicted.append(slot)

    @precondition(lambda self: any(g.num_unscheduled for g in self.running.values()))
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        rows = [
            Row(slot, start, num_tokens, samples=start + num_tokens >= len(generation.prompt))
            for slot, generation in self.running.items()
            if (num_tokens := self._num_tokens(generation, data))
            for start in [generation.num_scheduled]
        ]
        if not rows:
            return
        self._apply_changes()
        self._run(rows)
        for row in rows:
            generation = self.running[row.slot]
            generation.num_scheduled += row.num_tokens
            self.ledger.advance(generation)
            if row.samples:
                self.texts[row.slot].append(hash(tuple(self.texts[row.slot])) & 1)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def read_tokens(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(list(self.running)))
        generation = self.running[slot]
        generation.tokens[:] = self.texts[slot][len(generation.prompt) :]

    @invariant()
    def ledger_adds_up(self) -> None:
        self.ledger.check_integrity()

    def _num_tokens(self, generation: Generation, data: st.DataObject) -> int:
        """Return how many tokens to compute: as many as possible, less if the cache allows."""
        limit = self.ledger.limits.get(generation, generation.max_length)
        most = min(generation.num_unscheduled, limit - generation.num_scheduled)
        if Capability.CHUNK in self.provides and most > 1:
            return data.draw(st.integers(1, most))
        may_pause = Capability.JOIN in self.provides and generation.num_scheduled
        return data.draw(st.sampled_from([most, 0])) if may_pause else most

    def _apply_changes(self) -> None:
        for slot in self.evicted:
            self.store.evict(slot)
            self.reference.evict(slot)
            del self.num_in_reference[slot]
        for admission in self.admitted:
            self.store.admit(admission)
            self.reference.admit(admission)
            self.num_in_reference[admission.slot] = 0
        self.evicted, self.admitted = [], []

    @torch.inference_mode()
    def _run(self, rows: list[Row]) -> None:
        layout = self.store.begin(rows)
        tokens = self._check_layout(layout, rows)
        wanted = [token for token in tokens if token[1] >= 0]
        reference_rows = [self._reference_row(row) for row in rows]
        reference = _tokens(self.reference.begin(reference_rows))
        for layer in range(self.contract.shape.num_layers):
            attended = self.store.attend(layer, *self._qkv(layer, tokens))
            assert attended.isfinite().all(), "padding that is not finite spoils the next layer"
            expected = self.reference.attend(layer, *self._qkv(layer, reference))
            torch.testing.assert_close(
                attended[[tokens.index(token) for token in wanted]],
                expected[[reference.index(token) for token in wanted]],
                rtol=self.contract.tolerance,
                atol=self.contract.tolerance,
            )

    def _check_layout(self, layout: TokenLayout, rows: list[Row]) -> list[Token]:
        tokens = _tokens(layout)
        wanted = [(r.slot, r.start + i) for r in rows for i in range(r.num_tokens)]
        assert sorted(t for t in tokens if t[1] >= 0) == sorted(wanted)
        ends = [(row.slot, row.start + row.num_tokens - 1) for row in rows]
        assert [tokens[index] for index in layout.last.tolist()] == ends
        return tokens

    def _reference_row(self, row: Row) -> Row:
        # The reference keeps no prefixes for the next one: it computes what the store had.
        start = self.num_in_reference[row.slot]
        end = self.num_in_reference[row.slot] = row.start + row.num_tokens
        return Row(row.slot, start, end - start, row.samples)

    def _qkv(self, layer: int, tokens: list[Token]) -> Tensor:
        values = torch.stack([self._values(layer, token) for token in tokens], dim=1)
        return values.to(self.contract.device, self.contract.dtype)

    def _values(self, layer: int, token: Token) -> Tensor:
        """Return a token's query, key and value: equal for equal texts, as in a network.

        Salts count too, though a network knows none: nobody may share what has another salt.
        """
        slot, position = token
        shape = (3, self.contract.shape.num_heads, self.contract.shape.head_dim)
        if position < 0:
            return torch.full(shape, 50.0)  # padding, loud enough to be heard if attended to
        text = (self.running[slot].salt == "", *self.texts[slot][: position + 1])
        generator = torch.Generator().manual_seed(hash((layer, text)))
        return torch.randn(shape, generator=generator)


def _tokens(layout: TokenLayout) -> list[Token]:
    return list(zip(layout.slots.tolist(), layout.positions.tolist(), strict=True))
