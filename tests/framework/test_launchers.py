"""What a launcher refuses, and what becomes of a process that torchrun has started."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pluribus import ConfigError, assembly, composition
from pluribus.interfaces import Executor, Seat
from pluribus.parallel import addresses, ray_launcher
from pluribus.parallel.board import Board, EndOfService
from pluribus.parallel.follower import Follower
from pluribus.parallel.local import LocalLauncher, LocalLauncherConfig
from pluribus.parallel.meeting import Address, Meeting
from pluribus.parallel.ray_launcher import RayLauncher, RayLauncherConfig
from pluribus.parallel.secret import VARIABLE
from pluribus.parallel.torchrun import Environment, TorchrunLauncher, TorchrunLauncherConfig
from pluribus.plugins import discover

SECRET = "a secret that is long enough"
LIMIT = 20.0
ENVIRONMENT = {
    "RANK": "1",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def started_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENVIRONMENT, VARIABLE: SECRET}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def board() -> Iterator[Board]:
    """Return what torchrun's store would be."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield Board("127.0.0.1", store.port)
    del store


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back what a follower does to signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def follower(port: int, secret: str = SECRET, timeout: float = LIMIT) -> Follower:
    environment = replace(Environment.read(ENVIRONMENT), port=port)
    return Follower(environment, secret.encode(), timeout)


def torchrun(**settings: float) -> TorchrunLauncher:
    return TorchrunLauncher(TorchrunLauncherConfig(**settings))  # type: ignore[arg-type]


def test_torchrun_has_to_have_started_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"RANK, .*MASTER_PORT not set.* torchrun --nnodes"):
        torchrun().check(2)


@pytest.mark.usefixtures("started_by_torchrun")
def test_torchrun_has_to_have_started_as_many_as_there_are_ranks() -> None:
    torchrun().check(2)
    with pytest.raises(ConfigError, match=r"started 2 processes .* has 3 ranks"):
        torchrun().check(3)


@pytest.mark.usefixtures("started_by_torchrun")
def test_torchrun_s_ranks_need_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=VARIABLE):
        torchrun().check(2)


@pytest.mark.usefixtures("started_by_torchrun")
def test_a_rank_of_torchrun_s_starts_no_engine() -> None:
    with pytest.raises(ConfigError, match="process 1 of torchrun's is a rank"):
        torchrun().launch(_never, "", 2, print)


def _never(seat: Seat) -> Executor:
    raise AssertionError(seat)


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"port": -1}, {"port": 2**16}], ids=str)
def test_what_torchrun_s_settings_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"launcher.{next(iter(settings))} must be"):
        torchrun(**settings)


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"cpus_per_rank": 0}], ids=str)
def test_what_ray_s_settings_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"launcher.{next(iter(settings))} must be"):
        RayLauncherConfig(**settings)  # type: ignore[arg-type]


def test_ray_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_launcher, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'pluribus\[ray\]'"):
        RayLauncher(RayLauncherConfig()).check(2)


def test_replicas_are_for_one_machine() -> None:
    config = composition.load("serve", ["launcher=ray", "parallel.replicas=2"])
    with pytest.raises(ConfigError, match=r"parallel.replicas=2: launcher=ray .*launcher=local"):
        assembly.assemble(config, discover())


def test_elsewhere_a_process_is_the_service_itself() -> None:
    assert LocalLauncher(LocalLauncherConfig()).run(lambda: 7) == 7


def test_the_board_tells_where_to_come_and_when_to_end(board: Board) -> None:
    assert board.read() is None
    for address in (Address("10.0.0.1", 1), Address("fe80::1", 2)):
        board.tell_address(address)
        assert board.read() == address
    board.tell_the_end()
    with pytest.raises(EndOfService):
        board.read()


@pytest.mark.usefixtures("handlers")
def test_a_follower_ends_in_good_order_with_the_service(board: Board) -> None:
    board.tell_the_end()
    assert follower(board.port).run() == 0


@pytest.mark.usefixtures("handlers")
def test_a_follower_ends_with_an_error_where_torchrun_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    start = time.monotonic()
    assert follower(port).run() == 1
    assert time.monotonic() - start < LIMIT / 2
    assert f"rank 1 ends: the first machine, 127.0.0.1:{port}: the service has ended" in caplog.text


@pytest.mark.usefixtures("handlers")
def test_a_follower_gives_up_a_machine_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(board: Board) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(Board, "read", unreachable)
    start = time.monotonic()
    assert follower(29500, timeout=1.5).run() == 1
    assert time.monotonic() - start > 1.5
    assert "it has not been reached for 1.5 s: no route to host" in caplog.text


@pytest.mark.usefixtures("handlers")
def test_a_follower_with_another_secret_ends(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    meeting = Meeting("127.0.0.1", 0, SECRET.encode())
    board.tell_address(meeting.address)
    with ThreadPoolExecutor(1) as pool:
        came = pool.submit(meeting.gather, 2, 3)
        assert follower(board.port, secret="another one, as long").run() == 1
        assert isinstance(came.exception(), TimeoutError)
    assert f"another secret than this one: see {VARIABLE}" in caplog.text


@pytest.mark.usefixtures("handlers")
def test_a_follower_whose_engine_is_gone_waits_for_the_next(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        board.tell_address(Address(*nobody.getsockname()))
    later = threading.Timer(1.5, board.tell_the_end)
    later.start()
    assert follower(board.port).run() == 0
    assert not later.is_alive()


def test_the_environment_s_choice_of_interface_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", variables := {"GLOO_SOCKET_IFNAME": "eth7"})
    addresses.talk_through("lo")
    assert variables == {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "=lo"}
