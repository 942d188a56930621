"""What linear layers have in common, however they are split: a weight, plain or quantised."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pluribus import ops
from pluribus.parallel.group import TensorParallel
from pluribus_opt.quantizing import Quantizer, Scaled


class Linear(nn.Module):
    """A product with this rank's share of a matrix, ``weight``.

    Attributes:
        sharing: the ranks that have a piece of each row.
        quantizer: what makes the weight; None where it is plain.
        scale: of each row of a quantised weight.
        scratch: where one is made plain, on devices that want it so.
    """

    weight: nn.Parameter

    def __init__(self, sharing: TensorParallel | None = None) -> None:
        super().__init__()
        self.sharing = sharing or TensorParallel()
        self.scale: nn.Parameter | None = None
        self.scratch: Tensor | None = None
        self.quantizer: Quantizer | None = None

    def quantize(self, quantizer: Quantizer) -> None:
        """Hold the weight as ``quantizer`` makes it; there is nothing in it yet."""
        self.quantizer = quantizer
        device = self.weight.device
        weight = torch.empty(self.weight.shape, dtype=quantizer.dtype, device=device)
        scale = torch.empty(len(weight), dtype=torch.float32, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def pack(self) -> None:
        """Store the weight as products want it; ``parts`` is of no use from then on."""
        self.weight = nn.Parameter(ops.packed(self.weight), requires_grad=False)

    def product(
        self, x: Tensor, bias: Tensor | None, *, relu: bool = False, has_zeros: bool = False
    ) -> Tensor:
        """Return ``x weight^T + bias``; see ``ops.linear``."""
        if self.scale is None:
            return ops.linear(x, self.weight, bias, relu=relu, has_zeros=has_zeros)
        return ops.scaled_linear(x, self.weight, self.scale, bias, relu=relu, scratch=self.scratch)

    def scaled(self, number: int = 0, of: int = 1) -> Scaled | None:
        """Return how one of several equal runs of rows is filled; None if it is not quantised."""
        if self.quantizer is None or self.scale is None:
            return None
        return Scaled(self.scale.chunk(of)[number], self.sharing, self.quantizer)


def quantize(layers: nn.Module, quantizer: Quantizer) -> None:
    """Hold the weights of all linears in ``layers`` as ``quantizer`` makes them."""
    for linear in _linears(layers):
        linear.quantize(quantizer)


def share_scratch(layers: nn.Module) -> None:
    """Give quantised weights in ``layers``, on a CUDA device, one place to be made plain in."""
    linears = [each for each in _linears(layers) if each.quantizer and each.weight.is_cuda]
    if not linears:
        return
    largest = max(linears, key=lambda linear: linear.weight.numel())
    assert largest.quantizer is not None
    dtype, device = largest.quantizer.plain, largest.weight.device
    scratch = torch.empty(largest.weight.numel(), dtype=dtype, device=device)
    for linear in linears:
        linear.scratch = scratch


def _linears(layers: nn.Module) -> Iterator[Linear]:
    return (module for module in layers.modules() if isinstance(module, Linear))
