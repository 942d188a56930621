"""The wiring: from a configuration to parts that fit together, from parts to an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from pluribus import config as conf
from pluribus.engine.core import EngineCore, Observer
from pluribus.errors import ConfigError
from pluribus.generation import Batch, Generation
from pluribus.interfaces import (
    Batcher,
    Executor,
    KVCache,
    KVShape,
    Launcher,
    Model,
    Parallelism,
    Place,
    Progress,
    ResponseCache,
    Seat,
)
from pluribus.interfaces.device_store import DeviceKVStore
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

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

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
        heartbeat_timeout: seconds of silence, with work to do, after which it is killed.
        stall_timeout: seconds without a finished step, with work to do, after which
            ``/livez`` says so.
    """

    lookahead: int | None = None
    max_restarts: int = 3
    heartbeat_timeout: float = 5.0
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
        device=_one_of(config, "device", DEVICES),
        dtype=_one_of(config, "dtype", DTYPES),
        model=_make(config, plugins, MODEL),
        config=OmegaConf.to_yaml(config, resolve=True),
    )
    check_capabilities(config, parts)
    return parts


def check_capabilities(config: DictConfig, parts: Parts) -> None:
    """Raise ConfigError if parts that are right by themselves do not fit together."""
    missing = parts.batcher_class.requires - parts.kv_cache.provides
    if missing:
        raise ConfigError(
            f"batcher={conf.choice(config, 'batcher')} needs a KV cache that can "
            f"{', '.join(sorted(missing))}, which cache/kv={conf.choice(config, 'cache.kv')} "
            "cannot: choose another cache/kv or another batcher"
        )
    parts.parallelism.check(parts.model.spec)
    parts.launcher.check(parts.parallelism.world_size)


class PluginObserver(Observer):
    """Hands what the engine does on to the plugins that observe."""

    def __init__(self, plugins: Plugins) -> None:
        self._hook = plugins.hook

    def step_finished(self, batch: Batch, seconds: float) -> None:
        self._notify(self._hook.step_finished, batch=batch, seconds=seconds)

    def generation_finished(self, generation: Generation) -> None:
        self._notify(self._hook.generation_finished, generation=generation)

    def _notify(self, hook: Any, **arguments: object) -> None:
        for implementation in hook.get_hookimpls():
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except BaseException:  # an exit is no way to leave the engine either
                logger.exception("plugin %r failed in %s", implementation.plugin_name, hook.name)


def start(
    parts: Parts, plugins: Plugins, progress: Progress, fail: Callable[[str], None]
) -> EngineCore:
    """Launch the ranks, load the weights and return the engine, ready to step.

    Args:
        parts: what to run.
        plugins: for the hooks that observe.
        progress: told as weights are read.
        fail: called, from any thread, with what is wrong once a rank is lost.

    Raises:
        CheckpointError: the weights cannot be loaded.
        ConfigError: the device is not there, or the KV cache does not fit.
    """
    world_size = parts.parallelism.world_size
    executor = parts.launcher.launch(
        partial(start_rank, parts, progress), parts.config, world_size, fail
    )
    ledger = parts.kv_cache.ledger(executor.kv_shape)
    lookahead = parts.engine.lookahead
    return EngineCore(
        batcher=parts.batcher_class(parts.batcher_config, ledger),
        ledger=ledger,
        executor=executor,
        eos_token_ids=parts.model.spec.eos_token_ids,
        observer=PluginObserver(plugins),
        lookahead=executor.lookahead if lookahead is None else lookahead,
    )


def start_rank(parts: Parts, progress: Progress, seat: Seat) -> Executor:
    """Return one rank's worker, in the rank's process, having met the others."""
    import torch

    from pluribus.worker import Worker

    spec = parts.model.spec
    device = _device(parts.device, seat.local_rank)
    dtype = _dtype(parts.dtype, spec.dtype, device)
    # cuDNN's attention plans anew for every length: 40 ms a step on an H100, others take 2.
    torch.backends.cuda.enable_cudnn_sdp(False)
    share = parts.parallelism.share(seat.rank, spec)
    place = parts.parallelism.place(share, device, seat.rendezvous)
    with torch.inference_mode():
        network = parts.model.load(place, device, dtype, progress)
        shape = _kv_shape(parts, place, seat.num_local, device, dtype)
        store = parts.kv_cache.store(shape, device, dtype)
    if isinstance(store, DeviceKVStore):
        from pluribus.cuda.worker import CudaWorker

        return CudaWorker(network, store, spec, shape, device)
    return Worker(network, store, spec, shape, device)


def _kv_shape(
    parts: Parts, place: Place, num_local: int, device: torch.device, dtype: torch.dtype
) -> KVShape:
    from pluribus.memory import num_kv_tokens
    from pluribus.parallel.group import smallest
    from pluribus.units import format_bytes

    spec = parts.model.spec
    num_slots: int = parts.batcher_config.max_batch_size
    first_head, end_head = place.tensor.span(spec.num_heads)
    num_heads = end_head - first_head
    num_layers = len(place.share.layers)
    bytes_per_token = 2 * num_layers * num_heads * spec.head_dim * dtype.itemsize
    num_tokens = num_kv_tokens(
        parts.kv_cache.memory,
        device=device,
        bytes_per_token=bytes_per_token,
        wanted=num_slots * spec.max_length,
        needed=spec.max_length,
        num_sharing=num_local,
    )
    num_tokens = smallest(num_tokens, device)
    logger.info(
        "KV cache on %s: %d tokens, %d generations of full length, %s",
        device,
        num_tokens,
        num_tokens // spec.max_length,
        format_bytes(num_tokens * bytes_per_token),
    )
    return KVShape(
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=spec.head_dim,
        num_slots=num_slots,
        max_length=spec.max_length,
        num_tokens=num_tokens,
    )


def _device(setting: str, number: int) -> torch.device:
    import torch

    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"device={setting}: rank {number} of this machine needs CUDA device {number}, and "
            f"torch sees {torch.cuda.device_count()} here; choose device=cpu or a smaller "
            "parallel.size"
        )
    return torch.device("cuda", number)


def _dtype(setting: str, stored: str, device: torch.device) -> torch.dtype:
    import torch

    name = setting
    if setting == "auto":
        name = "float32" if device.type == "cpu" else stored
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


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


def _one_of(config: DictConfig, key: str, allowed: tuple[str, ...]) -> str:
    value = config.get(key)
    if value not in allowed:
        raise ConfigError(f"{key} must be one of {', '.join(allowed)}; got {value!r}")
    return str(value)
