"""Logs are structured, carry request ids, and hold no prompt."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from framework.counting import CountingExecutor
from framework.front import on_executors, parts, run
from pluribus.assembly import EngineConfig
from pluribus.errors import EngineError
from pluribus.generation import SamplingParams
from pluribus.logs import configure_logging
from pluribus.service import Service
from server.fakes import FakeService, client_of
from server.server_process import LIMIT, real_server

SECRET = "my-secret-prompt"
KEY = "sk-my-secret-key"


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


@pytest.mark.parametrize("log_format", ["auto", "json", "console"])
def test_nothing_is_logged_where_there_is_no_standard_error(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    configure_logging(log_format, "info")
    structlog.stdlib.get_logger("pluribus").info("nobody reads this")


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


def test_a_step_that_fails_names_its_requests_and_not_what_they_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json", "debug")
    executor = CountingExecutor()
    executor.failure = ValueError("on fire")

    async def test(service: Service) -> None:
        structlog.contextvars.bind_contextvars(request_id="r1")
        query = service.query(SECRET, SamplingParams(max_tokens=1))
        with service.ask(query) as reply, pytest.raises(EngineError, match="on fire"):
            await reply.wait()

    run(test, on_executors(executor), parts(engine=EngineConfig(max_restarts=0)))
    logged = capsys.readouterr().err
    failed = [json.loads(line) for line in logged.splitlines() if '"a step failed"' in line]
    assert [record["request_ids"] for record in failed] == [["r1"]]
    assert "ValueError" in logged
    assert SECRET not in logged
    assert ", ".join(map(str, map(ord, SECRET))) not in logged


BODIES: list[dict[str, Any]] = [
    {"prompt": SECRET},
    {"prompt": SECRET, "stream": True},
    {"prompt": SECRET, "suffix": SECRET},
    {"prompt": SECRET, "max_tokens": SECRET},
    {"prompt": SECRET, SECRET: 1},
    {"prompt": [SECRET, SECRET], "stop": SECRET, "echo": True, "logprobs": 1},
    {"prompt": SECRET * 500},
    {"prompt": {"text": SECRET}},
    {"prompt": SECRET, "model": SECRET},
]


def test_no_log_of_either_process_holds_a_prompt_or_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice {KEY}-good\n")
    overrides = ["server.log_level=debug", f"server.auth.keys_file={keys}"]
    with real_server(*overrides, env={"PLURIBUS_API_KEYS": f"{KEY}-env"}) as server:
        url = server.await_url()
        for suffix in ("good", "env", "bad"):
            headers = {"Authorization": f"Bearer {KEY}-{suffix}", "X-Request-Id": suffix}
            for body in BODIES:
                httpx2.post(f"{url}/v1/completions", json=body, headers=headers, timeout=LIMIT)
            httpx2.post(f"{url}/v1/completions", content=f'{{"{SECRET}"', headers=headers)
            httpx2.get(f"{url}/v1/models?api_key={KEY}&q={SECRET}", headers=headers)
            httpx2.post(f"{url}/tokenize", json={"prompt": SECRET}, headers=headers)
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.get(url, headers={"Authorization": f"{KEY}\x00"})
        good = {"Authorization": f"Bearer {KEY}-good"}
        with httpx2.stream(
            "POST",
            f"{url}/v1/completions",
            json={"prompt": SECRET, "stream": True, "max_tokens": 900, "ignore_eos": True},
            headers=good,
            timeout=LIMIT,
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.engine().kill()
            assert "the engine died" in "".join(lines)
        server.await_record("serving ")
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
    logged = server.log()
    assert SECRET not in logged
    assert KEY not in logged
    told = [json.loads(line) for line in logged.splitlines()]
    engine = [record for record in told if record["logger"] == "pluribus.engine.loop"]
    assert {"good", "env"} <= {record["request_id"] for record in engine if "generation" in record}
    tenants = {record["tenant"] for record in told if record["event"] == "request"}
    assert tenants == {"alice", "key-1", "anonymous"}
