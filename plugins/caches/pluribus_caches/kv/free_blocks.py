"""Which blocks are free, and which of them to hand out next."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

EMPTY = 0
"""Stamp of a free block that nobody will look for."""
HELD = np.iinfo(np.int64).max
"""Stamp of a block that is not free: later than any."""
SEGMENT = 4096
"""Blocks that are searched at once; others are left out where none can be a better place."""


class FreeBlocks:
    """The blocks that nobody holds, each stamped with when it became free.

    Stamps instead of a linked list, because blocks are handed out in runs: a store that finds
    a text's blocks side by side reads them without copying.
    """

    def __init__(self, num_blocks: int) -> None:
        self._stamps = np.full(num_blocks, EMPTY, dtype=np.int64)
        # Of each segment, the stamp of what has been free for longest, or an earlier one.
        self._earliest = np.full(-(-num_blocks // SEGMENT), EMPTY, dtype=np.int64)
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
        stamp = EMPTY if is_empty else self._clock
        self._stamps[block] = stamp
        segment = block // SEGMENT
        self._earliest[segment] = min(stamp, self._earliest[segment])
        self._num_free += 1

    def remove(self, block: int) -> None:
        """Hand out this block."""
        assert block in self
        self._stamps[block] = HELD
        self._num_free -= 1

    def take(self, num_blocks: int) -> list[int]:
        """Hand out the run that is empty or has been free for longest, in ascending order.

        It is one that lies in a single segment. Where none does, hand out as few runs as possible.
        """
        assert 0 < num_blocks <= len(self)
        first = self._find(num_blocks)
        if first is not None:
            blocks = np.arange(first, first + num_blocks)
        else:
            blocks = np.sort(np.concatenate(self._longest_runs())[:num_blocks])
        self._stamps[blocks] = HELD
        for segment in np.unique(blocks // SEGMENT):
            self._earliest[segment] = self._segment(segment).min()
        self._num_free -= num_blocks
        return [int(block) for block in blocks]

    def check_integrity(self) -> None:
        """Raise AssertionError unless the count is right and no two blocks became free at once."""
        stamps = self._stamps[self._stamps != HELD]
        assert len(stamps) == self._num_free
        stamps = stamps[stamps != EMPTY]
        assert len(np.unique(stamps)) == len(stamps)
        assert not len(stamps) or EMPTY < stamps.min() <= stamps.max() <= self._clock
        for segment, earliest in enumerate(self._earliest):
            assert earliest <= self._segment(segment).min()

    def _segment(self, segment: int) -> npt.NDArray[np.int64]:
        return self._stamps[segment * SEGMENT : (segment + 1) * SEGMENT]

    def _find(self, num_blocks: int) -> int | None:
        """Return where the run begins that has been free for longest, if any segment has one."""
        best, found = HELD, None
        for segment in self._earliest.argsort(kind="stable"):
            if self._earliest[segment] >= best:
                break  # nor do those after it have anything better
            stamps = self._segment(segment)
            if num_blocks > len(stamps):
                continue
            latest = _latest_in_window(stamps, num_blocks)
            first = int(latest.argmin())
            if latest[first] < best:
                best, found = latest[first], int(segment) * SEGMENT + first
        return found

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
