"""How likely tokens are, before anything is done to their logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.generation import TokenLogprobs
from pluribus.sampling.blocks import top

Receive = Callable[[Sequence[int], torch.dtype], Tensor]
"""Waits for a tensor of this shape and type."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural log probabilities, on the device.

    Attributes:
        tokens: ids, [num_rows].
        chosen: of ``tokens``, float32, [num_rows].
        ids, values: the likeliest ids and theirs, [num_rows, count].
    """

    tokens: Tensor
    chosen: Tensor
    ids: Tensor
    values: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Logprobs]) -> Logprobs:
        """Join rows; every part has the same count."""
        return cls(
            tokens=torch.cat([part.tokens for part in parts]),
            chosen=torch.cat([part.chosen for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
            values=torch.cat([part.values for part in parts]),
        )

    def to(self, device: torch.device, *, non_blocking: bool) -> Logprobs:
        """Return the same on another device."""
        return Logprobs(*(x.to(device, non_blocking=non_blocking) for x in self.tensors()))

    @classmethod
    def receive(cls, num_rows: int, count: int, receive: Receive) -> Logprobs:
        """Return what comes from elsewhere as ``tensors``."""
        return cls(
            tokens=receive([num_rows], torch.int64),
            chosen=receive([num_rows], torch.float32),
            ids=receive([num_rows, count], torch.int64),
            values=receive([num_rows, count], torch.float32),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors, in the order in which ``receive`` takes them."""
        return self.tokens, self.chosen, self.ids, self.values

    def read(self, counts: Sequence[int]) -> Iterator[TokenLogprobs]:
        """Wait for the device; yield each row, with so many of the likeliest."""
        rows = zip(*(column.tolist() for column in self.tensors()), counts, strict=True)
        for token, chosen, ids, values, count in rows:
            top_pairs = tuple(zip(ids[:count], values[:count], strict=True))
            yield TokenLogprobs(token, chosen, top_pairs)


def logprobs(logits: Tensor, tokens: Tensor, count: int) -> Logprobs:
    """Return how likely ``tokens`` and the ``count`` likeliest ids are."""
    normalised = logits.float().log_softmax(-1)
    chosen = normalised.gather(1, tokens[:, None]).squeeze(1)
    values, ids = top(normalised, count)
    return Logprobs(tokens, chosen, ids, values)
