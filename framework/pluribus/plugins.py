"""Find plugins, check them, and look up what they offer by kind and name.

The only module that knows pluggy's manager. Nothing is skipped in silence: whatever is wrong
with a plugin stops the launch, in words that name the plugin, where it came from, and the fix.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from pluribus import hookspecs
from pluribus.config_files import config_dir, config_files
from pluribus.errors import ConfigError, PluginError, PluribusError
from pluribus.plugin_contract import (
    BATCHER,
    DISABLE_VARIABLE,
    HOOKS,
    KINDS,
    KV_CACHE,
    LAUNCHER,
    MODEL,
    PARALLELISM,
    RESPONSE_CACHE,
    Kind,
    Offer,
    Source,
    offer_breach,
    plugin_breach,
)

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from pluribus.front import Front

__all__ = [
    "BATCHER",
    "KINDS",
    "KV_CACHE",
    "LAUNCHER",
    "MODEL",
    "PARALLELISM",
    "RESPONSE_CACHE",
    "Kind",
    "Offer",
    "Plugins",
    "Source",
    "discover",
]

GROUP = "pluribus"

T = TypeVar("T")


@dataclass(slots=True)
class Plugins:
    """The plugins in use and everything they offer.

    Attributes:
        hook: pluggy's relay, to call the hooks that observe and extend.
        sources: every plugin found, by entry-point name.
        offers: what can be chosen, by kind and name.
        search_paths: the folders of config choices that plugins bring.
        problems: what is wrong; a launch must call ``check`` first.
    """

    manager: pluggy.PluginManager = field(
        default_factory=lambda: pluggy.PluginManager(hookspecs.hookspec.project_name)
    )
    sources: dict[str, Source] = field(default_factory=dict)
    offers: dict[tuple[str, str], Offer] = field(default_factory=dict)
    search_paths: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)

    @property
    def hook(self) -> pluggy.HookRelay:
        return self.manager.hook

    def check(self) -> None:
        """Raise PluginError if anything is wrong with any plugin."""
        if self.problems:
            raise PluginError("\n".join(self.problems))

    def choices(self, kind: Kind[T]) -> Mapping[str, type[T]]:
        """Return what is offered of a kind, by name."""
        found = {offer.name: offer.cls for offer in self.offers.values() if offer.kind is kind}
        return MappingProxyType(found)

    def find(self, kind: Kind[T], name: str) -> type[T]:
        """Return the class called ``name``.

        Raises:
            ConfigError: nothing of that kind has the name.
        """
        choices = self.choices(kind)
        if name not in choices:
            installed = ", ".join(sorted(choices)) or "none"
            raise ConfigError(
                f"{kind.section}.name: no {kind.name} is called {name!r}; installed: {installed}"
            )
        return choices[name]

    @contextmanager
    def blaming(self, kind: Kind[Any], name: str) -> Iterator[None]:
        """Name the plugin behind whatever its class, or the class's Config, does wrong inside.

        Raises:
            ConfigError: it refuses a value with a ValueError.
            PluginError: it fails otherwise.
        """
        source = self.offers[kind.name, name].source
        try:
            yield
        except (PluribusError, KeyboardInterrupt):
            raise
        except ValueError as error:
            raise ConfigError(f"{kind.section}: {_one_line(error)}, says {source}") from error
        except BaseException as error:
            raise PluginError(
                f"{source}: {kind.name} {name!r} failed on the settings in {kind.section}: "
                f"{_describe(error)}; {source.remedy}"
            ) from error

    def routes(self, service: Front) -> list[BaseRoute]:
        """Return the HTTP routes that plugins offer beside ours.

        Raises:
            PluginError: a plugin failed to make its routes.
        """
        from starlette.routing import BaseRoute

        routes: list[BaseRoute] = []
        for source, offered in self._call("register_routes", service=service):
            if _is_list_of(BaseRoute, offered):
                routes += offered
            else:
                self._blame(source, f"register_routes must return a list of routes, not {offered}")
        self.check()
        return routes

    def describe(self) -> list[dict[str, str]]:
        """Return a row for each thing that can be chosen: kind, name, config, class, source."""
        return [
            {
                "kind": offer.kind.name,
                "name": offer.name,
                "selected_by": f"{offer.kind.section}.name={offer.name}",
                "class": f"{offer.cls.__module__}.{offer.cls.__qualname__}",
                "plugin": offer.source.name,
                "distribution": offer.source.distribution,
                "version": offer.source.version,
            }
            for offer in self.offers.values()
        ]

    def describe_sources(self) -> list[dict[str, Any]]:
        """Return a row for each plugin found: name, source, hooks."""
        return [
            {
                "plugin": source.name,
                "distribution": source.distribution,
                "version": source.version,
                "hooks": [
                    name
                    for name in HOOKS
                    for implementation in getattr(self.hook, name).get_hookimpls()
                    if implementation.plugin_name == source.name
                ],
            }
            for source in self.sources.values()
        ]

    def load(self, entry: EntryPoint) -> None:
        """Import and register a plugin, or note why it cannot be."""
        source = _source(entry)
        with self._noting(source, "could not be loaded"):
            self.add(source, entry.load())

    def add(self, source: Source, plugin: object) -> None:
        """Register a plugin, or note why it cannot be."""
        if source.name in self.sources:
            other = self.sources[source.name]
            self.problems.append(
                f"{source} has the name of {other}: uninstall one, or rename its entry point"
            )
            return
        self.sources[source.name] = source
        problem = plugin_breach(source, plugin) or self._register(source, plugin)
        if problem is not None:
            self.problems.append(problem)

    def collect(self) -> None:
        """Ask every plugin what it offers; call once, after the last ``add``."""
        for kind in KINDS:
            for source, offered in self._call(kind.hook):
                if isinstance(offered, Mapping):
                    for name, cls in offered.items():
                        self._offer(Offer(kind, name, cls, source))
                else:
                    self._blame(
                        source,
                        f"{kind.hook} must return a mapping of names to classes, not {offered!r}",
                    )
        self._collect_configs()

    def _register(self, source: Source, plugin: object) -> str | None:
        other = self.manager.get_name(plugin)
        if other is not None:
            return f"{source} is the same module as {self.sources[other]}: name it only once"
        try:
            self.manager.register(plugin, source.name)
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            if self.manager.has_plugin(source.name):
                self.manager.unregister(name=source.name)
            return f"{source} does not match the hooks: {_one_line(error)}; {source.remedy}"
        return None

    def _offer(self, offer: Offer) -> None:
        key = (offer.kind.name, offer.name)
        if breach := offer_breach(offer):
            self.problems.append(breach)
        elif key in self.offers:
            self.problems.append(
                f"{offer.kind.name} {offer.name!r} is offered by both {self.offers[key].source} "
                f"and {offer.source}: rename one, or set {DISABLE_VARIABLE}={offer.source.name}"
            )
        else:
            self.offers[key] = offer

    def _collect_configs(self) -> None:
        owners = dict.fromkeys(config_files(f"file://{config_dir()}"), "Pluribus itself")
        for source, folders in self._call("config_search_path"):
            if not _is_list_of(str, folders):
                self._blame(
                    source,
                    "config_search_path must return a list of folders such as "
                    f"pkg://package.conf, not {folders!r}",
                )
                continue
            for folder in folders:
                with self._noting(source, f"cannot bring the config choices in {folder!r}"):
                    self._add_configs(source, folder, owners)

    def _add_configs(self, source: Source, folder: str, owners: dict[str, str]) -> None:
        files = config_files(folder)
        for file in sorted(files & owners.keys()):
            self._blame(source, f"{file} in {folder} is the name of a file of {owners[file]}")
        owners.update(dict.fromkeys(files, str(source)))
        self.search_paths.append(folder)

    def _call(self, hook: str, **arguments: object) -> Iterator[tuple[Source, Any]]:
        """Call each implementation by itself, so that a failure has a name."""
        for implementation in getattr(self.hook, hook).get_hookimpls():
            source, result = self.sources[implementation.plugin_name], None
            with self._noting(source, f"{hook} failed"):
                result = implementation.function(
                    *(arguments[name] for name in implementation.argnames)
                )
            if result is not None:
                yield source, result

    @contextmanager
    def _noting(self, source: Source, what: str) -> Iterator[None]:
        """Make a problem of whatever a plugin raises; an exit is no way to leave it."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._blame(source, f"{what}: {_describe(error)}")

    def _blame(self, source: Source, what: str) -> None:
        self.problems.append(f"{source}: {what}; {source.remedy}")


def discover(entries: Iterable[EntryPoint] | None = None) -> Plugins:
    """Load every plugin in the ``pluribus`` entry-point group, ours and anybody's.

    Never raises for a bad plugin: see ``Plugins.problems``. Names in the environment variable
    ``PLURIBUS_DISABLE_PLUGINS``, separated by commas, are left out.
    """
    plugins = Plugins()
    disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    for entry in entry_points(group=GROUP) if entries is None else entries:
        if entry.name not in disabled:
            plugins.load(entry)
    plugins.collect()
    return plugins


def _source(entry: EntryPoint) -> Source:
    if entry.dist is None:
        return Source(entry.name, entry.value, "of unknown version")
    return Source(entry.name, entry.dist.metadata["Name"], entry.dist.version)


def _is_list_of(cls: type, value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, cls) for item in value)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
