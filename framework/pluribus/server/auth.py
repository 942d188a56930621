"""Who may come in: API keys, and the tenants they stand for.

Keys are kept as hashes and shown nowhere: messages tell the line of a key, never its text.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import structlog

from pluribus.errors import ConfigError
from pluribus.server.config import ServerConfig, is_loopback
from pluribus.tenants import Tenant, is_tenant_name

_KEY = re.compile(r"[!-+\--~]+")  # printable, no space, no comma
_SETTINGS = tuple(field.name for field in fields(Tenant) if field.name != "name")

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys, each as its hash beside whose it is."""

    entries: tuple[tuple[bytes, Tenant], ...]

    @classmethod
    def of(cls, tenants: Mapping[str, Tenant]) -> Keyring:
        """Return the keyring of keys and whose they are."""
        return cls(tuple((_digest(key), tenant) for key, tenant in tenants.items()))

    def find(self, key: str) -> Tenant | None:
        """Return whose ``key`` is, in a time that tells nothing of the keys there are."""
        digest, found = _digest(key), None
        for known, tenant in self.entries:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def load_keyring(
    config: ServerConfig, environment: Mapping[str, str] = os.environ
) -> Keyring | None:
    """Return the keys that the settings name, or None where everybody may come in.

    Raises:
        ConfigError: they cannot be read, or other machines would be let in without.
    """
    tenants: dict[str, Tenant] = {}
    if config.auth.keys_file is not None:
        tenants |= _from_file(Path(config.auth.keys_file))
    if config.auth.keys_env is not None and config.auth.keys_env in environment:
        tenants |= _from_environment(config.auth.keys_env, environment, tenants)
    _check_exposure(config, has_keys=bool(tenants))
    return Keyring.of(tenants) if tenants else None


def _check_exposure(config: ServerConfig, *, has_keys: bool) -> None:
    if has_keys and config.tenant_header is not None:
        raise ConfigError(
            f"server.tenant_header={config.tenant_header} is for servers without keys: here the "
            "keys name the tenants; leave it out"
        )
    if is_loopback(config.host):
        return
    if not (has_keys or config.allow_remote):
        raise ConfigError(
            f"server.host={config.host} lets other machines in, and nobody is asked for a key; "
            "name keys in server.auth.keys_file, use server.host=127.0.0.1, or say "
            "server.allow_remote=true if it is meant"
        )
    if has_keys and config.tls.certfile is None:
        log.warning("keys and prompts cross the network in the clear; see server.tls.certfile")


def _from_file(path: Path) -> dict[str, Tenant]:
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(f"server.auth.keys_file={path} cannot be read: {reason}") from None
    if mode & stat.S_IROTH:
        log.warning("every user of this machine can read the keys; chmod it 600", file=str(path))
    tenants: dict[str, Tenant] = {}
    settings: dict[str, Tenant] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            where = f"server.auth.keys_file={path}, line {number}"
            key, tenant = _parse(words, where)
            _check_new(key, tenants, where)
            if settings.setdefault(tenant.name, tenant) != tenant:
                raise ConfigError(f"{where}: the name has come before, with other settings")
            tenants[key] = tenant
    if not tenants:
        raise ConfigError(f"server.auth.keys_file={path} holds no key; add one, or leave it out")
    return tenants


def _parse(words: Sequence[str], where: str) -> tuple[str, Tenant]:
    """Return a line's key and tenant. Of the words only settings are shown: any may be a key."""
    form = "NAME KEY" + "".join(f" [{name}=NUMBER]" for name in _SETTINGS)
    if len(words) < 2 or not is_tenant_name(words[0]):
        raise ConfigError(
            f"{where} must read {form}, the name of at most 64 letters, digits, '.', '_' and '-'"
        )
    name, key, *options = words
    _check_key(key, where)
    values: dict[str, float | int] = {}
    for option in options:
        setting, _, value = option.partition("=")
        if setting not in _SETTINGS or setting in values:
            raise ConfigError(f"{where} must read {form}")
        try:
            values[setting] = float(value) if setting == "weight" else int(value)
        except ValueError:
            raise ConfigError(f"{where}: {setting} must be a number") from None
    try:
        return key, Tenant(name=name, **values)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).partition(': ')[2]}") from None


def _from_environment(
    variable: str, environment: Mapping[str, str], known: Mapping[str, Tenant]
) -> dict[str, Tenant]:
    """Return the keys of a variable; the tenants are called key-1, key-2, and so on."""
    tenants: dict[str, Tenant] = {}
    names = {tenant.name for tenant in known.values()}
    for number, given in enumerate(environment[variable].split(","), 1):
        where, key = f"key {number} of the environment variable {variable}", given.strip()
        _check_key(key, where)
        _check_new(key, {**known, **tenants}, where)
        tenants[key] = Tenant(name=f"key-{number}")
        if tenants[key].name in names:
            raise ConfigError(f"{where} is called key-{number}, like one of server.auth.keys_file")
    return tenants


def _check_key(key: str, where: str) -> None:
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"{where}: a key must be of printable ASCII, without spaces and commas, and not empty"
        )


def _check_new(key: str, known: Mapping[str, Tenant], where: str) -> None:
    if key in known:
        raise ConfigError(f"{where}: the key has come before")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
