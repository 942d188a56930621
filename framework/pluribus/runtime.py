"""The wiring: from parts to an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from pluribus.assembly import Parts
from pluribus.engine.core import EngineCore, Observer
from pluribus.engine.rotation import Rotation
from pluribus.generation import Batch, Generation
from pluribus.interfaces import Progress
from pluribus.plugins import Plugins
from pluribus.rank_worker import start_rank

logger = logging.getLogger(__name__)


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
