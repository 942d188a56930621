"""Settings of the HTTP server: the ``server`` section."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from pluribus.errors import ConfigError

LOG_FORMATS = ("auto", "console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of the HTTP server.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 takes any free one.
        allow_remote: whether ``host`` may be one that other machines reach.
        max_body_bytes: longest request body.
        shutdown_timeout: seconds that running requests get to finish once told to stop.
        log_format: ``console``, ``json``, or ``auto``: console on a terminal, else json.
        log_level: least severe level that is logged.

    Raises:
        ConfigError: a value is out of its range.
    """

    host: str = "127.0.0.1"
    port: int = 8020
    allow_remote: bool = False
    max_body_bytes: int = 1 << 20
    shutdown_timeout: float = 30.0
    log_format: str = "auto"
    log_level: str = "info"

    def __post_init__(self) -> None:
        _check("port", self.port, 0 <= self.port <= MAX_PORT, f"0..{MAX_PORT}")
        _check("max_body_bytes", self.max_body_bytes, self.max_body_bytes >= 1, "1 or more")
        in_range = math.isfinite(self.shutdown_timeout) and self.shutdown_timeout >= 0
        _check("shutdown_timeout", self.shutdown_timeout, in_range, "0 or more seconds")
        _check_choice("log_format", self.log_format, LOG_FORMATS)
        _check_choice("log_level", self.log_level, LOG_LEVELS)
        if not (self.allow_remote or is_loopback(self.host)):
            raise ConfigError(
                f"server.host={self.host} lets other machines in, and nobody is asked for a key; "
                "use server.host=127.0.0.1, or say server.allow_remote=true if it is meant"
            )


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
