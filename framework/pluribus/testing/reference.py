"""A KV store that is slow and plainly right, to compare real ones with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from pluribus.interfaces import KVStore, TokenLayout
from pluribus.step import Admission, Row


class ReferenceKVStore(KVStore):
    """Keeps every token's key and value in a list and attends one token at a time.

    Rows lie one after another without padding. Generations may join while others run, and
    prompts may come in chunks.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._texts: dict[int, _Text] = {}
        self._tokens: list[tuple[int, int]] = []

    def admit(self, admission: Admission) -> None:
        assert admission.slot not in self._texts, f"slot {admission.slot} is taken"
        self._texts[admission.slot] = _Text()

    def evict(self, slot: int) -> None:
        del self._texts[slot]

    def begin(self, rows: Sequence[Row]) -> TokenLayout:
        self._tokens = [
            (row.slot, position)
            for row in rows
            for position in range(row.start, row.start + row.num_tokens)
        ]
        ends = torch.tensor([row.num_tokens for row in rows], device=self._device).cumsum(0)
        slots, positions = torch.tensor(self._tokens, device=self._device).unbind(1)
        return TokenLayout(slots=slots, positions=positions, last=ends - 1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert len(query) == len(self._tokens), "not the tokens that begin() laid out"
        outputs = []
        for (slot, position), q, k, v in zip(self._tokens, query, key, value, strict=True):
            text = self._texts[slot]
            assert len(text.keys[layer]) == position, f"slot {slot} skips or repeats a token"
            text.keys[layer].append(k)
            text.values[layer].append(v)
            outputs.append(
                _attend(q, torch.stack(text.keys[layer]), torch.stack(text.values[layer]))
            )
        return torch.stack(outputs)


class _Text:
    """One generation's keys and values: for each layer a list of [num_heads, head_dim]."""

    def __init__(self) -> None:
        self.keys: defaultdict[int, list[Tensor]] = defaultdict(list)
        self.values: defaultdict[int, list[Tensor]] = defaultdict(list)


def _attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(q K^T / sqrt(d)) V in float32, for one query [num_heads, head_dim]."""
    scores = torch.einsum("hd,thd->ht", query.float(), keys.float()) * query.shape[-1] ** -0.5
    return torch.einsum("ht,thd->hd", scores.softmax(-1), values.float()).to(query.dtype)
