"""Two processes that prove to each other that they know the same secret, and never send it.

Each draws a challenge and answers the other's: HMAC-SHA256 under the secret, over both
challenges and the side that answers. What comes before the proof has a fixed size, and nothing
is read into it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import time

from pluribus.errors import ConfigError

VARIABLE = "PLURIBUS_SECRET"
MIN_LENGTH = 16
SIZE = 32
REFUSAL = bytes(SIZE)
SECONDS_TO_PROVE = 5.0


class WrongSecretError(Exception):
    """The other side knows another secret, or none."""


def secret_from_environment() -> bytes:
    """Return the secret that the operator gave to every process.

    Raises:
        ConfigError: there is none, or it is short.
    """
    secret = os.environ.get(VARIABLE, "")
    if len(secret) < MIN_LENGTH:
        raise ConfigError(
            f"{VARIABLE} must hold a secret of {MIN_LENGTH} characters or more, the same on every "
            f"machine, which ranks prove to each other; got {len(secret)}. Make one with: "
            "python -c 'import secrets; print(secrets.token_hex())'"
        )
    return secret.encode()


def ask_for_proof(sock: socket.socket, secret: bytes) -> None:
    """Let in who has connected to us, or refuse, within ``SECONDS_TO_PROVE``.

    Raises:
        WrongSecretError: they do not know the secret.
        OSError: they left, or took too long.
    """
    deadline = time.monotonic() + SECONDS_TO_PROVE
    ours = secrets.token_bytes(SIZE)
    sock.settimeout(SECONDS_TO_PROVE)
    sock.sendall(ours)
    answer = _receive(sock, 2 * SIZE, deadline)
    theirs, proof = answer[:SIZE], answer[SIZE:]
    if not hmac.compare_digest(proof, _proof(secret, b"joins", ours, theirs)):
        sock.sendall(REFUSAL)
        raise WrongSecretError("a wrong secret, or none")
    sock.sendall(_proof(secret, b"admits", ours, theirs))


def prove(sock: socket.socket, secret: bytes, deadline: float) -> None:
    """Prove to whom we have connected to that we know the secret, and have them prove it.

    Args:
        sock: connected.
        secret: what both know.
        deadline: of ``time.monotonic()``; the other side may still be starting.

    Raises:
        WrongSecretError: they say that theirs is another one.
        OSError: they left, or took too long, or could not prove it themselves.
    """
    theirs = _receive(sock, SIZE, deadline)
    ours = secrets.token_bytes(SIZE)
    sock.sendall(ours + _proof(secret, b"joins", theirs, ours))
    answer = _receive(sock, SIZE, deadline)
    if hmac.compare_digest(answer, REFUSAL):
        raise WrongSecretError(f"it has another secret than this one: see {VARIABLE}")
    if not hmac.compare_digest(answer, _proof(secret, b"admits", theirs, ours)):
        raise ConnectionAbortedError("somebody else is there, who does not know the secret")


def _proof(secret: bytes, side: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(secret, side + first + second, "sha256")


def _receive(sock: socket.socket, size: int, deadline: float) -> bytes:
    """Return exactly ``size`` bytes, however slowly they drip, until the deadline."""
    received = b""
    while len(received) < size:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("no proof in time")
        sock.settimeout(remaining)
        data = sock.recv(size - len(received))
        if not data:
            raise ConnectionResetError("it left")
        received += data
    return received
