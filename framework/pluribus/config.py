"""How a section of a configuration becomes a checked dataclass."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pluribus.errors import ConfigError, PluribusError
from pluribus.replicas import ReplicaConfig

T = TypeVar("T")

SHARED: Mapping[str, type[Any]] = {"parallel": ReplicaConfig}
"""Settings that every choice of a group has, and that are no plugin's."""
NO_SUCH_KEY = (ConfigKeyError, ConfigAttributeError)
"""What OmegaConf raises for a key that is not there; ``parent_node`` has those that are."""


def section(config: DictConfig, where: str, schema: type[T]) -> T:
    """Return the section at ``where``, less ``name`` and ``SHARED``, as a checked ``schema``.

    Args:
        config: the whole configuration.
        where: dotted path of the section, e.g. ``cache.kv``.
        schema: a dataclass; its ``__post_init__`` may refuse values.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing or a refused value.
    """
    others = _names(SHARED[where]) if where in SHARED else []
    settings = ", ".join(f"{where}.{name}" for name in [*_names(schema), *others])
    values = _mapping(config, where, f"its settings are {settings}")
    for name in ("name", *others):
        values.pop(name, None)
    return _checked(values, f"{where}.", schema)


def replicas(config: DictConfig) -> ReplicaConfig:
    """Return the replicas' settings, checked.

    Raises:
        ConfigError: a wrong type or a refused value.
    """
    values = _mapping(config, "parallel", "its settings are parallel.replicas and its kind's")
    chosen = {name: values[name] for name in _names(ReplicaConfig) if name in values}
    return _checked(chosen, "parallel.", ReplicaConfig)


def pick(config: DictConfig, schema: type[T]) -> T:
    """Return the top-level settings that ``schema``, a dataclass, has fields for, checked.

    Raises:
        ConfigError: a wrong type, a missing or a refused value.
    """
    return _checked({name: config[name] for name in _names(schema)}, "", schema)


def _names(schema: type[Any]) -> list[str]:
    return [field.name for field in fields(schema)]


def _checked(values: dict[str, Any], prefix: str, schema: type[T]) -> T:
    try:
        checked = OmegaConf.structured(schema)
        _unlock(checked)
        return OmegaConf.to_object(OmegaConf.merge(checked, values))  # type: ignore[return-value]
    except PluribusError as error:
        raise ConfigError(str(error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(_explain_value(error, prefix)) from error


def _explain_value(error: OmegaConfBaseException, prefix: str) -> str:
    key = f"{prefix}{error.full_key}".removesuffix(".")
    if isinstance(error, NO_SUCH_KEY) and isinstance(error.parent_node, DictConfig):
        return no_such_setting(key, error.parent_node)
    return f"{key}: {str(error).splitlines()[0]}"


def _unlock(node: DictConfig) -> None:
    """Let values be set in frozen dataclasses, nested ones too: the objects made are frozen."""
    OmegaConf.set_readonly(node, False)
    for key in node:
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _unlock(node[key])


def choice(config: DictConfig, where: str) -> str:
    """Return the ``name`` of the section at ``where``."""
    choices = f"choose one with {where.replace('.', '/')}=NAME on the command line"
    name = _mapping(config, where, choices).get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{where}.name must say which plugin to use, got {name!r}")
    return name


def _mapping(config: DictConfig, where: str, advice: str) -> dict[str, Any]:
    try:
        node = OmegaConf.select(config, where)
        if isinstance(node, DictConfig):
            return dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from error
    raise ConfigError(f"{where} must be a section, got {node!r}; {advice}")


def no_such_setting(key: str, there: Iterable[object]) -> str:
    """Say that there is no setting ``key``, and which ones there are in its place."""
    section, _, name = key.rpartition(".")
    names = sorted({str(each) for each in there} - {"hydra"})
    if section and not names:
        return f"{key}: there is no such setting; {section} is a value and has none of its own"
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    where = f"{section} has" if section else "there are"
    return f"{key}: there is no such setting{hint} {where} {', '.join(names)}"
