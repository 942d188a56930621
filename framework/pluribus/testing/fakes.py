"""Small stand-ins for what surrounds a plugin."""

from __future__ import annotations

from pluribus.generation import Generation, SamplingParams
from pluribus.interfaces import Batcher, KVLedger

SHORT = SamplingParams(max_tokens=4)


class RoomFor(KVLedger):
    """A ledger that has room for so many tokens and minds nothing else.

    Attributes:
        num_tokens: the room in all.
        held: who has reserved and not released.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.held: set[Generation] = set()

    @property
    def room(self) -> int:
        """Tokens that nobody holds."""
        return self.num_tokens - sum(generation.max_length for generation in self.held)

    def fits(self, num_tokens: int) -> bool:
        """Whether a generation of this many tokens could run if it were alone."""
        return num_tokens <= self.num_tokens

    def try_reserve(self, generation: Generation) -> bool:
        """Reserve, or change nothing and return False."""
        assert generation not in self.held, f"generation {generation.id} is reserved already"
        if generation.max_length > self.room:
            return False
        self.held.add(generation)
        generation.num_scheduled = 0
        return True

    def placement(self, generation: Generation) -> tuple[int, ...]:
        """Return nothing."""
        return ()

    def release(self, generation: Generation) -> None:
        """Give back what ``try_reserve`` took."""
        assert generation in self.held, f"generation {generation.id} holds nothing to release"
        self.held.remove(generation)

    def check_integrity(self) -> None:
        """Raise AssertionError if more is held than there is."""
        assert self.room >= 0


def generation(
    number: int = 0, *, prompt: tuple[int, ...] = (2, 5, 7), params: SamplingParams = SHORT
) -> Generation:
    """Return a fresh generation, with ``number`` for its id."""
    return Generation(id=number, prompt=prompt, params=params)


def run_step(batcher: Batcher) -> list[int]:
    """Run a batcher's next step as the engine would; return the ids that ran, in row order."""
    batch = batcher.next_batch()
    if batch is None:
        return []
    for member, num_tokens in batch.num_tokens.items():
        member.num_scheduled += num_tokens
        if member.num_scheduled >= len(member.prompt):
            member.tokens.append(0)
    return [member.id for member in batch.num_tokens]
