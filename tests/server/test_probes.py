"""The probes tell the truth in every state."""

from __future__ import annotations

import platform
from importlib.metadata import version

import pytest

from pluribus.supervisor import State
from server.fakes import FakeService, client_of


@pytest.mark.parametrize("path", ["/readyz", "/health"])
@pytest.mark.parametrize("state", list(State))
def test_only_a_ready_service_is_ready(path: str, state: State) -> None:
    service = FakeService()
    service.become(state, "40 % of the weights")
    response = client_of(service).get(path)
    assert response.status_code == (200 if state is State.READY else 503)
    body = response.json()
    assert (body["state"], body["detail"]) == (state, "40 % of the weights")


@pytest.mark.parametrize("state", [State.LOADING, State.READY, State.STOPPING])
def test_a_service_is_alive_until_it_has_failed(state: State) -> None:
    service = FakeService()
    service.become(state)
    assert client_of(service).get("/livez").status_code == 200
    service.become(State.FAILED)
    assert client_of(service).get("/livez").status_code == 503


def test_a_service_whose_engine_does_not_advance_is_not_alive() -> None:
    service = FakeService()
    service.stall()
    assert client_of(service).get("/livez").status_code == 503


def test_health_tells_the_model_and_the_version() -> None:
    body = client_of(FakeService()).get("/health").json()
    assert (body["model"], body["version"]) == ("fake", version("pluribus"))


def test_version_tells_what_runs() -> None:
    assert client_of(FakeService()).get("/version").json() == {
        "version": version("pluribus"),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def test_plugins_are_listed() -> None:
    service = FakeService()
    assert client_of(service).get("/plugins").json() == {"plugins": service.plugins.describe()}


@pytest.mark.parametrize("path", ["/livez", "/docs", "/generation", "/nothing", "/static/docs.js"])
def test_every_answer_names_its_request_and_forbids_sniffing(path: str) -> None:
    headers = client_of(FakeService()).get(path).headers
    assert headers["X-Request-Id"]
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("\x7f", False)],
)
def test_a_sane_request_id_is_kept(given: str, is_kept: bool) -> None:
    headers = client_of(FakeService()).get("/livez", headers={"X-Request-Id": given}).headers
    assert (headers["X-Request-Id"] == given) == is_kept
