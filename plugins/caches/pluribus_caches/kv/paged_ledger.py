"""Who holds which block of the paged KV cache, and which blocks hold a known prefix."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from pluribus import Generation, KVLedger
from pluribus_caches.kv.free_blocks import FreeBlocks

Digest = bytes
"""Stands for a salt and all tokens up to the end of a block, and so for what the block holds."""


@dataclass(eq=False, slots=True)
class Holding:
    """What one generation holds.

    Attributes:
        blocks: in the order of its text; the first of them may have other holders.
        digests: of its leading blocks, as far as they were found or have been published.
    """

    blocks: list[int]
    digests: list[Digest]


class PagedLedger(KVLedger):
    """Counts blocks. A generation reserves all that it may need before it starts.

    A block is free, or held by one generation or more. A free block that holds a known prefix
    can be found, and held again, until it is handed out for something else.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self._block_size = block_size
        self._prefix_caching = prefix_caching
        self._free = FreeBlocks(num_blocks)
        self._num_holders = [0] * num_blocks
        self._held: dict[Generation, Holding] = {}
        self._block_of: dict[Digest, int] = {}
        self._digest_of: dict[int, Digest] = {}

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
        blocks = self._share(shared) + self._take(num_new)
        self._held[generation] = Holding(blocks, digests)
        generation.num_cached = generation.num_scheduled = len(shared) * self._block_size
        return True

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

        A text is forgotten from its end, as no block is found without those before it.
        """
        holding = self._held.pop(generation)
        if self._prefix_caching:
            # Steps under way may have computed tokens that nobody has read, or the reverse.
            known = (*generation.prompt, *generation.tokens)[: generation.num_scheduled]
            self._publish(generation, holding, known)
        for block in reversed(holding.blocks):
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
        num_holders = [0] * len(self._num_holders)
        for generation, holding in self._held.items():
            assert len(holding.blocks) == self._num_blocks(generation.max_length)
            assert len(set(holding.blocks)) == len(holding.blocks), "a block twice in one text"
            for block in holding.blocks:
                num_holders[block] += 1
        assert num_holders == self._num_holders
        for block, count in enumerate(num_holders):
            assert (block in self._free) == (count == 0), f"block {block} is free and held"
        assert {block: digest for digest, block in self._block_of.items()} == self._digest_of

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
        blocks = self._free.take(num_blocks)
        for block in blocks:
            self._num_holders[block] = 1
            if (digest := self._digest_of.pop(block, None)) is not None:
                del self._block_of[digest]
        return blocks
