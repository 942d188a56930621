"""Start the server, tell when it is ready, and stop it in good order."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
from starlette.routing import BaseRoute

from pluribus.engine.client import ProcessHost
from pluribus.errors import ConfigError, PluribusError
from pluribus.phases import process_age, told
from pluribus.replicas import engine_configs
from pluribus.server.app import create_app
from pluribus.server.auth import load_keyring
from pluribus.server.config import ServerConfig
from pluribus.server.speaker import OneProcess, Speaker
from pluribus.server.tls import check_tls
from pluribus.server.workers.pool import WorkerPool
from pluribus.service import Service
from pluribus.supervisor import State, Status

if TYPE_CHECKING:
    from pluribus.assembly import Parts
    from pluribus.engine.spare import SpareProcess
    from pluribus.plugins import Plugins

BACKLOG = 2048

log = structlog.stdlib.get_logger(__name__)


def serve(parts: Parts, plugins: Plugins, server: ServerConfig, spare: SpareProcess) -> int:
    """Serve ``parts`` until told to stop; return the process's exit code.

    Args:
        parts: what to serve; the engine's process makes its own of the same configuration.
        plugins: for routes and for hooks that observe.
        server: the ``server`` section, checked.
        spare: for the first engine.

    Raises:
        ConfigError: as ``run_server``.
    """
    first, *others = engine_configs(parts.config, parts.replicas.replicas)
    hosts = [ProcessHost(first, spare), *map(ProcessHost, others)]
    if server.workers > 1:
        return run_with_workers(Service(parts, plugins, *hosts, reads_answers=False), server)
    service = Service(parts, plugins, *hosts)
    return run_server(service, server, plugins.routes(service))


def run_server(
    service: Service, config: ServerConfig, extra_routes: Sequence[BaseRoute] = ()
) -> int:
    """Start ``service`` and put it behind HTTP until SIGTERM or SIGINT.

    Then running requests get ``config.shutdown_timeout`` seconds to finish, while new ones are
    told to come back later; a second signal waits for nothing.

    Returns:
        The process's exit code: 0 if it was told to stop and did so in good order.

    Raises:
        ConfigError: the address cannot be listened on, or keys or certificate cannot be used;
            nothing has been started.
    """
    keyring = load_keyring(config)
    check_tls(config.tls)
    with bind(config) as listener:
        app = create_app(service, config, extra_routes, keyring)
        return _run(service, OneProcess(app, config, listener), config, listener)


def run_with_workers(service: Service, config: ServerConfig) -> int:
    """Do what ``run_server`` does, HTTP in processes of its own.

    Raises:
        ConfigError: as ``run_server``.
    """
    keyring = load_keyring(config)
    check_tls(config.tls)
    with bind(config) as listener:
        pool = WorkerPool(service, config, keyring, listener)
        return _run(service, pool, config, listener)


def _run(service: Service, speaker: Speaker, config: ServerConfig, listener: socket.socket) -> int:
    where = address(listener, is_tls=config.tls.certfile is not None)
    return asyncio.run(_Run(service, speaker, config, where).until_stopped())


def bind(config: ServerConfig) -> socket.socket:
    """Return a socket that listens at the configured address.

    Raises:
        ConfigError: the address is taken, forbidden, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(_why_not(config, error)) from error
    # asyncio leaves this out for sockets made by others. Without, a head waits 40 ms for its body.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _why_not(config: ServerConfig, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"server.port={config.port} is in use on {config.host} by another program; choose "
            "another port, or server.port=0 for any that is free"
        )
    if error.errno == errno.EACCES:
        return f"server.port={config.port} needs more rights; choose one from 1024 up"
    return f"server.host={config.host} cannot be listened on: {error.strerror or error}"


def address(listener: socket.socket, *, is_tls: bool = False) -> str:
    """Return the URL of what ``listener`` listens on."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Run:
    """One run of the server, from start to exit code."""

    def __init__(
        self, service: Service, speaker: Speaker, config: ServerConfig, where: str
    ) -> None:
        self._service = service
        self._speaker = speaker
        self._config = config
        self._address = where
        self._is_open = False
        self._is_ending = asyncio.Event()
        self._exit_code = 0
        self._has_been_ready = False

    async def until_stopped(self) -> int:
        loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self._speaker.serve(self._on_open))
        serving.add_done_callback(lambda _: self._is_ending.set())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        self._service.fleet.watch(self._on_change)
        self._service.start()
        await self._is_ending.wait()
        if self._exit_code == 0:
            # It listens on meanwhile, to tell whoever comes that it is stopping.
            await self._service.drain(self._config.shutdown_timeout)
        if num_left := self._service.num_flights:
            log.warning("out of time: what has not finished fails", num_generations=num_left)
        await self._service.stop()
        await self._speaker.close()
        try:
            await serving
        except PluribusError as error:
            self._fail(str(error))
        return self._exit_code

    def _on_signal(self, number: signal.Signals) -> None:
        if self._is_ending.is_set():
            log.warning("stopping at once", signal=number.name)
            os._exit(1)  # the engine ends with us
        log.info("stopping: running requests may finish", signal=number.name)
        self._service.fleet.retire()
        self._is_ending.set()

    def _on_open(self) -> None:
        self._is_open = True
        self._tell(self._service.status)

    def _on_change(self, status: Status) -> None:
        self._tell(status)
        if status.state is State.FAILED:
            self._fail(status.detail)

    def _tell(self, status: Status) -> None:
        if self._is_open and status.state is State.READY:
            log.info(f"{status.detail} on {self._address} (docs at /docs)")
            log.info(told(self._phases()))

    def _fail(self, reason: str) -> None:
        log.error("the service failed", detail=reason)
        self._exit_code = 1
        self._is_ending.set()

    def _phases(self) -> Mapping[str, float]:
        """Return what the engine's start has taken, and before it, the first time, our own."""
        phases = self._service.fleet.phases
        if self._has_been_ready:
            return phases
        self._has_been_ready = True
        return {"front": process_age() - sum(phases.values()), **phases}
