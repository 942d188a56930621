"""OpenAI's own client, sync and async, streamed and not, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import pytest
from openai import (
    APIError,
    AsyncOpenAI,
    InternalServerError,
    NotFoundError,
    OpenAI,
    UnprocessableEntityError,
)
from openai.types import Completion

MODEL = "opt-stories-14m"
PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="anything", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def answer(server_url: str) -> Completion:
    """The greedy answer that others are compared with, found to be of OpenAI's types."""
    with OpenAI(
        base_url=f"{server_url}/v1", api_key="anything", _strict_response_validation=True
    ) as strict:
        completion: Completion = strict.completions.create(**GREEDY)
        return completion


def test_an_answer_is_one(answer: Completion) -> None:
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert answer.system_fingerprint
    [choice] = answer.choices
    assert choice.text
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)
    assert answer.usage.total_tokens == 17
    assert answer.usage.prompt_tokens_details is not None


def test_a_stream_says_the_same(client: OpenAI, answer: Completion) -> None:
    *pieces, last = client.completions.create(
        **GREEDY, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    assert [piece.choices[0].finish_reason for piece in pieces][-1] == "length"
    assert {piece.id for piece in pieces} == {last.id}
    assert last.choices == []
    assert answer.usage is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == answer.usage.completion_tokens
    assert all(piece.usage is None for piece in pieces)


def test_asynchronous_answers_and_streams_say_the_same(server_url: str, answer: Completion) -> None:
    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server_url}/v1", api_key="anything") as client:

            async def whole() -> str:
                completion: Completion = await client.completions.create(**GREEDY)
                return completion.choices[0].text

            async def streamed() -> str:
                pieces = await client.completions.create(**GREEDY, stream=True)
                return "".join([piece.choices[0].text async for piece in pieces])

            return await asyncio.gather(*(each() for each in (whole, streamed) * 4))

    assert set(asyncio.run(run())) == {answer.choices[0].text}


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_several_prompts_have_several_choices_each(client: OpenAI, streams: bool) -> None:
    fields: dict[str, Any] = {
        "model": MODEL,
        "prompt": [PROMPT, "The old man"],
        "n": 2,
        "seed": 7,
        "max_tokens": 6,
        "echo": True,
    }
    texts = [""] * 4
    if streams:
        for piece in client.completions.create(**fields, stream=True):
            for part in piece.choices:
                texts[part.index] += part.text
    else:
        for choice in client.completions.create(**fields).choices:
            texts[choice.index] = choice.text
    assert [text.startswith(PROMPT) for text in texts] == [True, True, False, False]
    assert [text.startswith("The old man") for text in texts] == [False, False, True, True]
    for index, prompt in enumerate(fields["prompt"]):
        for choice in range(2):
            alone = client.completions.create(
                model=MODEL, prompt=prompt, seed=7 + choice, max_tokens=6, echo=True
            )
            assert alone.choices[0].text == texts[2 * index + choice]


def test_token_ids_are_the_text_they_are_of(client: OpenAI, answer: Completion) -> None:
    tokenized = client.with_options(base_url=str(client.base_url).removesuffix("/v1/")).post(
        "/tokenize", body={"prompt": PROMPT}, cast_to=object
    )
    assert isinstance(tokenized, dict)
    fields = {**GREEDY, "prompt": tokenized["tokens"]}
    assert client.completions.create(**fields).choices[0].text == answer.choices[0].text


def test_logprobs_say_what_was_likely(client: OpenAI, answer: Completion) -> None:
    [choice] = client.completions.create(**GREEDY, logprobs=3).choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert "".join(told.tokens) == choice.text == answer.choices[0].text
    for token, logprob, top in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, strict=True
    ):
        assert len(top) == 3
        assert logprob == top[token] == max(top.values()) < 0


def test_a_stop_string_ends_the_text_before_it(client: OpenAI, answer: Completion) -> None:
    whole = answer.choices[0].text
    stop = whole[8:11]
    [choice] = client.completions.create(**GREEDY, stop=[stop, "\N{SNOWMAN}"]).choices
    assert choice.text == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


def test_a_bias_can_forbid_a_token(client: OpenAI) -> None:
    one_token = {**GREEDY, "max_tokens": 1}
    first = client.completions.create(**one_token).choices[0].text
    token = client.with_options(base_url=str(client.base_url).removesuffix("/v1/")).post(
        "/tokenize", body={"prompt": first, "add_special_tokens": False}, cast_to=object
    )
    assert isinstance(token, dict)
    bias = {str(token["tokens"][0]): -100}
    assert client.completions.create(**one_token, logit_bias=bias).choices[0].text != first


def test_more_than_openai_offers_comes_in_the_extra_body(
    client: OpenAI, answer: Completion
) -> None:
    fields = {**GREEDY, "temperature": 1}
    likeliest = client.completions.create(**fields, extra_body={"top_k": 1, "timing": True})
    assert likeliest.choices[0].text == answer.choices[0].text
    assert likeliest.usage is not None
    timing: Any = likeliest.usage.model_extra
    assert timing["timing"]["decode_ms"] > 0


def test_the_best_is_not_worse_than_the_first(client: OpenAI) -> None:
    def mean(**more: Any) -> float:
        fields = {**GREEDY, "temperature": 1, "seed": 3, "logprobs": 0, **more}
        logprobs = client.completions.create(**fields).choices[0].logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs
        return fmean(logprobs.token_logprobs)

    assert mean(best_of=8) > mean()


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "pluribus"


def test_errors_are_openais(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.completions.create(**{**GREEDY, "model": "davinci-002"})
    assert caught.value.code == "model_not_found"
    with pytest.raises(UnprocessableEntityError) as refused:
        client.completions.create(**{**GREEDY, "max_tokens": 10_000})
    assert refused.value.param == "max_tokens"
    assert "1024" in refused.value.message


def test_a_deadline_is_kept(client: OpenAI) -> None:
    endless: dict[str, Any] = {**GREEDY, "max_tokens": 1000}
    soon = {"timeout": 0.3, "ignore_eos": True}
    with pytest.raises(InternalServerError) as caught:
        client.completions.create(**endless, extra_body=soon)
    assert (caught.value.status_code, caught.value.code) == (504, "timeout")
    with pytest.raises(APIError) as late:
        list(client.completions.create(**endless, stream=True, extra_body=soon))
    assert late.value.code == "timeout"
    assert client.completions.create(**GREEDY).choices[0].text
