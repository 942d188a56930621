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
        tile_starts, tile_ends: see ``Tiles``, [num_tiles].
    """

    slots: Column
    positions: Column
    last: Column
    tile_starts: Column
    tile_ends: Column

    @classmethod
    def make(cls, rows: Sequence[Row], tile_size: int) -> PackedRows:
        """Return the tokens of ``rows``, in tiles of ``tile_size`` or less."""
        lengths = _column(row.num_tokens for row in rows)
        slots, positions, last = token_columns(rows)
        ends = last + 1
        firsts = ends - lengths
        num_tiles = -(-lengths // tile_size)
        number = np.arange(num_tiles.sum()) - (num_tiles.cumsum() - num_tiles).repeat(num_tiles)
        return cls(
            slots=slots,
            positions=positions,
            last=last,
            tile_starts=firsts.repeat(num_tiles) + number * tile_size,
            tile_ends=ends.repeat(num_tiles),
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
