"""How a configuration is composed, and how a section of it becomes a checked dataclass."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pluribus.config_files import config_dir as config_dir
from pluribus.config_files import config_groups
from pluribus.errors import ConfigError, PluribusError
from pluribus.replicas import ReplicaConfig

T = TypeVar("T")

SHARED: Mapping[str, type[Any]] = {"parallel": ReplicaConfig}
"""Settings that every choice of a group has, and that are no plugin's."""
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
"""What Hydra raises when overrides and choices make no configuration."""
_NO_SUCH_KEY = (ConfigKeyError, ConfigAttributeError)


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
    check_folder()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            config = compose(name, overrides=list(overrides))
    except COMPOSE_ERRORS as error:
        raise ConfigError(explain(error)) from error
    check_keys(config, name)
    return config


def check_folder() -> None:
    """Raise ConfigError where the current folder is gone: Hydra has to know it."""
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used: {error.strerror}; change to another"
        ) from error


def check_keys(config: DictConfig, name: str) -> None:
    """Refuse what was added to a configuration, as ``+key=value``, for nobody to read.

    Raises:
        ConfigError: a key or section that is neither in ``conf/<name>.yaml`` nor a group that a
            plugin brings choices for.
    """
    known = _known_keys(name)
    for folder in PluginConfigs.paths:
        known.update(group.replace("/", ".") for group in config_groups(folder))
    for key in _unknown_keys(config, known):
        above = key[: key.rfind(".") + 1]
        there = [k.removeprefix(above).partition(".")[0] for k in known if k.startswith(above)]
        raise ConfigError(_no_such_setting(key, there))


def _known_keys(name: str) -> set[str]:
    """Return what ``conf/<name>.yaml`` and its defaults have; groups by their dotted path."""
    content: Any = OmegaConf.to_container(OmegaConf.load(Path(config_dir(), f"{name}.yaml")))
    known = set(content) - {"defaults", "hydra"}
    for default in content["defaults"]:
        if isinstance(default, dict):
            # What is only overridden is Hydra's own.
            known.update(group.replace("/", ".") for group in default if " " not in group)
        elif default != "_self_":
            known |= _known_keys(default)
    return known


def _unknown_keys(node: DictConfig, known: set[str], above: str = "") -> Iterator[str]:
    for key in map(str, node):
        path = above + key
        if path in known:
            continue
        if not any(name.startswith(f"{path}.") for name in known):
            yield path
        elif isinstance(section := node[key], DictConfig):
            yield from _unknown_keys(section, known, f"{path}.")


def _no_such_setting(key: str, there: Iterable[object]) -> str:
    """Say that there is no setting ``key``, and which ones there are in its place."""
    section, _, name = key.rpartition(".")
    names = sorted({str(each) for each in there} - {"hydra"})
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    where = f"{section} has" if section else "there are"
    return f"{key}: there is no such setting{hint} {where} {', '.join(names)}"


def explain(error: Exception) -> str:
    """Return what one of ``COMPOSE_ERRORS`` has to say, in full."""
    cause = error.__cause__
    if isinstance(cause, _NO_SUCH_KEY) and isinstance(cause.parent_node, DictConfig):
        return _no_such_setting(str(cause.full_key), cause.parent_node)
    if isinstance(cause, OmegaConfBaseException):
        return f"{error}\n{cause}"  # the cause names the key
    if isinstance(error, ValueError):
        return f"{error}; a choice is made as group=NAME"
    return str(error)


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
    if isinstance(error, _NO_SUCH_KEY) and isinstance(error.parent_node, DictConfig):
        return _no_such_setting(key, error.parent_node)
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
