"""Blocks that several generations hold one after another.

Everybody who runs gets a token in each step, so it is known when each block of a text will be
needed, and when all of them will be given back at the latest. A short text's blocks are thus
free for the last part of a long one that begins at the same time, and nobody needs to know yet
who will end early.

Time is virtual: it is counted in steps in which everybody gets a token. A generation is given
the time of its first answer token when it enters, and keeps it. Its block ``k`` is needed from
then, or if that is later, from when its text reaches the block; all are needed until its longest
answer is complete and that has been noticed. Each block has a chain of holders whose times do
not overlap, with gaps between them. The first of a chain really holds the block; the others wait
for it, each until those before it have been released, whenever that really is.

Why all come to their end, however unevenly they get tokens: who waits does so at the time at
which its text reaches the block in question. It waits for that block's holder, whose times are
all before that one. That holder may itself wait for another block, at a time of its own, so
earlier still. Such a row of waits goes back in time with each member and cannot be a circle; at
its beginning is somebody who waits for nobody and can go on to its end. Nothing in this depends
on how fast anybody really is: if one is late, those after it wait.

Why nothing is taken from anybody: a generation enters before the first holder of a chain only if
it is to be done with the block when that one needs it, and "now" is where the furthest one is.
What that holder needs after now it has not begun to fill.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pluribus import Generation
from pluribus_caches.kv.gaps import FUTURE, NOWHERE, PAST, Gaps, Ints

BLOCKS_LATE = 2
"""Blocks' worth of steps, after its last, for which what a generation has counts as held.

An end is noticed when the tokens have been read: after the steps under way, of several passes
each. Less would be correct too, but whoever comes next would have to wait more often.
"""


@dataclass(eq=False, slots=True)
class Chain:
    """Who holds a block, one after another.

    Attributes:
        gaps: their rows in ``Gaps``: before the first holder, between two, after the last.
        holders: the first of them holds the block, the others wait for it.
    """

    gaps: list[int]
    holders: list[Generation] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Entry:
    """What the timetable knows of a generation.

    Attributes:
        since, until: when its blocks are needed, the earliest and the end of all.
        places: its blocks, each with its index in the text.
        awaited: the indices of those that others still hold.
    """

    since: int
    until: int
    places: dict[int, int]
    awaited: set[int] = field(default_factory=set)


class Timetable:
    """Who holds which block when. Knows of no block but those that somebody has entered with."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._gaps = Gaps()
        self._chains: dict[int, Chain] = {}
        self._entries: dict[Generation, Entry] = {}
        self._limits: dict[Generation, int] = {}

    def __contains__(self, generation: Generation) -> bool:
        return generation in self._entries

    @property
    def limits(self) -> Mapping[Generation, int]:
        """Tokens up to the first block that is awaited, of those who wait for any."""
        return self._limits

    def now(self) -> int:
        """Return where the furthest of those who have entered is."""
        at = (entry.since + _progress(each) for each, entry in self._entries.items())
        return max(at, default=0)

    def find(self, generation: Generation, indices: range, now: int) -> tuple[Ints, list[int]]:
        """Return a gap for each of these blocks of a text, and the blocks in which they are.

        Args:
            generation: who wants to enter.
            indices: of those blocks of its text that are to be in the timetable.
            now: what ``now`` returns.

        Returns:
            Rows, to give to ``enter`` before anything else happens, and blocks; NOWHERE where
            there is no gap.
        """
        since, until = self._times(generation, now)
        rows = self._gaps.find(self._needs(generation, indices, since), until, now)
        return rows, np.where(rows == NOWHERE, NOWHERE, self._gaps.blocks[rows]).tolist()

    def enter(
        self,
        generation: Generation,
        indices: range,
        blocks: Sequence[int],
        now: int,
        rows: Ints | None = None,
    ) -> None:
        """Let a generation hold these blocks when it needs them.

        Args:
            generation: who enters, new or running already.
            indices: of the blocks in its text.
            blocks: for each of them.
            now: what ``now`` returns, and goes on to return.
            rows: the gaps in which it takes them; NOWHERE where a block is its own already, as
                all are by default.
        """
        since, until = self._times(generation, now)
        entry = Entry(since, until, dict(zip(blocks, indices, strict=True)))
        self._entries[generation] = entry
        needs = self._needs(generation, indices, since)
        rows = np.full(len(blocks), NOWHERE) if rows is None else rows.copy()
        own = np.flatnonzero(rows == NOWHERE).tolist()
        rows[own] = self._open([blocks[index] for index in own])
        later = self._gaps.add(blocks, until, self._gaps.ends[rows])
        self._gaps.ends[rows] = needs
        changed = {
            self._insert(generation, block, before, after)
            for block, before, after in zip(blocks, rows.tolist(), later, strict=True)
        }
        self._set_limits(changed)

    def num_holders(self) -> dict[int, int]:
        """Return how many hold or wait for each block that is listed."""
        return {block: len(chain.holders) for block, chain in self._chains.items()}

    def leave(self, generation: Generation) -> set[int]:
        """Let a generation go; return which of its blocks others hold or wait for."""
        entry = self._entries.pop(generation)
        self._limits.pop(generation, None)
        passed_on: set[int] = set()
        heirs: list[Generation] = []
        kept: list[int] = []
        dropped: list[int] = []
        for block in entry.places:
            chain = self._chains[block]
            index = chain.holders.index(generation)
            # The gap before the generation and the one after it become one.
            kept.append(chain.gaps[index])
            dropped.append(chain.gaps.pop(index + 1))
            del chain.holders[index]
            if chain.holders:
                passed_on.add(block)
                if index == 0:
                    heirs.append(self._inherit(block, chain))
        self._gaps.ends[kept] = self._gaps.ends[dropped]
        self._gaps.remove(dropped)
        over = entry.places.keys() - passed_on
        self._gaps.remove([self._chains.pop(block).gaps[0] for block in over])
        self._set_limits(heirs)
        return passed_on

    def check_integrity(self) -> None:
        """Raise AssertionError unless chains, gaps, what is awaited and the limits agree."""
        rows = [row for chain in self._chains.values() for row in chain.gaps]
        self._gaps.check_integrity(rows)
        num_places = sum(len(chain.holders) for chain in self._chains.values())
        assert num_places == sum(len(entry.places) for entry in self._entries.values())
        for block, chain in self._chains.items():
            self._check_chain(block, chain)
        for generation, entry in self._entries.items():
            behind = [i for block, i in entry.places.items() if self._heir(block) is not generation]
            assert sorted(behind) == sorted(entry.awaited)
            limit = min(behind) * self._block_size if behind else None
            assert self._limits.get(generation) == limit
            assert limit is None or limit > len(generation.prompt), "no room for the prompt"
            assert limit is None or limit >= generation.num_scheduled, "scheduled without room"
        assert self._limits.keys() <= self._entries.keys()

    def _check_chain(self, block: int, chain: Chain) -> None:
        assert chain.holders, f"block {block} is listed and nobody's"
        assert len(chain.gaps) == len(chain.holders) + 1
        assert set(self._gaps.blocks[chain.gaps]) == {block}
        time = PAST
        for row, holder in zip(chain.gaps, chain.holders, strict=False):
            entry = self._entries[holder]
            index = entry.places[block]
            [need] = self._needs(holder, range(index, index + 1), entry.since)
            assert time == self._gaps.starts[row] <= self._gaps.ends[row] == need < entry.until
            time = entry.until
        assert time == self._gaps.starts[chain.gaps[-1]]
        assert self._gaps.ends[chain.gaps[-1]] == FUTURE

    def _times(self, generation: Generation, now: int) -> tuple[int, int]:
        """Return from when until when a generation, where it is now, needs blocks."""
        since = now - _progress(generation)
        return since, since + generation.params.max_tokens + BLOCKS_LATE * self._block_size

    def _needs(self, generation: Generation, indices: range, since: int) -> Ints:
        """Return from when on a text needs each of these blocks."""
        first = self._block_size * np.arange(indices.start, indices.stop)
        return since + np.maximum(first - len(generation.prompt), 0)

    def _open(self, blocks: list[int]) -> list[int]:
        """Make chains without a holder, one gap each; return the rows of the gaps."""
        rows = self._gaps.add(blocks, PAST, FUTURE)
        for block, row in zip(blocks, rows, strict=True):
            self._chains[block] = Chain([row])
        return rows

    def _insert(self, generation: Generation, block: int, before: int, after: int) -> Generation:
        """Put a holder between two gaps; return who waits for the block now, or holds it alone."""
        chain = self._chains[block]
        index = chain.gaps.index(before)
        chain.holders.insert(index, generation)
        chain.gaps.insert(index + 1, after)
        if index == 0 and len(chain.holders) == 1:
            return generation
        waits = chain.holders[max(index, 1)]
        entry = self._entries[waits]
        entry.awaited.add(entry.places[block])
        return waits

    def _heir(self, block: int) -> Generation:
        return self._chains[block].holders[0]

    def _inherit(self, block: int, chain: Chain) -> Generation:
        """Let the first of a chain have its block; return it."""
        heir = chain.holders[0]
        entry = self._entries[heir]
        entry.awaited.remove(entry.places[block])
        return heir

    def _set_limits(self, generations: Iterable[Generation]) -> None:
        for generation in generations:
            if awaited := self._entries[generation].awaited:
                self._limits[generation] = min(awaited) * self._block_size
            else:
                self._limits.pop(generation, None)


def _progress(generation: Generation) -> int:
    """Return how many steps a generation has gone since the one of its first answer token."""
    return max(0, generation.num_scheduled - len(generation.prompt))
