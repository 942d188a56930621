"""The server starts, tells so, and stops in good order."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest

from pluribus.errors import ConfigError
from pluribus.server.config import ServerConfig
from pluribus.server.run import bind, run_server
from server.fakes import FakeService
from server.server_process import LIMIT, Server, fake_server, real_server


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


def test_who_comes_while_it_stops_is_told_so() -> None:
    with fake_server(seconds=2) as server, request_under_way(server) as answer:
        server.send(signal.SIGTERM)
        server.await_record("stopping")
        assert httpx2.get(f"{server.url}/readyz").status_code == 503
        assert httpx2.get(f"{server.url}/livez").status_code == 200
        response = httpx2.post(f"{server.url}/generation", json={"prompt": "Once"})
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "5"
        assert response.json()["error"]["message"] == "the service is stopping: shutting down"
        assert answer.result().status_code == 200
        assert server.exit_code() == 0


def test_requests_that_do_not_finish_in_time_are_told_so() -> None:
    with fake_server(seconds=3600, shutdown_timeout=0.2) as server:
        with request_under_way(server) as answer:
            server.send(signal.SIGTERM)
            assert server.await_record("out of time")["num_generations"] == 1
            response = answer.result()
        assert response.status_code == 503
        message = "the service was stopped before the answer was complete"
        assert response.json()["error"]["message"] == message
        assert server.exit_code() == 0


def test_an_idle_connection_keeps_nobody_waiting() -> None:
    with fake_server() as server, httpx2.Client() as client:
        client.get(server.await_url() + "/livez")
        began = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
        assert time.monotonic() - began < 5


def test_a_second_signal_stops_it_at_once() -> None:
    with fake_server(seconds=3600) as server, request_under_way(server) as answer:
        server.send(signal.SIGTERM)
        server.await_record("stopping: ")
        server.send(signal.SIGTERM)
        assert server.exit_code() == 1
        assert answer.exception() is not None


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


def test_other_machines_are_kept_out_before_anything_starts() -> None:
    service = FakeService()
    with pytest.raises(ConfigError, match=r"server\.host=0\.0\.0\.0 lets other machines in"):
        run_server(service, ServerConfig(host="0.0.0.0", port=0))
    assert service.status.detail == "as if started"


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"server\.host=192\.0\.2\.1 cannot be listened on"):
        bind(ServerConfig(host="192.0.2.1", port=0, allow_remote=True))


def test_the_head_of_an_answer_does_not_wait_for_its_body() -> None:
    with bind(ServerConfig(port=0)) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port)):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


PHASES = ["imports", "device", "weights", "KV", "kernels", "graphs"]


def told_phases(server: Server) -> dict[str, float]:
    """Return what the next start has taken, which is all of it."""
    said = server.await_record("ready after ")["event"]
    match = re.fullmatch(r"ready after ([\d.]+) s: (.*)", said)
    assert match
    phases = {name: float(took) for name, took in re.findall(r"(\w+) ([\d.]+)", match[2])}
    assert float(match[1]) == pytest.approx(sum(phases.values()), abs=0.05 * (1 + len(phases)))
    return phases


def test_what_a_start_has_taken_is_told_part_by_part() -> None:
    began = time.monotonic()
    with real_server("cache.kv.memory=64MiB") as server:
        server.await_url()
        first = told_phases(server)
        assert list(first) == ["front", *PHASES]
        assert 0.5 < sum(first.values()) < time.monotonic() - began + 0.5
        assert first["front"] > 0.2
        server.engine().kill()
        again = told_phases(server)
        assert list(again) == PHASES, "the front has been there already"
