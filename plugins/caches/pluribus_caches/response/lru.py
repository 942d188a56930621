"""A response cache that forgets the query used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from threading import Lock
from typing import Any

from pluribus import Answer, ConfigError, Query, ResponseCache


@dataclass(frozen=True, slots=True)
class LRUConfig:
    """Settings of ``cache/response=lru``.

    Attributes:
        size: queries remembered, besides pinned ones.
        list_size: answers computed for each sampled query before one of them is returned.
        pinned: requests, as ``/generation`` takes them, whose answers are never evicted.
    """

    size: int = 50
    list_size: int = 2
    pinned: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(
                f"cache.response.size must be at least 1, got {self.size}; "
                "cache/response=none remembers nothing"
            )
        if self.list_size < 1:
            raise ConfigError(f"cache.response.list_size must be at least 1, got {self.list_size}")


class LRUResponseCache(ResponseCache):
    """Collect ``list_size`` answers to a query, then return a random one of them.

    A reproducible query has only one answer, so one is enough. ``get`` and ``put`` both count
    as use of a query. Pinned queries are never evicted and do not count against ``size``;
    their answers are computed when first asked for, like everybody's.
    """

    Config = LRUConfig

    def __init__(self, config: LRUConfig, random: Random | None = None) -> None:
        self._config = config
        self._random = random or Random()  # noqa: S311 - picks among answers, guards nothing
        self._lock = Lock()
        self._recent: OrderedDict[Query, list[Answer]] = OrderedDict()
        self._pinned: dict[Query, list[Answer]] = {}

    @property
    def pinned(self) -> Sequence[dict[str, Any]]:
        """The ``cache.response.pinned`` setting."""
        return self._config.pinned

    def get(self, query: Query) -> Answer | None:
        """Return a random answer once enough have been computed, and None before."""
        with self._lock:
            answers = self._find(query)
            if answers is None or len(answers) < self._num_wanted(query):
                return None
            return self._random.choice(answers)

    def put(self, query: Query, answer: Answer) -> None:
        """Remember an answer, unless there are enough already."""
        with self._lock:
            answers = self._find(query)
            if answers is None:
                answers = self._recent[query] = []
                if len(self._recent) > self._config.size:
                    self._recent.popitem(last=False)
            # Equal answers all count: they are samples, and a query that mostly gives one
            # answer would otherwise never have enough, or give the rare ones too often.
            if len(answers) < self._num_wanted(query):
                answers.append(answer)

    def pin(self, query: Query) -> None:
        """Never evict this query's answers."""
        with self._lock:
            self._pinned.setdefault(query, self._recent.pop(query, []))

    def _find(self, query: Query) -> list[Answer] | None:
        """Return a query's answers, noting that it was used."""
        if query in self._recent:
            self._recent.move_to_end(query)
            return self._recent[query]
        return self._pinned.get(query)

    def _num_wanted(self, query: Query) -> int:
        return 1 if query.params.is_reproducible else self._config.list_size
