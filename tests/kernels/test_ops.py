"""Which kernel computes a linear layer on a CUDA device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus import ops
from pluribus.kernels import linear, sparse_linear

LARGE = (4096, 4096)
"""As many weights as it takes to read few of them."""


class OnCuda(Tensor):
    """Says that it is on a CUDA device."""

    is_cuda = True


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has computed, by name; none of it is run."""
    names: list[str] = []

    def note(name: str) -> Any:
        def compute(x: Tensor, *arguments: object, **options: object) -> Tensor:
            names.append(name)
            return x

        return compute

    monkeypatch.setattr(linear, "few_rows_linear", note("few rows"))
    monkeypatch.setattr(sparse_linear, "sparse_linear", note("sparse"))
    monkeypatch.setattr(F, "linear", note("cuBLAS"))
    monkeypatch.setattr(torch, "_addmm_activation", note("cuBLAS with ReLU"))
    return names


@pytest.mark.parametrize(
    ("num_rows", "options", "expected"),
    [
        (1, {"has_zeros": True}, "sparse"),
        (1, {}, "few rows"),
        (1, {"has_zeros": True, "relu": True}, "few rows"),
        (2, {"has_zeros": True}, "few rows"),
        (64, {"relu": True}, "few rows"),
        (65, {}, "cuBLAS"),
        (65, {"relu": True}, "cuBLAS with ReLU"),
    ],
)
def test_few_rows_have_kernels_of_ours(
    num_rows: int, options: dict[str, bool], expected: str, called: list[str]
) -> None:
    weight = torch.empty(LARGE, dtype=torch.float16).t()
    x = torch.empty(num_rows, LARGE[1], dtype=torch.float16).as_subclass(OnCuda)
    ops.linear(x, weight, torch.empty(LARGE[0], dtype=torch.float16), **options)
    assert called == [expected]


def test_weights_by_rows_are_read_whole(called: list[str]) -> None:
    weight = torch.empty(LARGE, dtype=torch.float16)
    x = torch.empty(1, LARGE[1], dtype=torch.float16).as_subclass(OnCuda)
    ops.linear(x, weight, None, has_zeros=True)
    assert called == ["few rows"]


def test_other_dtypes_are_left_to_torch(called: list[str]) -> None:
    x = torch.empty(1, 8).as_subclass(OnCuda)
    ops.linear(x, torch.empty(8, 8), None)
    assert called == ["cuBLAS"]
