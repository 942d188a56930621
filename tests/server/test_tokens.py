"""POST /tokenize and /detokenize, GET /v1/models."""

from __future__ import annotations

import time
from typing import Any

import pytest

from server.byte_tokens import ByteTokenizer
from server.fakes import FakeService, client_of

CLIENT = client_of(FakeService())


def tokenized(**body: Any) -> Any:
    response = CLIENT.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("field", ["prompt", "text"])
@pytest.mark.parametrize("text", ["", "Once é", "x" * 5000], ids=["empty", "short", "long"])
def test_a_text_becomes_ids_as_a_prompt_does(field: str, text: str) -> None:
    ids = ByteTokenizer().encode(text)
    limit = FakeService().spec.max_length
    assert tokenized(**{field: text}) == {
        "tokens": ids,
        "count": len(ids),
        "max_model_len": limit,
    }


def test_special_tokens_may_be_left_out() -> None:
    assert tokenized(prompt="ab", add_special_tokens=False)["tokens"] == [100, 101]


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "text": "a"}], ids=["none", "both"])
def test_one_text_is_wanted(body: dict[str, str]) -> None:
    response = CLIENT.post("/tokenize", json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["param"], error["message"]) == (
        "prompt", "prompt: give it, or text, and not both"
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "Once é", "x" * 5000], ids=["empty", "short", "long"])
def test_ids_become_the_text_they_are_of(text: str) -> None:
    response = CLIENT.post("/detokenize", json={"tokens": ByteTokenizer().encode(text)})
    assert response.json() == {"text": text}


def test_1_0_is_an_integer_as_in_json_schema() -> None:
    response = CLIENT.post("/detokenize", json={"tokens": [100.0, 101]})
    assert response.json() == {"text": "ab"}


@pytest.mark.parametrize("tokens", [[259], [2.5], [-1], [2**70], ["a"], [True], 5, None], ids=str)
def test_what_is_no_id_is_refused(tokens: Any) -> None:
    response = CLIENT.post("/detokenize", json={"tokens": tokens})
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith("tokens")


def test_the_model_served_is_listed_and_can_be_looked_up() -> None:
    client = client_of(FakeService(notes=("Random.",)))
    listed = client.get("/v1/models").json()
    [model] = listed["data"]
    assert listed["object"] == "list"
    assert abs(model.pop("created") - time.time()) < 60
    assert model == {
        "id": "fake",
        "object": "model",
        "owned_by": "pluribus",
        "max_model_len": FakeService().spec.max_length,
        "note": "Random.",
    }
    assert client.get("/v1/models/fake").json().items() >= model.items()


@pytest.mark.parametrize("name", ["gpt-5", "facebook/opt-125m", "%20"])
def test_no_other_model_can_be_looked_up(name: str) -> None:
    response = CLIENT.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
