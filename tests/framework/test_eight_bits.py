"""The bundled model with eight-bit weights: as good as it was, and the same however it is split."""

from __future__ import annotations

import lzma
import math
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from pluribus import Completion, Engine, SamplingParams

STORIES = Path(__file__).parents[3] / "shared" / "classic_stories.txt.xz"
SMALL = ("cache.kv.memory=64MiB", "batcher.max_batch_size=4")
PROMPTS = [
    "Once upon a time",
    "The old man looked at the sea and said,",
    '"My dear Watson," said Holmes',
    "A",
]
GREEDY = SamplingParams(max_tokens=24, temperature=0)
SCORED = SamplingParams(max_tokens=0, prompt_logprobs=0)
SPLITS = {
    "tensor-2": ("parallel=tensor", "parallel.size=2"),
    "pipeline-2": ("parallel=pipeline", "parallel.size=2"),
    "contiguous": ("batcher=bucket", "cache/kv=contiguous"),
}

every_format = pytest.mark.parametrize("weights", ["int8", "fp8"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread_a_rank() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        yield


@cache
def answers(*overrides: str) -> list[Completion]:
    with Engine(*SMALL, *overrides) as engine:
        return engine.generate(PROMPTS, GREEDY)


@every_format
@pytest.mark.parametrize("split", SPLITS.values(), ids=list(SPLITS))
def test_a_split_answers_as_one_rank(split: tuple[str, ...], weights: str) -> None:
    alone = answers(f"model.weights={weights}")
    split_up = answers(f"model.weights={weights}", *split)
    assert [each.tokens for each in split_up] == [each.tokens for each in alone]


@cache
def logprobs(dtype: str, *overrides: str) -> list[float]:
    """Return how likely each token of what the model has told itself is, and of a book."""
    with Engine(*SMALL, f"dtype={dtype}", *overrides) as engine:
        completions = engine.generate([list(text) for text in texts()], SCORED)
    told = [each.prompt_logprobs for each in completions]
    return [one.logprob for each in told for one in each or ()]


@cache
def texts() -> Sequence[tuple[int, ...]]:
    telling = SamplingParams(max_tokens=500, temperature=0.9, seed=1, ignore_eos=True)
    with Engine(*SMALL) as engine:
        told = engine.generate(PROMPTS, telling)
        texts = [(*each.prompt_tokens, *each.tokens) for each in told]
        if STORIES.exists():
            with lzma.open(STORIES, "rt", encoding="utf-8") as file:
                ids = engine.service.parts.model.tokenizer().encode(file.read(2**15))
            texts += [(2, *ids[start : start + 500]) for start in range(1, 2000, 500)]
    return texts


@pytest.mark.parametrize(
    ("weights", "dtype"), [("int8", "float32"), ("fp8", "float32"), ("int8", "bfloat16")]
)
def test_texts_are_as_likely_as_with_plain_weights(weights: str, dtype: str) -> None:
    plain, rounded = logprobs("float32"), logprobs(dtype, f"model.weights={weights}")
    assert len(plain) == len(rounded) > 1500
    perplexity, other = (math.exp(-math.fsum(each) / len(each)) for each in (plain, rounded))
    assert other == pytest.approx(perplexity, rel=0.01)
    distances = [abs(one - another) for one, another in zip(plain, rounded, strict=True)]
    assert 1e-4 < sum(distances) / len(distances) < 0.15
