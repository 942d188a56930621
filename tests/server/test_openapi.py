"""The OpenAPI document is valid and says what is true."""

from __future__ import annotations

from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from server.fakes import FakeService, client_of

CLIENT = client_of(FakeService())
DOCUMENT: dict[str, Any] = CLIENT.get("/openapi.json").json()
PATHS = ("/generation", "/livez", "/readyz", "/health", "/version", "/plugins")


def test_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_lists_every_path() -> None:
    assert tuple(DOCUMENT["paths"]) == PATHS


def test_explains_every_operation_and_every_field() -> None:
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            assert operation["summary"]
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description") or "$ref" in described, (name, field)


def test_the_examples_are_a_request_that_works() -> None:
    fields = DOCUMENT["components"]["schemas"]["GenerationRequest"]["properties"]
    example = {name: field["examples"][0] for name, field in fields.items()}
    assert CLIENT.post("/generation", json=example).status_code == 200


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/generation"])
def test_answers_match_their_schema(path: str) -> None:
    responses = DOCUMENT["paths"][path]["get"]["responses"]
    reference = responses["200"]["content"]["application/json"]["schema"]
    OAS31Validator({**DOCUMENT, **reference}).validate(CLIENT.get(path).json())


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
        {"prompt": "a", "surprise": 1},
        {},
    ],
    ids=str,
)
def test_the_schema_allows_what_the_server_takes(body: dict[str, Any]) -> None:
    validator = OAS31Validator({**DOCUMENT, "$ref": "#/components/schemas/GenerationRequest"})
    is_taken = CLIENT.post("/generation", json=body).status_code == 200
    assert validator.is_valid(body) == is_taken
