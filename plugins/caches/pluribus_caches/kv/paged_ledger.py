"""Who holds which block of the paged KV cache, and which blocks hold a known prefix."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile

from pluribus import Generation, KVLedger
from pluribus_caches.kv.free_blocks import FreeBlocks
from pluribus_caches.kv.gaps import NOWHERE
from pluribus_caches.kv.timetable import Timetable

Digest = bytes
"""Stands for a salt and all tokens up to the end of a block, and so for what the block holds."""

PATIENCE = 16
"""How often a generation that was refused may ask in vain before it is looked at again."""


@dataclass(eq=False, slots=True)
class Holding:
    """What one generation holds.

    Attributes:
        blocks: in the order of its text; the first of them may have other holders, and for the
            last it may have to wait, or have others wait for it.
        digests: of its leading blocks, as far as they were found or have been published.
    """

    blocks: list[int]
    digests: list[Digest]


class PagedLedger(KVLedger):
    """Counts blocks. A generation is given all that it may need before it starts.

    A block is free, or held by one generation or more. A free block that holds a known prefix
    can be found, and held again, until it is handed out for something else.

    Where less than half of the blocks would stay free, those who are promised room share blocks
    in time, as the timetable has it. Before that nobody is in it, and it costs nothing. What
    others may find while its holder runs, the full blocks of a prompt, is never shared so.

    Args:
        num_blocks: of the store.
        block_size: tokens of each.
        prefix_caching: whether what is known is found again.
        is_ample: whether there are enough for all that may run at once, however long: then
            nothing needs to be shared in time.
    """

    def __init__(
        self, num_blocks: int, block_size: int, prefix_caching: bool, *, is_ample: bool = False
    ) -> None:
        self._block_size = block_size
        self._prefix_caching = prefix_caching
        self._is_ample = is_ample
        self._free = FreeBlocks(num_blocks)
        self._num_holders = [0] * num_blocks
        self._held: dict[Generation, Holding] = {}
        self._block_of: dict[Digest, int] = {}
        self._digest_of: dict[int, Digest] = {}
        self._timetable = Timetable(block_size)
        # Who was promised room while there was plenty, and is not in the timetable yet.
        self._unlisted: dict[Generation, None] = {}
        # How often each has asked in vain since something was released.
        self._refused: dict[Generation, int] = {}

    def fits(self, num_tokens: int) -> bool:
        """Whether a generation of this many tokens could run if it were alone."""
        return self._num_blocks(num_tokens) <= len(self._num_holders)

    def try_reserve(self, generation: Generation) -> bool:
        """Hold every block the generation may need, or change nothing and return False."""
        assert generation not in self._held, f"generation {generation.id} is reserved already"
        num_needed = self._num_blocks(generation.max_length)
        if num_needed - self._num_shareable(generation) > len(self._free):
            return False  # before any hashing: a full cache is asked again at every step
        digests = self._known_prefix(generation)
        shared = [self._block_of[digest] for digest in digests]
        num_new = num_needed - len(shared)
        if num_new > len(self._free) - sum(block in self._free for block in shared):
            return False
        self._hold(generation, self._share(shared) + self._take(num_new), digests)
        return True

    def try_promise(self, generation: Generation) -> bool:
        """Hold or be promised every block the generation may need, or change nothing.

        Whoever was refused is looked at again once something has been released, or after some
        steps: later, more of what others hold is given back in time.
        """
        if self._is_ample:
            return self.try_reserve(generation)
        assert generation not in self._held, f"generation {generation.id} is reserved already"
        num_asked = self._refused.get(generation, 0)
        if num_asked % PATIENCE or not self._promise(generation):
            self._refused[generation] = num_asked + 1
            return False
        self._refused.pop(generation, None)
        return True

    @property
    def limits(self) -> Mapping[Generation, int]:
        """How many tokens of their texts those may have scheduled who wait for blocks."""
        return self._timetable.limits

    def placement(self, generation: Generation) -> tuple[int, ...]:
        """Return the blocks in the order of the generation's text."""
        return tuple(self._held[generation].blocks)

    def advance(self, generation: Generation) -> None:
        """Let others find the prompt's blocks that the step now planned completes.

        Their own steps run after it, so by then the blocks are filled.
        """
        if not self._prefix_caching:
            return
        holding = self._held[generation]
        num_known = min(generation.num_scheduled, len(generation.prompt))
        if num_known // self._block_size > len(holding.digests):
            self._publish(generation, holding, generation.prompt[:num_known])

    def release(self, generation: Generation) -> None:
        """Give back the blocks; from now on all that are full of known tokens can be found.

        A text is forgotten from its end, as no block is found without those before it. A block
        that somebody waits for is theirs: what it holds is not found, nor what comes after it.
        """
        holding = self._held.pop(generation)
        passed_on = self._leave(generation)
        if self._prefix_caching:
            blocks = takewhile(lambda block: block not in passed_on, holding.blocks)
            num_kept = sum(1 for _ in blocks) * self._block_size
            # Steps under way may have computed tokens that nobody has read, or the reverse.
            num_known = min(num_kept, generation.num_scheduled)
            known = (*generation.prompt, *generation.tokens)[:num_known]
            self._publish(generation, holding, known)
        for block in reversed(holding.blocks):
            if block in passed_on:
                continue
            self._num_holders[block] -= 1
            if not self._num_holders[block]:
                self._free.add(block, is_empty=block not in self._digest_of)

    @property
    def num_used_tokens(self) -> int:
        """Tokens of room in the blocks that are held."""
        return (len(self._num_holders) - len(self._free)) * self._block_size

    def check_integrity(self) -> None:
        """Raise AssertionError unless blocks are free or held, and found where they are known."""
        self._free.check_integrity()
        self._timetable.check_integrity()
        num_holders = [0] * len(self._num_holders)
        for generation, holding in self._held.items():
            assert len(holding.blocks) == self._num_blocks(generation.max_length)
            assert len(set(holding.blocks)) == len(holding.blocks), "a block twice in one text"
            for block in holding.blocks:
                num_holders[block] += 1
        for block, count in self._timetable.num_holders().items():
            assert num_holders[block] == count, "held by somebody beside the timetable"
            num_holders[block] = 1
        assert num_holders == self._num_holders
        for block, count in enumerate(num_holders):
            assert (block in self._free) == (count == 0), f"block {block} is free and held"
        assert {block: digest for digest, block in self._block_of.items()} == self._digest_of
        told = {digest for holding in self._held.values() for digest in holding.digests}
        for block, digest in self._digest_of.items():
            assert block in self._free or digest in told, f"block {block} is found and not filled"

    def _promise(self, generation: Generation) -> bool:
        digests = self._known_prefix(generation)
        shared = [self._block_of[digest] for digest in digests]
        num_new = self._num_blocks(generation.max_length) - len(shared)
        num_free = len(self._free) - sum(block in self._free for block in shared)
        if num_free - num_new >= len(self._num_holders) / 2:
            self._hold(generation, self._share(shared) + self._take(num_new), digests)
            self._unlisted[generation] = None
            return True
        now = self._timetable.now()
        self._list_everybody(now)
        listed = self._listed(generation)
        rows, found = self._timetable.find(generation, listed, now)
        num_new -= sum(block != NOWHERE for block in found)
        if num_new > num_free:
            return False
        own = iter(self._share(shared) + self._take(num_new))
        blocks = [next(own) for _ in range(listed.start)]
        blocks += [next(own) if block == NOWHERE else block for block in found]
        self._timetable.enter(generation, listed, blocks[listed.start :], now, rows)
        self._hold(generation, blocks, digests)
        return True

    def _hold(self, generation: Generation, blocks: list[int], digests: list[Digest]) -> None:
        self._held[generation] = Holding(blocks, digests)
        generation.num_cached = generation.num_scheduled = len(digests) * self._block_size

    def _listed(self, generation: Generation) -> range:
        """Return the indices of what a text has in the timetable: what nobody else will find."""
        num_full = len(generation.prompt) // self._block_size if self._prefix_caching else 0
        return range(num_full, self._num_blocks(generation.max_length))

    def _list_everybody(self, now: int) -> None:
        for generation in self._unlisted:
            listed = self._listed(generation)
            blocks = self._held[generation].blocks[listed.start :]
            self._timetable.enter(generation, listed, blocks, now)
        self._unlisted.clear()

    def _leave(self, generation: Generation) -> set[int]:
        """Take a generation out of the timetable; return which of its blocks others go on with."""
        self._refused.clear()
        if generation in self._timetable:
            return self._timetable.leave(generation)
        self._unlisted.pop(generation, None)
        return set()

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _num_shareable(self, generation: Generation) -> int:
        """Return how many leading blocks need not be computed: never the whole prompt."""
        if not self._prefix_caching or generation.params.prompt_logprobs is not None:
            return 0
        return (len(generation.prompt) - 1) // self._block_size

    def _known_prefix(self, generation: Generation) -> list[Digest]:
        digests: list[Digest] = []
        num_tokens = self._num_shareable(generation) * self._block_size
        for digest in self._chain(generation.salt, digests, generation.prompt[:num_tokens]):
            if digest not in self._block_of:
                break
            digests.append(digest)
        return digests

    def _publish(self, generation: Generation, holding: Holding, known: Sequence[int]) -> None:
        """Let others find the blocks that ``known``, the start of the text, fills."""
        for digest in self._chain(generation.salt, holding.digests, known):
            block = holding.blocks[len(holding.digests)]
            holding.digests.append(digest)
            if digest not in self._block_of:  # else somebody computed the same at the same time
                self._block_of[digest] = block
                self._digest_of[block] = digest

    def _chain(self, salt: str, digests: list[Digest], tokens: Sequence[int]) -> Iterator[Digest]:
        """Yield the digests of the blocks that ``tokens`` fills, after those in ``digests``."""
        digest = digests[-1] if digests else blake2b(salt.encode(), person=b"salt").digest()
        first = len(digests) * self._block_size
        unseen = array("q", tokens[first:])
        stride = self._block_size * unseen.itemsize
        data = memoryview(unseen).cast("B")
        for start in range(0, len(data) // stride * stride, stride):
            digest = blake2b(digest + data[start : start + stride], digest_size=32).digest()
            yield digest

    def _share(self, blocks: list[int]) -> list[int]:
        for block in blocks:
            if not self._num_holders[block]:
                self._free.remove(block)
            self._num_holders[block] += 1
        return blocks

    def _take(self, num_blocks: int) -> list[int]:
        """Hand out free blocks, which nobody can find any more."""
        blocks = self._free.take(num_blocks) if num_blocks else []
        for block in blocks:
            self._num_holders[block] = 1
            if (digest := self._digest_of.pop(block, None)) is not None:
                del self._block_of[digest]
        return blocks
