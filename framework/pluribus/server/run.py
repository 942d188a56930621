"""Start the server, tell when it is ready, and stop it in good order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from pluribus.errors import ConfigError
from pluribus.logs import configure_logging
from pluribus.server.app import create_app
from pluribus.server.config import ServerConfig
from pluribus.service import Service, State, Status

if TYPE_CHECKING:
    from pluribus.plugins import Plugins
    from pluribus.runtime import Parts

BACKLOG = 2048

log = structlog.stdlib.get_logger(__name__)


def serve(parts: Parts, plugins: Plugins, config: ServerConfig) -> int:
    """Serve ``parts`` until told to stop; return the process's exit code.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    configure_logging(config.log_format, config.log_level)
    service = Service(parts, plugins)
    return run_server(service, config, plugins.routes(service))


def run_server(
    service: Service, config: ServerConfig, extra_routes: Sequence[BaseRoute] = ()
) -> int:
    """Start ``service`` and put it behind HTTP until SIGTERM or SIGINT.

    Then running requests get ``config.shutdown_timeout`` seconds to finish; a second signal
    does not wait for them.

    Returns:
        The process's exit code: 0 if it was told to stop and did so in good order.

    Raises:
        ConfigError: the address cannot be listened on; nothing has been started.
    """
    with bind(config) as listener:
        app = create_app(service, config, extra_routes)
        return asyncio.run(_Run(service, app, config, listener).until_stopped())


def bind(config: ServerConfig) -> socket.socket:
    """Return a socket that listens at the configured address.

    Raises:
        ConfigError: the address is taken, forbidden, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(_why_not(config, error)) from error


def _why_not(config: ServerConfig, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"server.port={config.port} is in use on {config.host} by another program; choose "
            "another port, or server.port=0 for any that is free"
        )
    if error.errno == errno.EACCES:
        return f"server.port={config.port} needs more rights; choose one from 1024 up"
    return f"server.host={config.host} cannot be listened on: {error.strerror or error}"


def address(listener: socket.socket) -> str:
    """Return the URL of what ``listener`` listens on."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _UvicornServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Uvicorn's own handlers raise the signal again once served: nothing after would run.
        yield


class _Run:
    """One run of the server, from start to exit code."""

    def __init__(
        self, service: Service, app: Starlette, config: ServerConfig, listener: socket.socket
    ) -> None:
        self._service = service
        self._listener = listener
        self._address = address(listener)
        self._server = _UvicornServer(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=config.shutdown_timeout,  # type: ignore[arg-type]
            )
        )
        self._exit_code = 0

    async def until_stopped(self) -> int:
        loop = asyncio.get_running_loop()

        def change_from_any_thread(status: Status) -> None:
            loop.call_soon_threadsafe(self._on_change, status)

        serving = asyncio.create_task(self._server.serve([self._listener]))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number, serving)
        self._service.watch(change_from_any_thread)
        self._service.start()
        try:
            await serving
        except asyncio.CancelledError:
            assert self._exit_code, "only a second signal cancels"
        finally:
            await self._service.stop()
        return self._exit_code

    def _on_signal(self, number: signal.Signals, serving: asyncio.Task[None]) -> None:
        if self._server.should_exit:
            log.warning("stopping at once", signal=number.name)
            self._exit_code = 1
            serving.cancel()
        else:
            log.info("stopping: running requests may finish", signal=number.name)
            self._server.should_exit = True

    def _on_change(self, status: Status) -> None:
        if status.state is State.READY:
            name = self._service.spec.name
            log.info(f"serving {name} on {self._address} (docs at /docs)")
        elif status.state is State.FAILED:
            log.error("the service failed", detail=status.detail)
            self._exit_code = 1
            self._server.should_exit = True
