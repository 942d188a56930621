"""Whose request it is, before anything looks at it. Pure ASGI."""

from __future__ import annotations

from abc import ABC, abstractmethod
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pluribus.server.auth import Keyring
from pluribus.server.config import ServerConfig
from pluribus.server.errors import ApiError, error_response
from pluribus.tenants import ANONYMOUS, Tenant, is_tenant_name

PROBES = frozenset({"/livez", "/readyz", "/health"})
"""What has to answer whoever asks, and however busy the server is."""

_OPEN_PATHS = PROBES | {"/version", "/", "/docs", "/openapi.json"}
_OPEN_FOLDER = "/static/"

MAX_TENANTS = 1000


class Doorkeeper(ABC):
    """Finds out whose a request is."""

    @abstractmethod
    def tenant(self, headers: Headers) -> Tenant:
        """Return whose request it is that has these headers.

        Raises:
            ApiError: they may not come in.
        """


class AnyoneMayEnter(Doorkeeper):
    """Takes everybody for the same tenant, or for the one that a header names.

    After ``MAX_TENANTS`` different names, others count as one.
    """

    def __init__(self, header: str | None) -> None:
        self._header = header
        self._known: dict[str, Tenant] = {}

    def tenant(self, headers: Headers) -> Tenant:
        name = headers.get(self._header) if self._header else None
        if name is None:
            return ANONYMOUS
        if not is_tenant_name(name):
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"the header {self._header} must be 1 to 64 letters, digits, '.', '_' and '-'",
                code="invalid_tenant",
            )
        if name not in self._known and len(self._known) < MAX_TENANTS:
            self._known[name] = Tenant(name=name)
        return self._known.get(name, ANONYMOUS)


class KeyHoldersMayEnter(Doorkeeper):
    """Asks for a key."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def tenant(self, headers: Headers) -> Tenant:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("this server asks for a key: send 'Authorization: Bearer KEY'")
        tenant = self._keyring.find(key.strip())
        if tenant is None:
            raise _unauthorized("the key in the header Authorization is none of this server's")
        return tenant


def _unauthorized(message: str) -> ApiError:
    return ApiError(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key")


class Admission:
    """Lets in who may come in, and leaves the tenant in ``request.state.tenant``.

    The probes, the version and the documentation are for everybody: they tell nothing of
    what is asked and answered.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, keyring: Keyring | None) -> None:
        self._app = app
        self._doorkeeper: Doorkeeper = (
            KeyHoldersMayEnter(keyring) if keyring else AnyoneMayEnter(config.tenant_header)
        )
        self._open_paths = _OPEN_PATHS | ({"/metrics"} if config.auth.open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["tenant"] = ANONYMOUS
        path = scope["path"]
        if path not in self._open_paths and not path.startswith(_OPEN_FOLDER):
            try:
                state["tenant"] = self._doorkeeper.tenant(Headers(scope=scope))
            except ApiError as error:
                await _refuse(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refuse(error: ApiError) -> ASGIApp:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else None
    return error_response(error.status, str(error), code=error.code, headers=headers)
