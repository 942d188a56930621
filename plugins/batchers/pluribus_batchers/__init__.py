"""Batchers that ship with the framework."""

from __future__ import annotations

from collections.abc import Mapping

from pluribus import Batcher, hookimpl


@hookimpl
def register_batchers() -> Mapping[str, type[Batcher]]:
    """Offer ``batcher=continuous``, ``fair`` and ``bucket``."""
    from pluribus_batchers.bucket import BucketBatcher
    from pluribus_batchers.continuous import ContinuousBatcher
    from pluribus_batchers.fair import FairBatcher

    return {"continuous": ContinuousBatcher, "fair": FairBatcher, "bucket": BucketBatcher}
