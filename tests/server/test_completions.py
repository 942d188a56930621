"""POST /v1/completions, whole: what it takes, what reaches the engine, what comes back."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest

from pluribus.engine.messages import Submit
from pluribus.errors import RequestError
from pluribus.generation import MAX_SEED, SamplingParams
from pluribus.server.completion_params import read_queries
from pluribus.server.completion_schema import CompletionRequest
from pluribus.tenants import ANONYMOUS, Tenant
from pluribus_caches.response.lru import LRUConfig, LRUResponseCache
from server.byte_tokens import EOS, FIRST_BYTE, ByteTokenizer
from server.fakes import CONTINUATION, FakeService, client_of, logprob

PATH = "/v1/completions"
ENCODED = ByteTokenizer().encode


def complete(service: FakeService | None = None, **body: Any) -> dict[str, Any]:
    """Return the answer to a request with these fields, and a prompt if they have none."""
    response = client_of(service or FakeService()).post(PATH, json={"prompt": "Once", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(service: FakeService | None = None, **body: Any) -> tuple[int, dict[str, Any]]:
    """Return the status and the error of a request that is refused."""
    response = client_of(service or FakeService()).post(PATH, json={"prompt": "Once", **body})
    error: dict[str, Any] = response.json()["error"]
    return response.status_code, error


def submitted(**body: Any) -> list[Submit]:
    """Return what reaches the engine of a request with these fields."""
    service = FakeService()
    complete(service, **body)
    return service.engine.submitted


def texts(answer: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in answer["choices"]] == [*range(len(answer["choices"]))]
    return [choice["text"] for choice in answer["choices"]]


def tell_seed(submit: Submit) -> str:
    return f"{bytes(id_ - FIRST_BYTE for id_ in submit.prompt[1:]).decode()}:{submit.params.seed}"


def test_an_answer_has_openais_shape() -> None:
    before = int(time.time())
    answer = complete(max_tokens=64)
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", answer.pop("id"))
    assert before <= answer.pop("created") <= time.time()
    assert answer == {
        "object": "text_completion",
        "model": "fake",
        "system_fingerprint": "fp_0123456789ab",
        "choices": [{"index": 0, "text": CONTINUATION, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": len(CONTINUATION),
            "total_tokens": 5 + len(CONTINUATION),
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def test_the_models_notes_come_with_every_answer() -> None:
    assert complete(FakeService(notes=("Random.", "Beware.")))["note"] == "Random. Beware."


@pytest.mark.parametrize("model", ["fake", None])
def test_the_model_may_be_named(model: str | None) -> None:
    assert complete(model=model)["model"] == "fake"


def test_another_model_is_not_found() -> None:
    status, error = refused(model="gpt-5")
    assert status == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'gpt-5' is not served here" in error["message"]
    assert "fake" in error["message"]


def test_sixteen_tokens_unless_told_otherwise_or_fewer_fit() -> None:
    (choice,) = complete()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (CONTINUATION[:16], "length")
    service = FakeService()
    almost_full = [FIRST_BYTE] * (service.spec.max_length - 3)
    assert complete(service, prompt=almost_full)["usage"]["completion_tokens"] == 3
    status, error = refused(prompt=almost_full, max_tokens=4)
    assert (status, error["param"]) == (422, "max_tokens")


def test_without_parameters_the_engine_samples_as_openai_does() -> None:
    [submit] = submitted()
    assert replace(submit.params, seed=None) == SamplingParams(max_tokens=16)


def test_every_parameter_reaches_the_engine() -> None:
    same: dict[str, Any] = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "seed": MAX_SEED,
        "min_tokens": 3,
        "ignore_eos": True,
        "logprobs": 4,
    }
    [submit] = submitted(**same, stop_token_ids=[9, 8], logit_bias={"50": 1.5, "7": -100})
    assert submit.params == SamplingParams(
        **same, stop_token_ids=(9, 8), logit_bias=((7, -100.0), (50, 1.5))
    )


def test_stop_strings_reach_the_front_alone_once_each_and_in_one_order() -> None:
    service = FakeService()
    complete(service, stop=["b", "c", "b", "a"])
    ((_, params, _),) = service.calls
    assert params.stop == ("a", "b", "c")
    assert service.engine.submitted[0].params.stop == ()


@pytest.mark.parametrize("prompt", [[2.0, 5], [[2.0, 5.0]]], ids=str)
def test_1_0_is_an_integer_as_in_json_schema(prompt: list[Any]) -> None:
    [submit] = submitted(prompt=prompt, stop_token_ids=[9.0, 8])
    assert repr((submit.prompt, submit.params.stop_token_ids)) == "((2, 5), (9, 8))"


def test_null_is_as_good_as_left_out() -> None:
    fields = set(CompletionRequest.model_fields) - {"prompt"}
    [submit] = submitted(**dict.fromkeys(fields))
    assert replace(submit.params, seed=None) == SamplingParams(max_tokens=16)


def test_a_stop_string_need_not_be_in_an_array() -> None:
    (choice,) = complete(stop=" was")["choices"]
    assert (choice["text"], choice["finish_reason"]) == (" there", "stop")


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [ENCODED("ab")]),
        (["ab", "c"], [ENCODED("ab"), ENCODED("c")]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["x" * 5000], [ENCODED("x" * 5000)]),
    ],
    ids=["text", "texts", "ids", "lists of ids", "long"],
)
def test_prompts_come_in_four_kinds(prompt: Any, ids: list[list[int]]) -> None:
    assert [list(submit.prompt) for submit in submitted(prompt=prompt)] == ids


def test_choice_j_of_prompt_i_has_index_i_n_plus_j_and_seed_plus_j() -> None:
    answer = complete(FakeService(say=tell_seed), prompt=["a", "b"], n=3, seed=7)
    assert texts(answer) == ["a:7", "a:8", "a:9", "b:7", "b:8", "b:9"]


def test_a_seed_may_be_any_64_bit_integer() -> None:
    seeds = [submit.params.seed for submit in submitted(n=2, seed=-1)]
    assert seeds == [MAX_SEED, 0]
    assert [submit.params.seed for submit in submitted(seed=-(2**63))] == [0]


def test_choices_without_a_seed_are_fresh() -> None:
    assert len({submit.params.seed for submit in submitted(n=20)}) == 20


def test_greedy_choices_are_computed_once() -> None:
    service = FakeService()
    assert len(texts(complete(service, n=5, temperature=0, seed=1))) == 5
    assert len(service.engine.submitted) == 1


def test_the_best_are_those_of_the_highest_mean_logprob() -> None:
    # A byte's logprob falls with its value, the end of the text is likeliest of all.
    said = {1: "zz", 2: "a", 3: "bbbbbbbb", 4: "ab"}

    def say(submit: Submit) -> str:
        assert submit.params.seed is not None
        return said[submit.params.seed]

    def mean(text: str) -> float:
        told = [EOS, *ENCODED(text)[1:]]
        return sum(map(logprob, told)) / len(told)

    answer = complete(FakeService(say=say), n=2, best_of=4, seed=1)
    assert texts(answer) == sorted(said.values(), key=mean, reverse=True)[:2] == ["a", "ab"]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == sum(map(len, said.values()))


def test_usage_counts_each_prompt_once_and_every_candidate() -> None:
    usage = complete(prompt=["a", "bc"], n=2, best_of=3, max_tokens=4)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2 + 3, 2 * 3 * 4)
    assert usage["total_tokens"] == 29
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_timing_is_told_if_it_is_asked_for() -> None:
    assert complete(timing=True)["usage"]["timing"] == {
        "queue_ms": 1.0,
        "prefill_ms": 2.0,
        "decode_ms": 3.0,
        "mean_batch_size": 2.0,
        "cached_tokens": 1,
    }


@pytest.mark.parametrize("prompt", ["Once é", ENCODED("Once é"), [EOS]], ids=str)
def test_echo_begins_with_the_prompt(prompt: Any) -> None:
    shown = prompt if isinstance(prompt, str) else ByteTokenizer().decode(prompt)
    assert texts(complete(prompt=prompt, echo=True, max_tokens=3)) == [shown + CONTINUATION[:3]]


def test_echo_tells_which_prompt_is_whose() -> None:
    answer = complete(prompt=["a", "b"], n=2, echo=True, max_tokens=2)
    assert texts(answer) == ["a t", "a t", "b t", "b t"]


def logprobs_of(**body: Any) -> dict[str, Any]:
    (choice,) = complete(**body)["choices"]
    told: dict[str, Any] = choice["logprobs"]
    assert len({len(column) for column in told.values()}) == 1
    return told


def test_logprobs_are_told_as_openai_told_them() -> None:
    first, second = (chr(0), chr(1))
    assert logprobs_of(prompt="Once", max_tokens=2, logprobs=2) == {
        "tokens": [" ", "t"],
        "token_logprobs": [logprob(FIRST_BYTE + 32), logprob(FIRST_BYTE + 116)],
        "top_logprobs": [
            {first: -0.003, second: -0.004, " ": logprob(FIRST_BYTE + 32)},
            {first: -0.003, second: -0.004, "t": logprob(FIRST_BYTE + 116)},
        ],
        "text_offset": [0, 1],
    }


def test_logprobs_0_tells_of_the_token_taken_alone() -> None:
    assert logprobs_of(max_tokens=1, logprobs=0)["top_logprobs"] == [{" ": -0.035}]


def test_the_end_of_the_text_has_a_logprob_and_no_text() -> None:
    told = logprobs_of(max_tokens=64, logprobs=0)
    assert "".join(told["tokens"]) == CONTINUATION + "</s>"
    assert told["text_offset"] == [*range(len(CONTINUATION) + 1)]


def test_offsets_count_characters_and_parts_of_one_are_told_as_bytes() -> None:
    service = FakeService(say=lambda _: "é€!")
    told = logprobs_of(service=service, prompt="ü", echo=True, logprobs=0, max_tokens=6)
    assert told["tokens"] == [
        "</s>", r"bytes:\xc3", r"bytes:\xbc",
        r"bytes:\xc3", r"bytes:\xa9", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "!",
    ]  # fmt: skip
    assert told["text_offset"] == [0, 0, 0, 1, 1, 2, 2, 2, 3]


def test_echo_and_logprobs_score_the_prompt_but_for_its_first_token() -> None:
    told = logprobs_of(prompt=[2, 70, 71], echo=True, logprobs=1, max_tokens=1)
    assert told["token_logprobs"] == [None, logprob(70), logprob(71), logprob(35)]
    assert told["top_logprobs"][:2] == [None, {chr(0): -0.003, chr(67): logprob(70)}]


@pytest.mark.parametrize("logprobs", [None, 0, 3])
def test_no_tokens_and_echo_only_score_the_prompt(logprobs: int | None) -> None:
    answer = complete(prompt="ab", echo=True, max_tokens=0, logprobs=logprobs)
    assert texts(answer) == ["ab"]
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["choices"][0]["finish_reason"] == "length"
    told = answer["choices"][0]["logprobs"]
    assert told is None if logprobs is None else told["tokens"] == ["</s>", "a", "b"]


def test_a_cached_answer_says_so_if_all_of_it_is() -> None:
    client = client_of(FakeService(cache=LRUResponseCache(LRUConfig())))
    headers = [
        client.post(PATH, json={"prompt": prompt, "temperature": 0}).headers.get("X-Cache")
        for prompt in ("a", "a", ["a", "b"], ["b", "a"])
    ]
    assert headers == [None, "hit", None, "hit"]


def test_an_answer_in_time_is_an_answer() -> None:
    assert texts(complete(FakeService(seconds=0.01), timeout=60))


def test_an_answer_not_in_time_is_given_up() -> None:
    service = FakeService(seconds=3600)
    status, error = refused(service, timeout=0.05, n=2)
    assert status == 504
    assert (error["type"], error["code"], error["param"]) == ("server_error", "timeout", "timeout")
    assert "not complete after 0.05 seconds" in error["message"]
    assert service.engine.cancelled.is_set()
    assert service.num_flights == 0


def test_more_choices_than_the_queue_takes_are_refused_and_as_many_are_not() -> None:
    assert len(texts(complete(FakeService(max_waiting=5), prompt=["a", "b"], n=3))) == 6
    status, error = refused(FakeService(max_waiting=4), prompt=["a", "b"], n=3)
    assert (status, error["param"]) == (422, "prompt")
    assert "2 prompts of 3 choices are 6 generations, more than the 5" in error["message"]


def test_more_choices_than_a_tenant_may_ever_have_are_refused_rather_than_told_to_wait() -> None:
    tenant = Tenant(name="alice", max_requests=8, requests_per_minute=5)
    body = CompletionRequest.model_validate({"prompt": ["a", "b"], "n": 3})
    with pytest.raises(RequestError, match="6 generations, more than the 5 that"):
        read_queries(FakeService(), body, tenant)
    assert len(read_queries(FakeService(), body, replace(tenant, requests_per_minute=6))) == 6


def test_a_request_runs_for_whom_it_comes() -> None:
    service = FakeService()
    complete(service)
    assert service.tenants == [ANONYMOUS]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"prompt": 5}, "prompt", "5 is not a string or an array of strings or an array of int"),
        ({"prompt": []}, "prompt", "is an empty array; give at least one prompt"),
        ({"prompt": ["a", 5]}, "prompt", "item 1 is not a string like those before"),
        ({"prompt": [5, True]}, "prompt", "item 1 is not an integer, a token id, like those"),
        ({"prompt": [2.5]}, "prompt", "item 0 is not an integer, a token id"),
        ({"prompt": [2.0, 2.5]}, "prompt", "item 1 is not an integer, a token id, like those"),
        ({"prompt": [[2.5]]}, "prompt", "item 0 is not an array of integers, token ids"),
        ({"prompt": [True]}, "prompt", "item 0 is not a string"),
        ({"prompt": [[5], "a"]}, "prompt", "item 1 is not an array of integers, token ids, like"),
        ({"prompt": [{}]}, "prompt", "item 0 is not a string"),
        ({"prompt": ["a", ""]}, "prompt", "must not be empty (prompt 1 of 2, counted from 0)"),
        ({"prompt": [[5], []]}, "prompt", "must not be empty (prompt 1 of 2, counted from 0)"),
        ({"prompt": [259]}, "prompt", "token ids must be from 0 to 258, got 259"),
        ({"prompt": [-1]}, "prompt", "token ids must be from 0 to 258, got -1"),
        ({"prompt": "x" * 40_000}, "prompt", "40001 tokens are too many"),
        ({"max_tokens": 0}, "max_tokens", "0 is below the minimum, 1; with echo: true"),
        ({"n": 129}, "n", "129 is above the maximum, 128"),
        ({"n": 3, "best_of": 2}, "best_of", "2 is below n, which is 3"),
        ({"best_of": 2, "stream": True}, "best_of", "2 cannot be streamed"),
        ({"logprobs": 101}, "logprobs", "101 is above the maximum, 100"),
        ({"logprobs": True}, "logprobs", "true is not an integer from 0 to 100 or null"),
        ({"stop": 5}, "stop", "5 is not a string or an array of strings or null"),
        ({"stop": ["a", 5]}, "stop.1", "stop.1: 5 is not a string"),
        ({"stop": ""}, "stop.0", '"" is too short; the minimum length is 1'),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", '"a" is not a token id in a string'),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "101 is above the maximum, 100"),
        ({"logit_bias": {"259": 1}}, "logit_bias", "token ids must be from 0 to 258, got 259"),
        (
            {"logit_bias": {str(id_): 1 for id_ in range(301)}},
            "logit_bias",
            "logit_bias may name 300 ids, got 301",
        ),
        ({"stop_token_ids": [259]}, "stop_token_ids", "from 0 to 258, got 259"),
        ({"stop_token_ids": [2.5]}, "stop_token_ids.0", "2.5 is not an integer from 0 to"),
        ({"logit_bias": {"5.0": 1}}, "logit_bias.5.0", '"5.0" is not a token id in a string'),
        ({"stop_token_ids": 5}, "stop_token_ids", "5 is not an array of integers or null"),
        ({"suffix": "b"}, "suffix", "is not supported"),
        ({"stream_options": {}}, "stream_options", "needs stream: true"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "allowed: include_usage"),
        ({"stream": True, "timing": True}, "timing", "include_usage: true"),
        ({"min_tokens": 17}, "min_tokens", "from 0 to 16, got 17"),
        ({"timeout": 0}, "timeout", "0 is not above 0"),
        ({"presence_penalty": 2.1}, "presence_penalty", "2.1 is above the maximum, 2"),
        ({"seed": 2**63}, "seed", "is above the maximum"),
        ({"chat": 1}, "chat", "unknown field 'chat'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done_is_refused_with_its_reason(
    body: dict[str, Any], param: str, says: str
) -> None:
    status, error = refused(**body)
    assert status == 422
    assert error["param"] == param
    assert says in error["message"]
