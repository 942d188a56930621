"""The wiring: from a configuration to parts that fit together, from parts to an engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from pluribus import config as conf
from pluribus.engine.core import EngineCore, Observer
from pluribus.engine.rotation import Rotation
from pluribus.errors import ConfigError
from pluribus.generation import Batch, Generation
from pluribus.interfaces import (
    Batcher,
    Blueprint,
    Executor,
    KVCache,
    KVShape,
    KVStore,
    Launcher,
    Model,
    ModelSpec,
    Network,
    Parallelism,
    Place,
    Progress,
    ResponseCache,
    Seat,
)
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.memory import free_memory
from pluribus.phases import Phases, told
from pluribus.plan.demand import Demand, demand
from pluribus.plan.fit import find_room, kv_shape, shortage
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
from pluribus.units import format_bytes

if TYPE_CHECKING:
    import torch

    from pluribus.worker import Worker

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
    num_stages = parts.parallelism.share(0, parts.model.spec).num_stages
    return EngineCore(
        batcher=parts.batcher_class(parts.batcher_config, ledger),
        ledger=ledger,
        executor=executor,
        eos_token_ids=parts.model.spec.eos_token_ids,
        observer=PluginObserver(plugins),
        lookahead=executor.lookahead if lookahead is None else lookahead,
        rotation=Rotation(num_stages, parts.kv_cache.provides),
    )


def start_rank(parts: Parts, progress: Progress, seat: Seat) -> Executor:
    """Return one rank's worker, in the rank's process, having met the others."""
    import torch

    from pluribus.plan.measure import Meter

    phases, spec = Phases(), parts.model.spec
    num_local = seat.num_local * parts.replicas.replicas
    device = _device(parts.device, parts.replicas.replica * seat.num_local + seat.local_rank)
    _prepare(device, num_local)
    dtype = getattr(torch, parts.outline.dtype_on(device.type))
    needs = demand(parts.outline, seat.rank, device.type)
    meter = Meter(device)
    meter.note_taken("context", needs.context)
    place = parts.parallelism.place(needs.share, device, seat.rendezvous)
    _check_fit(parts, num_local, device)
    meter.note_taken("collectives", needs.collectives)
    phases.end("device")
    with torch.inference_mode():
        network = parts.model.load(place, device, dtype, progress)
        meter.note("weights", needs.weights)
        phases.end("weights")
        shape = _kv_shape(parts, needs, num_local, device)
        store = parts.kv_cache.store(shape, device, dtype)
        meter.note("KV", parts.kv_cache.capacity(shape) * needs.kv_bytes_per_token)
        phases.end("KV")
    worker = _worker(network, store, spec, shape, device, place, dtype)
    meter.note_taken("graphs", needs.graphs + needs.libraries)
    phases.split("kernels", worker.kernel_seconds)
    phases.end("graphs")
    worker.phases = phases.seconds
    logger.info("rank %d on %s: %s", seat.rank, device, meter.report(needs.work))
    logger.info("rank %d is %s", seat.rank, told(phases.seconds))
    return worker


def _prepare(device: torch.device, num_local: int) -> None:
    """Set what is the whole process's."""
    import torch

    _share_processors(num_local)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton and graphs know no other
    # cuDNN's attention plans anew for every length: 40 ms a step on an H100, others take 2.
    torch.backends.cuda.enable_cudnn_sdp(False)


def _worker(
    network: Network,
    store: KVStore,
    spec: ModelSpec,
    shape: KVShape,
    device: torch.device,
    place: Place,
    dtype: torch.dtype,
) -> Worker:
    if isinstance(store, DeviceKVStore):
        from pluribus.cuda.stage import CudaStageWorker
        from pluribus.cuda.worker import CudaWorker

        if place.ring is None:
            return CudaWorker(network, store, spec, shape, device)
        return CudaStageWorker(network, store, spec, shape, device, place, dtype)
    from pluribus import worker
    from pluribus.stages import stage_of

    join = partial(stage_of, place, hidden_size=spec.hidden_size, dtype=dtype)
    return worker.Worker(network, store, spec, shape, device, join)


def _check_fit(parts: Parts, num_local: int, device: torch.device) -> None:
    """Refuse what does not fit on every rank's own device, before any of them loads."""
    from pluribus.parallel.group import everybodys

    everybodys(0, device)  # NCCL takes its memory at the first collective: it is not free
    free = everybodys(_free(device, num_local), device)
    if problem := shortage(parts.outline, free, device.type):
        raise ConfigError(
            f"{parts.model.spec.name} does not fit: {problem} (pluribus plan has the details)"
        )


def _free(device: torch.device, num_local: int) -> int:
    """Return the bytes that are one rank's to use."""
    return free_memory(device) // (num_local if device.type == "cpu" else 1)


def _kv_shape(parts: Parts, needs: Demand, num_local: int, device: torch.device) -> KVShape:
    from pluribus.parallel.group import smallest

    outline, max_length = parts.outline, parts.model.spec.max_length
    free = _free(device, num_local)
    room = find_room(outline, needs, device_type=device.type, where=str(device), free=free)
    if room.problem:
        raise ConfigError(room.problem)
    num_tokens = smallest(room.num_tokens, device)
    logger.info(
        "KV cache on %s: %d tokens, %d generations of full length, %s",
        device,
        num_tokens,
        num_tokens // max_length,
        format_bytes(num_tokens * needs.kv_bytes_per_token),
    )
    return kv_shape(outline, needs, num_tokens)


def _share_processors(num_sharing: int) -> None:
    """Let all ranks on this host compute at once, where nothing else says how."""
    import torch

    if num_sharing > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_sharing))


def _device(setting: str, index: int) -> torch.device:
    """Return a device, ``index`` counted over the ranks of all replicas."""
    import torch

    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device={setting}: a rank needs CUDA device {index}, and torch sees "
            f"{torch.cuda.device_count()} here; choose device=cpu, a smaller parallel.size or "
            "fewer parallel.replicas"
        )
    return torch.device("cuda", index)


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
