"""A service that is asked as HTTP workers ask it: over sockets, by fronts of their own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from pluribus.assembly import Parts
from pluribus.engine.async_channel import AsyncChannel, connect
from pluribus.engine.client import EngineHost
from pluribus.plugins import Plugins
from pluribus.server.metrics import Metrics
from pluribus.server.workers.desk import Desk, WorkerChannel
from pluribus.server.workers.messages import FromFirst, FromWorker
from pluribus.server.workers.remote import FirstChannel, RemoteFront
from pluribus.service import Service


class Distant:
    """A service, and the workers that ask it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.metrics = Metrics(service)
        service.observer = self.metrics

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[RemoteFront]:
        """Connect a worker, whose socket is closed at the end as if it had been killed."""
        ours, theirs = socket.socketpair()
        near: WorkerChannel = AsyncChannel(*await connect(ours), FromWorker)
        far: FirstChannel = AsyncChannel(*await connect(theirs), FromFirst)
        front = RemoteFront(self.service.parts, self.service.plugins, far, self.service.started)
        serving = asyncio.create_task(_serve(Desk(self.service, self.metrics, near), near))
        listening = asyncio.create_task(_listen(front, far))
        try:
            yield front
        finally:
            listening.cancel()
            far.close()
            await serving


async def _serve(desk: Desk, channel: WorkerChannel) -> None:
    async for message in channel.messages():
        desk.hear(message)
    desk.close()
    channel.close()


async def _listen(front: RemoteFront, channel: FirstChannel) -> None:
    async for message in channel.messages():
        front.hear(message)


def run_distant(
    test: Callable[[Distant], Coroutine[Any, Any, None]], host: EngineHost, with_parts: Parts
) -> None:
    """Run a test against a service that reads no answers and is ready, and end it."""

    async def life() -> None:
        service = Service(with_parts, Plugins(), host, reads_answers=False)
        service.start()
        try:
            await asyncio.wait_for(service.fleet.wait_ready(), 10)
            await asyncio.wait_for(test(Distant(service)), 20)
        finally:
            await service.stop()

    asyncio.run(life())
