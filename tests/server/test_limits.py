"""What a client may send is bounded in size, in number and in time, and it is told which."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import httpx2
import pytest
import uvicorn

from pluribus.errors import QueueFullError
from pluribus.server.app import create_app
from pluribus.server.config import ServerConfig
from pluribus.server.http import uvicorn_config
from pluribus.server.limits import MAX_HEADERS
from pluribus.server.run import address, bind
from pluribus.service import Service
from server.fakes import FakeService, client_of, refusing

ASK = json.dumps({"prompt": "Once", "max_tokens": 4}).encode()


@contextlib.contextmanager
def serving(service: Service | None = None, **settings: Any) -> Iterator[str]:
    """Serve as the command would; yield the URL."""
    config = ServerConfig(port=0, **settings)
    app = create_app(service or FakeService(), config)
    with bind(config) as listener:
        server = uvicorn.Server(uvicorn_config(app, config, config.max_connections))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield address(listener)
        finally:
            server.should_exit = True
            thread.join()


def connect(url: str) -> socket.socket:
    parts = httpx2.URL(url)
    connection = socket.create_connection((parts.host, parts.port or 0), timeout=10)
    connection.settimeout(10)
    return connection


def head(*headers: str, path: str = "/generation") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(1 << 16):
        received += data
    return received


def error_of(response: bytes) -> tuple[int, dict[str, Any]]:
    """Return the status and the error of a whole answer."""
    start, _, body = response.partition(b"\r\n\r\n")
    error: dict[str, Any] = json.loads(body)["error"]
    return int(start.split()[1]), error


def test_a_body_that_comes_too_slowly_is_not_waited_for() -> None:
    with serving(body_timeout=0.3) as url, connect(url) as connection:
        began = time.monotonic()
        connection.sendall(head(f"Content-Length: {len(ASK)}") + ASK[:5])
        status, error = error_of(read_to_end(connection))
        assert 0.2 < time.monotonic() - began < 5
    assert (status, error["code"]) == (408, "body_too_slow")
    assert "0.3 seconds (server.body_timeout)" in error["message"]


def test_a_body_that_trickles_is_not_waited_for_either() -> None:
    with serving(body_timeout=0.5) as url, connect(url) as connection:
        began = time.monotonic()
        connection.sendall(head("Content-Length: 1000"))
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - began < 4


def test_waiting_for_an_answer_is_no_slow_body() -> None:
    with serving(FakeService(seconds=0.6), body_timeout=0.2) as url:
        response = httpx2.post(f"{url}/generation", json={"prompt": "Once"})
    assert response.status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_without_a_request_is_closed(sent: bytes) -> None:
    with serving(keep_alive_timeout=0.3) as url, connect(url) as connection:
        began = time.monotonic()
        connection.sendall(sent)
        assert read_to_end(connection) == b""
        assert 0.2 < time.monotonic() - began < 5


def test_a_connection_is_kept_for_the_next_request() -> None:
    with serving(keep_alive_timeout=5) as url:
        connection = HTTPConnection(httpx2.URL(url).netloc.decode(), timeout=10)
        ports = set()
        for _ in range(3):
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
            ports.add(connection.sock.getsockname()[1])
            time.sleep(0.1)
        connection.close()
    assert len(ports) == 1


def test_an_answer_may_take_longer_than_a_connection_is_kept() -> None:
    with serving(FakeService(seconds=1), keep_alive_timeout=0.2) as url:
        assert httpx2.post(f"{url}/generation", json={"prompt": "Once"}).status_code == 200


@pytest.mark.parametrize("is_whole", [True, False], ids=["at once", "without an end"])
def test_a_head_that_is_too_long_is_refused(is_whole: bool) -> None:
    with serving(max_header_bytes=2000) as url, connect(url) as connection:
        sent = head("X-Long: " + 3000 * "x", "Connection: close")
        connection.sendall(sent if is_whole else sent[:-4])
        status, error = error_of(read_to_end(connection))
    assert (status, error["code"]) == (431, "headers_too_large")
    assert "server.max_header_bytes" in error["message"]


def test_too_many_headers_are_refused() -> None:
    headers = {f"X-{number}": "1" for number in range(MAX_HEADERS)}
    response = client_of(FakeService()).get("/livez", headers=headers)
    assert response.status_code == 431
    assert f"{MAX_HEADERS} are allowed" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    ],
    ids=["TLS", "nonsense", "no host", "no length"],
)
def test_what_is_not_http_is_refused_in_our_words(sent: bytes) -> None:
    with serving() as url, connect(url) as connection:
        connection.sendall(sent)
        status, error = error_of(read_to_end(connection))
    assert (status, error["code"]) == (400, "invalid_http")


def test_garbage_in_a_body_ends_the_connection_and_nothing_else() -> None:
    with serving() as url:
        with connect(url) as connection:
            connection.sendall(head("Transfer-Encoding: chunked") + b"nonsense\r\n")
            status, error = error_of(read_to_end(connection))
        assert (status, error["code"]) == (400, "invalid_http")
        assert httpx2.get(f"{url}/livez").status_code == 200


def test_connections_over_the_limit_are_sent_away_but_probes_answer() -> None:
    with serving(max_connections=2) as url, connect(url), connect(url):
        response = httpx2.post(f"{url}/generation", json={"prompt": "Once"})
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert response.headers["Connection"] == "close"
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "too_many_connections")
        assert "2 connections are open" in error["message"]
        for path in ("/livez", "/readyz", "/health"):
            assert httpx2.get(url + path).status_code == 200


def test_a_connection_that_ends_makes_room() -> None:
    with serving(max_connections=1) as url:
        with connect(url):
            assert httpx2.get(f"{url}/version").status_code == 503
        deadline = time.monotonic() + 5
        while httpx2.get(f"{url}/version").status_code != 200:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (QueueFullError("later"), 503, "1"),
        (QueueFullError("later", is_tenant=True), 429, "1"),
        (QueueFullError("later", is_tenant=True, retry_after=0.1), 429, "1"),
        (QueueFullError("later", is_tenant=True, retry_after=12.1), 429, "13"),
    ],
    ids=["everybody's", "the tenant's", "soon", "in a while"],
)
def test_who_asks_too_much_is_told_when_to_try_again(
    error: QueueFullError, status: int, retry_after: str
) -> None:
    response = refusing(error).post("/generation", json={"prompt": "Once"})
    assert response.status_code == status
    assert response.headers["Retry-After"] == retry_after
    assert response.json()["error"]["message"] == "later"


ORIGIN = {"Origin": "https://a.org"}


def test_pages_of_other_origins_get_nothing_unless_listed() -> None:
    response = client_of(FakeService()).get("/livez", headers=ORIGIN)
    assert not [name for name in response.headers if name.startswith("access-control")]
    config = ServerConfig(cors_origins=["https://b.org"])
    response = client_of(FakeService(), config).get("/livez", headers=ORIGIN)
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("listed", ["https://a.org", "*"])
@pytest.mark.parametrize("path", ["/livez", "/nothing", "/generation"])
def test_pages_of_listed_origins_can_read_answers_and_errors(path: str, listed: str) -> None:
    config = ServerConfig(cors_origins=[listed], max_body_bytes=1)
    client = client_of(FakeService(refusal=ZeroDivisionError()), config)
    response = client.request("GET" if path == "/livez" else "POST", path, headers=ORIGIN)
    assert response.headers["Access-Control-Allow-Origin"] == listed
    assert "X-Request-Id" in response.headers["Access-Control-Expose-Headers"]


def test_pages_of_listed_origins_may_send_a_key() -> None:
    client = client_of(FakeService(), ServerConfig(cors_origins=["https://a.org"]))
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    response = client.options("/v1/completions", headers=ORIGIN | asked)
    assert response.status_code == 200
    assert "authorization" in response.headers["Access-Control-Allow-Headers"].lower()
    assert "Access-Control-Allow-Credentials" not in response.headers
