"""When blocks are held by nobody, and which of such gaps to take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

PAST, FUTURE = -(2**62), 2**62
"""Where the first gap of a chain starts, and where its last one ends."""
NOWHERE = -1
"""Instead of a gap, where a block finds none."""


class Gaps:
    """When blocks are held by nobody: rows of block, start and end.

    Rows stay where they are, so that nothing is built anew to look through thousands of them.
    """

    def __init__(self) -> None:
        self.starts: Ints = np.empty(0, np.int64)
        self.ends: Ints = np.empty(0, np.int64)
        self.blocks: Ints = np.empty(0, np.int64)
        self._unused: list[int] = []
        self._grow(64)

    def add(self, blocks: Sequence[int], starts: Ints | int, ends: Ints | int) -> list[int]:
        """Return the rows of new gaps."""
        if len(self._unused) < len(blocks):
            self._grow(len(blocks))
        rows = [self._unused.pop() for _ in blocks]
        self.blocks[rows], self.starts[rows], self.ends[rows] = blocks, starts, ends
        return rows

    def remove(self, rows: list[int]) -> None:
        """Forget gaps."""
        self.starts[rows], self.ends[rows] = FUTURE, PAST
        self._unused += rows

    def find(self, needs: Ints, until: int, now: int) -> Ints:
        """Return a row for each need, or NOWHERE: as many as can be found.

        Each need takes the gap that starts latest among those that are there in time and reach
        to the end: what it could take, any later need could take too. So the latest comes first.

        Args:
            needs: times from which a block is needed, ascending.
            until: to when.
            now: what is needed now has to be free now, before the first of a chain.
        """
        if not len(needs):
            return np.empty(0, np.int64)
        usable = np.flatnonzero((self.ends >= until) & (self.starts <= needs[-1]))
        starts = np.maximum(self.starts[usable] - now, -(2**30))
        slack = np.minimum(self.ends[usable] - until, 2**31)
        # By start, and of those that start together the tightest last. As one number, because
        # sorting by two takes ten times as long.
        order = usable[np.argsort((starts << 32) - slack)]
        starts = self.starts[order]
        in_time = np.searchsorted(starts, needs[::-1], side="right")
        in_time[needs[::-1] <= now] = np.searchsorted(starts, PAST, side="right")
        # The last of those in time, or if later needs have taken that, the one before them.
        number = np.arange(len(needs))
        taken = (np.minimum.accumulate(in_time - 1 + number) - number)[::-1]
        rows = np.full(len(needs), NOWHERE)
        rows[taken >= 0] = order[taken[taken >= 0]]
        return rows

    def check_integrity(self, rows: list[int]) -> None:
        """Raise AssertionError unless these rows are all that are in use."""
        assert sorted(rows + self._unused) == list(range(len(self.starts)))
        assert (self.starts[self._unused] == FUTURE).all()
        assert (self.ends[self._unused] == PAST).all()

    def _grow(self, num_wanted: int) -> None:
        size = len(self.starts)
        more = max(num_wanted, size)
        self.starts = np.append(self.starts, np.full(more, FUTURE))
        self.ends = np.append(self.ends, np.full(more, PAST))
        self.blocks = np.append(self.blocks, np.zeros(more, np.int64))
        self._unused += range(size + more - 1, size - 1, -1)
