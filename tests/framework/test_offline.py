"""The whole engine on the bundled model, from a script: against transformers, and misused."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, OPTForCausalLM

import pluribus_opt
from pluribus import (
    CheckpointError,
    ConfigError,
    Engine,
    EngineError,
    FinishReason,
    RequestError,
    SamplingParams,
)

STORIES = Path(pluribus_opt.__file__).parent / "bundled" / "opt-stories-14m"
PROMPTS = [
    "Once upon a time",
    "The old man looked at the sea and said,",
    '"My dear Watson," said Holmes',
    "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals,",
    "A",
]
GREEDY = SamplingParams(max_tokens=24, temperature=0)


KINDS = {
    "continuous": [],
    "small chunks": ["batcher.max_batch_tokens=5", "cache.kv.block_size=4"],
    "fair": ["batcher=fair"],
    "bucket": ["batcher=bucket", "cache/kv=contiguous"],
    "run-ahead": ["engine.lookahead=2"],
    "tensor": ["parallel=tensor", "parallel.size=2"],
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=list(KINDS))
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine("batcher.max_batch_size=4", *request.param) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle() -> Any:
    return OPTForCausalLM.from_pretrained(STORIES, dtype=torch.float32)


def greedy(oracle: Any, prompt: str, max_tokens: int) -> tuple[int, ...]:
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = oracle.generate(ids, max_new_tokens=max_tokens, do_sample=False)[0, ids.shape[1] :]
    return tuple(token for token in out.tolist() if token != 2)


def test_greedy_answers_equal_transformers(engine: Engine, oracle: Any) -> None:
    answers = engine.generate(PROMPTS, GREEDY)
    assert [answer.tokens for answer in answers] == [greedy(oracle, p, 24) for p in PROMPTS]


def test_an_answer_is_english(engine: Engine) -> None:
    [answer] = engine.generate(
        PROMPTS[0], SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=1)
    )
    words = answer.text.split()
    assert len(words) > 15
    assert sum(word.strip('.,;:!?"').lower() in COMMON for word in words) > len(words) / 4


COMMON = {
    *("the", "a", "an", "and", "of", "to", "in", "was", "he", "she", "it", "his", "her", "that"),
    *("had", "with", "for", "as", "on", "at", "be", "him", "they", "i", "you", "not", "but", "by"),
    *("is", "were", "there", "so", "all", "one", "who", "which", "from", "have", "said", "no"),
}

requests = st.lists(
    st.tuples(
        st.sampled_from(PROMPTS),
        st.integers(1, 12),
        st.sampled_from([0.0, 0.8, 1.0]),
        st.sampled_from([0, 5]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests)
def test_company_changes_no_answer(
    engine: Engine, asked: list[tuple[str, int, float, int, int]]
) -> None:
    prompts = [prompt for prompt, *_ in asked]
    params = [
        SamplingParams(max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
        for _, max_tokens, temperature, top_k, seed in asked
    ]
    together = engine.generate(prompts, params)
    for prompt, one, answer in zip(prompts, params, together, strict=True):
        [alone] = engine.generate(prompt, one)
        assert (alone.tokens, alone.text) == (answer.tokens, answer.text)


def test_token_ids_are_used_as_they_are(engine: Engine) -> None:
    [from_text] = engine.generate(PROMPTS[0], GREEDY)
    ids = engine.service.parts.model.tokenizer().encode(PROMPTS[0])
    [from_ids] = engine.generate([ids], GREEDY)
    assert from_ids.tokens == from_text.tokens
    assert from_ids.prompt == PROMPTS[0]


def test_the_whole_length_can_be_used(engine: Engine) -> None:
    ids = [2, *[100] * 1000]
    [answer] = engine.generate([ids], SamplingParams(max_tokens=23, temperature=0))
    assert len(answer.tokens) == 23 or answer.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", GREEDY, "prompt: must not be empty"),
        ([], GREEDY, "prompt: must not be empty"),
        ([2, 8192], GREEDY, "token ids must be from 0 to 8191, got 8192"),
        ([2] * 1024, GREEDY, "1024 tokens are too many.*at most 1023"),
        ([2] * 1001, GREEDY, r"max_tokens: 24 is more than the 23 that fit after a prompt of 1001"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused(
    engine: Engine, prompt: str | list[int], params: SamplingParams, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        engine.generate([prompt], params)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts: must be a text or a list of prompts, got None"),
        (5, "prompts: must be a text or a list of prompts, got 5"),
        (b"hi", "prompts: must be a text or a list of prompts, got b'hi'"),
        ({"a": 1}, "prompts: must be a text or a list of prompts, got {'a': 1}"),
        ([2, 5, 9], r"prompt: must be text, or a list of token ids such as \[2, 5, 9\], got 2"),
        (["a", 5], "prompt: must be text, or a list of token ids .*, got 5"),
        ([None], "prompt: must be text, or a list of token ids .*, got None"),
        ([b"hi"], "prompt: must be text, or a list of token ids .*, got b'hi'"),
        ([[True]], "prompt: token ids must be from 0 to 8191, got True"),
        (["once upon " * 2000], "prompt: at least [0-9]{4,} tokens are too many.*at most 1023"),
    ],
)
def test_what_is_no_prompt_is_refused_in_words(engine: Engine, prompts: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        engine.generate(prompts, GREEDY)


@pytest.mark.parametrize("params", [5, {"max_tokens": 5}, ["a"], [None]], ids=repr)
def test_what_is_no_params_is_refused_in_words(engine: Engine, params: Any) -> None:
    with pytest.raises(RequestError, match="params: must be SamplingParams or a list of them, got"):
        engine.generate("a", params)


def threads() -> set[threading.Thread]:
    """Return the engines' threads."""
    return {thread for thread in threading.enumerate() if thread.name in {"front", "engine"}}


def interrupt_once(condition: Callable[[], bool]) -> threading.Thread:
    """Send this process what Ctrl-C sends, as soon as a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_interrupted_start_leaves_no_thread() -> None:
    before = threads()
    interrupter = interrupt_once(lambda: "engine" in {each.name for each in threads() - before})
    with pytest.raises(KeyboardInterrupt):
        Engine("batcher.max_batch_size=1")
    interrupter.join()
    assert threads() == before


def test_a_failed_start_leaves_no_thread() -> None:
    before = threads()
    with pytest.raises(EngineError):
        Engine("cache.kv.memory=1KiB")
    assert threads() == before


def test_an_interrupted_answer_is_computed_no_further() -> None:
    with Engine("batcher.max_batch_size=1") as engine:
        interrupter = interrupt_once(lambda: engine.service.num_flights > 0)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(["A"] * 50, SamplingParams(max_tokens=200, ignore_eos=True))
        interrupter.join()
        [answer] = engine.generate("A", SamplingParams(max_tokens=1))
        assert len(answer.tokens) == 1
        assert engine.service.num_flights == 0


def test_one_params_for_all_or_one_for_each(engine: Engine) -> None:
    with pytest.raises(RequestError, match="params: 2 for 1 prompts"):
        engine.generate("a", [GREEDY, GREEDY])


def test_more_prompts_than_a_queue_would_hold(engine: Engine) -> None:
    answers = engine.generate(["A"] * 1200, SamplingParams(max_tokens=1))
    assert len(answers) == 1200


def test_repeated_greedy_queries_come_from_the_response_cache() -> None:
    with Engine("cache/response=lru", "batcher.max_batch_size=2") as engine:
        [first] = engine.generate(PROMPTS[0], GREEDY)
        [second] = engine.generate(PROMPTS[0], GREEDY)
        [other] = engine.generate(PROMPTS[0], SamplingParams(max_tokens=23, temperature=0))
    assert (first.cached, second.cached, other.cached) == (False, True, False)
    assert second.tokens == first.tokens


def test_random_weights_are_announced() -> None:
    with Engine("model=opt-125m", "model.checkpoint=random", *TINY) as engine:
        assert engine.service.spec.notes == ("random weights: model.checkpoint=random",)


TINY = ("batcher.max_batch_size=1", f"model.tokenizer={STORIES}")


def test_a_closed_engine_says_so() -> None:
    engine = Engine("batcher.max_batch_size=1")
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.generate("a")


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("batcher.max_batch_size=0", ConfigError, "batcher.max_batch_size must be at least 1"),
        ("batcher.name=nonsense", ConfigError, "no batcher is called 'nonsense'; installed: "),
        ("device=tpu", ConfigError, "device must be one of auto, cpu, cuda; got 'tpu'"),
        ("dtype=int8", ConfigError, "dtype must be one of"),
        ("queue.max_size=0", ConfigError, "queue.max_size must be at least 1"),
        ("cache.kv.memory=1KiB", EngineError, "cache.kv.memory=1KiB gives .* room for 0 tokens"),
        ("cache.kv.memory=lots", ConfigError, "cache.kv.memory"),
        ("model.checkpoint=./nowhere", CheckpointError, "nowhere"),
    ],
)
def test_a_wrong_setting_stops_the_start(
    override: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Engine(override)
