"""The conformance kit refuses plugins that break a promise, and accepts those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase
from torch import Tensor

from pluribus import (
    Answer,
    Batch,
    Batcher,
    Capability,
    Generation,
    KVCache,
    KVLedger,
    KVShape,
    KVStore,
    Query,
    ResponseCache,
    Row,
    TokenLayout,
)
from pluribus.testing import (
    BatcherContract,
    KVCacheContract,
    ReferenceKVStore,
    ResponseCacheContract,
    RoomFor,
)
from pluribus_batchers.bucket import BucketBatcher, BucketConfig
from pluribus_caches.kv.contiguous import ContiguousConfig, ContiguousKVCache, ContiguousLedger
from pluribus_caches.kv.contiguous_store import ContiguousStore
from pluribus_caches.response.lru import LRUConfig, LRUResponseCache

FIND_ONLY = hypothesis.settings(
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=3000,  # which ones depends on what else has been imported
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class LosesTheLastInTheQueue(BucketBatcher):
    def finish(self, generation: Generation) -> None:
        super().finish(generation)
        if len(self._waiting) > 2:
            self._waiting.pop()


class LetsTheLastOvertake(BucketBatcher):
    def next_batch(self) -> Batch | None:
        self._waiting.rotate(1)
        return super().next_batch()


class KeepsTheCache(BucketBatcher):
    def finish(self, generation: Generation) -> None:
        if generation in self._running:
            self._running.remove(generation)
        else:
            self._waiting.remove(generation)


class AsksForTheLastTokenTwice(BucketBatcher):
    def next_batch(self) -> Batch | None:
        batch = super().next_batch()
        return batch and Batch(dict.fromkeys(self._running, 1))


class RunsWithoutReserving(BucketBatcher):
    def _start_batch(self) -> None:
        while self._waiting and len(self._running) < self._max_batch_size:
            self._running.append(self._waiting.popleft())

    def finish(self, generation: Generation) -> None:
        (self._running if generation in self._running else self._waiting).remove(generation)


class RunsOneTooMany(BucketBatcher):
    def __init__(self, config: BucketConfig, ledger: KVLedger) -> None:
        super().__init__(BucketConfig(config.max_batch_size + 1), ledger)


class WaitsForCompany(BucketBatcher):
    def next_batch(self) -> Batch | None:
        return super().next_batch() if self._running or len(self._waiting) != 1 else None


class MiscountsTheQueue(BucketBatcher):
    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._running)


class OneAtATime(Batcher):
    """Right, though nothing like a bucket: one generation, its prompt in chunks of 2."""

    Config = BucketConfig
    requires = frozenset({Capability.CHUNK})

    def __init__(self, config: BucketConfig, ledger: KVLedger) -> None:
        self._ledger = ledger
        self._queue: list[Generation] = []
        self._runs = False

    def add(self, generation: Generation) -> None:
        self._queue.append(generation)

    def next_batch(self) -> Batch | None:
        if not self._queue or not self._queue[0].num_unscheduled:
            return None
        self._runs = self._runs or self._ledger.try_reserve(self._queue[0])
        return Batch({self._queue[0]: min(2, self._queue[0].num_unscheduled)})

    def finish(self, generation: Generation) -> None:
        if self._runs and generation is self._queue[0]:
            self._ledger.release(generation)
            self._runs = False
        self._queue.remove(generation)

    @property
    def num_waiting(self) -> int:
        return len(self._queue) - self.num_running

    @property
    def num_running(self) -> int:
        return int(self._runs)


def batcher_contract(batcher: type[BucketBatcher]) -> BatcherContract:
    class Contract(BatcherContract):
        settings: ClassVar[hypothesis.settings] = FIND_ONLY

        def make(self, ledger: KVLedger) -> Batcher:
            return batcher(BucketConfig(self.max_batch_size), ledger)

    return Contract()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (LosesTheLastInTheQueue, "num_waiting"),
        (LetsTheLastOvertake, "overtook"),
        (KeepsTheCache, "still holds cache"),
        (AsksForTheLastTokenTwice, "num_unscheduled"),
        (RunsWithoutReserving, "without a reservation"),
        (RunsOneTooMany, "more run at once"),
        (WaitsForCompany, "nothing runs"),
        (MiscountsTheQueue, "num_waiting"),
    ],
)
def test_the_kit_refuses_a_batcher_that(broken: type[BucketBatcher], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        batcher_contract(broken).test_every_promise_whatever_happens()


class TestOneAtATime(BatcherContract):
    def make(self, ledger: KVLedger) -> Batcher:
        return OneAtATime(BucketConfig(), ledger)


class CountsTokensAndNotTheRectangle(ContiguousLedger):
    def try_reserve(self, generation: Generation) -> bool:
        if any(member.num_scheduled for member in self._held):
            return False
        used = sum(member.max_length for member in self._held)
        if used + generation.max_length > self._num_tokens:
            return False
        self._held.add(generation)
        return True

    def check_integrity(self) -> None:
        pass


class LosesRoom(ContiguousLedger):
    def release(self, generation: Generation) -> None:
        super().release(generation)
        self._num_tokens -= 1

    def fits(self, num_tokens: int) -> bool:
        return num_tokens <= 40


class Promises(ContiguousLedger):
    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.promised: list[Generation] = []

    def try_promise(self, generation: Generation) -> bool:
        is_promised = self.try_reserve(generation)
        self.promised += [generation] * is_promised
        return is_promised

    def release(self, generation: Generation) -> None:
        super().release(generation)
        self.promised = [each for each in self.promised if each is not generation]


class LimitsWhoReserved(Promises):
    @property
    def limits(self) -> dict[Generation, int]:
        reserved = self._held.difference(self.promised)
        return {g: max(g.num_scheduled, len(g.prompt) + 1) for g in reserved}


class LetsThemWaitForEachOther(Promises):
    @property
    def limits(self) -> dict[Generation, int]:
        waiting = self.promised if len(self.promised) > 1 else []
        return {g: max(g.num_scheduled, len(g.prompt) + 1) for g in waiting}


class HasNoRoomForTheFirstToken(Promises):
    @property
    def limits(self) -> dict[Generation, int]:
        return {g: len(g.prompt) for g in self.promised if g.num_scheduled < len(g.prompt)}


class ForgetsThePadding(ContiguousStore):
    def _arrange(self, padding: dict[int, int]) -> None:
        super()._arrange(padding)
        self._is_text = None


class KeepsRowsWhereTheyWere(ContiguousStore):
    def _keep(self, slots: Sequence[int]) -> None:
        self._block = self._block[:, :, : len(slots)]
        self._arrange({slot: self._padding[slot] for slot in slots})


class LooksAhead(ContiguousStore):
    def _attend_to_prompts(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)


class MislaysTheLastToken(ContiguousStore):
    def begin(self, rows: Sequence[Row]) -> TokenLayout:
        layout = super().begin(rows)
        return TokenLayout(layout.slots, layout.positions, layout.last.flip(0))


class BrokenKVCache(ContiguousKVCache):
    ledger_class: type[ContiguousLedger] = ContiguousLedger
    store_class: type[ContiguousStore] = ContiguousStore

    def ledger(self, shape: KVShape) -> KVLedger:
        return self.ledger_class(shape.num_tokens)

    def store(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> KVStore:
        return self.store_class(shape, device, dtype)


def kv_cache_contract(
    ledger: type[ContiguousLedger] = ContiguousLedger,
    store: type[ContiguousStore] = ContiguousStore,
) -> KVCacheContract:
    class Contract(KVCacheContract):
        settings: ClassVar[hypothesis.settings] = FIND_ONLY

        def make(self) -> KVCache:
            cache = BrokenKVCache(ContiguousConfig())
            cache.ledger_class, cache.store_class = ledger, store
            return cache

    return Contract()


def test_the_kit_refuses_a_ledger_that_loses_room() -> None:
    with pytest.raises(AssertionError):
        kv_cache_contract(ledger=LosesRoom).test_the_ledger_adds_up_whatever_happens()


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (LimitsWhoReserved, "was promised nothing"),
        (LetsThemWaitForEachOther, "wait for each other"),
        (HasNoRoomForTheFirstToken, "no room for the prompt"),
    ],
)
def test_the_kit_refuses_promises_of_a_ledger_that(
    broken: type[ContiguousLedger], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        kv_cache_contract(ledger=broken).test_the_ledger_adds_up_whatever_happens()


def test_the_kit_refuses_a_ledger_that_promises_what_the_store_lacks() -> None:
    contract = kv_cache_contract(ledger=CountsTokensAndNotTheRectangle)
    with pytest.raises((AssertionError, RuntimeError)):
        contract.test_the_store_attends_as_the_reference_does()


@pytest.mark.parametrize(
    "broken", [ForgetsThePadding, KeepsRowsWhereTheyWere, LooksAhead, MislaysTheLastToken]
)
def test_the_kit_refuses_a_store_that(broken: type[ContiguousStore]) -> None:
    with pytest.raises(AssertionError):
        kv_cache_contract(store=broken).test_the_store_attends_as_the_reference_does()


class ReferenceKVCache(KVCache):
    """Right, though nothing like the contiguous one: all join, in chunks, without padding."""

    Config = ContiguousConfig
    provides = frozenset({Capability.JOIN, Capability.CHUNK})

    def __init__(self, config: ContiguousConfig) -> None:
        pass

    @property
    def memory(self) -> str:
        return "auto"

    def ledger(self, shape: KVShape) -> KVLedger:
        return RoomFor(shape.num_tokens)

    def store(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> KVStore:
        return ReferenceKVStore(device)


class TestReferenceKVCache(KVCacheContract):
    def make(self) -> KVCache:
        return ReferenceKVCache(ContiguousConfig())


class IgnoresHowToSample(ResponseCache):
    """The fault that started this kit: the key is prompt and max_tokens alone."""

    Config = LRUConfig

    def __init__(self, config: LRUConfig) -> None:
        self._answers: dict[tuple[tuple[int, ...], int], Answer] = {}

    def get(self, query: Query) -> Answer | None:
        return self._answers.get((query.prompt, query.params.max_tokens))

    def put(self, query: Query, answer: Answer) -> None:
        self._answers[query.prompt, query.params.max_tokens] = answer

    def pin(self, query: Query) -> None:
        pass


class NobodyLocks(LRUResponseCache):
    class _Open:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    def __init__(self, config: LRUConfig) -> None:
        super().__init__(config)
        self._lock = self._Open()  # type: ignore[assignment]


def response_cache_contract(
    cache: type[IgnoresHowToSample | LRUResponseCache],
) -> ResponseCacheContract:
    class Contract(ResponseCacheContract):
        settings: ClassVar[hypothesis.settings] = FIND_ONLY

        def make(self) -> ResponseCache:
            return cache(LRUConfig(size=2))

    return Contract()


def test_the_kit_refuses_a_response_cache_that_ignores_how_to_sample() -> None:
    contract = response_cache_contract(IgnoresHowToSample)
    with pytest.raises(AssertionError):
        contract.test_queries_that_differ_in_one_thing_share_no_answer()


def test_the_kit_refuses_a_response_cache_that_does_not_lock() -> None:
    with pytest.raises(KeyError):
        response_cache_contract(NobodyLocks).test_threads_do_not_get_in_each_others_way()
