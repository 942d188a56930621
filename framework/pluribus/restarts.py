"""How often what dies may be started again."""

from __future__ import annotations

from collections import deque

WINDOW = 600.0
"""Seconds over which restarts are counted."""


class Restarts:
    """Counts restarts, and says when there have been too many.

    Args:
        limit: restarts within ``WINDOW``.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: deque[float] = deque()

    def is_allowed(self, now: float) -> bool:
        """Return whether there may be one more at ``now``, seconds on any clock; it counts then."""
        while self._times and now - self._times[0] > WINDOW:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return False
        self._times.append(now)
        return True
