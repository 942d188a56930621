"""Several engines behind one front: what befalls one of them is nothing to the others."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx2

from server.server_process import Server, real_server
from server.talking import LONG, ask, is_gone, metric, status, streaming, until

PROMPTS = ["Once upon a time", "The old man", "A cat", "In the forest", "Tom said", "One day"]
QUESTIONS = [LONG | {"prompt": prompt, "max_tokens": 200} for prompt in PROMPTS]


def await_both(server: Server) -> str:
    url = server.await_url()
    until(lambda: metric(url, r'replicas\{state="ready"\}') == 2)
    return url


def load(url: str, replica: int) -> int:
    """Return how many generations a replica has."""
    return int(metric(url, rf'replica_generations\{{replica="{replica}"\}}'))


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["choices"][0]["text"] for event in events if event["choices"])


def test_a_killed_engine_is_nothing_to_another_and_what_it_had_not_shown_goes_there() -> None:
    with real_server("parallel.replicas=2", "device=cpu") as server, ThreadPoolExecutor(12) as pool:
        url = await_both(server)
        expected = list(pool.map(partial(ask, url), QUESTIONS))
        unseen = [question | {"max_tokens": 20} for question in QUESTIONS]
        engine = server.engines()[0]
        with ExitStack() as stack:
            streams = [stack.enter_context(streaming(url, each)) for each in QUESTIONS]
            for stream in streams:
                stream.await_text()
            engine.suspend()
            time.sleep(0.2)  # for what it had said before
            num_shown = load(url, 0)
            assert 0 < num_shown < len(streams)
            answers = [pool.submit(ask, url, question) for question in unseen]
            until(lambda: load(url, 0) > num_shown)
            engine.kill()
            endings = [list(stream.events()) for stream in streams]
        errors = [events[-1]["error"] for events in endings if "error" in events[-1]]
        assert len(errors) == num_shown
        assert all(error["message"].startswith("the engine died") for error in errors)
        for events, whole in zip(endings, expected, strict=True):
            assert "error" in events[-1] or whole.endswith(text_of(events))
        for answer, whole in zip(answers, expected, strict=True):
            assert whole.startswith(answer.result())
        assert status(url, "/readyz") == 200
        until(lambda: metric(url, r'replicas\{state="ready"\}') == 2)
        assert metric(url, "engine_restarts_total") == 1
        assert list(pool.map(partial(ask, url), QUESTIONS)) == expected


def test_one_that_is_given_up_leaves_a_service_that_is_ready_and_the_last_ends_it() -> None:
    with real_server("parallel.replicas=2", "device=cpu", "engine.max_restarts=0") as server:
        url = await_both(server)
        expected = ask(url, QUESTIONS[0])
        first, second = server.engines()
        first.kill()
        until(lambda: metric(url, r'replicas\{state="failed"\}') == 1)
        health = httpx2.get(f"{url}/health")
        assert health.status_code == 200
        assert health.json()["detail"].endswith("with 1 of 2 replicas")
        assert [replica["state"] for replica in health.json()["replicas"]] == ["failed", "ready"]
        assert [status(url, path) for path in ("/readyz", "/livez")] == [200, 200]
        assert ask(url, QUESTIONS[0]) == expected
        second.kill()
        assert server.exit_code() == 1


def test_what_runs_anywhere_is_finished_before_it_stops() -> None:
    with real_server("parallel.replicas=2", "device=cpu") as server:
        url = await_both(server)
        engines = server.engines()
        with ExitStack() as stack:
            streams = [stack.enter_context(streaming(url, each)) for each in QUESTIONS]
            for stream in streams:
                stream.await_text()
            server.send(signal.SIGTERM)
            until(lambda: status(url, "/readyz") == 503)
            assert all(
                stream.end()["choices"][0]["finish_reason"] == "length" for stream in streams
            )
        assert server.exit_code() == 0
        assert all(map(is_gone, engines))


def test_a_prompt_goes_on_where_its_beginning_is_known() -> None:
    beginning = "Once upon a time there was a little girl who lived in a house. " * 3
    with real_server("parallel.replicas=2", "device=cpu") as server:
        url = await_both(server)
        for end in ("She", "Her mother", "Her cat", "The sun"):
            ask(url, LONG | {"prompt": beginning + end, "max_tokens": 4})
        queried, found = (
            metric(url, f"prefix_cache_{what}_tokens_total") for what in ("queried", "hit")
        )
        assert found > 0.5 * queried
