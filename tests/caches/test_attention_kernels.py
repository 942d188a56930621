"""Attention's kernels find texts in whatever blocks they lie, and write where they should."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kernels.device import DEVICE
from pluribus.interfaces.device_store import Tiles
from pluribus_caches.kernels.decode_attention import Splits, decode, decode_alone
from pluribus_caches.kernels.prefill_attention import KEYS, TILE, prefill
from pluribus_caches.kernels.texts import Texts, write

NUM_SLOTS = 5
BLOCK_SIZE = 4
MAX_BLOCKS = 24
NUM_BLOCKS = NUM_SLOTS * MAX_BLOCKS
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}
SIZES = [(1, 8), (2, 16), (3, 80), (1, 128)]
"""Heads and head_dim."""

torch_types = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)


class Setting:
    """A pool full of noise, in which texts lie in random blocks."""

    def __init__(self, num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(num_heads * head_dim)
        self._size = (num_heads, head_dim)
        self._dtype = dtype
        blocks = torch.randperm(NUM_BLOCKS, generator=self._generator).view(NUM_SLOTS, MAX_BLOCKS)
        self.texts = Texts(blocks.to(DEVICE, torch.int32), BLOCK_SIZE)
        self.pool = self.random(2, num_heads, NUM_BLOCKS * BLOCK_SIZE, head_dim)

    def random(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self._generator).to(DEVICE, self._dtype)

    def qkv(self, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a query, key and value of each token, as a network makes them: interleaved."""
        query, key, value = self.random(num_tokens, 3, *self._size).unbind(1)
        return query, key, value

    def places(self, slot: int, length: int) -> Tensor:
        """Return where in the pool the first tokens of a slot's text lie."""
        position = torch.arange(length, device=DEVICE)
        block = self.texts.table[slot, position // BLOCK_SIZE].long()
        return block * BLOCK_SIZE + position % BLOCK_SIZE

    def written(
        self, slots: Sequence[int], positions: Sequence[int], kv: Sequence[Tensor]
    ) -> Tensor:
        """Return the pool with each token's key and value in its place."""
        pool = self.pool.clone()
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            at = self.places(slot, position + 1)[-1]
            for half, values in enumerate(kv):
                pool[half, :, at] = values[row]
        return pool

    def attended(self, query: Tensor, slot: int, length: int, pool: Tensor) -> Tensor:
        """Return what one query, [num_heads, head_dim], finds in a text's first tokens."""
        keys, values = pool[:, :, self.places(slot, length)].double()
        scores = torch.einsum("hd,htd->ht", query.double(), keys) * query.shape[-1] ** -0.5
        return torch.einsum("ht,htd->hd", scores.softmax(-1), values).to(query.dtype)


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE)


@torch_types
@pytest.mark.parametrize(("num_heads", "head_dim"), SIZES)
@pytest.mark.parametrize("num_splits", [1, 4, 8, 16, 32])
def test_decoding_attends_to_the_text_and_writes_its_own_token(
    num_heads: int, head_dim: int, dtype: torch.dtype, num_splits: int
) -> None:
    setting = Setting(num_heads, head_dim, dtype)
    slots, positions = (3, 0, 4, 1), (0, 32, 64, 71)  # some end a tile, of whatever size
    query, key, value = setting.qkv(4)
    programs_each = num_splits if num_splits <= 16 else num_splits + 1
    splits = Splits.make(4, num_heads, head_dim, 4 * num_heads * programs_each, DEVICE)
    assert splits.count == num_splits
    pool = setting.pool.clone()
    where = (setting.texts, numbers(*slots), numbers(*positions))
    expected_pool = setting.written(slots, positions, (key, value))
    expected = [
        setting.attended(query[row], slot, position + 1, expected_pool)
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True))
    ]
    for _ in range(2 if num_splits == 4 else 1):  # what it leaves behind is as it was
        attended = decode((query, key, value), pool, *where, splits)
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(attended, torch.stack(expected), rtol=tolerance, atol=tolerance)
    assert pool.equal(expected_pool)
    assert not splits.arrived.any()


def test_rows_that_pad_may_be_many_and_of_one_slot() -> None:
    setting = Setting(2, 16, torch.float32)
    query, key, value = setting.qkv(5)
    slots, positions = (4, 4, 2, 4, 4), (0, 0, 9, 0, 0)
    splits = Splits.make(5, 2, 16, 20, DEVICE)
    pool = setting.pool.clone()
    where = (setting.texts, numbers(*slots), numbers(*positions))
    attended = decode((query, key, value), pool, *where, splits)
    expected_pool = setting.written(slots[2:3], positions[2:3], (key[2:3], value[2:3]))
    torch.testing.assert_close(attended[2], setting.attended(query[2], 2, 10, expected_pool))
    padded = setting.places(4, 1)
    pool[:, :, padded] = expected_pool[:, :, padded]
    assert pool.equal(expected_pool)


@pytest.mark.parametrize(
    ("num_rows", "num_programs", "count"),
    [(2, 1024, 32), (3, 1024, 16), (8, 1024, 16), (100, 1024, 1), (64, 1024, 2), (1, 1, 1)],
)
def test_there_are_as_many_splits_as_keep_a_device_busy(
    num_rows: int, num_programs: int, count: int
) -> None:
    assert Splits.make(num_rows, 12, 8, num_programs, DEVICE).count == count


@torch_types
@pytest.mark.parametrize(("num_heads", "head_dim"), SIZES)
def test_writing_puts_every_token_in_its_place_and_nothing_elsewhere(
    num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    setting = Setting(num_heads, head_dim, dtype)
    slots, positions = (2, 2, 2, 0, 3, 3), (6, 7, 8, 0, 95, 94)
    _, key, value = setting.qkv(6)
    pool = setting.pool.clone()
    write(key, value, pool, setting.texts, numbers(*slots), numbers(*positions))
    assert pool.equal(setting.written(slots, positions, (key, value)))


@torch_types
@pytest.mark.parametrize(("num_heads", "head_dim"), SIZES)
def test_prefilling_attends_to_the_text_up_to_each_token(
    num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Rows that begin a text, go on with one, or are longer than a tile; tiles that are empty."""
    setting = Setting(num_heads, head_dim, dtype)
    rows = [(2, 0, 3), (4, 67, 5), (0, 10, TILE + 2), (1, 0, 2), (3, KEYS[dtype], 3)]
    slots = [slot for slot, _, length in rows for _ in range(length)]
    positions = [start + at for _, start, length in rows for at in range(length)]
    ends = torch.tensor([length for _, _, length in rows]).cumsum(0).tolist()
    firsts = numbers(0, ends[0], ends[1], ends[1], ends[2], ends[3], 0, 2)
    starts = numbers(0, ends[0], ends[1], ends[1] + TILE, ends[2], ends[3], 0, 2)
    until = numbers(*ends[:2], ends[2], *ends[2:], 0, 2)
    query, key, value = setting.qkv(len(slots))
    pool = setting.written(slots, positions, (key, value))
    attended = torch.full_like(query, float("nan"))
    where = (setting.texts, numbers(*slots), numbers(*positions))
    tiles = Tiles(firsts, starts, until, numbers())
    before = torch.full_like(pool, float("nan"))  # what else there is may not reach a result
    for slot, start, _ in rows:
        at = setting.places(slot, start)
        before[:, :, at] = pool[:, :, at]
    kept = before.clone()
    prefill((query, key, value), before, *where, tiles, attended)
    expected = torch.stack(
        [
            setting.attended(query[index], slot, position + 1, pool)
            for index, (slot, position) in enumerate(zip(slots, positions, strict=True))
        ]
    )
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(attended, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(before, kept, rtol=0, atol=0, equal_nan=True)


@torch_types
@pytest.mark.parametrize(("num_heads", "head_dim"), SIZES)
def test_tokens_alone_in_their_rows_are_decoded_beside_others(
    num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """What is no row of its own is left as it is."""
    setting = Setting(num_heads, head_dim, dtype)
    slots, positions = (2, 2, 0, 3, 3, 4, 1), (0, 1, 61, 90, 91, 75, 0)
    alone = [2, 5, 6]
    query, key, value = setting.qkv(len(slots))
    pool, expected_pool = setting.pool.clone(), setting.pool.clone()
    attended = torch.full_like(query, 7.0)
    where = (numbers(*slots), numbers(*positions))
    chosen = numbers(*alone, -1, -1)
    decode_alone((query, key, value), pool, setting.texts, *where, chosen, attended)
    qkv = (query[alone], key[alone], value[alone])
    here = (where[0][alone], where[1][alone])
    splits = Splits.make(len(alone), num_heads, head_dim, 1, DEVICE)
    expected = decode(qkv, expected_pool, setting.texts, *here, splits)
    assert attended[alone].equal(expected)
    attended[alone] = 7.0
    assert attended.eq(7.0).all()
    assert pool.equal(expected_pool)


def test_scores_of_any_size_leave_numbers() -> None:
    setting = Setting(2, 16, torch.float32)
    query, key, value = setting.qkv(2)
    slots, positions = numbers(0, 1), numbers(5, 40)
    for scale in (0.0, 1e4):
        splits = Splits.make(2, 2, 16, 16, DEVICE)
        where = (setting.texts, slots, positions)
        attended = decode((query * scale, key, value), setting.pool.clone(), *where, splits)
        assert attended.isfinite().all()


def test_a_pool_may_have_more_numbers_than_int32_counts() -> None:
    """What lies at its end is found and written as in a pool that has nothing else."""
    num_heads, head_dim, num_own = 3, 64, 4 * BLOCK_SIZE
    num_tokens = (1 << 30) // head_dim + num_own
    try:  # most of it is never touched: a CPU gives no memory for that
        large = torch.empty(2, num_heads, num_tokens, head_dim, dtype=torch.float16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"no 12 GiB can be had: {error}")
    assert large[0, -1].storage_offset() > 1 << 31  # and each half has more
    setting = Setting(num_heads, head_dim, torch.float16)
    small = setting.random(2, num_heads, num_own, head_dim)
    large[:, :, -num_own:] = small
    table = torch.arange(4, dtype=torch.int32, device=DEVICE)[None]
    decoding, prompt = setting.qkv(1), setting.qkv(5)
    slots, positions = numbers(0, 0, 0, 0, 0), numbers(2, 3, 4, 5, 6)
    tiles = Tiles(numbers(0), numbers(0), numbers(5), numbers())
    found = []
    for pool in (small, large):
        texts = Texts(table + (pool.shape[2] - num_own) // BLOCK_SIZE, BLOCK_SIZE)
        splits = Splits.make(1, num_heads, head_dim, 1, DEVICE)
        alone, many = torch.empty_like(decoding[0]), torch.empty_like(prompt[0])
        one = decode(decoding, pool, texts, numbers(0), numbers(7), splits)
        decode_alone(decoding, pool, texts, numbers(0), numbers(8), numbers(0), alone)
        write(*prompt[1:], pool, texts, slots, positions)
        prefill(prompt, pool, texts, slots, positions, tiles, many)
        found.append((one, alone, many, pool[:, :, -num_own:]))
    for of_small, of_large in zip(*found, strict=True):
        assert of_large.equal(of_small)
