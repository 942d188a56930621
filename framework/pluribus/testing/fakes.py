"""Small stand-ins for what surrounds a plugin."""

from __future__ import annotations

from pluribus.generation import Generation, SamplingParams
from pluribus.interfaces import Batcher, KVLedger

SHORT = SamplingParams(max_tokens=4)


class RoomFor(KVLedger):
    """A ledger that has room for so many tokens and minds nothing else.

    Attributes:
        num_tokens: the room in all.
        num_stored: leading tokens of every prompt that it finds stored already, at most.
        is_shut: whether it refuses, for reasons of its own, everybody who would not be alone.
        held: who has reserved and not released.
        promised: those of them who asked for a promise. They have all of their room, but
            ``limits`` may be set for them.
    """

    def __init__(self, num_tokens: int, *, num_stored: int = 0) -> None:
        self.num_tokens = num_tokens
        self.num_stored = num_stored
        self.is_shut = False
        self.held: set[Generation] = set()
        self.promised: set[Generation] = set()
        self._limits: dict[Generation, int] = {}

    @property
    def room(self) -> int:
        """Tokens that nobody holds."""
        return self.num_tokens - self.num_used_tokens

    @property
    def num_used_tokens(self) -> int:
        """Tokens that somebody holds."""
        return sum(generation.max_length for generation in self.held)

    def fits(self, num_tokens: int) -> bool:
        """Whether a generation of this many tokens could run if it were alone."""
        return num_tokens <= self.num_tokens

    def would_reserve(self, generation: Generation) -> bool:
        """Whether ``try_reserve`` would accept."""
        return generation.max_length <= self.room and not (self.is_shut and self.held)

    def try_reserve(self, generation: Generation) -> bool:
        """Reserve, or change nothing and return False."""
        assert generation not in self.held, f"generation {generation.id} is reserved already"
        if not self.would_reserve(generation):
            return False
        self.held.add(generation)
        is_scored = generation.params.prompt_logprobs is not None
        found = 0 if is_scored else min(self.num_stored, len(generation.prompt) - 1)
        generation.num_cached = generation.num_scheduled = found
        return True

    def try_promise(self, generation: Generation) -> bool:
        """Reserve, and let ``limits`` be set; or change nothing and return False."""
        if not self.try_reserve(generation):
            return False
        self.promised.add(generation)
        return True

    @property
    def limits(self) -> dict[Generation, int]:
        """Whatever a test makes of them."""
        return self._limits

    def placement(self, generation: Generation) -> tuple[int, ...]:
        """Return nothing."""
        return ()

    def release(self, generation: Generation) -> None:
        """Give back what was taken."""
        assert generation in self.held, f"generation {generation.id} holds nothing to release"
        self.held.remove(generation)
        self.promised.discard(generation)
        self._limits.pop(generation, None)

    def check_integrity(self) -> None:
        """Raise AssertionError if more is held than there is."""
        assert self.room >= 0


def generation(
    number: int = 0,
    *,
    prompt: tuple[int, ...] = (2, 5, 7),
    params: SamplingParams = SHORT,
    tenant: str = "",
    weight: float = 1.0,
) -> Generation:
    """Return a fresh generation, with ``number`` for its id."""
    return Generation(id=number, prompt=prompt, params=params, tenant=tenant, weight=weight)


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
