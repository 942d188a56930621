"""The server starts, tells so, and stops in good order."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pluribus.errors import ConfigError
from pluribus.server.config import ServerConfig
from pluribus.server.run import bind, run_server
from server.fakes import FakeService

TESTS = Path(__file__).parents[1]
LIMIT = 30


class Server:
    """A server process whose log is read record by record."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def await_record(self, event: str) -> dict[str, Any]:
        """Return the next log record whose event starts with ``event``."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            record: dict[str, Any] = json.loads(line)
            if record["event"].startswith(event):
                return record
        raise AssertionError(f"the server ended without logging {event!r}")

    def await_url(self) -> str:
        """Return where it serves, once it is ready."""
        match = re.search(r"http://\S+", self.await_record("serving fake on ")["event"])
        assert match
        return match.group()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        return self.process.wait(LIMIT)


@contextmanager
def fake_server(**settings: Any) -> Iterator[Server]:
    command = [sys.executable, "-m", "server.fake_server", json.dumps(settings)]
    process = subprocess.Popen(command, cwd=TESTS, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield Server(process)
        finally:
            process.kill()


@contextmanager
def request_under_way(server: Server) -> Iterator[Future[httpx2.Response]]:
    """Send a request to a server just started; yield its answer once it is worked on."""
    url = server.await_url()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(
            httpx2.post, f"{url}/generation", json={"prompt": "Once"}, timeout=LIMIT
        )
        server.await_record("answering")
        yield answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_stops_when_told(number: signal.Signals) -> None:
    with fake_server() as server:
        assert httpx2.get(server.await_url() + "/readyz").status_code == 200
        server.send(number)
        assert server.exit_code() == 0


def test_running_requests_finish_before_it_stops() -> None:
    with fake_server(seconds=1) as server, request_under_way(server) as answer:
        server.send(signal.SIGTERM)
        assert answer.result().status_code == 200
        assert server.exit_code() == 0


def test_nobody_new_comes_in_while_it_stops() -> None:
    with fake_server(seconds=1) as server, request_under_way(server) as answer:
        server.send(signal.SIGTERM)
        server.await_record("stopping")
        port = answer.result().request.url.port
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_requests_that_do_not_finish_in_time_are_told_so() -> None:
    with fake_server(seconds=3600, shutdown_timeout=0.2) as server:
        with request_under_way(server) as answer:
            server.send(signal.SIGTERM)
            response = answer.result()
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "the server is stopping"
        assert server.exit_code() == 0


def test_a_second_signal_stops_it_at_once() -> None:
    with fake_server(seconds=3600) as server, request_under_way(server) as answer:
        server.send(signal.SIGTERM)
        server.await_record("stopping: ")
        server.send(signal.SIGTERM)
        assert server.exit_code() == 1
        answer.exception()


def test_a_service_that_cannot_start_ends_the_server() -> None:
    with fake_server(outcome="failed") as server:
        assert server.await_record("the service failed")["detail"] == "as was asked"
        assert server.exit_code() == 1


def test_a_port_in_use_is_said_before_anything_starts() -> None:
    service = FakeService()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"server\.port={port} is in use .* choose another"):
            run_server(service, ServerConfig(port=port))
    assert service.status.detail == "as if started"


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"server\.host=192\.0\.2\.1 cannot be listened on"):
        bind(ServerConfig(host="192.0.2.1", port=0, allow_remote=True))
