"""A batch in parts, so that every stage of a pipeline has one to work on."""

from __future__ import annotations

from pluribus.generation import Batch, Generation


class Rotation:
    """Cuts batches into parts of about as many tokens each.

    A generation stays in the part it was in, as far as the parts stay even: the tokens of the
    parts come back in their order, so it can go on as soon as its part's turn comes again.
    """

    def __init__(self, num_parts: int) -> None:
        self._num_parts = num_parts
        self._part_of: dict[Generation, int] = {}

    def cut(self, batch: Batch) -> list[Batch]:
        """Return the parts, none of them empty, in the order in which to run them."""
        num_parts = min(self._num_parts, len(batch))
        if num_parts == 1:
            self._part_of = dict.fromkeys(batch.num_tokens, 0)
            return [batch]
        most = -(-sum(batch.num_tokens.values()) // num_parts)
        parts: list[dict[Generation, int]] = [{} for _ in range(num_parts)]
        loads = [0] * num_parts
        # The longest first, so that the short ones make up for the differences.
        for generation, count in sorted(batch.num_tokens.items(), key=lambda item: -item[1]):
            index = self._part_of.get(generation, num_parts)
            if index >= num_parts or loads[index] + count > most:
                index = loads.index(min(loads))
            parts[index][generation] = count
            loads[index] += count
        self._part_of = {g: index for index, part in enumerate(parts) for g in part}
        return [Batch(part) for part in parts if part]
