"""Where ``conf/`` is, how plugins add to it, and how a section becomes a checked dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins as HydraPlugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pluribus.errors import ConfigError, PluribusError

T = TypeVar("T")

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
"""What Hydra raises when overrides and choices make no configuration."""


def config_dir() -> str:
    """Return ``conf/``: inside the package in a wheel, at the repository root in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return str(packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf")


class PluginConfigs(SearchPathPlugin):
    """Adds the folders that plugins bring after our own."""

    paths: Sequence[str] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for path in self.paths:
            search_path.append(provider="pluribus", path=path)


def add_search_paths(paths: Sequence[str]) -> None:
    """Let Hydra find config choices in ``paths`` too, instead of those given last time."""
    PluginConfigs.paths = tuple(paths)
    if PluginConfigs not in HydraPlugins.instance().discover(SearchPathPlugin):
        HydraPlugins.instance().register(PluginConfigs)


def load(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose ``conf/<name>.yaml`` with Hydra overrides, outside the command line.

    Raises:
        ConfigError: an override or a choice does not exist.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    except COMPOSE_ERRORS as error:
        raise ConfigError(explain(error)) from error


def explain(error: Exception) -> str:
    """Return what one of ``COMPOSE_ERRORS`` has to say, in full."""
    if isinstance(error.__cause__, OmegaConfBaseException):
        return f"{error}\n{error.__cause__}"  # the cause names the key
    if isinstance(error, ValueError):
        return f"{error}; a choice is made as group=NAME"
    return str(error)


def section(config: DictConfig, where: str, schema: type[T]) -> T:
    """Return the section at ``where``, less ``name``, as a checked ``schema``.

    Args:
        config: the whole configuration.
        where: dotted path of the section, e.g. ``cache.kv``.
        schema: a dataclass; its ``__post_init__`` may refuse values.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing or a refused value.
    """
    values = _mapping(config, where)
    values.pop("name", None)
    return _checked(values, f"{where}.", schema)


def pick(config: DictConfig, schema: type[T]) -> T:
    """Return the top-level settings that ``schema``, a dataclass, has fields for, checked.

    Raises:
        ConfigError: a wrong type, a missing or a refused value.
    """
    names = [field.name for field in fields(schema)]  # type: ignore[arg-type]
    return _checked({name: config[name] for name in names}, "", schema)


def _checked(values: dict[str, Any], prefix: str, schema: type[T]) -> T:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except PluribusError as error:
        raise ConfigError(str(error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{prefix}{error.full_key}: {str(error).splitlines()[0]}") from error


def choice(config: DictConfig, where: str) -> str:
    """Return the ``name`` of the section at ``where``."""
    name = _mapping(config, where).get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{where}.name must say which plugin to use, got {name!r}")
    return name


def _mapping(config: DictConfig, where: str) -> dict[str, Any]:
    try:
        node = OmegaConf.select(config, where)
        if isinstance(node, DictConfig):
            return dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from error
    raise ConfigError(
        f"{where} must be a section, got {node!r}; "
        f"choose one with {where.replace('.', '/')}=NAME on the command line"
    )
