"""``cache/kv=contiguous``: one left-padded batch at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from pluribus import Admission, ConfigError, KVShape, KVStore, Row, SamplingParams
from pluribus.testing import KVCacheContract, ReferenceKVStore, generation
from pluribus_caches.kv.contiguous import ContiguousConfig, ContiguousKVCache

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors only wait for a second thread, long where the machine is busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def shape(num_tokens: int = 64, num_layers: int = 1) -> KVShape:
    return KVShape(
        num_layers=num_layers,
        num_heads=2,
        head_dim=4,
        num_slots=8,
        max_length=32,
        num_tokens=num_tokens,
    )


def admission(slot: int, prompt_length: int, max_length: int) -> Admission:
    return Admission(
        slot=slot,
        prompt=(2,) * prompt_length,
        max_length=max_length,
        params=SamplingParams(max_tokens=max_length - prompt_length),
        ends=(),
        placement=(),
    )


def store_of(*admissions: Admission, num_tokens: int = 64) -> KVStore:
    cache = ContiguousKVCache(ContiguousConfig())
    store = cache.store(shape(num_tokens), torch.device("cpu"), torch.float32)
    for admitted in admissions:
        store.admit(admitted)
    return store


def attend(store: KVStore, tokens: int) -> Tensor:
    return store.attend(0, *torch.randn(3, tokens, 2, 4))


class TestContiguousKVCache(KVCacheContract):
    def make(self) -> ContiguousKVCache:
        return ContiguousKVCache(ContiguousConfig())


class TestContiguousKVCacheInHalfPrecision(KVCacheContract):
    dtype = torch.bfloat16
    tolerance = 2e-2

    def make(self) -> ContiguousKVCache:
        return ContiguousKVCache(ContiguousConfig())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12), st.integers(1, 64))
def test_a_batch_that_the_ledger_accepts_runs_to_its_end(
    sizes: list[tuple[int, int]], num_tokens: int
) -> None:
    ledger = ContiguousKVCache(ContiguousConfig()).ledger(shape(num_tokens))
    members = [
        generation(slot, prompt=(2,) * prompt, params=SamplingParams(max_tokens=max_tokens))
        for slot, (prompt, max_tokens) in enumerate(sizes)
    ]
    batch = [member for member in members if ledger.try_reserve(member)]
    store = store_of(
        *(admission(m.id, len(m.prompt), m.max_length) for m in batch), num_tokens=num_tokens
    )
    while rows := [
        Row(m.id, m.num_scheduled, m.num_unscheduled, samples=True)
        for m in batch
        if m.num_unscheduled
    ]:
        layout = store.begin(rows)
        assert attend(store, len(layout.slots)).isfinite().all()
        for row in rows:
            members[row.slot].num_scheduled += row.num_tokens


def test_the_ledger_counts_the_rectangle_and_not_the_tokens() -> None:
    ledger = ContiguousKVCache(ContiguousConfig()).ledger(shape(num_tokens=20))
    long = generation(1, prompt=(2,) * 6)  # 10 tokens at most
    short = [generation(number, prompt=(2,)) for number in (2, 3)]  # 5 tokens at most
    assert ledger.try_reserve(long)
    assert ledger.try_reserve(short[0])
    assert not ledger.try_reserve(short[1])


def test_a_long_prompt_and_a_long_answer_add_up_though_in_different_rows() -> None:
    short_answer = generation(1, prompt=(2,) * 9, params=SamplingParams(max_tokens=1))
    short_prompt = generation(2, prompt=(2,), params=SamplingParams(max_tokens=9))
    for num_tokens, fit in [(35, False), (36, True)]:
        ledger = ContiguousKVCache(ContiguousConfig()).ledger(shape(num_tokens))
        assert ledger.try_reserve(short_prompt)
        assert ledger.try_reserve(short_answer) is fit


def test_a_wider_row_is_refused_when_the_others_would_not_fit_beside_it() -> None:
    ledger = ContiguousKVCache(ContiguousConfig()).ledger(shape(num_tokens=20))
    assert ledger.try_reserve(generation(1, prompt=(2,)))
    assert not ledger.try_reserve(generation(2, prompt=(2,) * 7))
    assert ledger.try_reserve(generation(3, prompt=(2,) * 6))


def test_what_is_used_is_the_rectangle() -> None:
    ledger = ContiguousKVCache(ContiguousConfig()).ledger(shape(num_tokens=64))
    long, short = generation(1, prompt=(2,) * 6), generation(2, prompt=(2,))  # 10 and 5 tokens
    for member, num_used_tokens in [(long, 10), (short, 20)]:
        assert ledger.try_reserve(member)
        assert ledger.num_used_tokens == num_used_tokens
    ledger.release(long)
    assert ledger.num_used_tokens == 20
    ledger.release(short)
    assert ledger.num_used_tokens == 0


def test_nobody_is_let_into_a_batch_that_has_started() -> None:
    ledger = ContiguousKVCache(ContiguousConfig()).ledger(shape(num_tokens=64))
    first, second = generation(1), generation(2)
    assert ledger.try_reserve(first)
    first.num_scheduled = 3
    assert not ledger.try_reserve(second)
    ledger.release(first)
    assert ledger.try_reserve(second)


def test_the_rectangle_is_free_when_its_last_row_is() -> None:
    ledger = ContiguousKVCache(ContiguousConfig()).ledger(shape(num_tokens=14))
    first, second, third = (generation(number) for number in (1, 2, 3))
    assert ledger.try_reserve(first)
    assert ledger.try_reserve(second)
    ledger.release(first)
    assert not ledger.try_reserve(third)
    ledger.release(second)
    assert ledger.try_reserve(third)


def test_prompts_are_padded_on_the_left() -> None:
    store = store_of(admission(5, 3, 8), admission(2, 1, 8))
    layout = store.begin([Row(5, 0, 3, samples=True), Row(2, 0, 1, samples=True)])
    assert layout.slots.tolist() == [5, 5, 5, 2, 2, 2]
    assert layout.positions.tolist() == [0, 1, 2, -1, -1, 0]
    assert layout.last.tolist() == [2, 5]


def test_a_later_step_has_one_token_a_row() -> None:
    store = store_of(admission(5, 3, 8), admission(2, 1, 8))
    store.begin([Row(5, 0, 3, samples=True), Row(2, 0, 1, samples=True)])
    attend(store, 6)
    layout = store.begin([Row(5, 3, 1, samples=True), Row(2, 1, 1, samples=True)])
    assert layout.slots.tolist() == [5, 2]
    assert layout.positions.tolist() == [3, 1]
    assert layout.last.tolist() == [0, 1]


def test_nobody_joins_a_running_batch() -> None:
    store = store_of(admission(0, 3, 8))
    store.begin([Row(0, 0, 3, samples=True)])
    store.admit(admission(1, 2, 8))
    with pytest.raises(AssertionError, match="nobody joins"):
        store.begin([Row(1, 0, 2, samples=True)])


def test_a_row_never_lags_behind_the_others() -> None:
    store = store_of(admission(0, 3, 8), admission(1, 2, 8))
    store.begin([Row(0, 0, 3, samples=True), Row(1, 0, 2, samples=True)])
    with pytest.raises(AssertionError):
        store.begin([Row(0, 3, 1, samples=True), Row(1, 3, 1, samples=True)])


def test_many_rows_leave_one_after_another() -> None:
    """Each row ends at its own time, as in a real batch, in an order of its own."""
    ends = {0: 6, 1: 3, 2: 9, 3: 4, 4: 9}
    prompts = {0: 2, 1: 3, 2: 1, 3: 3, 4: 2}
    admissions = [admission(slot, prompts[slot], 12) for slot in ends]
    store, reference = store_of(*admissions, num_tokens=5 * 14), ReferenceKVStore()
    for admitted in admissions:
        reference.admit(admitted)
    lengths = dict.fromkeys(ends, 0)
    for step in range(9):
        rows = [
            Row(slot, lengths[slot], prompts[slot] if step == 0 else 1, samples=True)
            for slot, end in ends.items()
            if step < end
        ]
        expected_layout, layout = reference.begin(rows), store.begin(rows)
        values = torch.randn(3, len(expected_layout.slots), 2, 4)
        text = layout.positions >= 0
        padded = torch.randn(3, len(text), 2, 4)
        padded[:, text] = values
        torch.testing.assert_close(store.attend(0, *padded)[text], reference.attend(0, *values))
        for row in rows:
            lengths[row.slot] += row.num_tokens


def test_defaults_are_those_of_the_configuration_file() -> None:
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "cache" / "kv" / "contiguous.yaml"))
    assert settings == {"name": "contiguous", "memory": ContiguousConfig().memory}


def test_it_offers_neither_joining_nor_chunks() -> None:
    assert ContiguousKVCache.provides == frozenset()


@pytest.mark.parametrize("memory", ["auto", "512MiB", "1.5GiB"])
def test_memory_is_auto_or_a_size(memory: str) -> None:
    assert ContiguousKVCache(ContiguousConfig(memory)).memory == memory


def test_other_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cache\.kv\.memory must be auto or .*, got 'much'$"):
        ContiguousConfig(memory="much")


def test_plugins_are_loaded_without_torch() -> None:
    code = (
        "import sys, pluribus_batchers as b, pluribus_caches as c\n"
        "b.register_batchers(); c.register_response_caches()\n"
        "cache = c.register_kv_caches()['contiguous']\n"
        "cache(cache.Config())\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
