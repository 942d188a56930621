"""HTTP in several processes: the same answers, one set of limits and metrics, no orphans."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import trustme

from server.server_process import LIMIT, Server, real_server
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

TWO = ("server.workers=2", "device=cpu")
HOLDS = "engine.heartbeat_timeout=60"
"""Lets the engine be paused, so that what runs goes on running."""
NUM_TRIES = 4
"""Connections one after the other, over which both of two workers are asked."""

PROMPTS = ["Once", "The old man", "A cat", "In the forest"]
"""As many as would not be answered together."""

BODIES: list[dict[str, Any]] = [
    PROMPT,
    PROMPT | {"prompt": ["Once", "The old man"], "n": 2, "temperature": 0.8, "seed": 3},
    PROMPT | {"best_of": 3, "n": 2, "temperature": 1, "seed": 1, "max_tokens": 8},
    PROMPT | {"logprobs": 3, "max_tokens": 6, "echo": True},
    PROMPT | {"logprobs": 1, "max_tokens": 0, "echo": True},
    PROMPT | {"prompt": [2, 100, 200], "stop": ["the", "zebra"], "max_tokens": 60},
    PROMPT | {"stop": [" a"], "min_tokens": 5, "logprobs": 0},
    PROMPT | {"prompt": "é" * 20, "max_tokens": 12},
    {"prompt": ""},
    {"prompt": "Once", "max_tokens": 100000},
    {"prompt": "Once", "logit_bias": {"999999": 1}},
    {"prompt": "Once", "model": "another"},
    {"prompt": "Once", "temperature": "hot"},
    {"prompt": "Once", "timeout": 0.001, "max_tokens": 1000, "ignore_eos": True},
]


@contextmanager
def two_workers(*overrides: str) -> Iterator[tuple[Server, str]]:
    with real_server(*TWO, *overrides) as server:
        yield server, server.await_url()


def comparable(response: httpx2.Response) -> Any:
    """Return an answer without what is different each time."""
    names = {"content-type", "retry-after", "x-cache"}
    headers = {name: value for name, value in response.headers.items() if name in names}
    text = re.sub(r'"(id|created)":("[^"]*"|\d+)', "", response.text)
    return response.status_code, headers, text


def joined(response: httpx2.Response) -> Any:
    """Return a streamed answer as if it had come in one piece."""
    if response.status_code != 200:
        return comparable(response)
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        ends[choice["index"]] = choice["finish_reason"]
    return texts, ends, events[-1].get("usage"), response.text.endswith("data: [DONE]\n\n")


def everything(url: str) -> list[Any]:
    """Return what a server says to all sorts of requests, each over a connection of its own."""
    path = f"{url}/v1/completions"
    said = [comparable(httpx2.post(path, json=body, timeout=LIMIT)) for body in BODIES]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for body in BODIES[:-1]:
        said.append(joined(httpx2.post(path, json=body | options, timeout=LIMIT)))
    for path in ("/", "/docs", "/openapi.json", "/version", "/plugins", "/health", "/nothing"):
        said.append(comparable(httpx2.get(url + path)))
    generation = {"prompt": "Once", "top_k": 1, "max_tokens": 9}
    said.append(comparable(httpx2.post(f"{url}/generation", json=generation, timeout=LIMIT)))
    said.append(comparable(httpx2.post(f"{url}/tokenize", json={"prompt": "Once"})))
    said.append(comparable(httpx2.post(f"{url}/detokenize", json={"tokens": [5, 6]})))
    return said


def test_the_answers_are_those_of_one_process_whoever_gives_them() -> None:
    # Each a second time from the cache, and by the other worker.
    with real_server("device=cpu", "cache/response=lru", "cache.kv.prefix_caching=false") as server:
        expected = everything(server.await_url())
    with two_workers("cache/response=lru", "cache.kv.prefix_caching=false") as (server, url):
        for said, wanted in zip(everything(url), expected, strict=True):
            assert said == wanted
        assert server.workers_that_answered() == {0, 1}
        created = {
            httpx2.get(f"{url}/v1/models").json()["data"][0]["created"] for _ in range(NUM_TRIES)
        }
        assert len(created) == 1
        assert ask(url, PROMPT) == ask(url, PROMPT)
        assert metric(url, "response_cache_hits_total") >= 2
        assert metric(url, "http_workers") == 2
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
    assert server.log().count('"serving ') == 1


def test_what_a_client_leaves_is_given_back_at_once() -> None:
    with two_workers() as (_, url):
        with ExitStack() as stack:
            for prompt in PROMPTS[:2]:
                stack.enter_context(streaming(url, LONG | {"prompt": prompt})).await_text()
        until(lambda: metric(url, "cancellations_total") == 2, 2)
        assert until(lambda: metric(url, "kv_cache_used_tokens") == 0) < 2


def test_metrics_add_up_whoever_tells_them() -> None:
    with two_workers() as (server, url):
        for _ in range(NUM_TRIES):
            ask(url, PROMPT)
        endpoint = r'requests_total\{endpoint="/v1/completions",status="200"\}'
        for _ in range(NUM_TRIES):
            until(lambda: metric(url, endpoint) == NUM_TRIES, 2)
            assert metric(url, r'generations_total\{outcome="length",tenant="anonymous"\}') == 4
        assert server.workers_that_answered() == {0, 1}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_limits_are_the_server_s_and_keys_and_tls_hold_at_every_worker(
    authority: trustme.CA, tmp_path: Path
) -> None:
    issued = authority.issue_cert("127.0.0.1")
    pem, keys = tmp_path / "both.pem", tmp_path / "keys"
    issued.private_key_and_cert_chain_pem.write_to_path(pem)
    keys.write_text("small secret max_requests=2\n")
    keys.chmod(0o600)
    overrides = [f"server.tls.certfile={pem}", f"server.auth.keys_file={keys}"]
    with real_server(*TWO, *overrides, "server.max_connections=3", HOLDS) as server:
        url = re.search(r"https://\S+", server.await_record("serving ")["event"])
        assert url
        context = ssl.create_default_context()
        authority.configure_trust(context)
        keys.unlink()  # read once, for all workers that there will be
        path, holder = f"{url.group()}/v1/completions", {"Authorization": "Bearer secret"}
        with ExitStack() as stack:
            clients = [stack.enter_context(httpx2.Client(verify=context)) for _ in range(4)]
            lines = []
            for client, prompt in zip(clients[:2], PROMPTS, strict=False):
                assert client.post(path, json=PROMPT).status_code == 401
                body = LONG | {"stream": True, "prompt": prompt}
                stream = client.stream("POST", path, json=body, headers=holder, timeout=LIMIT)
                lines.append(stack.enter_context(stream).iter_lines())
                next(lines[-1])
            server.engine().suspend()
            third = clients[2].post(path, json=PROMPT, headers=holder)
            assert third.status_code == 429
            assert third.headers["Retry-After"]
            assert third.json()["error"]["code"] == "rate_limit_exceeded"
            excess = clients[3].post(path, json=PROMPT, headers=holder)
            assert excess.status_code == 503
            assert excess.json()["error"]["code"] == "too_many_connections"
            assert clients[3].get(f"{url.group()}/livez").status_code == 200
        assert server.workers_that_answered() == {0, 1}


QUESTION = LONG | {"max_tokens": 300}


def streams_at_both(stack: ExitStack, server: Server, url: str) -> list[Any]:
    """Return four streams that have begun, two at each worker."""
    streams = [stack.enter_context(streaming(url, QUESTION | {"prompt": each})) for each in PROMPTS]
    for stream in streams:
        stream.await_text()
    return streams


def test_a_worker_that_is_killed_takes_its_own_connections_with_it_and_comes_back() -> None:
    with two_workers("engine.max_restarts=0", HOLDS) as (server, url), ExitStack() as stack:
        expected = ask(url, PROMPT)
        streams = streams_at_both(stack, server, url)
        server.engine().suspend()
        assert metric(url, "generations_running") == 4
        killed, other = server.workers()
        killed.kill()
        until(lambda: metric(url, "cancellations_total") == 2)
        server.engine().resume()
        endings = []
        for stream in streams:
            try:
                endings.append(stream.end())
            except httpx2.HTTPError:
                endings.append({})
        finished = [ending for ending in endings if ending]
        assert len(finished) == 2
        assert all(ending["choices"][0]["finish_reason"] == "length" for ending in finished)
        until(lambda: metric(url, "http_workers") == 2)
        assert metric(url, "http_worker_restarts_total") == 1
        assert metric(url, "kv_cache_used_tokens") == 0
        assert metric(url, "engine_restarts_total") == 0
        assert other in server.workers()
        assert [ask(url, PROMPT) for _ in range(2)] == [expected] * 2


def test_no_connection_is_refused_while_all_workers_are_dead() -> None:
    with two_workers() as (server, url):
        for worker in server.workers():
            worker.kill()
        assert status(url, "/readyz") == 200
        assert ask(url, PROMPT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_what_runs_at_any_worker_is_finished_before_it_stops(number: signal.Signals) -> None:
    with two_workers(HOLDS) as (server, url), ExitStack() as stack:
        processes = server.processes()
        assert len(processes) == 3
        streams = streams_at_both(stack, server, url)
        engine = server.engine()
        engine.suspend()
        os.killpg(server.process.pid, number)
        until(lambda: status(url, "/readyz") == 503)
        assert status(url, "/livez") == 200
        assert [ask_refused(url) for _ in range(2)] == ["not_ready"] * 2
        engine.resume()
        for stream in streams:
            assert stream.end()["choices"][0]["finish_reason"] == "length"
        assert server.exit_code() == 0
        assert all(map(is_gone, processes))


def test_a_second_signal_ends_all_at_once() -> None:
    with two_workers() as (server, url), ExitStack() as stack:
        processes = server.processes()
        streams_at_both(stack, server, url)
        server.engine().suspend()
        server.send(signal.SIGTERM)
        server.await_record("stopping: ")
        server.send(signal.SIGTERM)
        assert server.exit_code() == 1
        assert until(lambda: all(map(is_gone, processes))) < 2


def test_a_first_process_that_is_killed_takes_all_along() -> None:
    with two_workers() as (server, url), ExitStack() as stack:
        processes = server.processes()
        streams_at_both(stack, server, url)
        server.send(signal.SIGKILL)
        assert until(lambda: all(map(is_gone, processes))) < 2


@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["at once", "a moment later"])
def test_it_can_be_stopped_while_it_starts(seconds: float) -> None:
    with real_server(*TWO) as server:
        until(lambda: len(psutil.Process(server.process.pid).children()) == 3)
        processes = server.processes()
        time.sleep(seconds)
        began = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
        assert time.monotonic() - began < 3
        assert all(map(is_gone, processes))


def test_the_engine_s_death_is_told_at_every_worker_and_what_nobody_saw_is_run_again() -> None:
    with two_workers("engine.max_restarts=1") as (server, url), ExitStack() as stack:
        expected = ask(url, PROMPT)
        streams = streams_at_both(stack, server, url)
        engine = server.engine()
        engine.suspend()
        with in_background(url, PROMPT | {"max_tokens": 41}) as answer:
            engine.kill()
            for _ in range(2):
                assert until(lambda: status(url, "/readyz") == 503) < 1
            for stream in streams:
                assert stream.end()["error"]["message"].startswith("the engine died")
            until(lambda: status(url, "/readyz") == 200)
            assert answer.result().json()["choices"][0]["text"].startswith(expected)
        assert metric(url, "engine_restarts_total") == 1
        server.engine().kill()
        assert server.exit_code() == 1
