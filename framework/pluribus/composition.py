"""How a configuration is composed of ``conf/``, what plugins bring, and a command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins as HydraPlugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pluribus.config import NO_SUCH_KEY, no_such_setting
from pluribus.config_files import config_dir, config_groups
from pluribus.errors import ConfigError

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError)
"""What Hydra raises when overrides and choices make no configuration."""


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
        raise ConfigError(no_such_setting(key, there))


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


def explain(error: Exception) -> str:
    """Return what one of ``COMPOSE_ERRORS`` has to say, in full."""
    cause = error.__cause__
    if isinstance(cause, NO_SUCH_KEY) and isinstance(cause.parent_node, DictConfig):
        return no_such_setting(str(cause.full_key), cause.parent_node)
    if isinstance(cause, OmegaConfBaseException):
        return f"{error}\n{cause}"  # the cause names the key
    if isinstance(error, ValueError | TypeError):
        return f"{error}; a choice is made as group=NAME"
    return str(error)
