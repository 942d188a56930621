"""The tensors of the paged KV cache, in plain torch: for CPUs, and to test kernels against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pluribus import Admission, KVShape, KVStore, Row, TokenLayout
from pluribus.cuda.packing import Column, token_columns


class PagedStore(KVStore):
    """Keys and values in one pool of blocks; rows lie one after another without padding.

    The pool is [layers, 2, heads, tokens, head_dim], so that blocks side by side are one view.
    """

    def __init__(
        self,
        shape: KVShape,
        num_blocks: int,
        block_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        size = (shape.num_layers, 2, shape.num_heads, num_blocks * block_size, shape.head_dim)
        # Every page is touched now: a host that lacks the memory shows it before it serves.
        self._pool = torch.empty(size, device=device, dtype=dtype).zero_()
        self._layers = [layer.unbind() for layer in self._pool.unbind()]
        self._device = device
        self._columns = np.arange(block_size)
        length = -(-shape.max_length // block_size) * block_size
        # Where in the pool each position of each slot's text is.
        self._places = torch.zeros(shape.num_slots, length, dtype=torch.int64, device=device)
        self._runs: dict[int, list[_Run]] = {}

    def admit(self, admission: Admission) -> None:
        """Take a generation into a slot, its blocks in ``admission.placement``."""
        blocks = np.array(admission.placement)
        places = (blocks[:, None] * len(self._columns) + self._columns).reshape(-1)
        self._places[admission.slot, : len(places)] = self._send(places)
        self._runs[admission.slot] = self._runs_of(admission.placement)

    def evict(self, slot: int) -> None:
        """Forget the generation in ``slot``."""
        del self._runs[slot]

    def begin(self, rows: Sequence[Row]) -> TokenLayout:
        """Lay out the rows' tokens and plan how each row attends."""
        self._lengths = [row.num_tokens for row in rows]
        self._attentions = [self._attention(row) for row in rows]
        layout = self._layout(rows)
        self._written = self._places[layout.slots, layout.positions]
        return layout

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the step's keys and values, then attend row by row."""
        keys, values = self._layers[layer]
        keys[:, self._written] = key.transpose(0, 1)
        values[:, self._written] = value.transpose(0, 1)
        queries = query.transpose(0, 1)[None]
        if len(self._lengths) == 1:
            return self._attentions[0].attend(layer, queries).transpose(1, 2)[0]
        attended = [
            attention.attend(layer, row).transpose(1, 2)
            for attention, row in zip(
                self._attentions, torch.split(queries, self._lengths, dim=2), strict=True
            )
        ]
        return torch.cat(attended, dim=1)[0]

    def _layout(self, rows: Sequence[Row]) -> TokenLayout:
        # In NumPy: so small, these take torch longer to start than to do.
        return TokenLayout(*map(self._send, token_columns(rows)))

    def _send(self, values: Column) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _attention(self, row: Row) -> _Attention:
        start, num_tokens, runs = row.start, row.num_tokens, self._runs[row.slot]
        end = start + num_tokens
        if runs[-1].start >= end:
            runs = [run for run in runs if run.start < end]
        if num_tokens == 1:
            return _Attention(runs, end)
        if start == 0:
            return _Attention(runs, end, is_causal=True)
        mask = self._pool.new_full((num_tokens, end), -torch.inf).triu(start + 1)
        return _Attention(runs, end, mask=mask)

    def _runs_of(self, placement: tuple[int, ...]) -> list[_Run]:
        """Return the views that hold a text, one for each run of blocks side by side."""
        block_size = len(self._columns)
        runs: list[_Run] = []
        # Along a run, the block's number and its index in the text grow together.
        for _, run in groupby(enumerate(placement), key=lambda item: item[1] - item[0]):
            members = list(run)
            index, block = members[0]
            tokens = slice(block * block_size, (block + len(members)) * block_size)
            views = self._pool[..., None, :, tokens, :].flatten(0, 1).unbind()
            runs.append(_Run(index * block_size, views[0::2], views[1::2]))
        return runs


@dataclass(frozen=True, slots=True)
class _Run:
    """A piece of a text that lies in one piece in the pool.

    Attributes:
        start: position of its first token.
        keys, values: views for each layer, [1, heads, tokens, head_dim].
    """

    start: int
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class _Attention(NamedTuple):
    """How one row attends, in every layer, to the first ``end`` tokens of its text."""

    runs: Sequence[_Run]
    end: int
    is_causal: bool = False
    mask: Tensor | None = None

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Return what ``query``, [1, heads, num_tokens, head_dim], finds."""
        *whole, last = self.runs
        keys = [run.keys[layer] for run in whole]
        values = [run.values[layer] for run in whole]
        length = self.end - last.start
        keys.append(last.keys[layer].narrow(2, 0, length))
        values.append(last.values[layer].narrow(2, 0, length))
        if whole and query.shape[2] == 1:
            return _attend_to_pieces(query, keys, values)
        return scaled_dot_product_attention(
            query, _join(keys), _join(values), self.mask, is_causal=self.is_causal
        )


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _attend_to_pieces(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attend with one token: copying the pieces together would take thrice as long."""
    query = query * query.shape[-1] ** -0.5
    scores = torch.cat([query @ key.mT for key in keys], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    pieces = torch.split(weights, [value.shape[2] for value in values], dim=-1)
    parts = [weight @ value for weight, value in zip(pieces, values, strict=True)]
    return torch.stack(parts).sum(0)
