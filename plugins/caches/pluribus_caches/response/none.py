"""A response cache that remembers nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus import Answer, Query, ResponseCache


@dataclass(frozen=True, slots=True)
class NoResponseCacheConfig:
    """``cache/response=none`` has no settings."""


class NoResponseCache(ResponseCache):
    """Have every query computed."""

    Config = NoResponseCacheConfig

    def __init__(self, config: NoResponseCacheConfig) -> None:
        pass

    def get(self, query: Query) -> Answer | None:
        """Return None."""
        return None

    def put(self, query: Query, answer: Answer) -> None:
        """Forget the answer at once."""

    def pin(self, query: Query) -> None:
        """Change nothing: there are no answers to keep."""
