"""What a plugin has to be like, and what to say of one that is not."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields, is_dataclass
from types import ModuleType
from typing import Any, Generic, TypeVar

from pluribus import hookspecs
from pluribus.interfaces import Batcher, KVCache, Launcher, Model, Parallelism, ResponseCache

PROJECT = hookspecs.hookspec.project_name
DISABLE_VARIABLE = "PLURIBUS_DISABLE_PLUGINS"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of plugin: what users call it, who registers it, which setting selects it.

    ``settings`` are those that the framework itself reads of a class's ``Config``.
    """

    name: str
    hook: str
    interface: type[T]
    section: str
    settings: tuple[str, ...] = ()


MODEL: Kind[Model] = Kind("model", "register_models", Model, "model")
PARALLELISM: Kind[Parallelism] = Kind(
    "parallelism", "register_parallelisms", Parallelism, "parallel"
)
LAUNCHER: Kind[Launcher] = Kind("launcher", "register_launchers", Launcher, "launcher")
BATCHER: Kind[Batcher] = Kind(
    "batcher", "register_batchers", Batcher, "batcher", settings=("max_batch_size",)
)
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


def plugin_breach(source: Source, plugin: object) -> str | None:
    """Say what is wrong with a plugin, as far as pluggy does not check it."""
    if not isinstance(plugin, ModuleType):
        return f"{source}: its entry point must name a module, not {plugin!r}; {source.remedy}"
    version = getattr(plugin, "pluribus_api_version", 1)
    if version != hookspecs.API_VERSION:
        return (
            f"{source} was written for version {version!r} of the plugin API and this Pluribus "
            f"has version {hookspecs.API_VERSION}: install a release of {source.distribution} for "
            f"version {hookspecs.API_VERSION}, or set {DISABLE_VARIABLE}={source.name}"
        )
    if breach := _hooks_breach(plugin):
        return f"{source}: {breach}; {source.remedy}"
    return None


def _hooks_breach(plugin: ModuleType) -> str | None:
    functions = {name: f for name, f in vars(plugin).items() if inspect.isroutine(f)}
    marked = [name for name, f in functions.items() if hasattr(f, f"{PROJECT}_impl")]
    for name in marked:
        options = getattr(functions[name], f"{PROJECT}_impl")
        if inspect.iscoroutinefunction(functions[name]):
            return f"hook {name} must not be async"
        if options["wrapper"] or options["hookwrapper"]:
            return f"hook {name} must not be a wrapper"
    unmarked = [name for name in HOOKS if name in functions and name not in marked]
    if unmarked:
        return f"hook {', '.join(unmarked)} must be marked with @pluribus.hookimpl"
    if not marked:
        return f"no function in {plugin.__name__} is a hook, marked with @pluribus.hookimpl"
    return None


HOOKS = tuple(name for name, f in vars(hookspecs).items() if hasattr(f, f"{PROJECT}_spec"))
"""The names of all hooks."""


def offer_breach(offer: Offer) -> str | None:
    """Say what is wrong with a class that a plugin offers."""
    kind, cls = offer.kind, offer.cls
    what = f"{offer.source}: {kind.name} {offer.name!r}"
    if not isinstance(offer.name, str) or not offer.name:
        why = "must have a text for a name"
    elif not (isinstance(cls, type) and issubclass(cls, kind.interface)):
        why = f"must be a subclass of pluribus.{kind.interface.__name__}, not {cls!r}"
    elif inspect.isabstract(cls):
        why = f"lacks {', '.join(sorted(cls.__abstractmethods__))}"
    else:
        return _config_breach(offer, what)
    return f"{what} {why}; {offer.source.remedy}"


def _config_breach(offer: Offer, what: str) -> str | None:
    config = getattr(offer.cls, "Config", None)
    if not (isinstance(config, type) and is_dataclass(config)):
        why = (
            f"must have a dataclass called Config for the settings in the {offer.kind.section} "
            f"section, not {config!r}"
        )
    else:
        known = {field.name for field in fields(config)}
        lacking = [setting for setting in offer.kind.settings if setting not in known]
        if not lacking:
            return None
        why = f"must have {', '.join(lacking)} in its Config, {config.__qualname__}"
    return f"{what} {why}; {offer.source.remedy}"
