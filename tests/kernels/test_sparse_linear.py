"""Linear layers of a row with zeros are torch's, and do not read what is multiplied by zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.device import DEVICE
from kernels.layouts import by_columns
from pluribus import ops
from pluribus.kernels.linear import few_rows_linear
from pluribus.kernels.linear_config import COLUMN_MAJOR, NUM_PROCESSORS, Config
from pluribus.kernels.sharing import counters
from pluribus.kernels.sparse_linear import skips_zeros, sparse_linear


def random(*size: int, dtype: torch.dtype = torch.float16) -> Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))
    return values.to(DEVICE, dtype)


def sparse(in_features: int, share: float, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return a row, so many of whose numbers are not 0."""
    return F.dropout(random(1, in_features, dtype=dtype), 1 - share)


def expected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def assert_close(y: Tensor, wanted: Tensor, error: float = 2e-3) -> None:
    atol = error * float(wanted.abs().max().clamp_min(1))
    torch.testing.assert_close(y.double(), wanted, rtol=error, atol=atol)


@pytest.mark.parametrize(
    ("out_features", "in_features"), [(64, 128), (70, 1300), (1, 1), (130, 5000)], ids=str
)
@pytest.mark.parametrize("share", [0.0, 0.04, 0.5, 1.0])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_it_is_torchs(out_features: int, in_features: int, share: float, has_bias: bool) -> None:
    x, weight = sparse(in_features, share), random(out_features, in_features)
    bias = random(out_features) if has_bias else None
    assert_close(sparse_linear(x, by_columns(weight), bias), expected(x, weight, bias))


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 150), st.integers(1, 1500))
def test_weights_of_zeros_are_not_read(
    data: st.DataObject, out_features: int, in_features: int
) -> None:
    used = data.draw(st.sets(st.integers(0, in_features - 1)))
    x, weight = torch.zeros(1, in_features, device=DEVICE), random(out_features, in_features)
    x[0, list(used)] = 1.5
    weight[:, [each for each in range(in_features) if each not in used]] = torch.nan
    wanted = 1.5 * weight[:, sorted(used)].double().sum(1, keepdim=True).t()
    assert_close(sparse_linear(x.half(), by_columns(weight), None), wanted)


def test_what_is_not_a_number_stays_so() -> None:
    x, weight = torch.zeros(1, 256, dtype=torch.float16, device=DEVICE), random(64, 256)
    x[0, 200] = torch.nan
    assert sparse_linear(x, by_columns(weight), None).isnan().all()


def test_sums_are_in_single_precision() -> None:
    x = torch.ones(1, 4096, dtype=torch.float16, device=DEVICE)
    weight = torch.full((16, 4096), 2.0**-12, dtype=torch.float16, device=DEVICE)
    weight[:, 0] = 1
    y = sparse_linear(x, by_columns(weight), None)
    torch.testing.assert_close(y, torch.full_like(y, 2.0), rtol=1e-3, atol=0)


def test_it_is_the_same_each_time() -> None:
    x, weight = sparse(9000, 0.5), by_columns(random(200, 9000))
    first = sparse_linear(x, weight, None)
    assert all(torch.equal(first, sparse_linear(x, weight, None)) for _ in range(5))


def test_counters_are_left_as_they_are_found() -> None:
    x, weight = sparse(3000, 0.5), by_columns(random(200, 3000))
    for _ in range(2):
        first = sparse_linear(x, weight, None)
        assert not counters(DEVICE).any()
        second = few_rows_linear(x, weight, None, relu=False, config=Config(64, 64, 4, 3, splits=4))
        assert not counters(DEVICE).any()
        assert_close(first, expected(x, weight, None))
        assert_close(second, expected(x, weight, None))


def test_small_layers_and_several_rows_are_left_to_others() -> None:
    large = torch.empty(16384, 4096, dtype=torch.float16, device="meta").t()
    assert skips_zeros(1, large)
    assert not skips_zeros(2, large)
    assert not skips_zeros(1, torch.empty(4096, 16384, dtype=torch.float16, device="meta"))
    assert not skips_zeros(1, torch.empty(3072, 768, dtype=torch.float16, device="meta").t())


@pytest.mark.parametrize("shape", sorted(COLUMN_MAJOR))
def test_whatever_is_stored_by_columns_has_a_kernel_for_one_row(shape: tuple[int, int]) -> None:
    weight = torch.empty(shape[::-1], dtype=torch.float16, device="meta").t()
    has_counters = shape[0] <= 64 * NUM_PROCESSORS
    assert skips_zeros(1, weight) == (has_counters and shape[0] * shape[1] >= 2**24)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("out_features", "in_features"), [(4096, 16384), (2560, 10240), (2048, 8192)]
)
@pytest.mark.parametrize("share", [0.04, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_layer_is_the_same_on_a_gpu(
    out_features: int, in_features: int, share: float, dtype: torch.dtype
) -> None:
    x, weight = sparse(in_features, share, dtype), random(out_features, in_features, dtype=dtype)
    bias = random(out_features, dtype=dtype)
    y = ops.linear(x, ops.packed(weight), bias, has_zeros=True)
    assert_close(y, expected(x, weight, bias), error=1e-2)
