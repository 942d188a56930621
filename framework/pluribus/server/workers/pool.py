"""Several processes that speak HTTP, kept running, in front of the one service."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial

import structlog

from pluribus.errors import PluribusError
from pluribus.restarts import Restarts
from pluribus.server.auth import Keyring
from pluribus.server.config import ServerConfig
from pluribus.server.http import SECONDS_TO_SEND
from pluribus.server.metrics import Metrics
from pluribus.server.speaker import Speaker
from pluribus.server.workers.desk import Desk
from pluribus.server.workers.door import Door
from pluribus.server.workers.messages import PROTOCOL_VERSION, Start
from pluribus.server.workers.worker import Worker
from pluribus.service import Service

MAX_RESTARTS = 10
"""Of one worker within ten minutes, before the server gives up."""
SECONDS_TO_END = 2
"""That a worker may take to end, beside those that it gets to send what there is to send."""

log = structlog.stdlib.get_logger(__name__)


class WorkerPool(Speaker):
    """Answers in ``config.workers`` processes.

    Args:
        service: answers them; it is observed from now on, for ``/metrics``.
        config: the server's settings.
        keyring: who may come in.
        listener: where connections come in.
    """

    def __init__(
        self,
        service: Service,
        config: ServerConfig,
        keyring: Keyring | None,
        listener: socket.socket,
    ) -> None:
        service.observer = self._metrics = Metrics(service)
        self._metrics.http_workers.set_function(lambda: len(self._ready))
        self._service = service
        self._keyring = keyring
        self._num_workers = config.workers
        self._workers: dict[int, Worker] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._door = Door(listener, lambda: self._ready, config.max_connections)
        self._missing = set(range(config.workers))
        self._is_closing = False

    @property
    def _ready(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.is_ready]

    async def serve(self, on_open: Callable[[], None]) -> None:
        self._keepers = [
            asyncio.create_task(self._keep(index, on_open)) for index in range(self._num_workers)
        ]
        # If one is given up, the others go on until they are told to finish.
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_EXCEPTION)
        for keeper in done:
            if not keeper.cancelled():
                keeper.result()

    async def close(self) -> None:
        self._is_closing = True
        self._door.close()
        for index, keeper in enumerate(self._keepers):
            worker = self._workers.get(index)
            if worker is not None and worker.is_ready:
                worker.finish()
            else:
                keeper.cancel()
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=SECONDS_TO_SEND + SECONDS_TO_END)
            for keeper in late:
                keeper.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _keep(self, index: int, on_open: Callable[[], None]) -> None:
        """Run one worker after another, until closed or there have been too many."""
        restarts = Restarts(MAX_RESTARTS)
        while True:
            exit_code = await self._run(index, on_open)
            if self._is_closing:
                return
            if not restarts.is_allowed(time.monotonic()):
                raise PluribusError(
                    f"HTTP worker {index} has died {MAX_RESTARTS + 1} times within ten minutes"
                )
            self._metrics.http_worker_restarts.inc()
            log.error("an HTTP worker died: starting another", worker=index, exit_code=exit_code)

    async def _run(self, index: int, on_open: Callable[[], None]) -> int | None:
        """Run one worker to its end, and return its exit code."""
        start = Start(
            PROTOCOL_VERSION,
            index,
            self._service.parts.config,
            self._keyring,
            self._service.started,
        )
        worker = await Worker.start(start, partial(Desk, self._service, self._metrics))
        self._workers[index] = worker
        try:
            await worker.live(partial(self._on_ready, index, on_open))
        finally:
            del self._workers[index]
            await worker.end()
        if worker.refusal is not None:
            raise PluribusError(worker.refusal)
        return worker.exit_code

    def _on_ready(self, index: int, on_open: Callable[[], None]) -> None:
        if self._missing:
            self._missing.discard(index)
            if not self._missing:
                on_open()
        self._door.open()
