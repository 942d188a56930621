"""Pieces of checkpoint tensors, and where each goes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """The piece of one checkpoint tensor that this rank holds.

    Attributes:
        name: canonical, that is Hugging Face's less ``model.``: ``decoder.layers.0.fc1.weight``.
        shape: of the whole tensor in the checkpoint.
        index: the piece, one slice per dimension.
        target: what to fill: a parameter, or a view into a fused one; shaped as the piece.
    """

    name: str
    shape: tuple[int, ...]
    index: tuple[slice, ...]
    target: Tensor
