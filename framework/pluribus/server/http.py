"""Uvicorn, as it is used here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from pluribus.server.config import ServerConfig
from pluribus.server.protocol import HttpProtocol

SECONDS_TO_SEND = 5
"""That answers, all of them complete, get to reach their clients before the process ends."""


class UvicornServer(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none: uvicorn's handlers would raise them again, and nothing after would run."""
        yield


def uvicorn_config(
    app: Starlette, config: ServerConfig, max_connections: int | None
) -> uvicorn.Config:
    """Return how uvicorn is to serve ``app``.

    Args:
        app: what answers.
        config: the server's settings.
        max_connections: that this process answers at once; None where others see to it.
    """
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ssl_certfile=config.tls.certfile,
        ssl_keyfile=config.tls.keyfile,
        h11_max_incomplete_event_size=config.max_header_bytes,
        limit_concurrency=max_connections,
        timeout_keep_alive=config.keep_alive_timeout,  # type: ignore[arg-type]
        timeout_graceful_shutdown=SECONDS_TO_SEND,
    )
