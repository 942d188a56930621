"""A batch in parts, so that every stage of a pipeline has one to work on."""

from __future__ import annotations

from collections.abc import Collection

from pluribus.generation import Batch, Generation
from pluribus.interfaces import Capability

SHORTEST_PIECE = 256
"""Tokens of a prompt below which a stage takes hardly less time, most of it for its weights."""


class Rotation:
    """Cuts batches into parts of about as many tokens each.

    A generation stays in the part it was in, as far as the parts stay even: the tokens of the
    parts come back in their order, so it can go on as soon as its part's turn comes again.

    Args:
        num_stages: of the pipeline.
        provides: what the KV cache can do. One that nobody may join while others run takes a
            batch whole; one that takes prompts in chunks lets one prompt be at several stages.
    """

    def __init__(self, num_stages: int, provides: Collection[Capability]) -> None:
        self._num_parts = num_stages if Capability.JOIN in provides else 1
        self._cuts_prompts = Capability.CHUNK in provides
        self._part_of: dict[Generation, int] = {}

    def cut(self, batch: Batch) -> list[Batch]:
        """Return the parts, none of them empty, in the order in which to run them."""
        if self._num_parts == 1:
            return [batch]
        pieces = {g: self._pieces(count) for g, count in batch.num_tokens.items()}
        num_parts = min(self._num_parts, sum(map(len, pieces.values())))
        most = -(-sum(batch.num_tokens.values()) // num_parts)
        parts: list[dict[Generation, int]] = [{} for _ in range(num_parts)]
        loads = [0] * num_parts
        # The longest first, so that the short ones make up for the differences.
        for generation, counts in sorted(pieces.items(), key=lambda item: -sum(item[1])):
            first = self._place(generation, counts, loads, most)
            for index, count in enumerate(counts, start=first):
                parts[index][generation] = count
                loads[index] += count
        self._part_of = {g: index for index, part in enumerate(parts) for g in part}
        return [Batch(part) for part in parts if part]

    def most_under_way(self, batch: Batch, parts: Collection[Batch]) -> int:
        """Return how many steps may be under way before the first of them must be read.

        All of a batch's parts but one, whose place the next batch's first part takes. A batch
        that samples nothing has nothing to wait for.
        """
        if self._num_parts == 1:
            return 0
        samples = any(g.num_scheduled + n >= len(g.prompt) for g, n in batch.num_tokens.items())
        return (len(parts) if samples else self._num_parts) - 1

    def _pieces(self, count: int) -> list[int]:
        """Return the lengths of the pieces that so many tokens of one generation are cut into."""
        num = min(self._num_parts, count // SHORTEST_PIECE) if self._cuts_prompts else 1
        num = max(num, 1)
        return [(count + index) // num for index in range(num)]

    def _place(self, generation: Generation, counts: list[int], loads: list[int], most: int) -> int:
        """Return the part for the first piece: its old one, or where there is most room."""
        index = self._part_of.get(generation, len(loads))
        if len(counts) == 1 and index < len(loads) and loads[index] + counts[0] <= most:
            return index
        firsts = range(len(loads) - len(counts) + 1)
        return min(firsts, key=lambda first: sum(loads[first : first + len(counts)]))
