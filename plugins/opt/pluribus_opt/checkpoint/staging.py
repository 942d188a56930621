"""The way of tensors from memory to where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

NUM_BYTES = 2**25
"""Of each of the two buffers that tensors go through on their way to a device."""

Put: TypeAlias = Callable[[Tensor, Tensor], None]
"""Copies a tensor into a target of its shape, which may differ in dtype and device."""


def put(source: Tensor, target: Tensor) -> None:
    """Copy a tensor into a target."""
    target.copy_(source)


class Staging:
    """Copies through pinned memory: while one piece travels to the device, the next is read.

    What is copied from elsewhere, CUDA copies into pinned memory of its own first, piece by piece,
    and does nothing meanwhile; columns of a matrix it would have put together before that.
    """

    def __init__(self, num_bytes: int = NUM_BYTES) -> None:
        self._buffers = [torch.empty(num_bytes, dtype=torch.uint8).pin_memory() for _ in range(2)]
        self._sent = [torch.cuda.Event() for _ in self._buffers]  # type: ignore[no-untyped-call]
        self._turn = 0

    def put(self, source: Tensor, target: Tensor) -> None:
        """Copy a tensor into a target; what a device is still to receive is in its stream."""
        num_bytes = self._buffers[0].nbytes
        row_bytes = source[0].nbytes if source.dim() and len(source) else 0
        if not target.is_cuda or not 0 < row_bytes <= num_bytes:
            put(source, target)
            return
        num_rows = num_bytes // row_bytes
        for rows, there in zip(*(torch.split(x, num_rows) for x in (source, target)), strict=True):
            self._send(rows, there)

    def _send(self, source: Tensor, target: Tensor) -> None:
        self._turn = 1 - self._turn
        self._sent[self._turn].synchronize()
        piece = self._buffers[self._turn][: source.nbytes].view(source.dtype).view(source.shape)
        piece.copy_(source)
        target.copy_(piece, non_blocking=True)
        self._sent[self._turn].record()


def staging_for(targets: Sequence[Tensor]) -> Put:
    """Return how tensors in memory get to where these targets are."""
    return Staging().put if any(target.is_cuda for target in targets) else put
