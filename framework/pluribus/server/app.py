"""The HTTP application, as data."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from pluribus.server.admission import Admission
from pluribus.server.auth import Keyring
from pluribus.server.config import ServerConfig
from pluribus.server.errors import EXCEPTION_HANDLERS
from pluribus.server.limits import BodyLimit, ConnectionLimit, HeaderLimit
from pluribus.server.meter import CountRequests, Meter, metrics_route
from pluribus.server.metrics import Metrics
from pluribus.server.middleware import (
    REQUEST_ID_HEADER,
    AccessLog,
    RequestId,
    SecurityHeaders,
    UnexpectedErrors,
)
from pluribus.server.openapi import build_document
from pluribus.server.pages import page_routes
from pluribus.server.routes import operations

if TYPE_CHECKING:
    from pluribus.front import Front
    from pluribus.service import Service


def create_app(
    service: Service,
    config: ServerConfig,
    extra_routes: Sequence[BaseRoute] = (),
    keyring: Keyring | None = None,
) -> Starlette:
    """Return the application that puts ``service`` behind HTTP.

    Args:
        service: what answers; it is observed from now on, for ``/metrics``.
        config: limits, and who is let in without a key.
        extra_routes: come after ours: they add paths and replace none.
        keyring: who may come in; None lets everybody in.
    """
    service.observer = metrics = Metrics(service)
    return make_app(service, metrics, config, extra_routes, keyring)


def make_app(
    service: Front,
    meter: Meter,
    config: ServerConfig,
    extra_routes: Sequence[BaseRoute],
    keyring: Keyring | None,
) -> Starlette:
    """Return the application that puts ``service``, observed or elsewhere, behind HTTP.

    Args:
        service: what answers.
        meter: for ``/metrics``.
        config, extra_routes, keyring: see ``create_app``.
    """
    table = operations(service, config)
    document = build_document(table, title="Pluribus", version=version("pluribus"))
    app = Starlette(
        routes=[
            *(operation.route() for operation in table),
            metrics_route(meter),
            *page_routes(document),
            *extra_routes,
        ],
        middleware=[
            Middleware(RequestId),
            Middleware(SecurityHeaders),
            Middleware(AccessLog),
            Middleware(CountRequests, meter=meter),
            *_cors(config),
            Middleware(UnexpectedErrors),
            Middleware(ConnectionLimit, max_connections=config.max_connections),
            Middleware(HeaderLimit, max_bytes=config.max_header_bytes),
            Middleware(Admission, config=config, keyring=keyring),
            Middleware(BodyLimit, max_bytes=config.max_body_bytes, timeout=config.body_timeout),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    # A redirect would lead to wherever the request's Host header says.
    app.router.redirect_slashes = False
    return app


def _cors(config: ServerConfig) -> list[Middleware]:
    """Return what lets pages of other origins use the answers, errors included."""
    if not config.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After"],
        )
    ]
