"""A Pluribus plugin: ``batcher=convoy``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pluribus import Batcher, hookimpl


@hookimpl
def config_search_path() -> Sequence[str]:
    return ["pkg://pluribus_convoy.conf"]


@hookimpl
def register_batchers() -> Mapping[str, type[Batcher]]:
    from pluribus_convoy.batcher import ConvoyBatcher

    return {"convoy": ConvoyBatcher}
