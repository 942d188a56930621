"""``batcher=bucket``: alike, in order of arrival, to completion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pluribus import Batch, ConfigError, Generation, KVLedger, SamplingParams
from pluribus.testing import BatcherContract, BatcherMachine, RoomFor, generation, run_step
from pluribus_batchers.bucket import BucketBatcher, BucketConfig

CONF = Path(__file__).parents[2] / "conf"
HEAD = SamplingParams(max_tokens=4, temperature=0.7, top_k=5, top_p=0.9)


def batcher_of(*members: Generation, max_batch_size: int = 16) -> BucketBatcher:
    batcher = BucketBatcher(BucketConfig(max_batch_size), RoomFor(10_000))
    for member in members:
        batcher.add(member)
    return batcher


def may_follow(head: SamplingParams, params: SamplingParams) -> bool:
    alike = replace(params, max_tokens=head.max_tokens, prompt_logprobs=head.prompt_logprobs)
    return params.max_tokens <= head.max_tokens and alike == head


class BucketMachine(BatcherMachine):
    def check_batch(self, batch: Batch, joining: list[Generation]) -> None:
        super().check_batch(batch, joining)
        assert not (joining and self.running), "somebody joined a running batch"
        if joining:
            self._check_rule(joining)
        expected = {m: m.num_unscheduled for m in self.running + joining if m.num_unscheduled}
        assert dict(batch.num_tokens) == expected

    def _check_rule(self, joining: list[Generation]) -> None:
        head = joining[0].params
        assert all(may_follow(head, member.params) for member in joining)
        rest = self.waiting[len(joining) :]
        if rest and len(joining) < self.max_batch_size and may_follow(head, rest[0].params):
            assert not self.ledger.would_reserve(rest[0]), "the batch stopped early"


class TestBucketBatcher(BatcherContract):
    machine = BucketMachine

    def make(self, ledger: KVLedger) -> BucketBatcher:
        return BucketBatcher(BucketConfig(self.max_batch_size), ledger)


@pytest.mark.parametrize(
    ("params", "joins"),
    [
        pytest.param(HEAD, True, id="alike"),
        pytest.param(replace(HEAD, max_tokens=3), True, id="fewer-tokens"),
        pytest.param(replace(HEAD, seed=1), True, id="other-seed"),
        pytest.param(replace(HEAD, max_tokens=5), False, id="more-tokens"),
        pytest.param(replace(HEAD, temperature=0.8), False, id="other-temperature"),
        pytest.param(replace(HEAD, top_k=6), False, id="other-top-k"),
        pytest.param(replace(HEAD, top_p=0.8), False, id="other-top-p"),
    ],
)
def test_who_may_accompany_the_head(params: SamplingParams, joins: bool) -> None:
    batcher = batcher_of(generation(1, params=HEAD), generation(2, params=params))
    assert run_step(batcher) == ([1, 2] if joins else [1])


def test_the_first_that_differs_stops_the_batch() -> None:
    other = replace(HEAD, top_k=1)
    batcher = batcher_of(
        generation(1, params=HEAD), generation(2, params=other), generation(3, params=HEAD)
    )
    assert run_step(batcher) == [1]


def test_a_batch_is_no_larger_than_allowed() -> None:
    batcher = batcher_of(*map(generation, range(5)), max_batch_size=3)
    assert run_step(batcher) == [0, 1, 2]


def test_a_step_is_as_large_as_a_batch_of_the_longest_prompts_at_most() -> None:
    assert BucketBatcher.most_tokens(BucketConfig(max_batch_size=4), max_length=40) == 160


def test_a_batch_runs_to_completion_before_the_next_starts() -> None:
    first, second, late = (generation(number) for number in (1, 2, 3))
    batcher = batcher_of(first, second)
    assert run_step(batcher) == [1, 2]
    batcher.add(late)
    assert run_step(batcher) == [1, 2]
    batcher.finish(first)
    assert run_step(batcher) == [2]
    batcher.finish(second)
    assert run_step(batcher) == [3]


def test_prompts_are_computed_at_once_and_then_a_token_a_step() -> None:
    batcher = batcher_of(only := generation(prompt=(2, 3, 4, 5)))
    counts = []
    while batch := batcher.next_batch():
        counts.append(batch.num_tokens[only])
        only.num_scheduled += batch.num_tokens[only]
    assert counts == [4, 1, 1, 1]


def test_a_member_whose_last_token_is_under_way_sits_out() -> None:
    short = generation(2, params=SamplingParams(max_tokens=2))
    batcher = batcher_of(generation(1), short)
    assert [run_step(batcher) for _ in range(3)] == [[1, 2], [1, 2], [1]]
    assert batcher.num_running == 2


def test_defaults_are_those_of_the_configuration_file() -> None:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "batcher" / "bucket.yaml"))
    assert settings == {"name": "bucket", "max_batch_size": BucketConfig().max_batch_size}


def test_a_batch_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^batcher\.max_batch_size must be at least 1, got 0$"):
        BucketConfig(max_batch_size=0)
