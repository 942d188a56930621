"""The server's settings refuse what cannot work, in the words of the configuration."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from pluribus import config as conf
from pluribus.errors import ConfigError
from pluribus.server.config import ServerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": -1}, r"server\.port must be 0\.\.65535, got -1"),
        ({"port": 65536}, r"server\.port must be 0\.\.65535, got 65536"),
        ({"max_body_bytes": 0}, r"server\.max_body_bytes must be 1 or more, got 0"),
        ({"shutdown_timeout": -1}, r"server\.shutdown_timeout must be 0 or more seconds, got -1"),
        ({"shutdown_timeout": float("nan")}, r"server\.shutdown_timeout must be 0 or more"),
        ({"log_format": "xml"}, r"server\.log_format must be one of auto, console, json, got 'x"),
        ({"log_level": "INFO"}, r"server\.log_level must be one of debug, .*, got 'INFO'"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_machines_are_let_in_only_if_that_is_said(host: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.allow_remote=true"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, allow_remote=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_is_always_let_in(host: str) -> None:
    assert ServerConfig(host=host).host == host


def test_the_yaml_states_the_defaults() -> None:
    assert conf.load("serve", []).server == asdict(ServerConfig())
