"""Products with packed weights: the same numbers, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from opt.reading import Reading, decoder
from opt.variants import VARIANTS, architecture, canonical, hugging_face
from pluribus.ops import linear, packed

TEXTS = [[2, 50, 7, 91, 33, 33, 4, 68, 12], [2], [2, 11, 80, 3, 45]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 5, 8, 33, 64, 65, 256, 257, 331])
def test_a_packed_weight_gives_the_product(num_rows: int, has_bias: bool) -> None:
    x, weight = torch.randn(num_rows, 24), torch.randn(40, 24)
    bias = torch.randn(40) if has_bias else None
    product = linear(x, packed(weight), bias)
    assert product.shape == (num_rows, 40)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(product, expected, atol=1e-5, rtol=1e-5)
    product = linear(x, packed(weight), bias, relu=True)
    torch.testing.assert_close(product, expected.relu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2304, 768), (768, 3072)], ids=str)
def test_a_row_is_the_same_to_the_last_bit_whatever_it_is_with(shape: tuple[int, int]) -> None:
    x, weight, bias = torch.randn(331, shape[1]), packed(torch.randn(shape)), torch.randn(shape[0])
    together = linear(x, weight, bias)
    for num_rows in (1, 2, 7, 64, 100):
        assert torch.equal(linear(x[:num_rows], weight, bias), together[:num_rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_only_float32_is_packed(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 8).to(dtype)
    assert packed(weight) is weight


def test_a_rank_with_no_share_of_a_layer_adds_nothing() -> None:
    product = linear(torch.empty(5, 0), packed(torch.empty(8, 0)), None)
    assert torch.equal(product, torch.zeros(5, 8))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_packed_decoder_reads_as_it_did(variant: str) -> None:
    theirs = hugging_face(variant)
    plain = decoder(architecture(theirs), canonical(theirs))
    fast = decoder(architecture(theirs), canonical(theirs))
    fast.pack()
    assert any(parameter.is_mkldnn for parameter in fast.parameters())
    counts = {slot: len(text) for slot, text in enumerate(TEXTS)}
    expected = Reading(plain, TEXTS).step(counts)
    torch.testing.assert_close(Reading(fast, TEXTS).step(counts), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["pre-norm", "untied-head"])
def test_only_a_tied_head_takes_a_second_copy(variant: str) -> None:
    theirs = hugging_face(variant)
    network = decoder(architecture(theirs), canonical(theirs))
    network.pack()
    assert network.embedding is not None
    assert network.head is not None
    assert not network.embedding.tokens.weight.is_mkldnn
    assert network.head.tokens.packed is not None
    assert network.head.tokens.weight.is_mkldnn == (variant == "untied-head")
