"""Which blocks are free, and which of them to hand out next."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EMPTY = 0
"""Stamp of a free block that nobody will look for."""
HELD = np.iinfo(np.int64).max
"""Stamp of a block that is not free: later than any."""


class FreeBlocks:
    """The blocks that nobody holds, each stamped with when it became free.

    Stamps instead of a linked list, because blocks are handed out in runs: a store that finds
    a text's blocks side by side reads them without copying.
    """

    def __init__(self, num_blocks: int) -> None:
        self._stamps = np.full(num_blocks, EMPTY, dtype=np.int64)
        self._num_free = num_blocks
        self._clock = EMPTY

    def __len__(self) -> int:
        return self._num_free

    def __contains__(self, block: int) -> bool:
        return bool(self._stamps[block] != HELD)

    def add(self, block: int, *, is_empty: bool) -> None:
        """Take a block back; empty ones are handed out first, the others the oldest first."""
        assert block not in self
        self._clock += 1
        self._stamps[block] = EMPTY if is_empty else self._clock
        self._num_free += 1

    def remove(self, block: int) -> None:
        """Hand out this block."""
        assert block in self
        self._stamps[block] = HELD
        self._num_free -= 1

    def take(self, num_blocks: int) -> list[int]:
        """Hand out the run that is empty or has been free for longest, in ascending order.

        Where no run is long enough, hand out as few runs as possible.
        """
        assert 0 < num_blocks <= len(self)
        latest = _latest_in_window(self._stamps, num_blocks)
        first = int(latest.argmin())
        if latest[first] != HELD:
            blocks = np.arange(first, first + num_blocks)
        else:
            blocks = np.sort(np.concatenate(self._longest_runs())[:num_blocks])
        self._stamps[blocks] = HELD
        self._num_free -= num_blocks
        return [int(block) for block in blocks]

    def check_integrity(self) -> None:
        """Raise AssertionError unless the count is right and no two blocks became free at once."""
        stamps = self._stamps[self._stamps != HELD]
        assert len(stamps) == self._num_free
        stamps = stamps[stamps != EMPTY]
        assert len(np.unique(stamps)) == len(stamps)
        assert not len(stamps) or EMPTY < stamps.min() <= stamps.max() <= self._clock

    def _longest_runs(self) -> list[npt.NDArray[np.int64]]:
        """Return all runs of free blocks, the longest first."""
        free = np.flatnonzero(self._stamps != HELD)
        gaps = np.flatnonzero(np.diff(free) != 1) + 1
        return sorted(np.split(free, gaps), key=len, reverse=True)


def _latest_in_window(stamps: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Return the maximum of ``stamps[i : i + width]`` for every ``i`` where that is whole."""
    latest, reach = stamps, 1
    while reach < width:
        step = min(reach, width - reach)
        latest = np.maximum(latest[:-step], latest[step:])
        reach += step
    return latest
