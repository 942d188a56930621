"""Who speaks HTTP: this process, or others that it starts."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable

from starlette.applications import Starlette

from pluribus.server.config import ServerConfig
from pluribus.server.http import UvicornServer, uvicorn_config


class Speaker(ABC):
    """Answers what comes over a listening socket. Belongs to one event loop."""

    @abstractmethod
    async def serve(self, on_open: Callable[[], None]) -> None:
        """Answer until closed; ``on_open`` is called once all who speak HTTP do.

        Raises:
            PluribusError: it cannot be done any longer.
        """

    @abstractmethod
    async def close(self) -> None:
        """Take no more connections, send what there is to send, and end ``serve``."""


class OneProcess(Speaker):
    """Answers in this process."""

    def __init__(self, app: Starlette, config: ServerConfig, listener: socket.socket) -> None:
        self._server = UvicornServer(uvicorn_config(app, config, config.max_connections))
        self._listener = listener

    async def serve(self, on_open: Callable[[], None]) -> None:
        on_open()
        await self._server.serve([self._listener])

    async def close(self) -> None:
        self._server.should_exit = True
