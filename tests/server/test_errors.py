"""Bad input gets a 4xx in OpenAI's shape that names the field, the value and the limit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.errors import EngineError, PluribusError, QueueFullError, RequestError
from pluribus.server.config import ServerConfig
from server.fakes import FakeService, client_of, refusing

CLIENT = client_of(FakeService())
JSON = {"Content-Type": "application/json"}
FIELDS = ("prompt", "max_tokens", "top_k", "top_p", "temperature", "seed", "stream")


def error_of(response: Any) -> dict[str, Any]:
    """Return the error in ``response``, whose shape is checked."""
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    is_server_error = response.status_code >= 500
    assert error["type"] == ("server_error" if is_server_error else "invalid_request_error")
    return error


@dataclass(frozen=True)
class Bad:
    """A body that is refused, and what the answer says."""

    body: str | bytes
    status: int
    param: str | None
    says: str


def field(name: str, value: str, says: str) -> Bad:
    """Return a body that is right but for one field, whose value is given as JSON text."""
    fields = {"prompt": '"Once"', name: value}
    body = ", ".join(f'"{key}": {text}' for key, text in fields.items())
    return Bad(f"{{{body}}}", 422, name, says)


BAD = [
    Bad("", 400, None, "the body is empty"),
    Bad(" \n", 400, None, "the body is empty"),
    Bad("prompt=Once", 400, None, "not JSON: Expecting value at line 1, column 1"),
    Bad('{"prompt": "Once"', 400, None, "not JSON"),
    Bad('{"prompt": "Once",}', 400, None, "not JSON"),
    Bad("{'prompt': 'Once'}", 400, None, "not JSON"),
    Bad('{"prompt": "Once"} more', 400, None, "Extra data at line 1, column 20"),
    Bad('{"prompt": "a\nb"}', 400, None, "Invalid control character"),
    Bad(b'{"prompt": "\xff"}', 400, None, "not UTF-8: invalid start byte at byte 12"),
    Bad('{"prompt": "Once"}'.encode("utf-16"), 400, None, "not UTF-8"),
    Bad(b'\xef\xbb\xbf{"prompt": "Once"}', 400, None, "BOM"),
    Bad("[" * 200_000, 400, None, "nested too deeply"),
    Bad('{"prompt": ' + '{"a":' * 100_000, 400, None, "nested too deeply"),
    Bad('{"prompt": "a", "prompt": "b"}', 400, "prompt", "field 'prompt' is given twice"),
    Bad(f'{{"seed": {"9" * 5000}}}', 400, None, "a number of too many digits"),
    Bad("[]", 422, None, "the body is an array; send an object"),
    Bad('"Once"', 422, None, 'the body is "Once"; send an object'),
    Bad("null", 422, None, "the body is null; send an object"),
    Bad("{}", 422, "prompt", "prompt: is required; give a string"),
    field("prompt", '""', 'prompt: "" is too short; the minimum length is 1'),
    field("prompt", "null", "prompt: null is not a string"),
    field("prompt", "5", "prompt: 5 is not a string"),
    field("prompt", "NaN", "prompt: NaN is not a string"),
    field("prompt", '["Once"]', "prompt: an array is not a string"),
    field("prompt", "[" * 500 + "]" * 500, "prompt: an array is not a string"),
    field("prompt", '"\\ud800"', 'prompt: "\\ud800" holds half a surrogate pair'),
    field("max_tokens", "0", "max_tokens: 0 is below the minimum, 1"),
    field("max_tokens", "-3.0", "max_tokens: -3 is below the minimum, 1"),
    field("max_tokens", "1.5", "max_tokens: 1.5 is not an integer from 1 to 2147483647 or null"),
    field("max_tokens", '"5"', 'max_tokens: "5" is not an integer'),
    field("max_tokens", "true", "max_tokens: true is not an integer"),
    field("max_tokens", "Infinity", "max_tokens: Infinity is not an integer"),
    field("max_tokens", "1e308", "is above the maximum, 2147483647"),
    field("max_tokens", "1" + "0" * 400, "is above the maximum, 2147483647"),
    field("top_k", "-1", "top_k: -1 is below the minimum, 0"),
    field("top_k", "null", "top_k: null is not an integer from 0 to 2147483647"),
    field("top_k", "1" + "0" * 400, "is above the maximum, 2147483647"),
    field("top_p", "0", "top_p: 0 is not above 0"),
    field("top_p", "1.01", "top_p: 1.01 is above the maximum, 1"),
    field("top_p", '"a"', 'top_p: "a" is not a number above 0 and at most 1'),
    field("top_p", "1" + "0" * 400, "top_p: 1"),
    field("temperature", "-0.1", "temperature: -0.1 is below the minimum, 0"),
    field("temperature", "2.5", "temperature: 2.5 is above the maximum, 2"),
    field("temperature", "NaN", "temperature: NaN is not a number from 0 to 2"),
    field("temperature", "-Infinity", "temperature: -Infinity is not a number from 0 to 2"),
    field("temperature", "1e999", "temperature: Infinity is not a number from 0 to 2"),
    field("temperature", "true", "temperature: true is not a number from 0 to 2"),
    field("temperature", "{}", "temperature: an object is not a number from 0 to 2"),
    field("seed", "-1", "seed: -1 is below the minimum, 0"),
    field("seed", str(2**63), "is above the maximum, 9223372036854775807"),
    field("max_token", "5", "unknown field 'max_token' (did you mean 'max_tokens'?); allowed: "),
    field("echo", "true", "unknown field 'echo'; allowed: " + ", ".join(FIELDS)),
    field("stream", "1", "stream: 1 is not true or false"),
    Bad('{"\\ud800": 5}', 400, None, "a field's name holds half a surrogate pair"),
    Bad(json.dumps(dict.fromkeys(map(str, range(1001)))), 400, None, "1001 fields; 1000 are"),
    field("", "5", "unknown field ''"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad.body)[:40])
def test_bad_input_is_refused_with_its_reason(bad: Bad) -> None:
    response = CLIENT.post("/generation", content=bad.body, headers=JSON)
    error = error_of(response)
    assert response.status_code == bad.status
    assert bad.says in error["message"]
    assert error["param"] == (bad.param or None)


def test_long_values_are_shortened() -> None:
    body = {"prompt": "Once", "top_k": "x" * 100_000, "y" * 100_000: 1}
    message = error_of(CLIENT.post("/generation", json=body))["message"]
    assert "top_k: " in message
    assert len(message) < 500


def test_says_everything_that_is_wrong_up_to_a_point() -> None:
    body = {"prompt": "", "max_tokens": 0, "top_k": -1, "top_p": 0, "seed": -1}
    message = error_of(CLIENT.post("/generation", json=body))["message"]
    assert all(name in message for name in ("prompt", "max_tokens", "top_k"))
    assert message.endswith("; and 2 more")


@pytest.mark.parametrize(
    ("path", "field", "wrong"),
    [
        ("/v1/completions", "stop", ""),
        ("/v1/completions", "stop_token_ids", -1),
        ("/detokenize", "tokens", "a"),
    ],
    ids=str,
)
def test_says_what_is_wrong_with_the_first_item_of_an_array_alone(
    path: str, field: str, wrong: Any
) -> None:
    body = {field: [wrong] * 1000} | ({} if field == "tokens" else {"prompt": "Once"})
    error = error_of(CLIENT.post(path, json=body))
    assert error["param"] == f"{field}.0"
    assert "more" not in error["message"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(JSON_VALUES | st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON_VALUES))
def test_any_json_is_answered_or_refused(body: Any) -> None:
    response = CLIENT.post("/generation", content=json.dumps(body), headers=JSON)
    if response.status_code != 200:
        assert 400 <= response.status_code < 500
        error_of(response)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_answered_or_refused(body: bytes) -> None:
    response = CLIENT.post("/generation", content=body, headers=JSON)
    assert response.status_code == 200 or 400 <= response.status_code < 500


@pytest.mark.parametrize("given_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_says_which_media_type_to_send(given_type: str | None) -> None:
    headers = {"Content-Type": given_type} if given_type else {}
    response = CLIENT.post("/generation", content=b'{"prompt": "Once"}', headers=headers)
    assert response.status_code == 415
    message = error_of(response)["message"]
    assert message == (
        f"send the header 'Content-Type: application/json', got {given_type or 'none'}"
    )


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "announced"])
def test_refuses_bodies_over_the_limit(chunked: bool) -> None:
    client = client_of(FakeService(), ServerConfig(max_body_bytes=100))
    body = json.dumps({"prompt": "x" * 100}).encode()
    content = (body[i : i + 10] for i in range(0, len(body), 10)) if chunked else body
    response = client.post("/generation", content=content, headers=JSON)
    assert response.status_code == 413
    error = error_of(response)
    assert "100 bytes" in error["message"]
    assert "server.max_body_bytes" in error["message"]
    assert response.headers["X-Request-Id"]


def test_takes_bodies_at_the_limit() -> None:
    body = json.dumps({"prompt": "Once"}).encode()
    client = client_of(FakeService(), ServerConfig(max_body_bytes=len(body)))
    assert client.post("/generation", content=body, headers=JSON).status_code == 200


def test_says_which_methods_are_allowed() -> None:
    response = CLIENT.get("/generation")
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    assert error_of(response)["message"] == "GET is not allowed at /generation; allowed: POST"


@pytest.mark.parametrize("path", ["/generation/", "/v1/completions/", "/livez/", "/docs/"])
def test_a_path_with_a_slash_too_many_leads_nowhere(path: str) -> None:
    """Least of all to where the request's own Host header says."""
    response = CLIENT.request(
        "GET", path, headers={"Host": "elsewhere.example"}, follow_redirects=False
    )
    assert response.status_code == 404
    assert error_of(response)["code"] == "not_found"


def test_says_that_there_is_nothing() -> None:
    response = CLIENT.post("/generations", json={"prompt": "Once"})
    assert response.status_code == 404
    assert error_of(response)["message"].startswith("there is nothing at /generations")


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (EngineError("still loading"), 503, "not_ready", 5),
        (QueueFullError("1024 wait"), 503, "queue_full", 1),
        (QueueFullError("8 wait", is_tenant=True), 429, "rate_limit_exceeded", 1),
        (QueueFullError("8", is_tenant=True, retry_after=2.1), 429, "rate_limit_exceeded", 3),
    ],
    ids=["loading", "full", "yours are too many", "wait longer"],
)
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ["/generation", "/v1/completions"])
def test_says_when_to_come_back(
    path: str, streams: bool, error: PluribusError, status: int, code: str, retry_after: int
) -> None:
    response = refusing(error).post(path, json={"prompt": "Once", "stream": streams})
    assert response.status_code == status
    assert response.headers["Retry-After"] == str(retry_after)
    told = error_of(response)
    assert (told["message"], told["code"]) == (str(error), code)


def test_what_the_service_refuses_is_the_clients_to_change() -> None:
    refusal = RequestError("max_tokens: 99 is more than the 3 that fit", param="max_tokens")
    response = refusing(refusal).post("/generation", json={"prompt": "Once"})
    assert response.status_code == 422
    error = error_of(response)
    assert (error["message"], error["param"]) == (str(refusal), "max_tokens")


def test_unforeseen_errors_tell_the_client_nothing_but_where_to_look() -> None:
    client = client_of(FakeService(refusal=ZeroDivisionError("secret")))
    response = client.post("/generation", json={"prompt": "Once"}, headers={"X-Request-Id": "me"})
    assert response.status_code == 500
    assert response.headers["X-Request-Id"] == "me"
    assert "secret" not in error_of(response)["message"]
