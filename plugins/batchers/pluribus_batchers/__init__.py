"""Batchers that ship with the framework."""

from __future__ import annotations

from collections.abc import Mapping

from pluribus import Batcher, hookimpl


@hookimpl
def register_batchers() -> Mapping[str, type[Batcher]]:
    """Offer ``batcher=bucket``."""
    from pluribus_batchers.bucket import BucketBatcher

    return {"bucket": BucketBatcher}
