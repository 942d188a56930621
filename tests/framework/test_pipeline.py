"""Every split of the bundled model, in real processes, answers as one rank does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import psutil
import pytest

from pluribus import Completion, Engine, SamplingParams
from pluribus.engine.rotation import SHORTEST_PIECE
from pluribus.generation import TokenLogprobs

SMALL = ("cache.kv.memory=64MiB", "batcher.max_batch_size=5")
CHUNKS = ("batcher.max_batch_tokens=64", "cache.kv.block_size=4")
SPLITS = {
    "tensor-2": ("parallel=tensor", *CHUNKS),
    "tensor-3": ("parallel=tensor", "parallel.size=3", *CHUNKS),
    "tensor-4": ("parallel=tensor", "parallel.size=4", *CHUNKS),
    "pipeline-2": ("parallel=pipeline", *CHUNKS),
    "pipeline-3 fair": ("parallel=pipeline", "parallel.size=3", "batcher=fair"),
    "hybrid-2x2": ("parallel=hybrid", "engine.lookahead=1", *CHUNKS),
    "pipeline-2 bucket contiguous": ("parallel=pipeline", "batcher=bucket", "cache/kv=contiguous"),
}

PROMPTS = [
    "Once upon a time",
    "The old man looked at the sea and said,",
    '"My dear Watson," said Holmes',
    "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals,",
    "A",
]
GREEDY = SamplingParams(max_tokens=16, temperature=0)
PARAMS = [
    GREEDY,
    SamplingParams(max_tokens=30, seed=11),
    SamplingParams(max_tokens=20, seed=5, temperature=0.8, top_k=40, top_p=0.9),
    SamplingParams(max_tokens=16, seed=6, min_p=0.05, logprobs=1),
    replace(GREEDY, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.2),
    replace(GREEDY, logprobs=4, prompt_logprobs=2),
    replace(GREEDY, max_tokens=0, prompt_logprobs=0),
    replace(GREEDY, max_tokens=40, stop=(" the",)),  # the engine is told to cancel
    replace(GREEDY, ignore_eos=True, stop_token_ids=(17,)),
    replace(GREEDY, min_tokens=12, logit_bias=((15, -5.0),)),
    replace(GREEDY, max_tokens=1),
]
LONG = " ".join(PROMPTS) * 12  # long enough to be at several stages at once
ASKED = [(PROMPTS[index * 3 % len(PROMPTS)], params) for index, params in enumerate(PARAMS)]
ASKED.append((LONG, replace(GREEDY, logprobs=1, prompt_logprobs=1)))


def answers(engine: Engine) -> list[Completion]:
    prompts, params = zip(*ASKED, strict=True)
    return engine.generate(list(prompts), list(params))


@pytest.fixture(scope="module")
def expected() -> list[Completion]:
    with Engine(*SMALL) as engine:
        expected = answers(engine)
    assert len(expected[-1].prompt_tokens) > 2 * SHORTEST_PIECE
    return expected


@pytest.fixture(autouse=True, scope="module")
def _one_thread_a_rank() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        yield


def assert_told_alike(
    ours: Sequence[TokenLogprobs] | None, theirs: Sequence[TokenLogprobs] | None
) -> None:
    for one, other in zip(ours or (), theirs or (), strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        values = [value for _, value in other.top]
        assert [value for _, value in one.top] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("overrides", SPLITS.values(), ids=list(SPLITS))
def test_a_split_answers_as_one_rank(
    overrides: tuple[str, ...], expected: list[Completion]
) -> None:
    with Engine(*SMALL, *overrides) as engine:
        rounds = [answers(engine), answers(engine)]  # the second finds prefixes in the cache
    for each in rounds:
        for one, other in zip(each, expected, strict=True):
            assert one.tokens == other.tokens
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
            assert_told_alike(one.logprobs, other.logprobs)
            assert_told_alike(one.prompt_logprobs, other.prompt_logprobs)


def test_a_lost_stage_is_noticed_and_nobody_notices(expected: list[Completion]) -> None:
    with Engine(*SMALL, "parallel=pipeline", "parallel.size=3") as engine:
        processes = psutil.Process().children(recursive=True)
        victim = max(processes, key=lambda process: process.pid)
        assert "pluribus.parallel.rank" in victim.cmdline()
        left: list[psutil.Process] = []

        def lose() -> None:
            time.sleep(0.2)
            victim.kill()
            left.extend(psutil.wait_procs(processes, timeout=10)[1])

        loser = threading.Thread(target=lose)
        loser.start()
        given = answers(engine)
        loser.join()
        assert [one.tokens for one in given] == [one.tokens for one in expected]
        assert engine.service.fleet.num_restarts == 1
        assert not left
