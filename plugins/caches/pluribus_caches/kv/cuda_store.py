"""The tensors of the paged KV cache on a CUDA device, or wherever Triton's kernels run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pluribus import Admission, KVShape, Row, TokenLayout
from pluribus.cuda.packing import PackedRows
from pluribus.interfaces.device_store import DeviceKVStore, Tiles
from pluribus.kernels.upload import upload
from pluribus_caches.kernels.decode_attention import Splits, decode, decode_alone
from pluribus_caches.kernels.prefill_attention import TILE, prefill
from pluribus_caches.kernels.texts import Texts, write

NUM_PROGRAMS = 2048
"""What keeps a device of 132 multiprocessors busy."""


class CudaPagedStore(DeviceKVStore):
    """Keys and values in one pool of blocks, and each slot's blocks in a table on the device.

    The pool is [layers, 2, heads, tokens, head_dim]. One block more than the ledger knows takes
    what padding writes.
    """

    def __init__(
        self,
        shape: KVShape,
        num_blocks: int,
        block_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._shape = shape
        self._device = device
        num_tokens = (num_blocks + 1) * block_size
        size = (shape.num_layers, 2, shape.num_heads, num_tokens, shape.head_dim)
        self._pool = torch.zeros(size, device=device, dtype=dtype)
        width = -(-shape.max_length // block_size)
        table = torch.full(
            (shape.num_slots + 1, width), num_blocks, dtype=torch.int32, device=device
        )
        self._texts = Texts(table, block_size)
        self._splits: dict[int, Splits] = {}
        self._admitted: dict[int, tuple[int, ...]] = {}
        self._tiles: Tiles | None = None

    @property
    def tile_size(self) -> int:
        """Tokens of a prompt that one program attends with."""
        return TILE

    def admit(self, admission: Admission) -> None:
        """Take a generation into a slot; the device is told by ``flush``."""
        self._admitted[admission.slot] = admission.placement

    def evict(self, slot: int) -> None:
        """Forget the generation in ``slot``."""
        self._admitted.pop(slot, None)

    def flush(self) -> None:
        """Write what has been admitted into the table."""
        if not self._admitted:
            return
        width = max(map(len, self._admitted.values()))
        blocks = np.zeros((len(self._admitted), width), np.int64)
        for row, placement in zip(blocks, self._admitted.values(), strict=True):
            row[: len(placement)] = placement
        slots, flat = upload(self._device, list(self._admitted), blocks.ravel())
        self._texts.table[slots, :width] = flat.view(-1, width).to(torch.int32)
        self._admitted.clear()

    def begin(self, rows: Sequence[Row]) -> TokenLayout:
        """Lay out the rows' tokens, and cut them into tiles."""
        self.flush()
        packed = PackedRows.make(rows, TILE)
        slots, positions, last, tile_rows, starts, ends, alone = upload(
            self._device,
            packed.slots,
            packed.positions,
            packed.last,
            packed.tile_rows,
            packed.tile_starts,
            packed.tile_ends,
            packed.alone,
        )
        self.begin_prefill(slots, positions, Tiles(tile_rows, starts, ends, alone))
        return TokenLayout(slots, positions, last)

    def begin_decode(self, slots: Tensor, positions: Tensor) -> None:
        """Start a pass of one token a row; see DeviceKVStore."""
        self._slots, self._positions, self._tiles = slots, positions, None

    def begin_prefill(self, slots: Tensor, positions: Tensor, tiles: Tiles) -> None:
        """Start a pass of any number of tokens a row; see DeviceKVStore."""
        self._slots, self._positions, self._tiles = slots, positions, tiles

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the step's keys and values, and attend."""
        qkv = (query, key, value)
        pool, where = self._pool[layer], (self._texts, self._slots, self._positions)
        if self._tiles is None:
            return decode(qkv, pool, *where, self._splits_for(len(query)))
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if len(self._tiles.alone):
            decode_alone(qkv, pool, *where, self._tiles.alone, out)
        if len(self._tiles.starts):
            write(key, value, pool, *where)
            prefill(qkv, pool, *where, self._tiles, out)
        return out

    def _splits_for(self, num_rows: int) -> Splits:
        """Return what rows share their partial results in; what a graph holds on to is kept."""
        if num_rows not in self._splits:
            shape = self._shape
            self._splits[num_rows] = Splits.make(
                num_rows, shape.num_heads, shape.head_dim, NUM_PROGRAMS, self._device
            )
        return self._splits[num_rows]
