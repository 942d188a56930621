"""Linear layers on CPUs in float32: oneDNN's, with the weights in its own order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = (256, 64)
"""What many rows are computed in pieces of. oneDNN keeps a kernel of 0.6 MB for each number of
rows that it meets, so it must not meet many."""


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    """Return what ``ops.linear`` does; ``weight`` is packed.

    No row depends, to the last bit, on how many others there are.
    """
    activation = "relu" if relu else "none"
    if x.shape[0] <= ROWS[-1]:
        return _product(x, weight, bias, activation)
    parts = torch.split(x, _pieces(x.shape[0]))
    return torch.cat([_product(part, weight, bias, activation) for part in parts])


def packed(weight: Tensor) -> Tensor:
    """Return a copy of a matrix that ``ops.linear`` is fast with, or itself if there is none."""
    can_pack = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel()
    if not can_pack or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return weight
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    return copy


def _pieces(num_rows: int) -> list[int]:
    sizes = []
    for size in ROWS:
        count, num_rows = divmod(num_rows, size)
        sizes += [size] * count
    return [*sizes, num_rows] if num_rows else sizes


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    num_rows = x.shape[0]
    # Reading the weights is what takes time: four rows take no longer than one.
    missing = -num_rows % (4 if num_rows <= 4 else 8)
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    return product[:num_rows] if missing else product
