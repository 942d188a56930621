"""A client that leaves takes its generation with it."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import structlog

from server.fakes import FakeService, listening

BODY = b'{"prompt": "Once"}'
REQUEST = (
    b"POST /generation HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)


def connect(url: str) -> socket.socket:
    """Return a connection to the server at ``url``."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80))


def test_a_client_that_leaves_cancels_its_generation() -> None:
    service = FakeService(seconds=3600)
    with listening(service) as url:
        with connect(url) as client:
            client.sendall(REQUEST + BODY)
            assert service.engine.running.wait(10)
            assert not service.engine.cancelled.is_set()
        assert service.engine.cancelled.wait(10)


def test_a_client_that_will_send_no_more_counts_as_one_that_leaves() -> None:
    service = FakeService(seconds=3600)
    with listening(service) as url, connect(url) as client:
        client.sendall(REQUEST + BODY)
        assert service.engine.running.wait(10)
        client.shutdown(socket.SHUT_WR)
        assert service.engine.cancelled.wait(10)
        assert client.recv(65536) == b""


def test_a_client_that_leaves_in_mid_request_is_no_error() -> None:
    service = FakeService()
    with structlog.testing.capture_logs() as logged, listening(service) as url:
        with connect(url) as client:
            client.sendall(REQUEST + BODY[:5])
        with connect(url) as client:
            client.sendall(REQUEST + BODY)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert sorted((record["event"], record["status"]) for record in logged) == [
        ("request", 200),
        ("request", 499),
    ]


def test_a_client_that_waits_gets_its_answer() -> None:
    service = FakeService(seconds=0.2)
    with listening(service) as url, connect(url) as client:
        client.sendall(REQUEST + BODY)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert not service.engine.cancelled.is_set()
