"""Parts of batches take turns, so that no stage of a pipeline waits for another's reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.counting import CountingExecutor, ask, core
from pluribus import Batch, Capability, Generation, Step, StepResult
from pluribus.engine.rotation import SHORTEST_PIECE, Rotation
from pluribus.testing import RoomFor, generation
from pluribus_batchers.bucket import BucketBatcher, BucketConfig

EVERYTHING = frozenset(Capability)


def members(parts: list[Batch]) -> list[set[int]]:
    return [{g.id for g in part.num_tokens} for part in parts]


def even(parts: list[Batch]) -> bool:
    sizes = [len(part) for part in parts]
    return max(sizes) - min(sizes) <= 1


counts = st.lists(st.integers(1, 1500), min_size=1, max_size=20)
without_chunks = st.sampled_from([EVERYTHING, {Capability.JOIN}])


@given(counts, st.integers(1, 5), without_chunks)
def test_parts_are_the_batch(
    counts: list[int], num_parts: int, provides: Collection[Capability]
) -> None:
    batch = Batch({generation(index): count for index, count in enumerate(counts)})
    parts = Rotation(num_parts, provides).cut(batch)
    assert 1 <= len(parts) <= num_parts
    assert all(part.num_tokens for part in parts)
    assert all(count > 0 for part in parts for count in part.num_tokens.values())
    sums: Counter[Generation] = Counter()
    for part in parts:
        sums.update(part.num_tokens)
    assert sums == batch.num_tokens
    if Capability.CHUNK not in provides:
        assert sum(len(part) for part in parts) == len(batch)


@given(st.integers(1, 5000), st.integers(1, 5))
def test_a_long_prompt_is_at_several_stages_and_a_short_one_is_not(
    count: int, num_parts: int
) -> None:
    parts = Rotation(num_parts, EVERYTHING).cut(Batch({generation(): count}))
    lengths = [sum(part.num_tokens.values()) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert len(parts) == max(1, min(num_parts, count // SHORTEST_PIECE))


def test_a_cache_that_nobody_may_join_takes_a_batch_whole() -> None:
    batch = Batch({generation(index): 1000 for index in range(8)})
    assert Rotation(4, frozenset()).cut(batch) == [batch]


@given(counts, st.integers(2, 5))
def test_no_part_is_longer_than_a_fair_one_and_one_generation(
    counts: list[int], num_parts: int
) -> None:
    batch = Batch({generation(index): count for index, count in enumerate(counts)})
    parts = Rotation(num_parts, {Capability.JOIN}).cut(batch)
    longest = max(sum(part.num_tokens.values()) for part in parts)
    assert longest <= sum(counts) / min(num_parts, len(counts)) + max(counts)


@given(st.integers(1, 16), st.integers(2, 5))
def test_as_many_generations_as_parts_or_more_leave_no_part_out(count: int, num: int) -> None:
    parts = Rotation(num, EVERYTHING).cut(Batch({generation(index): 1 for index in range(count)}))
    assert len(parts) == min(count, num)
    assert even(parts)


def test_generations_keep_their_part_while_parts_stay_even() -> None:
    rotation = Rotation(3, EVERYTHING)
    generations = [generation(index) for index in range(9)]
    first = rotation.cut(Batch(dict.fromkeys(generations, 1)))
    again = rotation.cut(Batch(dict.fromkeys(generations[::-1], 1)))
    assert members(again) == members(first)
    gone = next(iter(first[1].num_tokens))
    left = [g for g in generations if g is not gone]
    assert members(rotation.cut(Batch(dict.fromkeys(left, 1)))) == [
        ids - {gone.id} for ids in members(first)
    ]


def test_a_part_that_has_emptied_is_filled_from_the_others() -> None:
    rotation = Rotation(2, EVERYTHING)
    generations = [generation(index) for index in range(8)]
    first = rotation.cut(Batch(dict.fromkeys(generations, 1)))
    left = dict.fromkeys(first[1].num_tokens, 1)
    parts = rotation.cut(Batch(left))
    assert even(parts)
    assert len(parts) == 2


class NotingExecutor(CountingExecutor):
    """Notes the order in which steps are submitted and results are asked for."""

    def __init__(self, num_slots: int = 4) -> None:
        super().__init__(num_slots)
        self.events: list[tuple[str, int]] = []

    def submit(self, step: Step) -> Callable[[], StepResult]:
        self.events.append(("submit", step.number))
        wait = super().submit(step)

        def read() -> StepResult:
            self.events.append(("read", step.number))
            return wait()

        return read


def test_parts_are_under_way_together_and_each_goes_on_when_it_comes_back() -> None:
    executor = NotingExecutor()
    engine = core(executor, num_parts=2)
    for index in range(2):
        engine.add(ask(index, max_tokens=3))
    while engine.has_work:
        engine.step()
    assert executor.events == [
        ("submit", 0), ("submit", 1), ("read", 0),
        ("submit", 2), ("read", 1),
        ("submit", 3), ("read", 2),
        ("submit", 4), ("read", 3),
        ("submit", 5), ("read", 4), ("read", 5),
    ]  # fmt: skip
    slots = [{row.slot for row in step.rows} for step in executor.steps]
    assert slots[0] == slots[2] == slots[4] != slots[1] == slots[3] == slots[5]


def test_one_generation_alone_runs_as_if_there_were_no_parts() -> None:
    executor = NotingExecutor()
    engine = core(executor, num_parts=4)
    engine.add(ask(1, max_tokens=3))
    while engine.has_work:
        engine.step()
    assert executor.events == [
        ("submit", 0), ("read", 0), ("submit", 1), ("read", 1), ("submit", 2), ("read", 2),
    ]  # fmt: skip


class ChunkBatcher(BucketBatcher):
    """Computes prompts two tokens at a time."""

    def next_batch(self) -> Batch | None:
        batch = super().next_batch()
        return batch and Batch({g: min(n, 2) for g, n in batch.num_tokens.items()})


def test_a_chunk_that_samples_nothing_is_not_waited_for() -> None:
    executor = NotingExecutor()
    engine = core(executor, num_parts=3)
    engine.batcher = ChunkBatcher(BucketConfig(), engine.ledger)
    engine.add(ask(1, length=8, max_tokens=2))
    while engine.has_work:
        engine.step()
    assert executor.events == [
        ("submit", 0), ("submit", 1), ("submit", 2), ("read", 0),
        ("submit", 3), ("read", 1), ("read", 2), ("read", 3),
        ("submit", 4), ("read", 4),
    ]  # fmt: skip


def test_a_step_says_how_many_results_have_been_read() -> None:
    executor = NotingExecutor()
    engine = core(executor, num_parts=2)
    for index in range(4):
        engine.add(ask(index, max_tokens=3))
    while engine.has_work:
        engine.step()
    for step in executor.steps:
        at = executor.events.index(("submit", step.number))
        reads = [number for event, number in executor.events[:at] if event == "read"]
        assert reads == list(range(step.num_read))


def test_who_has_ended_takes_no_part_in_what_was_planned_before() -> None:
    executor = CountingExecutor()
    engine = core(executor, num_parts=2)
    engine.add(stays := ask(1, max_tokens=5))
    engine.add(ends := ask(2, ends_at=3, max_tokens=5))
    while engine.has_work:
        engine.step()
    assert len(stays.tokens) == 5
    assert ends.tokens == []
    rows = [row for step in executor.steps for row in step.rows]
    assert len(rows) == 5 + 1


def test_a_part_whose_generations_are_all_cancelled_is_not_run() -> None:
    executor = CountingExecutor()
    engine = core(executor, num_parts=2)
    both = [ask(1, max_tokens=5), ask(2, max_tokens=5)]
    for each in both:
        engine.add(each)
    engine.step()
    [left] = [g for g in both if g.slot is None]
    engine.finish(left)
    while engine.has_work:
        engine.step()
    assert len(executor.steps) == 5
    assert [len(step.admitted) for step in executor.steps] == [1, 0, 0, 0, 0]


requests = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 14), st.integers(1, 6)), min_size=1, max_size=14
)


@settings(max_examples=150, deadline=None)
@given(requests, st.integers(1, 4), st.integers(0, 2), st.randoms(use_true_random=False))
def test_whatever_is_cut_and_cancelled_answers_are_the_same(
    requests: list[tuple[int, int, int]], num_parts: int, lookahead: int, chance: Random
) -> None:
    executor = CountingExecutor(num_slots=5)
    engine = core(executor, lookahead, num_parts=num_parts)
    generations: list[Generation] = [
        ask(index, length=length, ends_at=ends_at, max_tokens=max_tokens)
        for index, (length, ends_at, max_tokens) in enumerate(requests)
    ]
    for each in generations:
        engine.add(each)
    cancelled = chance.sample(generations, min(4, len(generations)))
    while engine.has_work:
        engine.step()
        if cancelled and chance.random() < 0.5:
            gone = cancelled.pop()
            if gone.finish_reason is None:
                engine.finish(gone)
        engine.ledger.check_integrity()
    assert isinstance(engine.ledger, RoomFor)
    assert not engine.ledger.held
    for each, (length, ends_at, max_tokens) in zip(generations, requests, strict=True):
        if each.finish_reason is not None:
            until = min(length + max_tokens, ends_at if ends_at >= length else 10**6)
            assert each.tokens == [1000 + position for position in range(length, until)]


@pytest.mark.parametrize("num_parts", [2, 3])
def test_no_more_is_under_way_than_there_are_parts(num_parts: int) -> None:
    executor = NotingExecutor()
    engine = core(executor, num_parts=num_parts)
    for index in range(9):
        engine.add(ask(index, max_tokens=1 + index % 3))
    while engine.has_work:
        engine.step()
        submitted = sum(event == "submit" for event, _ in executor.events)
        assert submitted - (len(executor.events) - submitted) < num_parts
