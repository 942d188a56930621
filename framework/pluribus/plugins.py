"""Find plugins, check them, and look up what they offer by kind and name.

The only module that knows pluggy's manager. Nothing is skipped in silence: whatever is wrong
with a plugin stops the launch, in words that name the plugin, where it came from, and the fix.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from pluribus import hookspecs
from pluribus.errors import ConfigError, PluginError
from pluribus.interfaces import Batcher, KVCache, Launcher, Model, Parallelism, ResponseCache

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from pluribus.service import Service

GROUP = "pluribus"
DISABLE_VARIABLE = "PLURIBUS_DISABLE_PLUGINS"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of plugin: what users call it, who registers it, which setting selects it."""

    name: str
    hook: str
    interface: type[T]
    section: str


MODEL: Kind[Model] = Kind("model", "register_models", Model, "model")
PARALLELISM: Kind[Parallelism] = Kind(
    "parallelism", "register_parallelisms", Parallelism, "parallel"
)
LAUNCHER: Kind[Launcher] = Kind("launcher", "register_launchers", Launcher, "launcher")
BATCHER: Kind[Batcher] = Kind("batcher", "register_batchers", Batcher, "batcher")
KV_CACHE: Kind[KVCache] = Kind("KV cache", "register_kv_caches", KVCache, "cache.kv")
RESPONSE_CACHE: Kind[ResponseCache] = Kind(
    "response cache", "register_response_caches", ResponseCache, "cache.response"
)
KINDS: tuple[Kind[Any], ...] = (
    MODEL, PARALLELISM, LAUNCHER, BATCHER, KV_CACHE, RESPONSE_CACHE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """Where a plugin came from."""

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution} {self.version})"

    @property
    def remedy(self) -> str:
        """How to start without it."""
        return f"fix or uninstall {self.distribution}, or set {DISABLE_VARIABLE}={self.name}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A class that a plugin offers under a name."""

    kind: Kind[Any]
    name: str
    cls: type[Any]
    source: Source


@dataclass(slots=True)
class Plugins:
    """The plugins in use and everything they offer.

    Attributes:
        hook: pluggy's relay, to call the hooks that observe and extend.
        sources: every plugin found, by entry-point name.
        offers: what can be chosen, by kind and name.
        problems: what is wrong; a launch must call ``check`` first.
    """

    manager: pluggy.PluginManager = field(
        default_factory=lambda: pluggy.PluginManager(hookspecs.hookspec.project_name)
    )
    sources: dict[str, Source] = field(default_factory=dict)
    offers: dict[tuple[str, str], Offer] = field(default_factory=dict)
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

    def search_paths(self) -> list[str]:
        """Return the folders of config choices that plugins bring."""
        return [path for _, paths in self._call("config_search_path") for path in paths]

    def routes(self, service: Service) -> list[BaseRoute]:
        """Return the HTTP routes that plugins offer beside ours.

        Raises:
            PluginError: a plugin failed to make its routes.
        """
        offers = list(self._call("register_routes", service=service))
        self.check()
        return [route for _, routes in offers for route in routes]

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

    def add(self, source: Source, plugin: object) -> None:
        """Register a plugin, or note why it cannot be."""
        if source.name in self.sources:
            other = self.sources[source.name]
            self.problems.append(
                f"{source} has the name of {other}: uninstall one, or rename its entry point"
            )
            return
        self.sources[source.name] = source
        problem = _contract_breach(source, plugin)
        if problem is None:
            try:
                self.manager.register(plugin, source.name)
                self.manager.check_pending()
            except pluggy.PluginValidationError as error:
                problem = f"{source} does not match the hooks: {_one_line(error)}; {source.remedy}"
        if problem is not None:
            if self.manager.has_plugin(source.name):
                self.manager.unregister(name=source.name)
            self.problems.append(problem)

    def collect(self) -> None:
        """Ask every plugin what it offers; call once, after the last ``add``."""
        for kind in KINDS:
            for source, offered in self._call(kind.hook):
                if not isinstance(offered, Mapping):
                    self.problems.append(
                        f"{source}: {kind.hook} must return a mapping of names to classes, "
                        f"not {offered!r}; {source.remedy}"
                    )
                    continue
                for name, cls in offered.items():
                    self._offer(Offer(kind, name, cls, source))

    def _offer(self, offer: Offer) -> None:
        kind, key = offer.kind, (offer.kind.name, offer.name)
        if not (isinstance(offer.cls, type) and issubclass(offer.cls, kind.interface)):
            self.problems.append(
                f"{offer.source}: {kind.name} {offer.name!r} must be a subclass of "
                f"pluribus.{kind.interface.__name__}, not {offer.cls!r}; {offer.source.remedy}"
            )
        elif inspect.isabstract(offer.cls):
            missing = ", ".join(sorted(offer.cls.__abstractmethods__))
            self.problems.append(
                f"{offer.source}: {kind.name} {offer.name!r} lacks {missing}; {offer.source.remedy}"
            )
        elif key in self.offers:
            self.problems.append(
                f"{kind.name} {offer.name!r} is offered by both {self.offers[key].source} and "
                f"{offer.source}: rename one, or set {DISABLE_VARIABLE}={offer.source.name}"
            )
        else:
            self.offers[key] = offer

    def _call(self, hook: str, **arguments: object) -> Iterator[tuple[Source, Any]]:
        """Call each implementation by itself, so that a failure has a name."""
        for implementation in getattr(self.hook, hook).get_hookimpls():
            source = self.sources[implementation.plugin_name]
            try:
                result = implementation.function(
                    *(arguments[name] for name in implementation.argnames)
                )
            except Exception as error:
                self.problems.append(
                    f"{source}: {hook} failed: {_describe(error)}; {source.remedy}"
                )
                continue
            if result is not None:
                yield source, result


def discover(entries: Iterable[EntryPoint] | None = None) -> Plugins:
    """Load every plugin in the ``pluribus`` entry-point group, ours and anybody's.

    Never raises for a bad plugin: see ``Plugins.problems``. Names in the environment variable
    ``PLURIBUS_DISABLE_PLUGINS``, separated by commas, are left out.
    """
    plugins = Plugins()
    disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    for entry in entry_points(group=GROUP) if entries is None else entries:
        if entry.name in disabled:
            continue
        source = _source(entry)
        try:
            plugin = entry.load()
        except Exception as error:
            plugins.problems.append(
                f"{source} could not be loaded: {_describe(error)}; {source.remedy}"
            )
            continue
        plugins.add(source, plugin)
    plugins.collect()
    return plugins


def _source(entry: EntryPoint) -> Source:
    if entry.dist is None:
        return Source(entry.name, entry.value, "of unknown version")
    return Source(entry.name, entry.dist.metadata["Name"], entry.dist.version)


def _contract_breach(source: Source, plugin: object) -> str | None:
    """Say what pluggy does not check: the API version and synchronous hooks."""
    version = getattr(plugin, "pluribus_api_version", 1)
    if version != hookspecs.API_VERSION:
        return (
            f"{source} was written for version {version} of the plugin API and this Pluribus has "
            f"version {hookspecs.API_VERSION}: install a release of {source.distribution} for "
            f"version {hookspecs.API_VERSION}, or set {DISABLE_VARIABLE}={source.name}"
        )
    for name, function in vars(plugin).items():
        if hasattr(function, f"{GROUP}_impl"):
            if inspect.iscoroutinefunction(function):
                return f"{source}: hook {name} must not be async; {source.remedy}"
            options = getattr(function, f"{GROUP}_impl")
            if options["wrapper"] or options["hookwrapper"]:
                return f"{source}: hook {name} must not be a wrapper; {source.remedy}"
    return None


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
