"""The tensors of the contiguous KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pluribus import Admission, KVShape, KVStore, Row, TokenLayout
from pluribus_caches.kv.contiguous import Rectangle


class ContiguousStore(KVStore):
    """One batch's keys and values, in rows padded on the left so that all end together.

    The first step fills as many columns as the longest prompt has tokens, every later step
    one more. A row that a later step leaves out has ended: the rows behind it move up, so
    that every step attends to one dense block.
    """

    def __init__(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> None:
        self._heads = (shape.num_heads, shape.head_dim)
        size = shape.num_tokens * shape.num_heads * shape.head_dim
        self._pool = torch.empty(shape.num_layers, 2, size, device=device, dtype=dtype)
        self._device = device
        self._admitted: dict[int, Admission] = {}

    def admit(self, admission: Admission) -> None:
        """Take a generation into a slot, before its first row."""
        self._admitted[admission.slot] = admission

    def evict(self, slot: int) -> None:
        """Forget the generation in ``slot``."""
        del self._admitted[slot]

    def begin(self, rows: Sequence[Row]) -> TokenLayout:
        """Start a batch with its prompts, or go on with one token for each row left."""
        return self._first_step(rows) if rows[0].start == 0 else self._next_step(rows)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the step's columns, then attend to all columns so far."""
        queries, new_keys, new_values = map(self._by_row, (query, key, value))
        keys, values = self._block[layer, ..., : self._end, :]
        keys[:, :, self._start :] = new_keys
        values[:, :, self._start :] = new_values
        if self._start == 0:
            attended = self._attend_to_prompts(queries, keys, values)
        else:
            mask = None if self._is_text is None else self._is_text[..., : self._end]
            attended = scaled_dot_product_attention(queries, keys, values, mask)
        return attended.transpose(1, 2).flatten(0, 1)

    def _first_step(self, rows: Sequence[Row]) -> TokenLayout:
        assert len(rows) == len(self._admitted), "a batch starts whole and nobody joins it"
        rectangle = Rectangle()
        for admission in self._admitted.values():
            rectangle = rectangle.with_row(len(admission.prompt), admission.max_length)
        num_heads, head_dim = self._heads
        size = rectangle.num_tokens * num_heads * head_dim
        self._block = self._pool[..., :size].view(
            *self._pool.shape[:2], rectangle.num_rows, num_heads, rectangle.width, head_dim
        )

        longest = max(row.num_tokens for row in rows)
        self._arrange({row.slot: longest - row.num_tokens for row in rows})
        self._start, self._end = 0, longest
        columns = torch.arange(longest, device=self._device)
        return TokenLayout(
            slots=self._slots.repeat_interleave(longest),
            positions=(columns - self._offsets[:, None]).clamp(min=-1).flatten(),
            last=self._indices * longest + (longest - 1),
        )

    def _next_step(self, rows: Sequence[Row]) -> TokenLayout:
        slots = [row.slot for row in rows]
        if slots != list(self._padding):
            self._keep(slots)
        self._start, self._end = self._end, self._end + 1
        assert self._end <= self._block.shape[-2], "the batch has outgrown its reservation"
        assert all(row.start + self._padding[row.slot] == self._start for row in rows)
        return TokenLayout(self._slots, self._start - self._offsets, self._indices)

    def _keep(self, slots: Sequence[int]) -> None:
        """Move the rows of ``slots`` to the front and drop the others."""
        rows = list(self._padding)
        kept = torch.tensor([rows.index(slot) for slot in slots], device=self._device)
        for block in self._block:  # one layer at a time bounds the copy
            block[:, : len(slots), :, : self._end] = block[:, kept, :, : self._end]
        self._block = self._block[:, :, : len(slots)]
        self._arrange({slot: self._padding[slot] for slot in slots})

    def _arrange(self, padding: dict[int, int]) -> None:
        """Note the padding of each row's slot, in row order, and what follows from it."""
        self._padding = padding
        self._slots = torch.tensor(list(padding), device=self._device)
        self._offsets = torch.tensor(list(padding.values()), device=self._device)
        self._indices = torch.arange(len(padding), device=self._device)
        self._is_text: Tensor | None = None
        if any(padding.values()):
            columns = torch.arange(self._block.shape[-2], device=self._device)
            self._is_text = (columns >= self._offsets[:, None])[:, None, None]

    def _by_row(self, tokens: Tensor) -> Tensor:
        """Return [num_tokens, heads, head_dim] as [rows, heads, columns, head_dim]."""
        return tokens.view(len(self._padding), -1, *self._heads).transpose(1, 2)

    def _attend_to_prompts(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if self._is_text is None:
            return scaled_dot_product_attention(queries, keys, values, is_causal=True)
        # Row by row: a mask for all would take rows x longest x longest, mostly for padding.
        attended = torch.zeros_like(queries)
        for row, offset in enumerate(self._padding.values()):
            text = (slice(row, row + 1), slice(None), slice(offset, None))
            attended[text] = scaled_dot_product_attention(
                queries[text], keys[text], values[text], is_causal=True
            )
        return attended
