"""On whose behalf requests run, and how much of the service they may take."""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from dataclasses import dataclass

from pluribus.errors import ConfigError, QueueFullError

MINUTE = 60.0

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def is_tenant_name(text: str) -> bool:
    """Whether ``text`` can name a tenant in logs and metrics."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Somebody who sends requests.

    Attributes:
        name: for logs, metrics and fairness; never the key.
        weight: share of the service under ``batcher=fair``, relative to other tenants'.
        max_requests: generations that may wait or run at once; None is no limit of its own.
        requests_per_minute: that may begin; None is no limit.
    """

    name: str
    weight: float = 1.0
    max_requests: int | None = None
    requests_per_minute: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"tenant {self.name!r}: weight must be above 0, got {self.weight}")
        for name in ("max_requests", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"tenant {self.name!r}: {name} must be at least 1, got {value}")

    @property
    def most_at_once(self) -> tuple[int, str] | None:
        """How many may begin together, ever, and which limit says so; None where none does."""
        limits = (
            ("max_requests", self.max_requests),
            ("requests_per_minute", self.requests_per_minute),
        )
        return min(((most, name) for name, most in limits if most is not None), default=None)


ANONYMOUS = Tenant(name="anonymous")
"""Whoever comes without a key, where none is asked for."""


class Limiter:
    """Counts what each tenant has under way and has begun lately."""

    def __init__(self) -> None:
        self._num_requests: Counter[str] = Counter()
        self._begun: defaultdict[str, deque[float]] = defaultdict(deque)

    def enter(self, tenant: Tenant, now: float) -> None:
        """Let a request of ``tenant`` begin at ``now``, seconds on any clock.

        Raises:
            QueueFullError: the tenant has as many as it may have.
        """
        if (
            tenant.max_requests is not None
            and self._num_requests[tenant.name] >= tenant.max_requests
        ):
            raise QueueFullError(
                f"{tenant.max_requests} of your requests are waiting or running, as many as you "
                "may have; try again later",
                is_tenant=True,
            )
        if tenant.requests_per_minute is not None:
            begun = self._begun[tenant.name]
            while begun and now - begun[0] >= MINUTE:
                begun.popleft()
            if len(begun) >= tenant.requests_per_minute:
                raise QueueFullError(
                    f"{tenant.requests_per_minute} of your requests have begun within a minute, "
                    "as many as you may have; try again later",
                    is_tenant=True,
                    retry_after=MINUTE - (now - begun[0]),
                )
            begun.append(now)
        self._num_requests[tenant.name] += 1

    def forgive(self, tenant: Tenant, count: int) -> None:
        """Do not count the last ``count`` that began: nothing will come of them."""
        if tenant.requests_per_minute is not None:
            for _ in range(count):
                self._begun[tenant.name].pop()

    def leave(self, tenant: Tenant) -> None:
        """A request of ``tenant`` is over."""
        self._num_requests[tenant.name] -= 1
        if not self._num_requests[tenant.name]:
            del self._num_requests[tenant.name]
