"""Each rank's share of a layer: together they are the whole, each from the right place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.activations import ACT2FN

from opt.reading import fill
from pluribus import ops
from pluribus.parallel.group import TensorParallel
from pluribus_opt.config import ACTIVATIONS, OPTConfig
from pluribus_opt.decoder import OPTFeedForward
from pluribus_opt.layers import (
    ColumnParallelLinear,
    LayerNorm,
    PositionEmbedding,
    QKVParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pluribus_opt.parts import Part


class Apart(TensorParallel):
    """A rank that keeps its contribution to itself, so that a test can add them up."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x


def ranks(size: int) -> list[Apart]:
    return [Apart(rank, size) for rank in range(size)]


def whole_linear(in_features: int, out_features: int) -> dict[str, Tensor]:
    return {"weight": torch.randn(out_features, in_features), "bias": torch.randn(out_features)}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_columns_side_by_side_are_the_whole_linear(size: int) -> None:
    tensors, x = whole_linear(8, 12), torch.randn(5, 8)
    outputs = []
    for tp in ranks(size):
        layer = ColumnParallelLinear(8, 12, True, tp)
        fill(layer.parts(""), tensors)
        outputs.append(layer(x))
    torch.testing.assert_close(torch.cat(outputs, -1), F.linear(x, **tensors))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rows_added_up_are_the_whole_linear_with_its_bias_once(size: int) -> None:
    tensors, x = whole_linear(12, 8), torch.randn(5, 12)
    total = torch.zeros(5, 8)
    for tp in ranks(size):
        layer = RowParallelLinear(12, 8, True, tp, 6)
        fill(layer.parts(""), tensors)
        total += layer(x[:, layer.start : layer.end])
    torch.testing.assert_close(total, F.linear(x, **tensors))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_rank_projects_its_own_heads(size: int) -> None:
    projections = {name: whole_linear(24, 24) for name in ("q_proj", "k_proj", "v_proj")}
    tensors = {f"a.{name}.{key}": t for name, p in projections.items() for key, t in p.items()}
    x = torch.randn(5, 24)
    shares = []
    for tp in ranks(size):
        layer = QKVParallelLinear(24, 6, True, tp)
        fill(layer.parts("a."), tensors)
        shares.append(layer(x).view(5, 3, -1, 4))
    expected = torch.stack([F.linear(x, **p).view(5, 6, 4) for p in projections.values()])
    torch.testing.assert_close(torch.cat(shares, 2).transpose(0, 1), expected)


def test_query_key_and_value_are_views_of_one_parameter() -> None:
    layer = QKVParallelLinear(8, 2, True, TensorParallel())
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    storages = {part.target.untyped_storage().data_ptr() for part in layer.parts("")}
    assert storages == {p.untyped_storage().data_ptr() for p in layer.parameters()}


@pytest.mark.parametrize(("vocab_size", "size"), [(8, 1), (8, 2), (7, 2), (7, 3), (5, 4)])
def test_a_vocabulary_of_any_size_is_split_over_ranks(vocab_size: int, size: int) -> None:
    table, x = torch.randn(vocab_size, 6), torch.randn(3, 6)
    tokens = torch.arange(vocab_size)
    embedded, logits = torch.zeros(vocab_size, 6), []
    for tp in ranks(size):
        layer = VocabParallelEmbedding(vocab_size, 6, tp)
        layer.weight.fill_(math.nan)
        fill(layer.parts(""), {"weight": table})
        embedded += layer(tokens)
        logits.append(layer.logits(x))
    torch.testing.assert_close(embedded, table)
    torch.testing.assert_close(torch.cat(logits, -1)[:, :vocab_size], x @ table.T)


@settings(deadline=None)
@given(
    size=st.sampled_from([1, 2, 3, 4, 5, 6]),
    vocab_size=st.integers(1, 40),
    make=st.sampled_from(
        [
            lambda tp, _: ColumnParallelLinear(5, 24, True, tp),
            lambda tp, _: QKVParallelLinear(24, 12, False, tp),
            lambda tp, vocab_size: VocabParallelEmbedding(vocab_size, 3, tp),
        ]
    ),
)
def test_split_tensors_are_covered_exactly_once(
    size: int, vocab_size: int, make: Callable[[TensorParallel, int], ColumnParallelLinear]
) -> None:
    counts = _coverage(part for tp in ranks(size) for part in make(tp, vocab_size).parts(""))
    assert all((count == 1).all() for count in counts.values())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_row_parallel_weight_is_covered_once_and_its_bias_by_every_rank(size: int) -> None:
    counts = _coverage(
        p for tp in ranks(size) for p in RowParallelLinear(6, 4, True, tp, 6).parts("")
    )
    assert (counts["weight"] == 1).all()
    assert (counts["bias"] == size).all()


def _coverage(parts: Iterable[Part]) -> dict[str, Tensor]:
    """Return how often each element of each tensor is held."""
    counts: dict[str, Tensor] = {}
    for part in parts:
        count = counts.setdefault(part.name, torch.zeros(part.shape))
        assert count[part.index].shape == part.target.shape
        count[part.index] += 1
    return counts


@pytest.mark.parametrize(("total", "size"), [(6, 4), (12, 8), (56, 4), (72, 8), (3, 5)])
def test_parts_are_as_equal_as_can_be_and_meet(total: int, size: int) -> None:
    spans = [tp.span(total) for tp in ranks(size)]
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
    assert (spans[0][0], spans[-1][1]) == (0, total)
    lengths = [end - start for start, end in spans]
    assert max(lengths) - min(lengths) <= 1


def test_positions_start_at_row_two_and_padding_has_a_row() -> None:
    layer = PositionEmbedding(4, 3)
    layer.weight.copy_(torch.arange(6.0).unsqueeze(1).expand(6, 3))
    assert layer(torch.tensor([-1, 0, 3]))[:, 0].tolist() == [1, 2, 5]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_take_their_statistics_in_float32(dtype: torch.dtype, affine: bool) -> None:
    # Squares of these overflow float16, and their mean is far from zero.
    x = (300 + 100 * torch.randn(4, 512, generator=torch.Generator().manual_seed(0))).to(dtype)
    layer = LayerNorm(512, affine, TensorParallel()).to(dtype)
    for part in layer.parts(""):
        part.target.copy_(torch.linspace(0.5, 1.5, 512))
    exact = nn.LayerNorm(512, elementwise_affine=affine, dtype=torch.float64)
    exact.load_state_dict({part.name: part.target.double() for part in layer.parts("")})
    _, normed = layer(x)
    torch.testing.assert_close(normed, exact(x.double()).to(dtype))


def test_a_norm_adds_before_it_normalises_and_returns_both() -> None:
    layer = LayerNorm(8, False, TensorParallel())
    x, delta = torch.randn(3, 8), torch.randn(3, 8)
    total, normed = layer(x, delta)
    assert torch.equal(total, x + delta)
    assert torch.equal(normed, layer(x + delta)[1])


def feed_forward(activation: str) -> OPTFeedForward:
    """Return one whose weights are all ones on the diagonal, without a bias."""
    config = OPTConfig(
        vocab_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=16,
        num_attention_heads=1,
        max_position_embeddings=4,
        word_embed_proj_dim=16,
        enable_bias=False,
        activation_function=activation,
    )
    layer = OPTFeedForward(config, TensorParallel())
    fill(layer.parts(""), {"fc1.weight": torch.eye(16), "fc2.weight": torch.eye(16)})
    return layer


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_what_transformers_calls_by_its_name(name: str) -> None:
    x = torch.linspace(-8, 8, 16).unsqueeze(0)
    torch.testing.assert_close(feed_forward(name)(x), ACT2FN[name](x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_zeros_are_told_of_where_the_activation_leaves_any(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, **options: bool) -> Tensor:
        told.append(options["has_zeros"])
        return F.relu(x) if options["relu"] else x

    monkeypatch.setattr(ops, "linear", linear)
    feed_forward(name)(torch.linspace(-8, 8, 16).unsqueeze(0))
    assert told == [False, name == "relu"]
