"""What people look at: the playground at ``/`` and the documentation at ``/docs``.

Both are served from here alone: a browser asks no other host for anything.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from pluribus.server.openapi import Json

STATIC = Path(__file__).parent / "static"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def page_routes(document: Json) -> list[BaseRoute]:
    """Return the routes of the pages, of their files, and of the OpenAPI ``document``."""

    async def openapi(_: Request) -> Response:
        return JSONResponse(document)

    async def docs(_: Request) -> Response:
        return _page("docs.html")

    async def playground(_: Request) -> Response:
        return _page("playground/index.html")

    return [
        Route("/", playground),
        Route("/docs", docs),
        Route("/openapi.json", openapi),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


def _page(name: str) -> Response:
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    return FileResponse(STATIC / name, headers=headers)
