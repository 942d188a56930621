"""Linear layers of eight-bit weights are torch's with the numbers that the weights stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import DEVICE
from pluribus import ops
from pluribus.kernels import quantized as kernels
from pluribus.kernels.linear import few_rows_linear
from pluribus.kernels.linear_config import (
    H100,
    MAX_ROWS,
    NUM_PROCESSORS,
    Config,
    eight_bit_config,
)
from pluribus.kernels.quantized import dequantize
from pluribus.quantized import DTYPES, quantize, scale_for
from pluribus.quantized import dequantize as plainly

CONFIG = Config(16, 32, 4, 3, splits=2)
"""Outputs and inputs of a tile, smaller than any that is shipped."""

every_format = pytest.mark.parametrize("weights", list(DTYPES))


@pytest.fixture(params=[True, False], ids=["float8", "bits"])
def has_float8(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on a device that knows float8, and on one that does not."""
    if DEVICE.type == "cuda" and request.param:
        return
    monkeypatch.setattr(kernels, "_has_float8", lambda device: request.param)


def random(*size: int, dtype: torch.dtype = torch.float16) -> Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))
    return values.to(DEVICE, dtype)


def random_weight(weights: str, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return a quantised weight and its scales, each row of another size."""
    sizes = torch.logspace(-2, 1, rows, device=DEVICE)
    values = random(rows, columns, dtype=torch.float32) * sizes.unsqueeze(1)
    scale = scale_for(values.abs().amax(1), DTYPES[weights])
    return quantize(values, scale, DTYPES[weights]), scale


def expected(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    plain = plainly(weight, scale, torch.float64)
    y = F.linear(x.double(), plain, None if bias is None else bias.double())
    return (y.relu() if relu else y).to(x.dtype)


def assert_close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("has_float8", "tiles")
@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, MAX_ROWS])
@pytest.mark.parametrize(
    ("out_features", "in_features"), [(16, 32), (17, 80), (17, 70), (1, 1)], ids=str
)
@every_format
def test_few_rows_are_torchs(
    weights: str, num_rows: int, out_features: int, in_features: int
) -> None:
    x, bias = random(num_rows, in_features), random(out_features)
    weight, scale = random_weight(weights, out_features, in_features)
    y = few_rows_linear(x, weight, bias, scale=scale, relu=False, config=CONFIG)
    assert_close(y, expected(x, weight, scale, bias, relu=False))


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@every_format
def test_a_bias_and_relu_are_torchs(weights: str, relu: bool, has_bias: bool) -> None:
    x, bias = random(5, 48), random(24) if has_bias else None
    weight, scale = random_weight(weights, 24, 48)
    y = few_rows_linear(x, weight, bias, scale=scale, relu=relu, config=CONFIG)
    assert_close(y, expected(x, weight, scale, bias, relu))


@every_format
def test_sums_are_in_single_precision(weights: str) -> None:
    x = torch.ones(1, 4096, dtype=torch.float16, device=DEVICE)
    weight = torch.ones(16, 4096, device=DEVICE)
    weight[:, 0] = 100
    scale = torch.full((16,), 2.0**-12, device=DEVICE)
    weight = weight.to(DTYPES[weights])
    config = Config(16, 512, 4, 3)
    y = few_rows_linear(x, weight, None, scale=scale, relu=False, config=config)
    wanted = (4095 + float(weight[0, 0])) * 2.0**-12
    torch.testing.assert_close(y, torch.full_like(y, wanted), rtol=1e-3, atol=0)


@pytest.mark.usefixtures("has_float8")
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (2, 1024), (2, 1500)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@every_format
def test_a_weight_is_made_plain_exactly(
    weights: str, rows: int, columns: int, dtype: torch.dtype
) -> None:
    weight, scale = random_weight(weights, rows, columns)
    plain = torch.empty(rows, columns, dtype=dtype, device=DEVICE)
    dequantize(weight, scale, plain)
    assert torch.equal(plain, plainly(weight, scale, dtype))


@triton.jit
def widen_all(w, y, FROM_BITS: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(y + at, kernels.widen(tl.load(w + at), y.dtype.element_ty, FROM_BITS))


@pytest.mark.usefixtures("has_float8")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@every_format
def test_every_byte_is_what_it_stands_for(weights: str, dtype: torch.dtype) -> None:
    bits = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    weight = bits.view(DTYPES[weights])
    y = torch.empty(256, dtype=dtype, device=DEVICE)
    numbers, from_bits = kernels.readable(weight)
    widen_all[(1,)](numbers, y, FROM_BITS=from_bits)
    is_number = weight.float().isfinite()
    assert torch.equal(y.float()[is_number], weight.float()[is_number])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_plain_numbers_are_left_alone(dtype: torch.dtype) -> None:
    x = random(256, dtype=dtype)
    y = torch.empty_like(x)
    widen_all[(1,)](x, y, FROM_BITS=False)
    assert torch.equal(x, y)


@pytest.mark.parametrize("num_rows", [0, MAX_ROWS + 1, 1000])
def test_other_numbers_of_rows_are_left_to_cublas(num_rows: int) -> None:
    assert eight_bit_config(num_rows, 4096, 4096) is None


def test_a_share_without_inputs_is_left_to_torch() -> None:
    assert eight_bit_config(4, 64, 0) is None


@pytest.mark.parametrize("num_rows", [1, 16, 17, 32, 33, MAX_ROWS])
@pytest.mark.parametrize("hidden_size", [768, 1024, 2048, 4096, 12288])
def test_tiles_are_powers_of_two_that_the_compiler_takes(hidden_size: int, num_rows: int) -> None:
    for out, in_ in [(3, 1), (1, 1), (4, 1), (1, 4)]:
        config = eight_bit_config(num_rows, hidden_size * out, hidden_size * in_)
        assert config is not None
        sizes = (config.outputs, config.inputs, config.num_warps, config.splits)
        assert all(each.bit_count() == 1 for each in sizes)
        rows = 16 if num_rows <= 16 else 64
        assert H100.num_stages(config, rows, 1) == config.num_stages
        assert config.splits <= (8 if rows == 16 else 4)
        num_tiles = -(-hidden_size * out // config.outputs)
        assert config.splits == 1 or num_tiles <= NUM_PROCESSORS
        assert config.splits == 1 or config.inputs * config.splits < hidden_size * in_
        if out < in_ and num_tiles <= NUM_PROCESSORS // 2:
            assert config.splits > 1, "few programs would read all that a row has"


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 8, 16, 17, 64, 65, 300])
@pytest.mark.parametrize(("out_features", "in_features"), [(2304, 768), (768, 768), (768, 3072)])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@every_format
def test_a_layer_is_the_same_by_whichever_kernel(
    weights: str,
    num_rows: int,
    out_features: int,
    in_features: int,
    relu: bool,
    dtype: torch.dtype,
) -> None:
    x, bias = random(num_rows, in_features, dtype=dtype), random(out_features, dtype=dtype)
    weight, scale = random_weight(weights, out_features, in_features)
    scratch = torch.empty(weight.numel() + 7, dtype=dtype, device=DEVICE)
    y = ops.scaled_linear(x, weight, scale, bias, relu=relu, scratch=scratch)
    wanted = expected(x, weight, scale, bias, relu)
    torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))
