"""The store of CUDA devices keeps the contract, and a device can drive it by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.device import DEVICE
from pluribus import Admission, KVCache, KVShape, KVStore, Row, SamplingParams
from pluribus.cuda.packing import PackedRows
from pluribus.interfaces.device_store import Tiles
from pluribus.testing import KVCacheContract
from pluribus_caches.kv import cuda_store
from pluribus_caches.kv.cuda_store import CudaPagedStore
from pluribus_caches.kv.paged import PagedConfig, PagedKVCache

BLOCK_SIZE = 4
NUM_BLOCKS = 12
SHAPE = KVShape(num_layers=2, num_heads=2, head_dim=8, num_slots=3, max_length=16, num_tokens=48)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_store, "NUM_PROGRAMS", 6)


class OnKernels(PagedKVCache):
    """The paged cache with the store of CUDA devices, wherever its kernels run."""

    def store(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> KVStore:
        block_size = self._config.block_size
        return CudaPagedStore(shape, self._num_blocks(shape), block_size, device, dtype)


class TestCudaPagedStore(KVCacheContract):
    shape = KVShape(
        num_layers=2, num_heads=1, head_dim=4, num_slots=4, max_length=13, num_tokens=40
    )
    device = DEVICE
    settings: ClassVar[hypothesis.settings] = hypothesis.settings(
        deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow]
    )

    def make(self) -> KVCache:
        return OnKernels(PagedConfig(block_size=2))


def store() -> CudaPagedStore:
    """Return a store in whose slots texts lie in random blocks."""
    made = CudaPagedStore(SHAPE, NUM_BLOCKS, BLOCK_SIZE, DEVICE, torch.float32)
    blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(1)).view(3, 4)
    for slot, placement in enumerate(blocks.tolist()):
        made.admit(admission(slot, placement))
    made.flush()
    return made


def admission(slot: int, placement: Sequence[int]) -> Admission:
    return Admission(
        slot=slot,
        prompt=(2,),
        max_length=len(placement) * BLOCK_SIZE,
        params=SamplingParams(max_tokens=1),
        ends=(),
        placement=tuple(placement),
    )


def random(num_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn(3, num_tokens, 2, 8, generator=generator).to(DEVICE)


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE)


def both() -> tuple[CudaPagedStore, CudaPagedStore]:
    """Return two stores in which the same has been computed of every text."""
    stores = store(), store()
    for each in stores:
        each.begin([Row(slot, 0, 5 + slot, samples=True) for slot in range(3)])
        for layer in range(2):
            each.attend(layer, *random(18) * (layer + 1))
    return stores


def assert_same(one: CudaPagedStore, other: CudaPagedStore, num_tokens: int) -> None:
    for layer in range(2):
        torch.testing.assert_close(
            one.attend(layer, *random(num_tokens)),
            other.attend(layer, *random(num_tokens))[:num_tokens],
        )
    kept = NUM_BLOCKS * BLOCK_SIZE
    assert one._pool[..., :kept, :].equal(other._pool[..., :kept, :])


def test_decoding_by_numbers_is_a_step_of_one_token_a_row() -> None:
    one, other = both()
    one.begin([Row(2, 7, 1, samples=True), Row(0, 5, 1, samples=True)])
    other.begin_decode(numbers(2, 0), numbers(7, 5))
    assert_same(one, other, 2)


def test_prefilling_by_numbers_is_a_step() -> None:
    one, other = both()
    rows = [(2, 7, 3), (1, 6, 1), (0, 5, 2)]
    layout = one.begin([Row(*row, samples=True) for row in rows])
    assert layout.slots.tolist() == [2, 2, 2, 1, 0, 0]
    assert layout.positions.tolist() == [7, 8, 9, 6, 5, 6]
    assert layout.last.tolist() == [2, 3, 5]
    tiles = Tiles(numbers(0, 4, 0), numbers(0, 4, 0), numbers(3, 6, 0), numbers(3, -1))
    other.begin_prefill(layout.slots, layout.positions, tiles)
    assert_same(one, other, 6)


def test_what_pads_writes_where_nobody_reads() -> None:
    one, other = both()
    one.begin([Row(1, 6, 1, samples=True)])
    other.begin_decode(numbers(1, 3, 3), numbers(6, 0, 0))
    query = random(3)
    for layer in range(2):
        alone = one.attend(layer, *query[:, :1])
        torch.testing.assert_close(other.attend(layer, *query)[:1], alone)
    kept = NUM_BLOCKS * BLOCK_SIZE
    assert one._pool[..., :kept, :].equal(other._pool[..., :kept, :])
    assert other._pool[..., kept:, :].any()


def test_numbers_are_read_when_the_pass_runs() -> None:
    one, other = both()
    one.begin([Row(1, 6, 1, samples=True)])
    slots, positions = numbers(0), numbers(0)
    other.begin_decode(slots, positions)
    slots.fill_(1)
    positions.fill_(6)
    assert_same(one, other, 1)


def test_the_device_hears_of_slots_when_told() -> None:
    made = store()
    before = made._texts.table.clone()
    made.evict(1)
    made.admit(admission(1, [5, 3]))
    assert made._texts.table.equal(before)
    made.flush()
    assert made._texts.table[1, :2].tolist() == [5, 3]
    assert made._texts.table[[0, 2, 3]].equal(before[[0, 2, 3]])
    made.admit(admission(0, [7]))
    made.evict(0)
    made.flush()
    assert made._texts.table[0].equal(before[0])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 50), st.integers(1, 20)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 9),
)
def test_tiles_cover_every_token_and_reach_over_no_rows_end(
    wanted: list[tuple[int, int, int]], tile_size: int
) -> None:
    rows = [Row(slot, start, length, samples=True) for slot, start, length in wanted]
    packed = PackedRows.make(rows, tile_size)
    tokens = [(row.slot, row.start + at) for row in rows for at in range(row.num_tokens)]
    assert list(zip(packed.slots, packed.positions, strict=True)) == tokens
    assert packed.last.tolist() == (np.cumsum([row.num_tokens for row in rows]) - 1).tolist()
    covered = [int(index) for index in packed.alone]
    assert all(rows[list(packed.last).index(index)].num_tokens == 1 for index in covered)
    for start, end in zip(packed.tile_starts, packed.tile_ends, strict=True):
        inside = range(start, min(start + tile_size, end))
        assert end - 1 in packed.last
        assert len({int(packed.slots[index]) for index in inside}) == 1
        covered += inside
    assert sorted(covered) == list(range(len(tokens)))
    for first in (packed.tile_starts, packed.alone):
        assert sorted(packed.positions[first], reverse=True) == packed.positions[first].tolist()
