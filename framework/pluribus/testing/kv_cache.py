"""What every KV cache must do: a ledger that counts right, and a store that keeps its word."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import hypothesis
import torch
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pluribus.generation import Generation, SamplingParams
from pluribus.interfaces import KVCache, KVShape
from pluribus.testing.kv_store import StoreMachine, prompts, salts
from pluribus.testing.machine import run_machine


class LedgerMachine(RuleBasedStateMachine):
    """Reserves, promises, runs within the limits and releases, all at random."""

    def __init__(self, cache: KVCache, shape: KVShape) -> None:
        super().__init__()
        self.num_tokens = shape.num_tokens
        self.ledger = cache.ledger(shape)
        self.held: list[Generation] = []
        self.promised: set[Generation] = set()
        self.num_made = 0

    @rule(
        prompt=prompts,
        max_tokens=st.integers(1, 20),
        scores=st.booleans(),
        salt=salts,
        promise=st.booleans(),
    )
    def reserve(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        *,
        scores: bool = False,
        salt: str = "",
        promise: bool = False,
    ) -> None:
        self.num_made += 1
        params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=0 if scores else None)
        generation = Generation(id=self.num_made, prompt=prompt, params=params, salt=salt)
        num_used_tokens = self.ledger.num_used_tokens
        ask = self.ledger.try_promise if promise else self.ledger.try_reserve
        before = {other: self.num_allowed(other) for other in self.held}
        reserved = ask(generation)
        if not self.held:
            assert reserved == self.ledger.fits(generation.max_length), "alone, it has to fit"
        if reserved:
            self.held.append(generation)
            if promise:
                self.promised.add(generation)
            self.check_reserved(generation)
            for other, num_allowed in before.items():
                assert not num_allowed or self.num_allowed(other), "it may not go on any more"
        else:
            assert generation.num_scheduled == generation.num_cached == 0
            assert self.ledger.num_used_tokens == num_used_tokens

    def check_reserved(self, generation: Generation) -> None:
        """Raise AssertionError if a generation cannot start as it was reserved."""
        assert generation.num_scheduled == generation.num_cached
        assert generation.num_cached < len(generation.prompt), "nothing left to sample from"
        if generation.params.prompt_logprobs is not None:
            assert not generation.num_cached, "what is not computed cannot be scored"
        limit = self.ledger.limits.get(generation, generation.max_length)
        assert limit > len(generation.prompt), "no room for the prompt and a token"
        assert all(type(number) is int for number in self.ledger.placement(generation))

    @rule(most=st.integers(1, 5))
    def run(self, most: int) -> None:
        for generation in self.held:
            generation.num_scheduled += min(most, self.num_allowed(generation))
            self.ledger.advance(generation)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def run_one(self, data: st.DataObject) -> None:
        self._run_as_far_as_can_be(data.draw(st.sampled_from(self.held)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._release(data.draw(st.sampled_from(self.held)))

    @invariant()
    def ledger_adds_up(self) -> None:
        self.ledger.check_integrity()
        assert bool(self.ledger.num_used_tokens) == bool(self.held)
        assert self.ledger.num_used_tokens <= self.num_tokens

    @invariant()
    def only_promised_room_is_awaited(self) -> None:
        limited = self.ledger.limits.keys()
        assert limited <= self.promised, "who was promised nothing has to wait"
        for generation, limit in self.ledger.limits.items():
            assert generation.num_scheduled <= limit, "less room than has been used"

    def num_allowed(self, generation: Generation) -> int:
        """Return how many tokens may be computed now."""
        limit = self.ledger.limits.get(generation, generation.max_length)
        return min(generation.num_unscheduled, limit - generation.num_scheduled)

    def teardown(self) -> None:
        if sys.exception() is None:  # else what failed says more
            self._run_to_the_end()

    def _run_to_the_end(self) -> None:
        while self.held:
            for generation in self.held:
                self._run_as_far_as_can_be(generation)
            over = [generation for generation in self.held if not generation.num_unscheduled]
            assert over, "all of them wait for each other"
            self._release(over[-1])
            self.ledger.check_integrity()
        largest = max(n for n in range(1, self.num_tokens + 1) if self.ledger.fits(n))
        self.reserve((0,), largest - 1)
        assert self.held, "room was lost"

    def _run_as_far_as_can_be(self, generation: Generation) -> None:
        while num_tokens := self.num_allowed(generation):
            generation.num_scheduled += num_tokens
            self.ledger.advance(generation)

    def _release(self, generation: Generation) -> None:
        self.held.remove(generation)
        self.promised.discard(generation)
        self.ledger.release(generation)


class KVCacheContract(ABC):
    """Subclass in a KV cache's tests and return it from ``make``.

    Attributes:
        shape, device, dtype: of the store that is tried.
        tolerance: how far it may be from the reference, absolute and relative.
        settings: for hypothesis.
    """

    shape: ClassVar[KVShape] = KVShape(
        num_layers=2, num_heads=2, head_dim=4, num_slots=4, max_length=13, num_tokens=40
    )
    device: ClassVar[torch.device] = torch.device("cpu")
    dtype: ClassVar[torch.dtype] = torch.float32
    tolerance: ClassVar[float] = 1e-5
    settings: ClassVar[hypothesis.settings] = hypothesis.settings(
        deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
    )

    @abstractmethod
    def make(self) -> KVCache:
        """Return the cache."""

    def test_what_fits_is_at_most_what_there_is(self) -> None:
        ledger = self.make().ledger(self.shape)
        assert ledger.fits(1)
        assert ledger.fits(self.shape.max_length)
        assert not ledger.fits(self.shape.num_tokens + 1)

    def test_the_capacity_is_what_one_generation_can_have(self) -> None:
        cache = self.make()
        capacity = cache.capacity(self.shape)
        assert cache.ledger(self.shape).fits(capacity)
        assert not cache.ledger(self.shape).fits(capacity + 1)

    def test_the_ledger_adds_up_whatever_happens(self) -> None:
        run_machine(lambda: LedgerMachine(self.make(), self.shape), self.settings)

    def test_the_store_attends_as_the_reference_does(self) -> None:
        with _one_thread():
            run_machine(lambda: StoreMachine(self), self.settings)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: on a busy machine, tiny tensors only wait for a second one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
