"""Making eight-bit weights of a checkpoint's while they are read, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pluribus.errors import CheckpointError
from pluribus.parallel.group import TensorParallel
from pluribus.quantized import DTYPES, dequantize, quantize, scale_for
from pluribus.units import format_bytes

if TYPE_CHECKING:
    from pluribus_opt.parts import Part

NUMBERS_AT_ONCE: Mapping[str, int] = MappingProxyType({"cpu": 2**19, "cuda": 2**22})
"""Numbers of a tensor that are on a device in full at a time."""

Read = Callable[[tuple[slice, ...], Tensor], None]
"""Copies a piece of a checkpoint's tensor into a tensor of its shape."""


class Quantizer:
    """Makes eight-bit weights, and keeps account of what that saves and loses.

    Args:
        weights: the format's name: ``int8`` or ``fp8``.
        plain: what the weights would be in otherwise.

    Attributes:
        bytes_saved: so far.
        largest_loss: of any channel: the norm of what rounding takes, over the channel's.
        worst: the tensor with that channel.
    """

    def __init__(self, weights: str, plain: torch.dtype) -> None:
        self.weights = weights
        self.dtype = DTYPES[weights]
        self.plain = plain
        self.bytes_saved = 0
        self.largest_loss = 0.0
        self.worst = ""

    def note(self, name: str, numbers: Tensor, loss: float) -> None:
        """Take a matrix, or this rank's piece of it, into account."""
        scales = len(numbers) * torch.float32.itemsize
        saved = self.plain.itemsize - self.dtype.itemsize
        self.bytes_saved += numbers.numel() * saved - scales
        if loss > self.largest_loss:
            self.largest_loss, self.worst = loss, name

    def report(self) -> str:
        """Return the account, for people."""
        plain = str(self.plain).removeprefix("torch.")
        return (
            f"weights of layers in {self.weights}: {format_bytes(self.bytes_saved)} less than in "
            f"{plain}, and at most {100 * self.largest_loss:.2f} % of a channel lost to rounding "
            f"({self.worst})"
        )


@dataclass(frozen=True, slots=True)
class Scaled:
    """How a matrix becomes numbers of eight bits with a scale for each row.

    Attributes:
        scale: [num_rows], float32; filled with the numbers.
        sharing: the ranks that have a piece of each row, and so its scale.
        quantizer: makes them, and keeps account.
    """

    scale: Tensor
    sharing: TensorParallel
    quantizer: Quantizer

    def fill(self, part: Part, dtype: torch.dtype, read: Read) -> None:
        """Read a part and quantise it into its target; see ``Part.fill``.

        Ranks that share rows call it for the same parts in the same order: they wait for each
        other.
        """
        rows, columns = part.index
        device = part.target.device
        loss = torch.zeros((), device=device)
        # As many rows at a time on all ranks that have a piece of each.
        step = max(1, NUMBERS_AT_ONCE[device.type] // part.shape[1])
        for start in range(0, len(part.target), step):
            some = slice(start, min(start + step, len(part.target)))
            numbers = part.target[some]
            values = torch.empty_like(numbers, dtype=dtype)
            read((slice(rows.start + some.start, rows.start + some.stop), columns), values)
            loss = torch.maximum(loss, self._quantize(values.float(), numbers, self.scale[some]))
        if not loss.isfinite():
            raise CheckpointError(
                f"{part.name} has numbers that are not finite, which "
                f"model.weights={self.quantizer.weights} cannot hold: set model.weights=null, or "
                "see what pluribus verify says of the checkpoint"
            )
        self.quantizer.note(part.name, part.target, float(loss))

    def _quantize(self, values: Tensor, numbers: Tensor, scale: Tensor) -> Tensor:
        """Fill numbers and scale; return the largest part of a row's norm that is lost.

        Nothing of ``values`` is left.
        """
        largest = values.new_zeros(len(values))
        if values.shape[1]:
            largest = torch.maximum(values.amax(1), -values.amin(1))
        scale.copy_(scale_for(self.sharing.all_largest(largest), numbers.dtype))
        norms = torch.linalg.vector_norm(values, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        numbers.copy_(quantize(values, scale, numbers.dtype))
        values -= dequantize(numbers, scale, torch.float32)
        return torch.amax(torch.linalg.vector_norm(values, dim=1) / norms, 0)
