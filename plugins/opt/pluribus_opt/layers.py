"""OPT's layers, each holding one rank's share, and the checkpoint tensors that fill them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus import ops
from pluribus.packed import packed
from pluribus.parallel.group import TensorParallel
from pluribus_opt.config import POSITION_OFFSET
from pluribus_opt.linear import Linear
from pluribus_opt.parts import Part
from pluribus_opt.quantizing import Scaled

EPSILON = 1e-5
"""Of every norm; no config.json says otherwise."""


class ColumnParallelLinear(Linear):
    """``y = x A^T + b`` with the rows of ``A``, the outputs, split over ranks."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tp: TensorParallel) -> None:
        super().__init__()
        self.start, end = tp.span(out_features)
        self.out_features = out_features
        self.weight = _empty(end - self.start, in_features)
        self.bias = _empty(end - self.start) if bias else None

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        return self.product(x, self.bias, relu=relu)

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield what fills this rank's share, from the tensors under ``prefix``."""
        total = self.out_features
        yield _rows(f"{prefix}weight", self.weight, self.start, total, self.scaled())
        if self.bias is not None:
            yield _rows(f"{prefix}bias", self.bias, self.start, total)


class QKVParallelLinear(Linear):
    """Query, key and value projections as one product, the heads split over ranks."""

    def __init__(self, hidden_size: int, num_heads: int, bias: bool, tp: TensorParallel) -> None:
        super().__init__()
        head_dim = hidden_size // num_heads
        start, end = tp.span(num_heads)
        shard = (end - start) * head_dim
        self.start = start * head_dim
        self.hidden_size = hidden_size
        self.weight = _empty(3 * shard, hidden_size)
        self.bias = _empty(3 * shard) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias)

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield the three projections under ``prefix``, each filling a third of the whole."""
        for number, projection in enumerate("qkv"):
            name = f"{prefix}{projection}_proj."
            for kind, fused in _weight_and_bias("", self.weight, self.bias):
                target = fused.chunk(3)[number]
                scaled = self.scaled(number, of=3) if kind == "weight" else None
                yield _rows(f"{name}{kind}", target, self.start, self.hidden_size, scaled)


class RowParallelLinear(Linear):
    """``y = x A^T + b`` with the columns of ``A``, the inputs, split over ranks.

    What a rank returns is its part of a sum over all of them. The inputs come in ``num_blocks``
    equal blocks, heads say, that are not split.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, tp: TensorParallel, num_blocks: int
    ) -> None:
        super().__init__(sharing=tp)
        self.tp = tp
        self.in_features = in_features
        self.start, self.end = (at * (in_features // num_blocks) for at in tp.span(num_blocks))
        self.weight = _empty(out_features, self.end - self.start)
        self.bias = _empty(out_features) if bias else None

    def forward(self, x: Tensor, *, has_zeros: bool = False) -> Tensor:
        # The sum over ranks must hold the bias once, so only the first rank adds it.
        return self.product(x, self.bias if self.tp.rank == 0 else None, has_zeros=has_zeros)

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield what fills this rank's share, from the tensors under ``prefix``."""
        rows = self.weight.shape[0]
        yield Part(
            name=f"{prefix}weight",
            shape=(rows, self.in_features),
            index=(slice(0, rows), slice(self.start, self.end)),
            target=self.weight,
            scaled=self.scaled(),
        )
        if self.bias is not None:
            yield _whole(f"{prefix}bias", self.bias)


class ReplicatedLinear(Linear):
    """``y = x A^T``, whole on every rank."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = _empty(out_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, None)

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield the weight under ``prefix``."""
        yield _whole(f"{prefix}weight", self.weight)


class VocabParallelEmbedding(nn.Module):
    """A table of tokens, its rows split over ranks: an embedding, a head, or both.

    Every rank has equally many rows; the last ranks' tails stay empty, and are never read,
    where the vocabulary does not divide.
    """

    def __init__(self, vocab_size: int, width: int, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.vocab_size = vocab_size
        shard = -(-vocab_size // tp.size)
        self.start = min(tp.rank * shard, vocab_size)
        self.end = min(self.start + shard, vocab_size)
        self.weight = _empty(shard, width)
        self.packed: Tensor | None = None

    def pack(self, *, is_looked_up: bool) -> None:
        """Store the table as ``logits`` wants it, beside the plain one if that is needed."""
        self.packed = packed(self.weight)
        if not is_looked_up:
            self.weight = nn.Parameter(self.packed, requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of ``tokens``."""
        if self.tp.size == 1:
            return F.embedding(tokens, self.weight)
        elsewhere = (tokens < self.start) | (tokens >= self.end)
        rows = (tokens - self.start).masked_fill(elsewhere, 0)
        mine = F.embedding(rows, self.weight).masked_fill(elsewhere.unsqueeze(-1), 0)
        return self.tp.all_reduce(mine)

    def logits(self, x: Tensor) -> Tensor:
        """Return how well each token of the vocabulary fits ``x``, whole on every rank."""
        table = self.weight if self.packed is None else self.packed
        return self.tp.all_gather(ops.linear(x, table, None))[..., : self.vocab_size]

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield this rank's rows of the weight under ``prefix``."""
        mine = self.weight[: self.end - self.start]
        if len(mine):
            yield _rows(f"{prefix}weight", mine, self.start, self.vocab_size)


class PositionEmbedding(nn.Module):
    """Learned positions, whole on every rank."""

    def __init__(self, num_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = _empty(num_positions + POSITION_OFFSET, hidden_size)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the embeddings of ``positions``; -1, which is padding, has a row as well."""
        return F.embedding(positions + POSITION_OFFSET, self.weight)

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield the weight under ``prefix``."""
        yield _whole(f"{prefix}weight", self.weight)


class LayerNorm(nn.Module):
    """Normalise over the last dimension, with statistics in float32 whatever the dtype."""

    def __init__(self, size: int, affine: bool, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.weight = _empty(size) if affine else None
        self.bias = _empty(size) if affine else None

    def forward(self, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``x`` plus the sum of every rank's ``delta``, and that normalised."""
        return self.tp.add_layer_norm(x, delta, self.weight, self.bias, EPSILON)

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield the scale and the shift under ``prefix``, if there are any."""
        for name, target in _weight_and_bias(prefix, self.weight, self.bias):
            yield _whole(name, target)


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)


def _weight_and_bias(
    prefix: str, weight: Tensor | None, bias: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            yield f"{prefix}{name}", tensor


def _rows(name: str, target: Tensor, start: int, total: int, scaled: Scaled | None = None) -> Part:
    """Return the part whose first dimension is ``target``'s rows, from ``start``, of ``total``."""
    rows, *rest = target.shape
    index = (slice(start, start + rows), *(slice(0, size) for size in rest))
    return Part(name=name, shape=(total, *rest), index=index, target=target, scaled=scaled)


def _whole(name: str, target: Tensor) -> Part:
    return _rows(name, target, 0, target.shape[0])
