"""What lm-evaluation-harness asks of ``local-completions`` comes out as with transformers.

Requests and reading of answers as in its ``lm_eval/models/openai_completions.py`` and
``api_models.py``: a batch of token ids, echoed and scored, with one token more.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoTokenizer, OPTForCausalLM

import pluribus_opt

STORIES = Path(pluribus_opt.__file__).parent / "bundled" / "opt-stories-14m"
PAIRS = [
    ("Once upon a time", " there was a little girl."),
    ("The captain of the ship", " had been in the habit of making a voyage"),
    ("She said:", " \u201cI don\u2019t know \N{SNOWMAN} what you mean.\u201d"),
    ("", "Call me Ishmael."),
    ("I had been in", " the"),
    ("One\n\nTwo\n\nThree", "\n\n"),
]

Scores = list[tuple[float, bool]]


@pytest.fixture(scope="module")
def oracle() -> Any:
    return OPTForCausalLM.from_pretrained(STORIES, dtype=torch.float32)


@pytest.fixture(scope="module")
def requests() -> list[tuple[list[int], list[int]]]:
    """Token ids of contexts, ``</s>`` in front, and of their continuations."""
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    return [
        (tokenizer.encode(context), tokenizer.encode(rest, add_special_tokens=False))
        for context, rest in PAIRS
    ]


def ask(url: str, prompts: Sequence[list[int]], **changes: Any) -> dict[str, Any]:
    payload = {
        "model": "opt-stories-14m",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
        **changes,
    }
    response = httpx2.post(f"{url}/v1/completions", json=payload, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def parse_logprobs(answer: dict[str, Any], context_lengths: Sequence[int], num_new: int) -> Scores:
    """Return the sum and whether all was greedy, for each choice, as the harness does."""
    scores = []
    choices = sorted(answer["choices"], key=itemgetter("index"))
    for choice, length in zip(choices, context_lengths, strict=True):
        told = choice["logprobs"]
        end = len(told["token_logprobs"]) - num_new
        tokens, tops = told["token_logprobs"][length:end], told["top_logprobs"][length:end]
        is_greedy = all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))
        scores.append((sum(tokens), is_greedy))
    return scores


@torch.inference_mode()
def expected(oracle: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Return the loglikelihood that transformers gives, and whether it is greedy."""
    ids = torch.tensor(context + continuation)
    logprobs = oracle(ids[None]).logits[0, len(context) - 1 : -1].log_softmax(dim=-1)
    targets = torch.tensor(continuation)
    is_greedy = bool((logprobs.argmax(dim=-1) == targets).all())
    return logprobs.gather(1, targets[:, None]).sum().item(), is_greedy


@pytest.mark.parametrize("max_tokens", [1, 0])
def test_loglikelihoods_equal_transformers(
    server_url: str,
    oracle: Any,
    requests: list[tuple[list[int], list[int]]],
    max_tokens: int,
) -> None:
    prompts = [context + continuation for context, continuation in requests]
    answer = ask(server_url, prompts, max_tokens=max_tokens)
    lengths = [len(context) for context, _ in requests]
    got = parse_logprobs(answer, lengths, num_new=max_tokens)
    wanted = [expected(oracle, *request) for request in requests]
    assert [score for score, _ in got] == pytest.approx([score for score, _ in wanted], abs=1e-3)
    assert [is_greedy for _, is_greedy in got] == [is_greedy for _, is_greedy in wanted]
    assert {is_greedy for _, is_greedy in got} == {True, False}


def test_a_text_that_ends_at_once_is_scored_as_any_other(server_url: str, oracle: Any) -> None:
    """The harness drops the last token told, so there must be one: the end of the text."""
    prompt = AutoTokenizer.from_pretrained(STORIES).encode("The end")
    answer = ask(server_url, [prompt], logit_bias={"2": 100})
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"][-1] == "</s>"
    [(score, _)] = parse_logprobs(answer, [1], num_new=1)
    assert score == pytest.approx(expected(oracle, prompt[:1], prompt[1:])[0], abs=1e-3)


def test_generations_until_a_stop_come_in_order(server_url: str, oracle: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    contexts = [tokenizer.encode(context) for context, _ in PAIRS]
    answer = ask(server_url, contexts, max_tokens=12, stop=["."], echo=False, logprobs=None)
    texts = [choice["text"] for choice in sorted(answer["choices"], key=itemgetter("index"))]
    for context, text in zip(contexts, texts, strict=True):
        ids = torch.tensor([context])
        out = oracle.generate(ids, max_new_tokens=12, do_sample=False)[0, len(context) :]
        assert text == str(tokenizer.decode(out, skip_special_tokens=True)).partition(".")[0]
