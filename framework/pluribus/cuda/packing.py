"""Rows of any length as columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluribus.step import Row

Column = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The tokens of rows, one row after another.

    Attributes:
        slots, positions: of each token, [num_tokens].
        last: index of each row's last token, [num_rows].
        tile_rows, tile_starts, tile_ends: see ``Tiles``, [num_tiles].
        alone: index of each token that is all of its row, [num_alone].
    """

    slots: Column
    positions: Column
    last: Column
    tile_rows: Column
    tile_starts: Column
    tile_ends: Column
    alone: Column

    @classmethod
    def make(cls, rows: Sequence[Row], tile_size: int) -> PackedRows:
        """Return the tokens of ``rows``, alone or in tiles of ``tile_size`` or less.

        What attends to the longest text comes first, as it takes longest.
        """
        lengths = _column(row.num_tokens for row in rows)
        slots, positions, last = token_columns(rows)
        ends = last + 1
        is_alone = lengths == 1
        num_tiles = np.where(is_alone, 0, -(-lengths // tile_size))
        number = np.arange(num_tiles.sum()) - (num_tiles.cumsum() - num_tiles).repeat(num_tiles)
        firsts = (ends - lengths).repeat(num_tiles)
        starts = firsts + number * tile_size
        ends = ends.repeat(num_tiles)
        alone = last[is_alone]
        order = np.argsort(-positions[starts])
        return cls(
            slots=slots,
            positions=positions,
            last=last,
            tile_rows=firsts[order],
            tile_starts=starts[order],
            tile_ends=ends[order],
            alone=alone[np.argsort(-positions[alone])],
        )


def token_columns(rows: Sequence[Row]) -> tuple[Column, Column, Column]:
    """Return each token's slot and position, and the index of each row's last token."""
    lengths = _column(row.num_tokens for row in rows)
    starts = _column(row.start for row in rows)
    ends = lengths.cumsum()
    slots = _column(row.slot for row in rows).repeat(lengths)
    positions = np.arange(ends[-1]) + (starts - ends + lengths).repeat(lengths)
    return slots, positions, ends - 1


def _column(values: Any) -> Column:
    return np.fromiter(values, np.int64)
