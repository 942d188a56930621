"""An HTTP worker as a process of its own: ``python -m pluribus.server.workers.process FD FD``.

The first socket is to the first process, over the second come connections.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator

import structlog
from omegaconf import DictConfig, OmegaConf

from pluribus import assembly
from pluribus import config as conf
from pluribus.engine.async_channel import AsyncChannel, connect
from pluribus.engine.process import die_with_the_parent
from pluribus.errors import EngineError, PluribusError
from pluribus.logs import configure_logging
from pluribus.plugins import discover
from pluribus.server.app import make_app
from pluribus.server.config import ServerConfig
from pluribus.server.http import uvicorn_config
from pluribus.server.workers.handed import HandedServer
from pluribus.server.workers.messages import (
    PROTOCOL_VERSION,
    Closed,
    Failed,
    Finish,
    FromFirst,
    Ping,
    Pong,
    Ready,
    Start,
)
from pluribus.server.workers.remote import FirstChannel, RemoteFront, RemoteMeter

log = structlog.stdlib.get_logger(__name__)


def main() -> None:
    """Serve with the sockets whose numbers are in ``sys.argv``; end with the first process."""
    die_with_the_parent()
    channel, connections = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    asyncio.run(_work(channel, connections))


async def _work(sock: socket.socket, connections: socket.socket) -> None:
    channel: FirstChannel = AsyncChannel(*await connect(sock), FromFirst)
    messages = channel.messages()
    async for start in messages:
        if not isinstance(start, Start) or start.protocol != PROTOCOL_VERSION:
            raise EngineError(f"expected Start of protocol {PROTOCOL_VERSION}, got {start!r}")
        try:
            worker = _Worker(start, channel, connections)
        except PluribusError as error:
            channel.send(Failed(str(error)))
            return
        await worker.work(messages)
        return


class _Worker:
    def __init__(self, start: Start, channel: FirstChannel, connections: socket.socket) -> None:
        config = OmegaConf.create(start.config)
        assert isinstance(config, DictConfig)
        server = conf.section(config, "server", ServerConfig)
        configure_logging(server.log_format, server.log_level)
        structlog.contextvars.bind_contextvars(worker=start.index)
        plugins = discover()
        parts = assembly.assemble(config, plugins)
        self._channel = channel
        self._front = front = RemoteFront(parts, plugins, channel, start.started)
        meter = RemoteMeter(channel, front.inquiries)
        app = make_app(front, meter, server, plugins.routes(front), start.keyring)
        self._server = HandedServer(
            uvicorn_config(app, server, max_connections=None),
            connections,
            on_start=lambda: channel.send(Ready()),
            on_closed=lambda: channel.send(Closed()),
        )

    async def work(self, messages: AsyncIterator[FromFirst]) -> None:
        """Serve until told to finish."""
        listening = asyncio.create_task(self._listen(messages))
        serving = asyncio.create_task(self._server.serve([]))
        await asyncio.wait((listening, serving), return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            # Nobody answers any more what connections here wait for.
            if error := listening.exception():
                log.error("the first process cannot be understood", exc_info=error)
            os._exit(1)
        listening.cancel()
        self._channel.close()
        serving.result()

    async def _listen(self, messages: AsyncIterator[FromFirst]) -> None:
        async for message in messages:
            match message:
                case Ping():
                    self._channel.send(Pong())
                case Finish():
                    self._server.should_exit = True
                case _:
                    self._front.hear(message)


if __name__ == "__main__":
    main()
