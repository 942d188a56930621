"""The HTTP application, as data."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from pluribus.server.config import ServerConfig
from pluribus.server.docs import documentation_routes
from pluribus.server.errors import EXCEPTION_HANDLERS
from pluribus.server.middleware import (
    AccessLog,
    BodyLimit,
    RequestId,
    SecurityHeaders,
    UnexpectedErrors,
)
from pluribus.server.openapi import build_document
from pluribus.server.routes import operations

if TYPE_CHECKING:
    from pluribus.service import Service


def create_app(
    service: Service, config: ServerConfig, extra_routes: Sequence[BaseRoute] = ()
) -> Starlette:
    """Return the application that puts ``service`` behind HTTP.

    ``extra_routes`` come after ours: they add paths and replace none.
    """
    table = operations(service)
    document = build_document(table, title="Pluribus", version=version("pluribus"))
    return Starlette(
        routes=[
            *(operation.route() for operation in table),
            *documentation_routes(document),
            *extra_routes,
        ],
        middleware=[
            Middleware(RequestId),
            Middleware(SecurityHeaders),
            Middleware(AccessLog),
            Middleware(UnexpectedErrors),
            Middleware(BodyLimit, max_bytes=config.max_body_bytes),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
