"""Settings of the HTTP server: the ``server`` section."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field

from pluribus.errors import ConfigError

LOG_FORMATS = ("auto", "console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
MAX_PORT = 65535
MAX_WORKERS = 64

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#\s]+")
_HEADER = re.compile(r"[A-Za-z0-9-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """Who may come in. Without a key anywhere, everybody may.

    Attributes:
        keys_file: holds a line for each key; see docs/security.md.
        keys_env: environment variable that holds keys, separated by commas.
        open_metrics: whether ``/metrics`` answers without a key.
    """

    keys_file: str | None = None
    keys_env: str | None = "PLURIBUS_API_KEYS"
    open_metrics: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """What to speak TLS with, in PEM; without a certificate it is plain HTTP.

    Attributes:
        certfile: the certificate, and those that lead to its issuer.
        keyfile: its private key; None where ``certfile`` holds it too.

    Raises:
        ConfigError: there is a key and no certificate.
    """

    certfile: str | None = None
    keyfile: str | None = None

    def __post_init__(self) -> None:
        if self.keyfile and not self.certfile:
            raise ConfigError(
                "server.tls.keyfile is given and server.tls.certfile is not; give both, or none"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of the HTTP server.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 takes any free one.
        workers: processes that speak HTTP; 1 is the one that has the engines.
        allow_remote: whether ``host`` may be one that other machines reach, keys or no keys.
        auth: who may come in.
        tls: how to keep what is said from others.
        tenant_header: where there are no keys, the header that names a request's tenant.
        cors_origins: web pages of which other origins may use the answers.
        max_body_bytes: longest request body.
        max_header_bytes: longest request line and headers together.
        max_connections: connections served at once; on more, only the probes answer.
        body_timeout: seconds that a client may take to send a body.
        keep_alive_timeout: seconds that a connection may wait for its next request's head.
        shutdown_timeout: seconds that running requests get to finish once told to stop.
        stream_interval: seconds between two events of a streamed answer, at least.
        log_format: ``console``, ``json``, or ``auto``: console on a terminal, else json.
        log_level: least severe level that is logged.

    Raises:
        ConfigError: a value is out of its range.
    """

    host: str = "127.0.0.1"
    port: int = 8020
    workers: int = 1
    allow_remote: bool = False
    auth: AuthConfig = field(default_factory=AuthConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    tenant_header: str | None = None
    cors_origins: list[str] = field(default_factory=list)
    max_body_bytes: int = 1 << 20
    max_header_bytes: int = 1 << 14
    max_connections: int = 4096
    body_timeout: float = 30.0
    keep_alive_timeout: float = 75.0
    shutdown_timeout: float = 30.0
    stream_interval: float = 0.02
    log_format: str = "auto"
    log_level: str = "info"

    def __post_init__(self) -> None:
        _check("port", self.port, 0 <= self.port <= MAX_PORT, f"0..{MAX_PORT}")
        _check("workers", self.workers, 1 <= self.workers <= MAX_WORKERS, f"1..{MAX_WORKERS}")
        for name, least in (
            ("max_body_bytes", 1),
            ("max_header_bytes", 1024),
            ("max_connections", 1),
        ):
            _check(name, value := getattr(self, name), value >= least, f"{least} or more")
        for name in ("body_timeout", "keep_alive_timeout"):
            in_range = 0 < getattr(self, name) < math.inf
            _check(name, getattr(self, name), in_range, "a number of seconds above 0")
        in_range = 0 <= self.shutdown_timeout < math.inf
        _check("shutdown_timeout", self.shutdown_timeout, in_range, "0 or more seconds")
        in_range = 0 <= self.stream_interval <= 1
        _check("stream_interval", self.stream_interval, in_range, "from 0 to 1 second")
        _check_choice("log_format", self.log_format, LOG_FORMATS)
        _check_choice("log_level", self.log_level, LOG_LEVELS)
        for origin in self.cors_origins:
            rule = "origins such as https://example.org, or *, without a path"
            _check("cors_origins", origin, bool(_ORIGIN.fullmatch(origin)), rule)
        if self.tenant_header is not None:
            is_name = bool(_HEADER.fullmatch(self.tenant_header))
            _check("tenant_header", repr(self.tenant_header), is_name, "a header such as X-Tenant")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(name: str, value: object, allowed: bool, rule: str) -> None:
    if not allowed:
        raise ConfigError(f"server.{name} must be {rule}, got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _check(name, repr(value), value in choices, "one of " + ", ".join(choices))
