"""From a configuration to parts that fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from pluribus import config as conf
from pluribus.errors import ConfigError
from pluribus.interfaces import (
    Batcher,
    Blueprint,
    KVCache,
    Launcher,
    Model,
    Parallelism,
    ResponseCache,
)
from pluribus.plan.outline import Outline
from pluribus.plugins import (
    BATCHER,
    KV_CACHE,
    LAUNCHER,
    MODEL,
    PARALLELISM,
    RESPONSE_CACHE,
    Kind,
    Plugins,
)
from pluribus.replicas import ALONE, ReplicaConfig

T = TypeVar("T")

DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """Requests that may wait beside those that run."""

    max_size: int = 1024

    def __post_init__(self) -> None:
        if self.max_size < 1:
            raise ConfigError(f"queue.max_size must be at least 1, got {self.max_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the engine runs and when it is given up.

    Attributes:
        lookahead: steps planned before the tokens of the first are read; None for as many as
            the device is best served with.
        max_restarts: engines that may die within ten minutes before the service gives up.
        heartbeat_timeout: seconds of silence, with work to do or loading, after which it is killed.
        stall_timeout: seconds without a finished step, with work to do, after which
            ``/livez`` says so.
    """

    lookahead: int | None = None
    max_restarts: int = 3
    heartbeat_timeout: float = 4.0
    stall_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("lookahead", 0), ("max_restarts", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"engine.{name} must be at least {least}, got {value}")
        for name in ("heartbeat_timeout", "stall_timeout"):
            if not 1 <= getattr(self, name) < float("inf"):
                value = getattr(self, name)
                raise ConfigError(f"engine.{name} must be at least 1 second, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything a configuration chose, checked against each other; no device touched yet.

    ``config`` is that configuration in YAML, for ranks and engines in other processes.
    """

    model: Model
    parallelism: Parallelism
    launcher: Launcher
    batcher_class: type[Batcher]
    batcher_config: Any
    kv_cache: KVCache
    response_cache: ResponseCache
    queue: QueueConfig
    engine: EngineConfig
    device: str
    dtype: str
    config: str
    replicas: ReplicaConfig = ALONE

    @property
    def outline(self) -> Outline:
        """What decides how much memory a rank takes."""
        return Outline(
            blueprint=self.model.blueprint,
            parallelism=self.parallelism,
            batcher_class=self.batcher_class,
            batcher_config=self.batcher_config,
            kv_cache=self.kv_cache,
            dtype=self.dtype,
            num_replicas=self.replicas.replicas,
        )


def assemble(config: DictConfig, plugins: Plugins) -> Parts:
    """Choose, check and construct every part. Imports no torch; touches no device.

    Raises:
        PluginError: a plugin is broken.
        ConfigError: a setting is wrong, or two parts do not fit.
        CheckpointError: there is no checkpoint to serve.
    """
    plugins.check()
    batcher_class, batcher_config = _choose(config, plugins, BATCHER)
    parts = Parts(
        batcher_class=batcher_class,
        batcher_config=batcher_config,
        parallelism=_make(config, plugins, PARALLELISM),
        launcher=_make(config, plugins, LAUNCHER),
        kv_cache=_make(config, plugins, KV_CACHE),
        response_cache=_make(config, plugins, RESPONSE_CACHE),
        queue=conf.section(config, "queue", QueueConfig),
        engine=conf.section(config, "engine", EngineConfig),
        device=one_of(config, "device", DEVICES),
        dtype=one_of(config, "dtype", DTYPES),
        replicas=conf.replicas(config),
        model=_make(config, plugins, MODEL),
        config=OmegaConf.to_yaml(config, resolve=True),
    )
    check_capabilities(config, parts.outline)
    parts.launcher.check(parts.parallelism.world_size)
    if parts.replicas.replicas > 1 and not parts.launcher.is_local:
        raise ConfigError(
            f"parallel.replicas={parts.replicas.replicas}: launcher="
            f"{conf.choice(config, 'launcher')} places the ranks of one engine; choose "
            "launcher=local or parallel.replicas=1"
        )
    return parts


def describe(config: DictConfig, plugins: Plugins) -> Blueprint:
    """Return what the configured model takes, though its checkpoint may be missing.

    Raises:
        ConfigError: a setting is wrong, or nothing says what the architecture is.
        CheckpointError: the checkpoint would have to say it, and is not there.
    """
    cls, settings = _choose(config, plugins, MODEL)
    with plugins.blaming(MODEL, conf.choice(config, MODEL.section)):
        return cls.describe(settings)


def outline(config: DictConfig, plugins: Plugins, blueprint: Blueprint) -> Outline:
    """Choose, check and construct what decides how much memory a rank takes.

    Raises:
        ConfigError: a setting is wrong, or two parts do not fit.
    """
    batcher_class, batcher_config = _choose(config, plugins, BATCHER)
    chosen = Outline(
        blueprint=blueprint,
        parallelism=_make(config, plugins, PARALLELISM),
        batcher_class=batcher_class,
        batcher_config=batcher_config,
        kv_cache=_make(config, plugins, KV_CACHE),
        dtype=one_of(config, "dtype", DTYPES),
        num_replicas=conf.replicas(config).replicas,
    )
    check_capabilities(config, chosen)
    return chosen


def check_capabilities(config: DictConfig, outline: Outline) -> None:
    """Raise ConfigError if parts that are right by themselves do not fit together."""
    missing = outline.batcher_class.requires - outline.kv_cache.provides
    if missing:
        raise ConfigError(
            f"batcher={conf.choice(config, 'batcher')} needs a KV cache that can "
            f"{', '.join(sorted(missing))}, which cache/kv={conf.choice(config, 'cache.kv')} "
            "cannot: choose another cache/kv or another batcher"
        )
    outline.parallelism.check(outline.blueprint.spec)


def _choose(config: DictConfig, plugins: Plugins, kind: Kind[T]) -> tuple[type[T], Any]:
    name = conf.choice(config, kind.section)
    cls = plugins.find(kind, name)
    with plugins.blaming(kind, name):
        return cls, conf.section(config, kind.section, cls.Config)  # type: ignore[attr-defined]


def _make(config: DictConfig, plugins: Plugins, kind: Kind[T]) -> T:
    cls, settings = _choose(config, plugins, kind)
    make: Callable[[Any], T] = cls
    with plugins.blaming(kind, conf.choice(config, kind.section)):
        return make(settings)


def one_of(config: DictConfig, key: str, allowed: tuple[str, ...]) -> str:
    """Return the top-level setting ``key``; raise ConfigError if it is none of the allowed."""
    value = config.get(key)
    if value not in allowed:
        raise ConfigError(f"{key} must be one of {', '.join(allowed)}; got {value!r}")
    return str(value)
