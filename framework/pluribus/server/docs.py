"""Interactive documentation at ``/docs``: Swagger UI, served from here alone."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
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


def documentation_routes(document: Json) -> list[BaseRoute]:
    """Return the routes of the OpenAPI ``document`` and of the pages that show it."""

    async def openapi(_: Request) -> Response:
        return JSONResponse(document)

    async def docs(_: Request) -> Response:
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return FileResponse(STATIC / "docs.html", headers=headers)

    async def home(_: Request) -> Response:
        return RedirectResponse("docs")

    return [
        Route("/openapi.json", openapi),
        Route("/docs", docs),
        Route("/", home),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
