"""A residual's sum and its norm in one kernel are torch's two."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.device import DEVICE
from pluribus.kernels.norm import add_layer_norm

EPS = 1e-5


def random(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(DEVICE, dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        (torch.float16, 2e-3),
        # The interpreter cuts bfloat16 off where devices round it.
        pytest.param(torch.bfloat16, 2e-2, marks=pytest.mark.gpu),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("adds", [True, False], ids=["sum", "alone"])
@pytest.mark.parametrize("size", [1, 12, 64, 100])
def test_it_is_torchs(
    size: int, adds: bool, is_affine: bool, dtype: torch.dtype, tolerance: float
) -> None:
    x = random(3, size, dtype=dtype) * 3 + 1
    delta = random(3, size + 1, dtype=dtype)[:, 1:].contiguous() if adds else None
    weight, bias = random(2, size, dtype=dtype) if is_affine else (None, None)
    total, normed = add_layer_norm(x, delta, weight, bias, EPS)
    assert total.equal(x if delta is None else x + delta)
    expected = F.layer_norm(total.double(), (size,), eps=EPS)
    if weight is not None and bias is not None:
        expected = expected * weight + bias
    torch.testing.assert_close(normed, expected.to(dtype), rtol=tolerance, atol=tolerance)


def test_large_numbers_keep_their_differences() -> None:
    x = torch.tensor([[30000.0, 30001.0, 30002.0, 30003.0, 30004.0]], device=DEVICE)
    _, normed = add_layer_norm(x, None, None, None, EPS)
    torch.testing.assert_close(normed, F.layer_norm(x.double(), (5,)).float(), rtol=1e-4, atol=1e-4)
