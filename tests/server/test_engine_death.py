"""Processes are killed, paused and told to stop under load: nobody hangs, nothing is left."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from server.server_process import real_server
from server.talking import (
    LONG,
    PROMPT,
    ask,
    ask_refused,
    in_background,
    is_gone,
    metric,
    status,
    streaming,
    until,
)


def test_an_engine_that_is_killed_comes_back_and_gives_up_in_the_end() -> None:
    with real_server("engine.max_restarts=1") as server:
        url = server.await_url()
        expected = ask(url, PROMPT)
        engine = server.engine()
        with streaming(url, LONG) as stream:
            stream.await_text()
            engine.suspend()
            with in_background(url, PROMPT | {"max_tokens": 41}) as answer:
                engine.kill()
                assert until(lambda: status(url, "/readyz") == 503) < 1
                assert status(url, "/livez") == 200
                error = stream.end()["error"]
                assert error["message"].startswith("the engine died")
                assert error["type"] == "server_error"
                assert ask_refused(url) == "not_ready"
                until(lambda: status(url, "/readyz") == 200)
                text = answer.result().json()["choices"][0]["text"]
        assert text.startswith(expected)
        assert metric(url, "engine_restarts_total") == 1
        assert ask(url, PROMPT) == expected

        with streaming(url, LONG) as stream:
            stream.await_text()
            server.engine().kill()
            assert stream.end()["error"]["message"].startswith("the engine died")
        assert server.exit_code() == 1


def test_an_engine_that_is_paused_is_told_of_and_goes_on() -> None:
    with real_server("engine.stall_timeout=1", "engine.heartbeat_timeout=60") as server:
        url = server.await_url()
        expected = ask(url, PROMPT)
        server.engine().suspend()
        time.sleep(1.5)
        assert status(url, "/livez") == 200, "it has no work to get on with"
        with in_background(url, PROMPT | {"max_tokens": 41}) as answer:
            assert until(lambda: status(url, "/livez") == 503) < 3
            server.engine().resume()
            assert answer.result().json()["choices"][0]["text"].startswith(expected)
        assert status(url, "/livez") == 200
        assert metric(url, "engine_restarts_total") == 0


def test_an_engine_that_stays_paused_is_replaced() -> None:
    with real_server("engine.heartbeat_timeout=1") as server:
        url = server.await_url()
        expected = ask(url, PROMPT)
        paused = server.engine()
        paused.suspend()
        with in_background(url, PROMPT | {"max_tokens": 41}) as answer:
            server.await_record("the engine has said nothing")
            assert answer.result().json()["choices"][0]["text"].startswith(expected)
        assert is_gone(paused)

        server.engine().suspend()
        began = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0, "an engine that does not end by itself is ended"
        assert time.monotonic() - began < 10


def test_what_a_client_leaves_is_given_back_at_once() -> None:
    with real_server() as server:
        url = server.await_url()
        with streaming(url, LONG) as stream:
            stream.await_text()
            assert metric(url, "kv_cache_used_tokens") > 0
            assert metric(url, "generations_running") == 1
        assert until(lambda: metric(url, "kv_cache_used_tokens") == 0) < 2
        assert metric(url, "generations_running") == 0
        assert metric(url, "cancellations_total") == 1


def test_a_front_that_is_killed_takes_its_engine_along() -> None:
    with real_server() as server:
        url = server.await_url()
        engine = server.engine()
        with streaming(url, LONG) as stream:
            stream.await_text()
            server.send(signal.SIGKILL)
            assert until(lambda: is_gone(engine)) < 2


@pytest.mark.parametrize("seconds", [1.5, 3.0])
def test_it_can_be_stopped_while_it_starts(seconds: float) -> None:
    with real_server() as server:
        time.sleep(seconds)
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0


@pytest.mark.parametrize("seconds", [0.0, 0.3], ids=["at once", "a moment later"])
def test_it_can_be_stopped_while_it_loads(seconds: float) -> None:
    with real_server() as server:
        until(lambda: bool(psutil.Process(server.process.pid).children()))
        engine = server.engine()
        time.sleep(seconds)
        began = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
        assert time.monotonic() - began < 3
        assert is_gone(engine)


def test_what_runs_is_finished_whoever_else_gets_the_signal() -> None:
    with real_server() as server:
        url = server.await_url()
        engine = server.engine()
        with streaming(url, LONG | {"max_tokens": 300}) as stream:
            stream.await_text()
            os.killpg(server.process.pid, signal.SIGTERM)
            until(lambda: status(url, "/readyz") == 503)
            assert stream.end()["choices"][0]["finish_reason"] == "length"
        assert server.exit_code() == 0
        assert is_gone(engine)


def test_an_engine_that_dies_while_it_stops_keeps_nobody_waiting() -> None:
    with real_server() as server:
        url = server.await_url()
        with streaming(url, LONG) as stream:
            stream.await_text()
            server.engine().suspend()
            server.send(signal.SIGTERM)
            until(lambda: status(url, "/readyz") == 503)
            began = time.monotonic()
            server.engine().kill()
            assert stream.end()["error"]["message"].startswith("the engine died")
        assert server.exit_code() == 0
        assert time.monotonic() - began < 5


def test_a_second_signal_ends_both_processes_at_once() -> None:
    with real_server() as server:
        url = server.await_url()
        engine = server.engine()
        with streaming(url, LONG) as stream:
            stream.await_text()
            engine.suspend()
            server.send(signal.SIGTERM)
            server.await_record("stopping: ")
            server.send(signal.SIGTERM)
            began = time.monotonic()
            assert server.exit_code() == 1
            assert time.monotonic() - began < 1
            assert until(lambda: is_gone(engine)) < 2
