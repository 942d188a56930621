"""How many passes and rows are run at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu.tiny import TinyWorker, ask, engine, small_sizes
from kernels.device import DEVICE
from pluribus import SamplingParams
from pluribus.cuda.arrival import Arrival
from pluribus.cuda.graphs import GraphPool, Graphs, bucket
from pluribus.cuda.packing import PackedRows
from pluribus.cuda.prefilling import Layout, Work
from pluribus.cuda.sizes import TOKENS
from pluribus.step import Row

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.mark.parametrize(
    ("seconds", "passes"), [(0.0005, 8), (0.0011, 3), (0.003, 1), (0.5, 1), (0.0, 8)]
)
def test_passes_of_a_step_take_a_few_milliseconds(
    seconds: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass is timed, and the next step has as many as fit."""
    monkeypatch.setattr(Arrival, "seconds_since", lambda self, earlier: seconds)
    worker = TinyWorker()
    core = engine(worker)
    with small_sizes():
        core.add(ask(1, [2, 5], GREEDY))
        assert worker._decoding.max_passes == 1
        core.step()
        core.step()
    assert worker._decoding.max_passes == passes


def test_a_step_waits_for_the_one_before_it_at_most() -> None:
    assert TinyWorker().lookahead == 1


@given(st.lists(st.integers(1, 99), max_size=6), st.integers(1, 120))
def test_a_bucket_is_the_smallest_that_holds_what_there_is(sizes: list[int], wanted: int) -> None:
    found = bucket(sorted(sizes), wanted)
    holding = [size for size in sizes if size >= wanted]
    assert found == (min(holding) if holding else None)


lengths = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@given(lengths, st.sampled_from([(1, 4, 16, 60), (60,), (1, 64)]), st.integers(1, 70))
def test_whatever_is_prefilled_has_room_in_what_it_is_padded_to(
    lengths: list[int], row_sizes: tuple[int, ...], tile_size: int
) -> None:
    num_tokens = bucket(TOKENS, sum(lengths))
    assert num_tokens is not None
    rows = [Row(slot, 0, length, samples=True) for slot, length in enumerate(lengths)]
    packed = PackedRows.make(rows, tile_size)
    work = Work(num_tokens, is_mixed=bool(len(packed.alone)))
    layout = Layout.make(work, row_sizes, tile_size)
    assert len(packed.alone) <= layout.num_alone
    assert len(packed.tile_starts) <= layout.num_tiles
    assert (bucket(row_sizes, len(rows)) or 0) <= layout.num_rows
    columns = layout.split(layout.empty(7))
    assert [len(column) for column in columns] == list(layout.lengths)
    assert sum(layout.lengths) == layout.size
    slots, _, _, starts, ends, alone, _, row_slots, _ = columns
    assert {*slots, *row_slots} == {7}
    assert (starts >= ends).all()
    assert {*alone} <= {-1}


spans = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), min_size=1, max_size=12)


@given(spans, st.integers(1, 16))
def test_each_token_is_alone_or_in_one_tile_of_its_row_and_long_texts_come_first(
    spans: list[tuple[int, int]], tile_size: int
) -> None:
    rows = [Row(slot, start, count, samples=True) for slot, (start, count) in enumerate(spans)]
    packed = PackedRows.make(rows, tile_size)
    ends = [
        min(s + tile_size, e) for s, e in zip(packed.tile_starts, packed.tile_ends, strict=True)
    ]
    tiles = [range(*tile) for tile in zip(packed.tile_starts, ends, strict=True)]
    alone = packed.alone.tolist()
    assert sorted([*alone, *(at for tile in tiles for at in tile)]) == list(
        range(len(packed.slots))
    )
    for tile in tiles:
        slot, first = packed.slots[tile[0]], packed.positions[tile[0]]
        assert (packed.slots[tile] == slot).all()
        assert packed.positions[tile].tolist() == [first + at for at in range(len(tile))]
    assert all(rows[packed.slots[at]].num_tokens == 1 for at in alone)
    firsts = [rows[slot].start for slot in packed.slots[packed.tile_rows]]
    assert packed.positions[packed.tile_rows].tolist() == firsts
    assert packed.slots[packed.tile_rows].tolist() == packed.slots[packed.tile_starts].tolist()
    for begins in (packed.tile_starts, packed.alone):
        assert (np.diff(packed.positions[begins]) <= 0).all()


@pytest.mark.gpu
def test_captured_work_is_replayed_as_often_as_asked() -> None:
    total = torch.zeros(4, device=DEVICE)

    def add(key: int) -> None:
        total[:key] += key

    graphs = Graphs(add, GraphPool(DEVICE))
    graphs.capture(3)
    graphs.capture(1)
    total.zero_()
    graphs.replay(3, times=2)
    graphs.replay(1)
    assert total.tolist() == [7, 6, 6, 0]


def test_what_is_not_captured_is_not_among_them() -> None:
    total = torch.zeros(1, device=DEVICE)  # a graph of nothing is warned of

    def fill(key: int) -> None:
        total.fill_(key)

    graphs = Graphs(fill, GraphPool(DEVICE))
    graphs.capture(2)
    assert 2 in graphs
    assert 3 not in graphs
    with pytest.raises(KeyError):
        graphs.replay(3)
