"""Linear layers of few rows are torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.device import DEVICE
from kernels.layouts import by_columns
from pluribus import ops
from pluribus.kernels import linear
from pluribus.kernels.linear import arranged, few_rows_linear, is_column_major
from pluribus.kernels.linear_config import H100, MAX_ROWS, NUM_PROCESSORS, Config, few_rows_config

CONFIGS = [Config(32, 32, 4, 3), Config(16, 16, 4, 3, splits=4)]
"""With tiles smaller than any that are shipped; one of them leaves splits without work."""


def random(*size: int, dtype: torch.dtype = torch.float16) -> Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))
    return values.to(DEVICE, dtype)


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    y = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return (y.relu() if relu else y).to(x.dtype)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("num_rows", [1, 16, 17, MAX_ROWS])
@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [(16, 32), (17, 80), (70, 48), (128, 160), (40, 31), (1, 1)],
    ids=str,
)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("store", [Tensor.contiguous, by_columns], ids=["rows", "columns"])
@pytest.mark.parametrize("config", CONFIGS, ids=["whole", "split"])
def test_it_is_torchs(
    num_rows: int,
    out_features: int,
    in_features: int,
    relu: bool,
    has_bias: bool,
    store: Callable[[Tensor], Tensor],
    config: Config,
) -> None:
    x, weight = random(num_rows, in_features), random(out_features, in_features)
    bias = random(out_features) if has_bias else None
    y = few_rows_linear(x, store(weight), bias, relu=relu, config=config)
    torch.testing.assert_close(y, expected(x, weight, bias, relu=relu), rtol=2e-3, atol=2e-3)


def test_sums_are_in_single_precision() -> None:
    x = torch.ones(1, 4096, dtype=torch.float16, device=DEVICE)
    weight = torch.full((16, 4096), 2.0**-12, dtype=torch.float16, device=DEVICE)
    weight[:, 0] = 1
    y = few_rows_linear(x, weight, None, relu=False, config=Config(16, 512, 4, 3))
    torch.testing.assert_close(y, torch.full_like(y, 2.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("num_rows", "out_features", "in_features"),
    [(0, 64, 64), (MAX_ROWS + 1, 64, 64), (1, 64, 0), (1, 0, 64), (64, 7168, 28672)],
)
def test_the_rest_is_left_to_cublas(num_rows: int, out_features: int, in_features: int) -> None:
    assert few_rows_config(num_rows, out_features, in_features) is None


@given(
    num_rows=st.integers(1, MAX_ROWS),
    out_features=st.integers(1, 60000),
    in_features=st.integers(1, 60000),
    is_by_columns=st.booleans(),
)
def test_any_shape_has_tiles_that_the_compiler_takes(
    num_rows: int, out_features: int, in_features: int, is_by_columns: bool
) -> None:
    config = few_rows_config(num_rows, out_features, in_features, by_columns=is_by_columns)
    if config is None:
        assert num_rows > 16
        assert in_features >= 2 * out_features
        assert not is_by_columns
        return
    sizes = (config.outputs, config.inputs, config.num_warps, config.splits)
    assert all(number.bit_count() == 1 for number in sizes)
    rows = 16 if num_rows <= 16 else 64
    assert H100.num_stages(config, rows, 2) == config.num_stages
    assert config.splits <= 4
    assert config.splits == 1 or out_features <= config.outputs * NUM_PROCESSORS


@pytest.mark.parametrize("shape", [(12288, 4096), (4096, 4096), (4096, 16384), (2048, 8192)])
def test_weights_are_rearranged_where_that_is_faster(shape: tuple[int, int]) -> None:
    weight = torch.empty(shape, dtype=torch.float16, device="meta")
    assert arranged(weight).shape == shape
    assert is_column_major(arranged(weight))
    again = arranged(weight)
    assert arranged(again) is again


@pytest.mark.parametrize("shape", [(768, 3072), (50272, 4096), (4096, 12288), (6144, 2048)])
def test_other_weights_are_left_alone(shape: tuple[int, int]) -> None:
    weight = torch.empty(shape, dtype=torch.float16, device="meta")
    assert arranged(weight) is weight


def test_a_rearranged_weight_is_the_same_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "COLUMN_MAJOR", {(6, 4)})
    weight = random(6, 4)
    assert torch.equal(arranged(weight), weight)
    assert arranged(weight).t().is_contiguous()


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_a_layer_is_the_same_on_a_cpu(relu: bool, has_bias: bool) -> None:
    x, weight = random(5, 24, dtype=torch.float32).cpu(), random(7, 24, dtype=torch.float32).cpu()
    bias = random(7, dtype=torch.float32).cpu() if has_bias else None
    y = ops.linear(x, weight, bias, relu=relu)
    torch.testing.assert_close(y, expected(x, weight, bias, relu=relu))


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 8, 16, 17, 200])
@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [
        (2304, 768),
        (768, 768),
        (768, 3072),
        (4096, 4096),
        (4096, 8192),
        (4096, 16384),
        (2048, 8192),
    ],
)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_layer_is_the_same_by_whichever_kernel(
    num_rows: int, out_features: int, in_features: int, relu: bool, dtype: torch.dtype
) -> None:
    x = random(num_rows, in_features, dtype=dtype)
    weight, bias = random(out_features, in_features, dtype=dtype), random(out_features, dtype=dtype)
    wanted = expected(x, weight, bias, relu=relu)
    y = ops.linear(x, ops.packed(weight), bias, relu=relu)
    torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))
