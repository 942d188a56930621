"""POST /generation: what it takes, what reaches the service, what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pluribus.generation import MAX_SEED, SamplingParams
from pluribus_caches.response.lru import LRUConfig, LRUResponseCache
from server.fakes import CONTINUATION, FakeService, client_of, events_of


def sampled(**fields: Any) -> tuple[SamplingParams, bool]:
    """Return what reaches the service of a request with ``fields``."""
    service = FakeService()
    response = client_of(service).post("/generation", json={"prompt": "Once", **fields})
    assert response.status_code == 200, response.text
    ((_, params, fit),) = service.calls
    return params, fit


def test_answers_with_the_prompt_and_its_continuation() -> None:
    response = client_of(FakeService()).post("/generation", json={"prompt": "Once upon a time"})
    assert response.status_code == 200
    assert response.json() == {"text": "Once upon a time" + CONTINUATION}


def test_carries_the_models_notes() -> None:
    service = FakeService(notes=("The weights are random.", "Expect nothing."))
    response = client_of(service).post("/generation", json={"prompt": "Once"})
    assert response.json()["note"] == "The weights are random. Expect nothing."


def test_samples_at_temperature_1_as_many_tokens_as_fit_unless_told_otherwise() -> None:
    assert sampled() == (SamplingParams(max_tokens=64, temperature=1.0, top_k=0, top_p=1.0), True)


def test_null_is_as_good_as_left_out() -> None:
    assert sampled(max_tokens=None, seed=None) == sampled()


def test_passes_every_parameter_on() -> None:
    fields: dict[str, Any] = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.25,
        "seed": MAX_SEED,
    }
    assert sampled(**fields) == (SamplingParams(**fields), False)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 1},
        {"temperature": 0},
        {"temperature": 2},
        {"top_k": 0},
        {"top_p": 1},
        {"seed": 0},
        {"top_k": 10**6},
    ],
    ids=str,
)
def test_takes_the_ends_of_each_range(fields: dict[str, Any]) -> None:
    params, _ = sampled(**fields)
    (name, value), *_ = fields.items()
    assert getattr(params, name) == value


def test_takes_1_0_for_an_integer_as_json_schema_does() -> None:
    params, _ = sampled(max_tokens=3.0)
    assert params.max_tokens == 3
    assert isinstance(params.max_tokens, int)


@pytest.mark.parametrize("prompt", ["\x00", " ", "日本語 🤖", "</s>", "x" * 10_000])
def test_takes_any_text(prompt: str) -> None:
    response = client_of(FakeService()).post("/generation", json={"prompt": prompt})
    assert response.status_code == 200
    assert response.json()["text"].endswith(CONTINUATION)


def test_streams_the_continuation_alone() -> None:
    service = FakeService(notes=("The weights are random.",))
    response = client_of(service).post("/generation", json={"prompt": "Once", "stream": True})
    events = events_of(response)
    assert "".join(event["text"] for event in events) == CONTINUATION
    assert [event.get("finish_reason") for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert [event.get("note") for event in events][-1] == "The weights are random."


def test_a_cached_answer_says_so() -> None:
    service = FakeService(cache=LRUResponseCache(LRUConfig()))
    client, headers = client_of(service), []
    for streams in (False, False, True):
        body = {"prompt": "Once", "seed": 1, "stream": streams}
        headers.append(client.post("/generation", json=body).headers.get("X-Cache"))
    assert headers == [None, "hit", "hit"]
    assert len(service.engine.submitted) == 1


def test_an_answer_in_time_is_an_answer() -> None:
    response = client_of(FakeService()).post("/generation", json={"prompt": "Once", "timeout": 60})
    assert response.json() == {"text": "Once" + CONTINUATION}


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_an_answer_that_does_not_begin_in_time_is_given_up(streams: bool) -> None:
    service = FakeService(seconds=3600)
    body = {"prompt": "Once", "timeout": 0.05, "stream": streams}
    response = client_of(service).post("/generation", json=body)
    error = response.json()["error"]
    assert response.status_code == 504
    assert (error["type"], error["code"], error["param"]) == ("server_error", "timeout", "timeout")
    assert "not complete after 0.05 seconds" in error["message"]
    assert service.engine.cancelled.is_set()
    assert service.num_flights == 0


def test_a_stream_that_does_not_end_in_time_says_so_and_is_cancelled() -> None:
    service = FakeService(seconds_per_token=0.05)
    body = {"prompt": "Once", "timeout": 0.3, "stream": True}
    response = client_of(service).post("/generation", json=body)
    first, *_, last = response.text.removesuffix("\n\n").split("\n\n")
    assert json.loads(first.removeprefix("data: "))["text"]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert service.engine.cancelled.is_set()


def test_a_timeout_that_cannot_be_is_refused() -> None:
    response = client_of(FakeService()).post("/generation", json={"prompt": "Once", "timeout": 0})
    error = response.json()["error"]
    assert response.status_code == 422
    assert (error["param"], error["message"]) == ("timeout", "timeout: 0 is not above 0")


@pytest.mark.parametrize(
    "media_type", ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8"]
)
def test_takes_any_spelling_of_the_media_type(media_type: str) -> None:
    response = client_of(FakeService()).post(
        "/generation", content=b'{"prompt": "Once"}', headers={"Content-Type": media_type}
    )
    assert response.status_code == 200


def test_takes_characters_spelt_as_surrogate_pairs() -> None:
    response = client_of(FakeService()).post(
        "/generation",
        content=b'{"prompt": "\\ud83e\\udd16"}',
        headers={"Content-Type": "application/json"},
    )
    assert response.json()["text"] == "\N{ROBOT FACE}" + CONTINUATION
