"""Where ranks on other machines come to: a port that lets in who proves the secret."""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from pluribus.engine.channel import Channel, ChannelClosed
from pluribus.errors import ConfigError, EngineError
from pluribus.parallel.messages import RANK_PROTOCOL_VERSION, SILENCE, FromRank, JoinRank
from pluribus.parallel.secret import (
    WrongSecretError,
    ask_for_proof,
    prove,
)

BACKLOG = 128
MAX_STRANGERS = 64
"""Connections that may be proving who they are; one more is closed."""
SECONDS_BETWEEN_LOOKS = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where ranks come to."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A rank that has come, and proved that it may."""

    join: JoinRank
    sock: socket.socket

    @property
    def address(self) -> str:
        """Return the address of its machine."""
        return str(self.sock.getpeername()[0])


class Meeting:
    """Listens until every rank has come; a stranger neither gets in nor holds anybody up.

    Args:
        host: the address to listen on.
        port: 0 for one that is free.
        secret: what ranks have to know.

    Raises:
        ConfigError: it cannot be listened on.
    """

    def __init__(self, host: str, port: int, secret: bytes) -> None:
        self._secret = secret
        self._listener = listen(host, port)
        self._arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)

    @property
    def address(self) -> Address:
        """Where ranks come to."""
        return Address(*self._listener.getsockname()[:2])

    def gather(self, world_size: int, timeout: float) -> dict[int, Arrival]:
        """Return all ranks but the first, each as it came last, and listen no more.

        Raises:
            TimeoutError: some have not come within ``timeout`` seconds; it says which.
            EngineError: one of another version of Pluribus has come.
        """
        deadline = time.monotonic() + timeout
        came: dict[int, Arrival] = {}
        with self._listener, contextlib.ExitStack() as unfinished:
            unfinished.callback(_send_away, came)
            while missing := sorted(set(range(1, world_size)) - came.keys()):
                if time.monotonic() > deadline:
                    raise TimeoutError(_not_come(missing, self.address, timeout))
                self._admit_some()
                self._take(came)
            unfinished.pop_all()
        return came

    def _admit_some(self) -> None:
        self._listener.settimeout(SECONDS_BETWEEN_LOOKS)
        with contextlib.suppress(TimeoutError, ConnectionError):
            sock, _ = self._listener.accept()
            if self._strangers.acquire(blocking=False):
                threading.Thread(target=self._admit, args=(sock,), daemon=True).start()
            else:
                sock.close()

    def _admit(self, sock: socket.socket) -> None:
        try:
            ask_for_proof(sock, self._secret)
            channel: Channel[FromRank, JoinRank] = Channel(sock, JoinRank)
            keep_watched(sock)
            [join] = channel.receive(block=True)
        except (WrongSecretError, OSError, ChannelClosed, msgspec.MsgspecError) as error:
            with contextlib.suppress(OSError):
                logger.warning("refused %s to be a rank: %s", sock.getpeername()[0], error)
            sock.close()
        else:
            self._arrivals.put(Arrival(join, sock))
        finally:
            self._strangers.release()

    def _take(self, came: dict[int, Arrival]) -> None:
        while not self._arrivals.empty():
            arrival = self._arrivals.get()
            join = arrival.join
            if join.rank in came:
                came[join.rank].sock.close()  # it has lost that connection, or it would not come
            came[join.rank] = arrival
            if join.protocol != RANK_PROTOCOL_VERSION:
                raise EngineError(
                    f"rank {join.rank} on {join.host} speaks version {join.protocol} of the "
                    f"ranks' messages and this one {RANK_PROTOCOL_VERSION}; install the same "
                    "version of pluribus on all machines"
                )
            past = f"; before, it {join.past}" if join.past else ""
            logger.info(
                "rank %d has come from %s (%s)%s", join.rank, join.host, arrival.address, past
            )


def join(address: Address, secret: bytes, place: JoinRank, timeout: float) -> socket.socket:
    """Connect to the first rank and return the socket on which it says what is to be done.

    Raises:
        WrongSecretError: it knows another secret.
        OSError: nobody is there, or not who was expected, or it takes longer than ``timeout``.
    """
    deadline = time.monotonic() + timeout
    sock = socket.create_connection((address.host, address.port), timeout)
    try:
        keep_watched(sock)
        prove(sock, secret, deadline)
        channel: Channel[JoinRank, JoinRank] = Channel(sock, JoinRank)
        channel.send(place)
    except BaseException:
        sock.close()
        raise
    return sock


def listen(host: str, port: int) -> socket.socket:
    """Listen on one address.

    Raises:
        ConfigError: it is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        advice = "launcher.port=0 takes any that is free" if taken else "see launcher.host"
        raise ConfigError(
            f"launcher: {host} port {port} cannot be listened on: {error.strerror}; {advice}"
        ) from error
    return listener


def keep_watched(sock: socket.socket) -> None:
    """Send without delay, and have the connection end when the other machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Keepalive tells of a silent connection, the timeout of one with data on the way.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENCE))
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, int(SILENCE))


def _send_away(came: Mapping[int, Arrival]) -> None:
    for arrival in came.values():
        arrival.sock.close()


def _not_come(missing: list[int], address: Address, timeout: float) -> str:
    return (
        f"ranks {', '.join(map(str, missing))} have not come to {address} within "
        f"launcher.timeout={timeout:g} seconds; start them, or look at what they say"
    )
