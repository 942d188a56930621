"""What tests say to a server in a process of its own, and how they wait for it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import psutil

from server.server_process import LIMIT

PROMPT = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 40}
LONG = PROMPT | {"max_tokens": 1000, "ignore_eos": True}


class Stream:
    """A streamed answer, read event by event."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.iter_lines()

    def events(self) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))

    def await_text(self) -> None:
        """Read until there is some."""
        assert next(self.events())["choices"][0]["text"]

    def end(self) -> dict[str, Any]:
        """Return the last event."""
        return list(self.events())[-1]


@contextmanager
def streaming(url: str, body: dict[str, Any]) -> Iterator[Stream]:
    with httpx2.stream(
        "POST", f"{url}/v1/completions", json=body | {"stream": True}, timeout=LIMIT
    ) as response:
        assert response.status_code == 200
        yield Stream(response)


@contextmanager
def in_background(url: str, body: dict[str, Any]) -> Iterator[Future[httpx2.Response]]:
    """Ask for an answer in one piece; yield it as it is on its way."""
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx2.post, f"{url}/v1/completions", json=body, timeout=LIMIT)
        time.sleep(0.3)
        assert not answer.done()
        yield answer


def ask(url: str, body: dict[str, Any]) -> str:
    response = httpx2.post(f"{url}/v1/completions", json=body, timeout=LIMIT)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def status(url: str, path: str) -> int:
    return httpx2.get(url + path, timeout=LIMIT).status_code


def metric(url: str, name: str) -> float:
    match = re.search(rf"^pluribus_{name} (\S+)$", httpx2.get(f"{url}/metrics").text, re.M)
    assert match
    return float(match[1])


def until(condition: Callable[[], bool], seconds: float = LIMIT) -> float:
    """Wait for ``condition``, and return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def ask_refused(url: str) -> str:
    response = httpx2.post(f"{url}/v1/completions", json=PROMPT)
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    code: str = response.json()["error"]["code"]
    return code
