"""Passes in which rows compute any number of tokens: one copy to the device and two replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pluribus.cuda.graphs import Graphs, bucket, sizes_up_to
from pluribus.cuda.packing import Column, PackedRows
from pluribus.cuda.rank import Rank
from pluribus.cuda.sizes import AT_START, ROWS, TOKENS
from pluribus.interfaces.device_store import Tiles
from pluribus.kernels.passes import Rows, end_pass
from pluribus.step import Row, StepResult

Columns = TypeVar("Columns", Tensor, Column)


class Prefilling:
    """Replays prefill passes: the layers for so many tokens, then sampling for so many rows.

    Where rows of one token are among them, as others decode, that is another graph.

    Args:
        rank: whose graphs they are.
        most_tokens: that a step computes. More can be asked for only if TOKENS ends before.
    """

    def __init__(self, rank: Rank, most_tokens: int) -> None:
        self._rank = rank
        self._padding = rank.state.padding
        self._rows = Rows.make(self._padding, 1, rank.device)
        self._rows.counter.fill_(1)
        largest = bucket(TOKENS, most_tokens) or TOKENS[-1]
        self._sizes = sizes_up_to(largest, TOKENS)
        sizes = [size for size in self._sizes if size <= AT_START]
        self._at_start = [Work(size, is_mixed) for size in sizes for is_mixed in (False, True)]
        if largest > AT_START:  # what is captured later shares the memory that this one leaves
            self._at_start.append(Work(largest, is_mixed=False))
        self._row_sizes = sizes_up_to(self._padding, ROWS)
        most_columns = self._layout(Work(largest, is_mixed=True)).size
        self._columns = torch.zeros(most_columns, dtype=torch.int64, device=rank.device)
        self._ends: Tensor | None = None
        self._layers: Graphs[Work] = Graphs(self._run_layers, rank.pool)
        self._heads: Graphs[int] = Graphs(self._run_head, rank.pool)

    def runs(self) -> list[Callable[[], None]]:
        """Return what is going to be captured, to be rehearsed."""
        return [*self._layers.runs(self._at_start), *self._heads.runs(self._row_sizes)]

    def capture(self) -> None:
        """Capture what is likely to be wanted first."""
        for work in reversed(self._at_start):
            self._pad(work)
            self._layers.capture(work)
        for size in reversed(self._row_sizes):
            self._heads.capture(size)

    def fits(self, num_tokens: int) -> bool:
        """Return whether a pass of so many tokens can be replayed."""
        return num_tokens <= self._sizes[-1]

    def run(self, rows: Sequence[Row]) -> Callable[[], StepResult]:
        """Run rows; return a function that waits for the tokens of those that sample."""
        packed = PackedRows.make(rows, self._rank.store.tile_size)
        num_tokens = bucket(self._sizes, len(packed.slots))
        assert num_tokens is not None
        work = Work(num_tokens, is_mixed=bool(len(packed.alone)))
        if work not in self._layers:
            self._pad(work)
            self._layers.capture(work)
        sampling = [index for index, row in enumerate(rows) if row.samples]
        self._fill(work, packed, sampling)
        self._layers.replay(work)
        if not sampling:
            return self._rank.arrivals.then(lambda: StepResult(()))
        samplers = [rows[index] for index in sampling]
        if self._rank.is_special(samplers):
            assert self._ends is not None, "layers leave what they return"
            columns, ends = self._rows.first(len(samplers)), self._ends[: len(samplers)]
            return self._rank.arrivals.bring(self._rank.choose(samplers, columns, ends))
        size = bucket(self._row_sizes, len(sampling))
        assert size is not None
        self._heads.replay(size)
        answers = self._rows.answers[0, : len(sampling)]
        answers = answers.to("cpu", non_blocking=True, copy=True)
        return self._rank.arrivals.then(
            lambda: StepResult([(token,) for token in answers.tolist()])
        )

    def _layout(self, work: Work) -> Layout:
        return Layout.make(work, self._row_sizes, self._rank.store.tile_size)

    def _pad(self, work: Work) -> None:
        """Put nothing but padding where a pass finds its columns."""
        layout = self._layout(work)
        self._columns[: layout.size] = torch.from_numpy(layout.empty(self._padding))

    def _fill(self, work: Work, packed: PackedRows, sampling: Sequence[int]) -> None:
        """Put rows, and which of them sample, where a pass finds its columns."""
        layout = self._layout(work)
        host = torch.empty(
            layout.size, dtype=torch.int64, pin_memory=self._rank.device.type == "cuda"
        )
        host.numpy()[:] = layout.empty(self._padding)
        columns = layout.split(host.numpy())
        slots, positions, tile_rows, starts, ends, alone, last, row_slots, row_positions = columns
        slots[: len(packed.slots)] = packed.slots
        positions[: len(packed.slots)] = packed.positions
        tile_rows[: len(packed.tile_rows)] = packed.tile_rows
        starts[: len(packed.tile_starts)] = packed.tile_starts
        ends[: len(packed.tile_ends)] = packed.tile_ends
        alone[: len(packed.alone)] = packed.alone
        at = packed.last[sampling]
        last[: len(at)] = at
        row_slots[: len(at)] = packed.slots[at]
        row_positions[: len(at)] = packed.positions[at]
        self._columns[: layout.size].copy_(host, non_blocking=True)

    def _run_layers(self, work: Work) -> None:
        layout = self._layout(work)
        columns = layout.split(self._columns)
        slots, positions, tile_rows, starts, ends, alone, last, row_slots, row_positions = columns
        network, store = self._rank.network, self._rank.store
        tokens = self._rank.state.tokens[slots, positions]
        store.begin_prefill(slots, positions, Tiles(tile_rows, starts, ends, alone))
        x = network(network.embed(tokens, positions), store, last)
        if self._ends is None:  # as it is run, before it is captured
            self._ends = x.new_empty(self._padding, x.shape[1])
        self._ends[: layout.num_rows] = x
        self._rows.slots[: layout.num_rows] = row_slots
        self._rows.positions[: layout.num_rows] = row_positions

    def _run_head(self, num_rows: int) -> None:
        assert self._ends is not None, "there is nothing to sample from before the layers have run"
        rows = self._rows.first(num_rows)
        logits = self._rank.network.logits(self._ends[:num_rows])
        chosen = self._rank.sampler.draw(logits, rows.slots, rows.positions + 1)
        end_pass(self._rank.state.texts, rows, chosen)


@dataclass(frozen=True, slots=True)
class Work:
    """What a graph of the layers is for.

    Attributes:
        num_tokens: of all rows, at most.
        is_mixed: whether rows of one token may be among them.
    """

    num_tokens: int
    is_mixed: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the columns of a pass lie in one buffer, one after another."""

    num_tokens: int
    num_tiles: int
    num_alone: int
    num_rows: int

    @classmethod
    def make(cls, work: Work, row_sizes: Sequence[int], tile_size: int) -> Layout:
        """Return a layout with room for so many tokens, of one row or of as many as there can be.

        It has as many rows as sampling may run for: none may be left from an earlier pass.
        """
        num_tokens = work.num_tokens
        shortest_row = 1 if work.is_mixed else 2
        most_rows = min(num_tokens // shortest_row, max(row_sizes))
        num_rows = bucket(row_sizes, most_rows)
        assert num_rows is not None
        num_tiles = num_tokens // tile_size + min(num_tokens // 2, most_rows)
        return cls(num_tokens, num_tiles, most_rows if work.is_mixed else 0, num_rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of tokens' slots and positions; of tiles and who is alone, see ``Tiles``; rows' columns.

        Those are the index of each row's last token, and its slot and position.
        """
        tokens, tiles, rows = [self.num_tokens] * 2, [self.num_tiles] * 3, [self.num_rows] * 3
        return (*tokens, *tiles, self.num_alone, *rows)

    @property
    def size(self) -> int:
        """Numbers in all columns."""
        return sum(self.lengths)

    def split(self, columns: Columns) -> list[Columns]:
        """Return the columns, as views, of an array or a tensor."""
        ends = np.cumsum(self.lengths).tolist()
        return [columns[e - n : e] for e, n in zip(ends, self.lengths, strict=True)]

    def empty(self, padding: int) -> Column:
        """Return columns of padding tokens, empty tiles, nobody alone and padding rows."""
        columns = np.zeros(self.size, np.int64)
        slots, _, _, _, _, alone, _, row_slots, _ = self.split(columns)
        slots[:] = row_slots[:] = padding
        alone[:] = -1
        return columns
