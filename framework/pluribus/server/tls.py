"""TLS: whether the certificate and its key can be served, found out before anything starts."""

from __future__ import annotations

import ssl
from pathlib import Path

from pluribus.errors import ConfigError
from pluribus.server.config import TlsConfig


def check_tls(config: TlsConfig) -> None:
    """Raise ConfigError if ``config`` names a certificate that cannot be served."""
    if config.certfile is None:
        return
    for name in ("certfile", "keyfile"):
        path = getattr(config, name)
        if path is not None:
            _check_readable(name, Path(path))
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.certfile, config.keyfile, _refuse_password)
    except ssl.SSLError as error:
        raise ConfigError(
            f"server.tls.certfile={config.certfile} and server.tls.keyfile={config.keyfile} are "
            f"not a certificate and its private key, in PEM: {error.reason or error}"
        ) from None


def _check_readable(name: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"server.tls.{name}={path} cannot be read: {error.strerror or error}"
        ) from None


def _refuse_password() -> str:
    # Without this, OpenSSL would ask for it on the terminal.
    raise ConfigError(
        "server.tls.keyfile is encrypted, and nobody is there to be asked for its password; "
        "name a file that holds the key as it is, and that only the server may read"
    )
