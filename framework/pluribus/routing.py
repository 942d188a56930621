"""Which replica a generation goes to: where its prompt is known, unless that one is too busy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

MAX_KNOWN = 1 << 16
"""Blocks of prompts whose replica is remembered."""

Block = int
"""Stands for a salt and all tokens up to the end of a block; two that collide cost a miss."""


class Router:
    """Remembers who was given which prompts, and chooses who gets the next.

    Args:
        block_size: tokens of the blocks in which a replica's cache finds prompts again; 0 where
            it does not.
        max_lead: generations that a replica may have more than the least loaded one, for the
            sake of a prompt that it knows.
        max_known: blocks remembered; those not seen for longest are forgotten first.
    """

    def __init__(self, block_size: int, max_lead: int, max_known: int = MAX_KNOWN) -> None:
        self._block_size = block_size
        self._max_lead = max_lead
        self._max_known = max_known
        self._holders: OrderedDict[Block, int] = OrderedDict()
        self._last_chosen: dict[int, int] = {}
        self._num_chosen = 0

    def choose(self, loads: Mapping[int, int], salt: str, prompt: Sequence[int]) -> int:
        """Return the replica for a prompt, which it is then taken to know.

        Args:
            loads: generations of each replica that can take one more; at least one replica.
            salt: what keeps tenants' prompts apart.
            prompt: token ids.
        """
        blocks = self._blocks(salt, prompt)
        # Of those alike, the one not chosen for longest: the first must not get all that is rare.
        least = min(loads, key=lambda replica: (loads[replica], self._last_chosen.get(replica, -1)))
        holder = self._holder(blocks)
        chosen = least
        if holder in loads and loads[holder] <= loads[least] + self._max_lead:
            chosen = holder
        self._remember(blocks, chosen)
        return chosen

    def forget(self, replica: int) -> None:
        """Take it that a replica knows nothing: its engine is gone."""
        for block in [block for block, holder in self._holders.items() if holder == replica]:
            del self._holders[block]

    def _blocks(self, salt: str, prompt: Sequence[int]) -> list[Block]:
        """Return the blocks that a prompt fills."""
        blocks: list[Block] = []
        size = self._block_size
        block = hash(salt)
        for end in range(size, len(prompt) + 1, size) if size else ():
            block = hash((block, *prompt[end - size : end]))
            blocks.append(block)
        return blocks

    def _holder(self, blocks: Sequence[Block]) -> int:
        """Return who was last given the longest known beginning, or -1."""
        holder = -1
        for block in blocks:
            if block not in self._holders:
                break
            holder = self._holders[block]
        return holder

    def _remember(self, blocks: Sequence[Block], replica: int) -> None:
        self._last_chosen[replica] = self._num_chosen
        self._num_chosen += 1
        # A text is forgotten from its end, as in the cache: nothing is found without its beginning.
        for block in reversed(blocks):
            self._holders[block] = replica
            self._holders.move_to_end(block)
        while len(self._holders) > self._max_known:
            self._holders.popitem(last=False)
