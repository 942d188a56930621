"""Everything a plugin package may tell Pluribus.

A plugin is a module named in the ``pluribus`` entry-point group, with some of these functions
marked ``@pluribus.hookimpl``. Hooks are called once at start-up unless they say otherwise.
Import heavy modules inside the functions, so that ``pluribus --help`` stays instant.

A module may state the version of these contracts it was written for,
``pluribus_api_version = 1``; without the line it is taken to be 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

from pluribus.generation import Batch, Generation
from pluribus.interfaces import Batcher, KVCache, Launcher, Model, Parallelism, ResponseCache

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from pluribus.front import Front

API_VERSION = 1

hookspec = pluggy.HookspecMarker("pluribus")
hookimpl = pluggy.HookimplMarker("pluribus")


@hookspec
def config_search_path() -> Sequence[str] | None:
    """Offer config choices: folders of YAML as ``pkg://package.conf`` or ``file:///path``.

    A plugin adds choices and never replaces one: a file by a name that is taken is refused.
    """


@hookspec
def register_models() -> Mapping[str, type[Model]] | None:
    """Offer models, by the name that ``model.name`` selects."""


@hookspec
def register_parallelisms() -> Mapping[str, type[Parallelism]] | None:
    """Offer ways to split a model, by the name that ``parallel.name`` selects."""


@hookspec
def register_launchers() -> Mapping[str, type[Launcher]] | None:
    """Offer launchers of ranks, by the name that ``launcher.name`` selects."""


@hookspec
def register_batchers() -> Mapping[str, type[Batcher]] | None:
    """Offer batchers, by the name that ``batcher.name`` selects."""


@hookspec
def register_kv_caches() -> Mapping[str, type[KVCache]] | None:
    """Offer KV caches, by the name that ``cache.kv.name`` selects."""


@hookspec
def register_response_caches() -> Mapping[str, type[ResponseCache]] | None:
    """Offer response caches, by the name that ``cache.response.name`` selects."""


@hookspec
def register_routes(service: Front) -> Sequence[BaseRoute] | None:
    """Offer HTTP routes beside ours.

    Called once in each process that speaks HTTP, when its application is made.
    """


@hookspec
def step_finished(batch: Batch, seconds: float) -> None:
    """Observe a step: what ran, once or several times, and how long from submission to result.

    Called in the engine's thread after every step; keep it short. An exception is logged.
    """


@hookspec
def generation_finished(generation: Generation) -> None:
    """Observe a generation that ended by itself; ``generation.finish_reason`` says why.

    Called in the engine's thread; keep it short. An exception is logged.
    """
