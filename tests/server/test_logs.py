"""Logs are structured, carry request ids, and hold no prompt."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from pluribus.logs import configure_logging
from server.fakes import FakeService, client_of

SECRET = "my-secret-prompt"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_one_line_a_request_tells_how_it_went_and_not_what_was_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json", "info")
    client_of(FakeService()).post(
        "/generation?x=y", json={"prompt": SECRET}, headers={"X-Request-Id": "r1"}
    )
    ours = [record for record in records(capsys) if record["event"] == "request"]
    assert len(ours) == 1
    assert ours[0].items() >= {
        "method": "POST", "path": "/generation", "status": 200, "request_id": "r1",
    }.items()  # fmt: skip
    assert 0 <= ours[0]["seconds"] < 10
    assert SECRET not in json.dumps(ours)


def test_records_of_libraries_carry_the_request_id_and_their_arguments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json", "info")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        logging.getLogger("uvicorn.error").warning("plain %s", "line", extra={"port": 1})
    (record,) = records(capsys)
    assert record.items() >= {
        "event": "plain line", "logger": "uvicorn.error", "level": "warning",
        "request_id": "r1", "port": 1,
    }.items()  # fmt: skip


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_unforeseen_error_is_logged_without_local_variables(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(log_format, "info")
    client = client_of(FakeService(refusal=ZeroDivisionError("the cause")))
    client.post("/generation", json={"prompt": SECRET}, headers={"X-Request-Id": "r1"})
    logged = capsys.readouterr().err
    assert "the cause" in logged
    assert "r1" in logged
    assert "fakes.py" in logged
    assert SECRET not in logged


def test_a_path_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "info")
    client_of(FakeService()).get("/%0Aforged")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "path=" in line]
    assert "/%0Aforged" in line


def test_records_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "warning")
    client_of(FakeService()).get("/livez")
    assert records(capsys) == []
