"""POST /v1/completions and /generation, streamed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.server.config import ServerConfig
from pluribus_caches.response.lru import LRUConfig, LRUResponseCache
from server.fakes import CONTINUATION, FakeService, client_of, events_of, listening

PATH = "/v1/completions"


def streamed(service: FakeService | None = None, **body: Any) -> list[dict[str, Any]]:
    """Return the pieces of the answer to a request with these fields."""
    client = client_of(service or FakeService(), ServerConfig(stream_interval=0))
    return events_of(client.post(PATH, json={"prompt": "Once", "stream": True, **body}))


def joined(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the choices that the pieces are of."""
    choices: defaultdict[int, dict[str, Any]] = defaultdict(lambda: {"text": "", "logprobs": None})
    for piece in pieces:
        for part in piece["choices"]:
            whole = choices[part["index"]]
            assert whole.setdefault("finish_reason", None) is None, "a piece after the last"
            whole |= {"index": part["index"], "finish_reason": part["finish_reason"]}
            whole["text"] += part["text"]
            if part["logprobs"] is not None:
                columns = whole["logprobs"] or {name: [] for name in part["logprobs"]}
                whole["logprobs"] = {
                    name: values + part["logprobs"][name] for name, values in columns.items()
                }
    return [choices[index] for index in sorted(choices)]


@contextmanager
def stream_under_way(url: str, **body: Any) -> Iterator[httpx2.Response]:
    """Yield the answer to a streaming request whose events have begun."""
    content = {"prompt": "Once", "stream": True, "max_tokens": 64, **body}
    with httpx2.stream("POST", url + PATH, json=content, timeout=30) as response:
        yield response


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_tokens": 64},
        {"prompt": ["a", "b"], "n": 3, "seed": 1},
        {"prompt": [[5, 6], [7]], "echo": True, "logprobs": 2},
        {"prompt": "é", "echo": True, "max_tokens": 0, "logprobs": 1},
        {"logprobs": 0, "max_tokens": 64},
        {"stop": [" was"], "echo": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("seconds_per_token", [0, 0.001], ids=["at once", "token by token"])
def test_pieces_add_up_to_the_whole_answer(body: dict[str, Any], seconds_per_token: float) -> None:
    service = FakeService(seconds_per_token=seconds_per_token)
    whole = client_of(service).post(PATH, json={"prompt": "Once", **body}).json()
    assert joined(streamed(service, **body)) == whole["choices"]


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(1, 60))
def test_no_piece_ends_inside_a_character(said: str, max_tokens: int) -> None:
    service = FakeService(say=lambda _: said, seconds_per_token=1e-9)
    [choice] = joined(streamed(service, max_tokens=max_tokens))
    assert choice["text"] == said.encode()[:max_tokens].decode(errors="replace")


def test_pieces_share_their_head_and_the_last_has_the_note() -> None:
    service = FakeService(notes=("Random.",), seconds_per_token=0.001)
    pieces = streamed(service)
    assert len(pieces) > 1
    heads = [{**piece, "choices": None, "note": None} for piece in pieces]
    assert all(head == heads[0] for head in heads)
    assert [piece.get("note") for piece in pieces] == [None] * (len(pieces) - 1) + ["Random."]
    assert all("usage" not in piece for piece in pieces)


def test_usage_comes_last_if_it_is_asked_for_and_is_null_before() -> None:
    options = {"include_usage": True}
    *pieces, last = streamed(n=2, stream_options=options, timing=True)
    assert [piece["usage"] for piece in pieces] == [None] * len(pieces)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 32
    assert last["usage"]["timing"]["queue_ms"] == 1.0


def test_usage_does_not_come_if_it_is_asked_not_to() -> None:
    pieces = streamed(stream_options={"include_usage": False})
    assert all("usage" not in piece and piece["choices"] for piece in pieces)


def test_nothing_between_us_and_the_client_may_hold_events_back() -> None:
    response = client_of(FakeService()).post(PATH, json={"prompt": "a", "stream": True})
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Cache-Control"] == "no-cache"
    assert "Content-Length" not in response.headers


def test_a_stream_from_the_cache_says_so() -> None:
    client = client_of(FakeService(cache=LRUResponseCache(LRUConfig())))
    body = {"prompt": "a", "temperature": 0, "stream": True}
    responses = [client.post(PATH, json=body) for _ in range(2)]
    assert [response.headers.get("X-Cache") for response in responses] == [None, "hit"]
    first, second = (joined(events_of(response)) for response in responses)
    assert first == second


def test_the_first_token_comes_at_once_and_the_others_together() -> None:
    service = FakeService(seconds_per_token=0.002)
    with listening(service, ServerConfig(stream_interval=0.5)) as url:
        started = time.monotonic()
        with stream_under_way(url, max_tokens=16) as response:
            lines = response.iter_lines()
            first = json.loads(next(lines).removeprefix("data: "))
            assert time.monotonic() - started < 0.4
            texts = [
                json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                for line in lines
                if line.startswith("data: {")
            ]
    assert first["choices"][0]["text"] == CONTINUATION[0]
    assert texts == [CONTINUATION[1:16]]


def test_a_client_that_leaves_a_stream_cancels_every_choice() -> None:
    service = FakeService(seconds_per_token=0.1)
    with listening(service) as url:
        with stream_under_way(url, n=3) as response:
            lines = response.iter_lines()
            next(lines)
            assert service.num_flights == 3
        assert service.engine.cancelled.wait(10)
        until = time.monotonic() + 10
        while service.num_flights and time.monotonic() < until:
            time.sleep(0.01)
    assert service.num_flights == 0


def test_an_error_after_the_first_event_is_the_last_event() -> None:
    service = FakeService(seconds_per_token=0.01, dies_after=5)
    with listening(service) as url, stream_under_way(url) as response:
        assert response.status_code == 200
        events = [line for line in response.iter_lines() if line]
    assert len(events) > 1
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error == {
        "message": "the engine died: as a test wanted",
        "type": "server_error",
        "param": None,
        "code": "not_ready",
    }


@pytest.mark.parametrize("path", [PATH, "/generation"])
def test_an_error_before_the_first_event_is_an_ordinary_one(path: str) -> None:
    client = client_of(FakeService(dies_after=0))
    response = client.post(path, json={"prompt": "Once", "stream": True})
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "the engine died: as a test wanted"


def test_a_stream_that_does_not_begin_in_time_is_an_ordinary_error() -> None:
    service = FakeService(seconds=3600)
    client = client_of(service)
    response = client.post(PATH, json={"prompt": "Once", "stream": True, "timeout": 0.05})
    assert response.status_code == 504
    assert service.engine.cancelled.is_set()


def test_a_stream_that_does_not_end_in_time_says_so_and_is_cancelled() -> None:
    service = FakeService(seconds_per_token=0.05)
    with listening(service) as url, stream_under_way(url, timeout=0.3, n=2) as response:
        events = [line for line in response.iter_lines() if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    assert service.num_flights == 0


@pytest.mark.parametrize("body", [{"prompt": ""}, {"max_tokens": 10**6}, {"model": "x"}], ids=str)
def test_a_stream_that_cannot_be_is_refused_as_any_request(body: dict[str, Any]) -> None:
    client = client_of(FakeService())
    response = client.post(PATH, json={"prompt": "Once", "stream": True, **body})
    assert response.status_code in (404, 422)
    assert response.json()["error"]["param"] in body
