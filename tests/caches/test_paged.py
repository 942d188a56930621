"""``cache/kv=paged``: the plugin and its store in plain torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from pluribus import (
    Admission,
    Capability,
    ConfigError,
    KVCache,
    KVShape,
    KVStore,
    Row,
    SamplingParams,
)
from pluribus.testing import KVCacheContract, ReferenceKVStore, generation
from pluribus_caches.kv.paged import PagedConfig, PagedKVCache

CONF = Path(__file__).parents[2] / "conf"
BLOCK_SIZE = 4
NUM_BLOCKS = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors only wait for a second thread, long where the machine is busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


class TestPagedKVCache(KVCacheContract):
    def make(self) -> KVCache:
        return PagedKVCache(PagedConfig(block_size=2))


class TestPagedKVCacheInHalfPrecision(KVCacheContract):
    dtype = torch.bfloat16
    tolerance = 2e-2

    def make(self) -> KVCache:
        return PagedKVCache(PagedConfig(block_size=3))


class TestPagedKVCacheWithoutPrefixes(KVCacheContract):
    def make(self) -> KVCache:
        return PagedKVCache(PagedConfig(block_size=4, prefix_caching=False))


class TestPagedKVCacheInBlocksOfOne(KVCacheContract):
    def make(self) -> KVCache:
        return PagedKVCache(PagedConfig(block_size=1))


def shape(*, max_length: int = 24, num_tokens: int = NUM_BLOCKS * BLOCK_SIZE) -> KVShape:
    return KVShape(
        num_layers=2,
        num_heads=2,
        head_dim=4,
        num_slots=6,
        max_length=max_length,
        num_tokens=num_tokens,
    )


def admission(slot: int, placement: Sequence[int]) -> Admission:
    length = len(placement) * BLOCK_SIZE
    return Admission(
        slot=slot,
        prompt=(2,) * (length - 1),
        max_length=length,
        params=SamplingParams(max_tokens=1),
        ends=(),
        placement=tuple(placement),
    )


def store_of(placements: Mapping[int, Sequence[int]]) -> KVStore:
    cache = PagedKVCache(PagedConfig(block_size=BLOCK_SIZE))
    store = cache.store(shape(), torch.device("cpu"), torch.float32)
    for slot, placement in placements.items():
        store.admit(admission(slot, placement))
    return store


def run(store: KVStore, reference: KVStore, rows: Sequence[Row]) -> None:
    """Run a step in both stores and compare what they find in every layer."""
    layout, expected = store.begin(rows), reference.begin(rows)
    for name in ("slots", "positions", "last"):
        assert getattr(layout, name).tolist() == getattr(expected, name).tolist()
    for layer in range(2):
        values = torch.randn(3, len(layout.slots), 2, 4)
        torch.testing.assert_close(store.attend(layer, *values), reference.attend(layer, *values))


@settings(deadline=None)
@given(
    blocks=st.permutations(range(NUM_BLOCKS)),
    steps=st.lists(st.dictionaries(st.integers(0, 3), st.integers(1, 6), min_size=1), max_size=8),
)
def test_blocks_may_lie_in_any_order(blocks: list[int], steps: list[dict[int, int]]) -> None:
    placements = {slot: blocks[4 * slot : 4 * slot + 4] for slot in range(4)}
    store, reference = store_of(placements), ReferenceKVStore()
    lengths = dict.fromkeys(placements, 0)
    for slot, placement in placements.items():
        reference.admit(admission(slot, placement))
    for step in steps:
        rows = [
            Row(slot, lengths[slot], num_tokens, samples=True)
            for slot, num_tokens in step.items()
            if lengths[slot] + num_tokens <= 4 * BLOCK_SIZE
        ]
        if rows:
            run(store, reference, rows)
        for row in rows:
            lengths[row.slot] += row.num_tokens


@pytest.mark.parametrize("own", [[2, 3], [9, 3]], ids=["beside", "apart"])
@pytest.mark.parametrize("num_tokens", [1, 3], ids=["decode", "prefill"])
def test_a_prefix_in_shared_blocks_is_attended_to(own: list[int], num_tokens: int) -> None:
    store, whole = store_of({0: [0, 1, 7], 1: [0, 1, *own]}), ReferenceKVStore()
    whole.admit(admission(1, []))
    prefix, rest = torch.randn(3, 8, 2, 4), torch.randn(3, num_tokens, 2, 4)
    whole.begin([Row(1, 0, 8 + num_tokens, samples=True)])
    expected = whole.attend(0, *torch.cat([prefix, rest], dim=1))[8:]
    store.begin([Row(0, 0, 8, samples=True)])
    store.attend(0, *prefix)
    store.begin([Row(1, 8, num_tokens, samples=True)])
    torch.testing.assert_close(store.attend(0, *rest), expected)


def test_rows_are_packed_without_padding() -> None:
    store = store_of({5: [0, 1], 2: [2, 3], 3: [4, 5]})
    store.begin([Row(5, 0, 4, samples=False)])
    layout = store.begin([Row(2, 0, 3, samples=True), Row(5, 4, 2, samples=True)])
    assert layout.slots.tolist() == [2, 2, 2, 5, 5]
    assert layout.positions.tolist() == [0, 1, 2, 4, 5]
    assert layout.last.tolist() == [2, 4]


def test_a_slot_is_used_again_with_other_blocks() -> None:
    store, reference = store_of({0: [3, 1]}), ReferenceKVStore()
    reference.admit(admission(0, [3, 1]))
    run(store, reference, [Row(0, 0, 7, samples=True)])
    for member in (store, reference):
        member.evict(0)
        member.admit(admission(0, [1, 2]))
    run(store, reference, [Row(0, 0, 5, samples=True)])
    run(store, reference, [Row(0, 5, 1, samples=True)])


def test_what_a_step_writes_is_what_nobody_else_holds() -> None:
    store = store_of({0: [0, 1], 1: [2, 3]})
    first = _prompt(store, slot=0)
    _prompt(store, slot=1)
    store.begin([Row(0, 7, 1, samples=True)])
    torch.testing.assert_close(store.attend(0, *first[:, -1:]), _attend_last(first))


def _prompt(store: KVStore, slot: int) -> Tensor:
    values = torch.randn(3, 8, 2, 4)
    store.begin([Row(slot, 0, 8, samples=True)])
    store.attend(0, *values)
    return values


def _attend_last(values: Tensor) -> Tensor:
    query, keys, values = values
    scores = torch.einsum("hd,thd->ht", query[-1], keys) * query.shape[-1] ** -0.5
    weights = scores.softmax(-1)
    return torch.einsum("ht,thd->hd", weights, values)[None]


@pytest.mark.parametrize(("max_length", "num_tokens"), [(20, 20), (13, 13), (24, 64)])
def test_one_generation_of_full_length_always_fits(max_length: int, num_tokens: int) -> None:
    size = shape(max_length=max_length, num_tokens=num_tokens)
    cache = PagedKVCache(PagedConfig(block_size=16))
    assert cache.ledger(size).fits(max_length)
    store = cache.store(size, torch.device("cpu"), torch.float32)
    blocks = tuple(range(-(-max_length // 16)))
    store.admit(admission(0, blocks))
    store.begin([Row(0, 0, max_length, samples=True)])
    store.attend(0, *torch.randn(3, max_length, 2, 4))


def test_defaults_are_those_of_the_configuration_file() -> None:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "cache" / "kv" / "paged.yaml"))
    defaults = PagedConfig()
    assert settings == {
        "name": "paged",
        "memory": defaults.memory,
        "block_size": defaults.block_size,
        "prefix_caching": defaults.prefix_caching,
    }


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_prefixes_are_found_if_the_setting_says_so(prefix_caching: bool) -> None:
    cache = PagedKVCache(PagedConfig(block_size=2, prefix_caching=prefix_caching))
    ledger = cache.ledger(shape())
    first, second = (generation(number, prompt=(2, 5, 7)) for number in (1, 2))
    assert ledger.try_reserve(first)
    first.num_scheduled = 3
    ledger.advance(first)
    assert ledger.try_reserve(second)
    assert second.num_cached == (2 if prefix_caching else 0)


def test_it_offers_joining_and_chunks() -> None:
    assert PagedKVCache.provides == {Capability.JOIN, Capability.CHUNK}


@pytest.mark.parametrize("memory", ["auto", "512MiB", "1.5GiB"])
def test_memory_is_auto_or_a_size(memory: str) -> None:
    assert PagedKVCache(PagedConfig(memory)).memory == memory


def test_other_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cache\.kv\.memory must be auto or .*, got 'much'$"):
        PagedConfig(memory="much")


def test_blocks_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cache\.kv\.block_size must be at least 1, got 0$"):
        PagedConfig(block_size=0)


def test_plugin_and_ledger_need_no_torch() -> None:
    code = (
        "import sys, pluribus_caches\n"
        "from pluribus import KVShape\n"
        "cls = pluribus_caches.register_kv_caches()['paged']\n"
        "shape = KVShape(num_layers=1, num_heads=1, head_dim=1, num_slots=1, max_length=9,"
        " num_tokens=9)\n"
        "cls(cls.Config()).ledger(shape)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("prefix_caching", "block_size"), [(True, BLOCK_SIZE), (False, 0)])
def test_it_says_in_which_blocks_it_finds_prompts_again(
    prefix_caching: bool, block_size: int
) -> None:
    cache = PagedKVCache(PagedConfig(block_size=BLOCK_SIZE, prefix_caching=prefix_caching))
    shape = KVShape(
        num_layers=1, num_heads=1, head_dim=1, num_slots=2, max_length=64, num_tokens=64
    )
    ledger = cache.ledger(shape)
    first, second = (generation(i, prompt=tuple(range(BLOCK_SIZE + 1))) for i in range(2))
    assert ledger.try_reserve(first)
    first.num_scheduled = len(first.prompt)
    ledger.advance(first)
    assert ledger.try_reserve(second)
    assert second.num_cached == cache.prefix_block_size == block_size
