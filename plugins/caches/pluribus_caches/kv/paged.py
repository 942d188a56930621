"""A KV cache in blocks: generations join and leave at any time, and share what begins alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pluribus import Capability, ConfigError, KVCache, KVLedger, KVShape, KVStore
from pluribus.units import parse_bytes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PagedConfig:
    """Settings of ``cache/kv=paged``.

    Attributes:
        memory: for keys and values on each rank: ``auto``, or a size such as ``4GiB``.
        block_size: tokens of a block, the unit of reservation and of sharing.
        prefix_caching: whether a prompt reuses what earlier prompts and answers have computed.
    """

    memory: str = "auto"
    block_size: int = 16
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        if self.memory != "auto":
            parse_bytes(self.memory, "cache.kv.memory", or_else="auto")
        if self.block_size < 1:
            raise ConfigError(f"cache.kv.block_size must be at least 1, got {self.block_size}")


class PagedKVCache(KVCache):
    """Hand out blocks of one pool, which generations that begin alike share."""

    Config = PagedConfig
    provides = frozenset({Capability.JOIN, Capability.CHUNK})

    def __init__(self, config: PagedConfig) -> None:
        self._config = config

    @property
    def memory(self) -> str:
        """The ``cache.kv.memory`` setting."""
        return self._config.memory

    def capacity(self, shape: KVShape) -> int:
        """Return how many tokens the store of this shape allocates room for: whole blocks."""
        return self._num_blocks(shape) * self._config.block_size

    @property
    def prefix_block_size(self) -> int:
        """Tokens of the blocks in which known beginnings of prompts are reused; 0: none are."""
        return self._config.block_size if self._config.prefix_caching else 0

    def ledger(self, shape: KVShape) -> KVLedger:
        """Return the counting half."""
        from pluribus_caches.kv.paged_ledger import PagedLedger

        config, num_blocks = self._config, self._num_blocks(shape)
        longest = -(-shape.max_length // config.block_size)
        return PagedLedger(
            num_blocks,
            config.block_size,
            config.prefix_caching,
            is_ample=num_blocks >= shape.num_slots * longest,
        )

    def store(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> KVStore:
        """Return one rank's tensors, allocated."""
        num_blocks, block_size = self._num_blocks(shape), self._config.block_size
        if device.type == "cuda":
            from pluribus_caches.kv.cuda_store import CudaPagedStore

            return CudaPagedStore(shape, num_blocks, block_size, device, dtype)
        from pluribus_caches.kv.paged_store import PagedStore

        return PagedStore(shape, num_blocks, block_size, device, dtype)

    def _num_blocks(self, shape: KVShape) -> int:
        # Rounding down must not cost the one generation of full length that there is room for.
        block_size = self._config.block_size
        return max(shape.num_tokens // block_size, -(-shape.max_length // block_size))
