"""The OpenAPI document is valid and says what is true."""

from __future__ import annotations

from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from server.fakes import FakeService, client_of, events_of

CLIENT = client_of(FakeService(notes=("The weights are random.",)))
DOCUMENT: dict[str, Any] = CLIENT.get("/openapi.json").json()
POSTS = ("/generation", "/v1/completions", "/tokenize", "/detokenize")
GETS = ("/v1/models", "/livez", "/readyz", "/health", "/version", "/plugins")


def test_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_lists_every_path() -> None:
    assert set(DOCUMENT["paths"]) == {*POSTS, *GETS, "/v1/models/{model}"}


def test_explains_every_operation_and_every_field() -> None:
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            assert operation["summary"]
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description") or "$ref" in described, (name, field)


def example(path: str) -> dict[str, Any]:
    """Return the request that the documentation proposes: as a whole, or field by field."""
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = DOCUMENT["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    fields: dict[str, Any] = schema["properties"]
    whole: list[dict[str, Any]] = schema.get("examples", [])
    return whole[0] if whole else {name: field["examples"][0] for name, field in fields.items()}


def validator(path: str, method: str) -> OAS31Validator:
    """Return what checks the answers of an operation."""
    responses = DOCUMENT["paths"][path][method]["responses"]
    reference = responses["200"]["content"]["application/json"]["schema"]
    return OAS31Validator({**DOCUMENT, **reference})


@pytest.mark.parametrize("path", POSTS)
def test_the_examples_work_and_their_answers_match_their_schema(path: str) -> None:
    response = CLIENT.post(path, json=example(path))
    assert response.status_code == 200
    validator(path, "post").validate(response.json())


@pytest.mark.parametrize("path", GETS)
def test_answers_match_their_schema(path: str) -> None:
    validator(path, "get").validate(CLIENT.get(path).json())


def test_a_full_answer_matches_its_schema() -> None:
    everything = {"prompt": "Once", "echo": True, "logprobs": 2, "timing": True, "n": 2}
    response = CLIENT.post("/v1/completions", json=everything)
    validator("/v1/completions", "post").validate(response.json())


def test_every_piece_of_a_stream_matches_the_schema() -> None:
    options = {"stream_options": {"include_usage": True}, "logprobs": 0}
    pieces = events_of(
        CLIENT.post("/v1/completions", json={"prompt": "a", "stream": True, **options})
    )
    assert len(pieces) == 2
    for piece in pieces:
        validator("/v1/completions", "post").validate(piece)


def test_streams_are_announced() -> None:
    streaming = {
        path
        for path, operations in DOCUMENT["paths"].items()
        for operation in operations.values()
        if "text/event-stream" in operation["responses"]["200"]["content"]
    }
    assert streaming == {"/generation", "/v1/completions"}


COMPLETIONS = [
    {"prompt": ["a", "b"]},
    {"prompt": [5, 6]},
    {"prompt": [[5], [6, 7]]},
    {"prompt": []},
    {"prompt": [""]},
    {"prompt": [[]]},
    {"prompt": ["a", 5]},
    {"prompt": [True]},
    {"prompt": None},
    {"prompt": "a", "suffix": None},
    {"prompt": "a", "suffix": "b"},
    {"prompt": "a", "stop": "b"},
    {"prompt": "a", "stop": ["b", "c", "d", "e", "f"]},
    {"prompt": "a", "stop": ""},
    {"prompt": "a", "stop": None},
    {"prompt": "a", "stop": [5]},
    {"prompt": "a", "logit_bias": {"50": -100}},
    {"prompt": "a", "logit_bias": {"050": 1}},
    {"prompt": "a", "logit_bias": {"50": 101}},
    {"prompt": "a", "stop_token_ids": [5]},
    {"prompt": "a", "stop_token_ids": [-5]},
    {"prompt": "a", "stop_token_ids": [5.0]},
    {"prompt": [2.0, 5.0]},
    {"prompt": [[2.5]]},
    {"prompt": "a", "n": 128.0},
    {"prompt": "a", "n": 129},
    {"prompt": "a", "logprobs": 100},
    {"prompt": "a", "logprobs": 101},
    {"prompt": "a", "temperature": None, "top_p": None, "top_k": None, "seed": None},
    {"prompt": "a", "seed": -(2**63)},
    {"prompt": "a", "timeout": 0},
    {"prompt": "a", "stream_options": {"include_usage": 1}},
    {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}},
]


@pytest.mark.parametrize("body", COMPLETIONS, ids=str)
def test_the_schema_allows_what_completions_take(body: dict[str, Any]) -> None:
    validator = OAS31Validator({**DOCUMENT, "$ref": "#/components/schemas/CompletionRequest"})
    is_taken = CLIENT.post("/v1/completions", json=body).status_code == 200
    assert validator.is_valid(body) == is_taken


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "max_tokens": 1.0},
        {"prompt": "a", "max_tokens": True},
        {"prompt": "a", "max_tokens": "5"},
        {"prompt": "a", "max_tokens": None},
        {"prompt": "a", "top_p": 0},
        {"prompt": "a", "top_k": None},
        {"prompt": ""},
        {"prompt": "a", "timeout": 60},
        {"prompt": "a", "timeout": None},
        {"prompt": "a", "timeout": 0},
        {"prompt": "a", "timeout": 86401},
        {"prompt": "a", "surprise": 1},
        {},
    ],
    ids=str,
)
def test_the_schema_allows_what_the_server_takes(body: dict[str, Any]) -> None:
    validator = OAS31Validator({**DOCUMENT, "$ref": "#/components/schemas/GenerationRequest"})
    is_taken = CLIENT.post("/generation", json=body).status_code == 200
    assert validator.is_valid(body) == is_taken
