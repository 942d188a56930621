"""A KV cache that holds one left-padded batch at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pluribus import Generation, KVCache, KVLedger, KVShape, KVStore
from pluribus.units import parse_bytes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ContiguousConfig:
    """Settings of ``cache/kv=contiguous``.

    Attributes:
        memory: for keys and values on each rank: ``auto``, or a size such as ``4GiB``.
    """

    memory: str = "auto"

    def __post_init__(self) -> None:
        if self.memory != "auto":
            parse_bytes(self.memory, "cache.kv.memory", or_else="auto")


class ContiguousKVCache(KVCache):
    """Keep a batch as one rectangle: simple and fast, but nobody joins while it runs."""

    Config = ContiguousConfig

    def __init__(self, config: ContiguousConfig) -> None:
        self._config = config

    @property
    def memory(self) -> str:
        """The ``cache.kv.memory`` setting."""
        return self._config.memory

    def ledger(self, shape: KVShape) -> KVLedger:
        """Return the counting half."""
        return ContiguousLedger(shape.num_tokens)

    def store(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> KVStore:
        """Return one rank's tensors, allocated."""
        from pluribus_caches.kv.contiguous_store import ContiguousStore

        return ContiguousStore(shape, device, dtype)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """What a left-padded batch takes; ledger and store both count with it.

    All rows end in the same column, so the row with the longest prompt and the row that
    generates most both set the width, though they may be different rows.
    """

    num_rows: int = 0
    longest_prompt: int = 0
    most_tokens: int = 0

    @property
    def width(self) -> int:
        """Columns of each row."""
        return self.longest_prompt + self.most_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return self.num_rows * self.width

    def with_row(self, prompt_length: int, max_length: int) -> Rectangle:
        """Return the rectangle that holds one generation more."""
        return Rectangle(
            self.num_rows + 1,
            max(self.longest_prompt, prompt_length),
            max(self.most_tokens, max_length - prompt_length),
        )

    def holds(self, generation: Generation) -> bool:
        """Whether one of the rows could be this generation's."""
        return (
            len(generation.prompt) <= self.longest_prompt
            and generation.params.max_tokens <= self.most_tokens
        )


class ContiguousLedger(KVLedger):
    """Counts one batch's rectangle.

    It grows while the batch is put together, stands as it is from the first step on, and is
    free again when its last row is released.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._held: set[Generation] = set()
        self._rectangle = Rectangle()

    def fits(self, num_tokens: int) -> bool:
        """Whether a generation of this many tokens could run if it were alone."""
        return num_tokens <= self._num_tokens

    def try_reserve(self, generation: Generation) -> bool:
        """Add a row to the rectangle, or change nothing and return False."""
        if any(member.num_scheduled for member in self._held):
            return False
        grown = self._rectangle.with_row(len(generation.prompt), generation.max_length)
        if grown.num_tokens > self._num_tokens:
            return False
        self._held.add(generation)
        self._rectangle = grown
        return True

    def placement(self, generation: Generation) -> tuple[int, ...]:
        """Return nothing: the store sees the whole batch and counts as the ledger does."""
        return ()

    def release(self, generation: Generation) -> None:
        """Give back a row; the last one gives back the rectangle."""
        self._held.remove(generation)
        if not self._held:
            self._rectangle = Rectangle()

    @property
    def num_used_tokens(self) -> int:
        """Tokens of room in the rectangle, padding included."""
        return self._rectangle.num_tokens

    def check_integrity(self) -> None:
        """Raise AssertionError unless all rows lie in the rectangle and it in the store."""
        assert self._rectangle.num_tokens <= self._num_tokens
        assert len(self._held) <= self._rectangle.num_rows
        assert all(map(self._rectangle.holds, self._held))
        assert bool(self._held) == bool(self._rectangle.num_rows)
