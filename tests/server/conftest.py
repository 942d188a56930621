"""A real server, for those who need one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import serving


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of ``pluribus serve`` with the bundled model."""
    command = [str(Path(sys.executable).with_name("pluribus")), "serve", "server.port=0"]
    with serving([*command, "server.log_format=json"]) as url:
        yield url
