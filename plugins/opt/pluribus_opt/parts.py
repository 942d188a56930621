"""Pieces of checkpoint tensors, and where each goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pluribus_opt.quantizing import Read, Scaled


@dataclass(frozen=True, slots=True)
class Part:
    """The piece of one checkpoint tensor that this rank holds.

    Attributes:
        name: canonical, that is Hugging Face's less ``model.``: ``decoder.layers.0.fc1.weight``.
        shape: of the whole tensor in the checkpoint.
        index: the piece, one slice per dimension.
        target: what to fill: a parameter, or a view into a fused one; shaped as the piece.
        scaled: how, where the target holds quantised numbers.
    """

    name: str
    shape: tuple[int, ...]
    index: tuple[slice, ...]
    target: Tensor
    scaled: Scaled | None = None

    @property
    def plain_dtype(self) -> torch.dtype:
        """What the piece is in, or would be if it were not quantised."""
        return self.target.dtype if self.scaled is None else self.scaled.quantizer.plain

    def fill(self, dtype: torch.dtype, read: Read) -> None:
        """Fill the target.

        Args:
            dtype: of what ``read`` reads.
            read: copies a piece of the whole tensor.

        Raises:
            CheckpointError: the piece cannot be quantised.
        """
        if self.scaled is None:
            read(self.index, self.target.detach())
        else:
            self.scaled.fill(self, dtype, read)
