"""The server's settings refuse what cannot work, in the words of the configuration."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from pluribus import composition
from pluribus import config as conf
from pluribus.errors import ConfigError
from pluribus.server.config import AuthConfig, ServerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": -1}, r"server\.port must be 0\.\.65535, got -1"),
        ({"port": 65536}, r"server\.port must be 0\.\.65535, got 65536"),
        ({"workers": 0}, r"server\.workers must be 1\.\.64, got 0"),
        ({"workers": 65}, r"server\.workers must be 1\.\.64, got 65"),
        ({"max_body_bytes": 0}, r"server\.max_body_bytes must be 1 or more, got 0"),
        ({"shutdown_timeout": -1}, r"server\.shutdown_timeout must be 0 or more seconds, got -1"),
        ({"shutdown_timeout": float("nan")}, r"server\.shutdown_timeout must be 0 or more"),
        ({"max_header_bytes": 1023}, r"server\.max_header_bytes must be 1024 or more, got 1023"),
        ({"max_connections": 0}, r"server\.max_connections must be 1 or more, got 0"),
        ({"body_timeout": 0}, r"server\.body_timeout must be a number of seconds above 0, got 0"),
        ({"keep_alive_timeout": float("inf")}, r"server\.keep_alive_timeout must be .* got inf"),
        ({"cors_origins": ["example.org"]}, r"server\.cors_origins must be .* got example\.org"),
        ({"cors_origins": ["https://a.org/"]}, r"server\.cors_origins must be origins such as"),
        (
            {"tenant_header": "X Tenant"},
            r"server\.tenant_header must be a header .* got 'X Tenant'",
        ),
        ({"tenant_header": ""}, r"server\.tenant_header must be a header such as X-Tenant"),
        ({"log_format": "xml"}, r"server\.log_format must be one of auto, console, json, got 'x"),
        ({"log_level": "INFO"}, r"server\.log_level must be one of debug, .*, got 'INFO'"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**settings)


def test_a_key_for_tls_without_its_certificate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"server\.tls\.certfile is not; give both"):
        conf.section(
            composition.load("serve", ["server.tls.keyfile=key.pem"]), "server", ServerConfig
        )


def test_lists_and_sections_come_through() -> None:
    overrides = ["server.cors_origins=['*',https://a.org:8443]", "server.auth.keys_file=/run/keys"]
    config = conf.section(composition.load("serve", overrides), "server", ServerConfig)
    assert config.cors_origins == ["*", "https://a.org:8443"]
    assert config.auth == AuthConfig(keys_file="/run/keys")


def test_the_yaml_states_the_defaults() -> None:
    assert composition.load("serve", []).server == asdict(ServerConfig())
