"""Who may be a rank: whoever proves the secret, in time, and nobody else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pluribus import ConfigError, EngineError
from pluribus.parallel import meeting as meetings
from pluribus.parallel import secret as secrets
from pluribus.parallel.addresses import address_towards, interface
from pluribus.parallel.meeting import Address, Arrival, Meeting, join
from pluribus.parallel.messages import RANK_PROTOCOL_VERSION, JoinRank
from pluribus.parallel.secret import VARIABLE, WrongSecretError, secret_from_environment

SECRET = b"what both of them know"
LIMIT = 10.0


def place(rank: int, protocol: int = RANK_PROTOCOL_VERSION) -> JoinRank:
    return JoinRank(protocol, rank, 0, f"host-{rank}", "")


@contextmanager
def gathering(
    world_size: int = 2, timeout: float = LIMIT
) -> Iterator[tuple[Address, Callable[[], dict[int, Arrival]]]]:
    """Yield where a meeting takes place, and what waits for whom it gathers."""
    meeting = Meeting("127.0.0.1", 0, SECRET)
    with ThreadPoolExecutor(1) as pool:
        came = pool.submit(meeting.gather, world_size, timeout)
        try:
            yield meeting.address, came.result
        finally:
            if came.exception() is None:
                for arrival in came.result().values():
                    arrival.sock.close()


def test_all_who_know_the_secret_come_in() -> None:
    with gathering(3) as (address, came):
        ranks = [join(address, SECRET, place(rank), LIMIT) for rank in (2, 1)]
        assert {rank: arrival.join.host for rank, arrival in came().items()} == {
            1: "host-1",
            2: "host-2",
        }
        for sock in ranks:
            sock.close()


@pytest.mark.parametrize("secret", [b"", b"what only one of them knows"], ids=["none", "wrong"])
def test_a_wrong_secret_is_refused(secret: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with gathering() as (address, came):
        with pytest.raises(WrongSecretError, match=VARIABLE):
            join(address, secret, place(1), LIMIT)
        with join(address, SECRET, place(1), LIMIT):
            assert came().keys() == {1}
    assert "refused 127.0.0.1 to be a rank" in caplog.text


def test_a_proof_is_of_no_use_a_second_time() -> None:
    with gathering() as (address, came):
        with socket.create_connection((address.host, address.port)) as stranger:
            challenge = stranger.recv(secrets.SIZE)
            stranger.sendall(challenge + secrets._proof(b"another", b"joins", challenge, challenge))
            assert stranger.recv(secrets.SIZE) == secrets.REFUSAL
        with socket.create_connection((address.host, address.port)) as stranger:
            assert stranger.recv(secrets.SIZE) != challenge
        with join(address, SECRET, place(1), LIMIT):
            came()


def test_whoever_is_joined_must_know_the_secret_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def pretend() -> None:
            sock, _ = impostor.accept()
            with sock:
                sock.sendall(bytes(secrets.SIZE))
                sock.recv(1024)
                sock.sendall(b"x" * secrets.SIZE)

        pretending = threading.Thread(target=pretend)
        pretending.start()
        with pytest.raises(ConnectionAbortedError, match="does not know the secret"):
            join(Address(*impostor.getsockname()), SECRET, place(1), LIMIT)
        pretending.join()


def test_strangers_who_say_nothing_hold_nobody_up() -> None:
    with gathering() as (address, came):
        strangers = [socket.create_connection((address.host, address.port)) for _ in range(20)]
        start = time.monotonic()
        with join(address, SECRET, place(1), LIMIT):
            assert came().keys() == {1}
        assert time.monotonic() - start < secrets.SECONDS_TO_PROVE
        for stranger in strangers:
            stranger.close()


def test_more_strangers_than_may_come_at_once_are_sent_away() -> None:
    with gathering() as (address, came):
        where = (address.host, address.port)
        strangers = [socket.create_connection(where) for _ in range(meetings.MAX_STRANGERS)]
        for stranger in strangers:
            stranger.recv(secrets.SIZE)
        with socket.create_connection(where) as one_more:
            assert one_more.recv(secrets.SIZE) == b""
        for stranger in strangers:
            stranger.close()
        joined = _join_patiently(address)
        assert came().keys() == {1}
        joined.close()


def _join_patiently(address: Address) -> socket.socket:
    for _ in range(20):
        try:
            return join(address, SECRET, place(1), LIMIT)
        except OSError:
            time.sleep(0.2)
    raise AssertionError("never let in")


def test_a_stranger_has_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "SECONDS_TO_PROVE", 0.5)
    with gathering() as (address, came):
        with socket.create_connection((address.host, address.port), LIMIT) as slow:
            slow.recv(secrets.SIZE)
            for _ in range(10):
                time.sleep(0.1)
                try:
                    slow.sendall(b"x")
                except OSError:
                    break
            assert slow.recv(secrets.SIZE) == b""
        with join(address, SECRET, place(1), LIMIT):
            came()


def test_who_has_not_come_is_named() -> None:
    with (
        gathering(4, timeout=1) as (address, came),
        join(address, SECRET, place(2), LIMIT),
        pytest.raises(TimeoutError) as error,
    ):
        came()
    assert f"ranks 1, 3 have not come to {address} within launcher.timeout=1" in str(error.value)


def test_a_rank_that_comes_again_takes_its_own_place() -> None:
    with gathering(3) as (address, came):
        ranks = [join(address, SECRET, place(1), LIMIT)]
        for rank in (1, 2):
            time.sleep(0.5)  # each is let in by a thread of its own
            ranks.append(join(address, SECRET, place(rank), LIMIT))
        assert came()[1].sock.getpeername() == ranks[1].getsockname()
        for sock in ranks:
            sock.close()


def test_another_version_is_an_error_that_names_its_machine() -> None:
    with (
        gathering() as (address, came),
        join(address, SECRET, place(1, protocol=0), LIMIT),
        pytest.raises(EngineError, match=r"host-1 .* same version of pluribus"),
    ):
        came()


def test_nobody_listens_once_all_have_come() -> None:
    with gathering() as (address, came), join(address, SECRET, place(1), LIMIT):
        came()
        with pytest.raises(ConnectionRefusedError):
            join(address, SECRET, place(1), LIMIT)


def test_a_port_that_is_taken_is_an_error_that_says_what_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{port} cannot be listened on.*launcher.port=0"):
            Meeting("127.0.0.1", port, SECRET)


@pytest.mark.parametrize("value", ["", "short"])
def test_no_secret_is_an_error_that_says_how_to_make_one(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=f"{VARIABLE} must hold a secret .*token_hex"):
        secret_from_environment()


def test_ranks_of_one_machine_talk_on_its_loopback() -> None:
    assert interface("file:///proc/self/fd/7") == "lo"
    assert interface("tcp://127.0.0.1:29500") == "lo"
    assert address_towards("127.0.0.1") == "127.0.0.1"
