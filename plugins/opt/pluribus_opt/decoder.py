"""The OPT decoder: one rank's share of it, run a step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.interfaces import KVStore, Place
from pluribus.parallel.group import TensorParallel
from pluribus_opt.config import ACTIVATIONS, OPTConfig
from pluribus_opt.layers import (
    ColumnParallelLinear,
    LayerNorm,
    PositionEmbedding,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pluribus_opt.linear import Linear, quantize, share_scratch
from pluribus_opt.parts import Part
from pluribus_opt.quantizing import Quantizer


class OPTAttention(nn.Module):
    """Self-attention over what the KV store holds."""

    def __init__(self, config: OPTConfig, tp: TensorParallel) -> None:
        super().__init__()
        hidden_size, bias = config.hidden_size, config.enable_bias
        self.head_dim = config.head_dim
        self.qkv_proj = QKVParallelLinear(hidden_size, config.num_attention_heads, bias, tp)
        num_heads = config.num_attention_heads
        self.out_proj = RowParallelLinear(hidden_size, hidden_size, bias, tp, num_heads)

    def forward(self, x: Tensor, kv: KVStore, layer: int, wanted: Tensor | None) -> Tensor:
        qkv: Tensor = self.qkv_proj(x).view(len(x), 3, -1, self.head_dim)
        attended = kv.attend(layer, *qkv.unbind(1))
        output: Tensor = self.out_proj(_select(attended.flatten(1), wanted))
        return output

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield the parts of all four projections."""
        yield from self.qkv_proj.parts(prefix)
        yield from self.out_proj.parts(f"{prefix}out_proj.")


class OPTFeedForward(nn.Module):
    """Two linears with the activation between them."""

    def __init__(self, config: OPTConfig, tp: TensorParallel) -> None:
        super().__init__()
        hidden_size, ffn_dim, bias = config.hidden_size, config.ffn_dim, config.enable_bias
        self.fc1 = ColumnParallelLinear(hidden_size, ffn_dim, bias, tp)
        self.has_relu = config.activation_function == "relu"
        self.activation = _activation(config.activation_function)
        self.fc2 = RowParallelLinear(ffn_dim, hidden_size, bias, tp, ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.fc1(x, relu=True) if self.has_relu else self.activation(self.fc1(x))
        output: Tensor = self.fc2(inner, has_zeros=self.has_relu)
        return output

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield the parts of both linears."""
        yield from self.fc1.parts(f"{prefix}fc1.")
        yield from self.fc2.parts(f"{prefix}fc2.")


class OPTLayer(nn.Module):
    """Attention and feed-forward, each a residual with its norm before or after."""

    def __init__(self, config: OPTConfig, tp: TensorParallel) -> None:
        super().__init__()
        self.norm_first = config.do_layer_norm_before
        self.attention = OPTAttention(config, tp)
        self.attention_norm = _norm(config, tp)
        self.feed_forward = OPTFeedForward(config, tp)
        self.feed_forward_norm = _norm(config, tp)

    def forward(
        self, x: Tensor, delta: Tensor | None, kv: KVStore, layer: int, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Take a sum, ``x`` and every rank's ``delta``, and return one, of the wanted rows.

        What adds it up, over ranks and to the residual, normalises as well.

        Args:
            x, delta: [num_tokens, hidden_size].
            kv, wanted: see ``pluribus.interfaces.Network``.
            layer: this one's number among the rank's.
        """
        if self.norm_first:
            x, normed = self.attention_norm(x, delta)
            attended = self.attention(normed, kv, layer, wanted)
            x, normed = self.feed_forward_norm(_select(x, wanted), attended)
            return x, self.feed_forward(normed)
        attended = self.attention(x, kv, layer, wanted)
        _, x = self.attention_norm(_select(x, wanted), attended)
        _, x = self.feed_forward_norm(x, self.feed_forward(x))
        return x, None

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield the parts of everything in the layer."""
        yield from self.attention.parts(f"{prefix}self_attn.")
        yield from self.attention_norm.parts(f"{prefix}self_attn_layer_norm.")
        yield from self.feed_forward.parts(prefix)
        # Not the decoder's last norm, which has the same name one level up.
        yield from self.feed_forward_norm.parts(f"{prefix}final_layer_norm.")


class OPTEmbedding(nn.Module):
    """From token ids and positions to what the first layer takes."""

    def __init__(self, config: OPTConfig, tp: TensorParallel) -> None:
        super().__init__()
        width, hidden_size = config.word_embed_proj_dim, config.hidden_size
        self.tokens = VocabParallelEmbedding(config.vocab_size, width, tp)
        self.positions = PositionEmbedding(config.max_position_embeddings, hidden_size)
        self.project_in = ReplicatedLinear(width, hidden_size) if config.has_projections else None

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.tokens(tokens)
        if self.project_in is not None:
            x = self.project_in(x)
        embedded: Tensor = x + self.positions(positions)
        return embedded

    def parts(self) -> Iterator[Part]:
        """Yield the parts of both tables and of what lies between them."""
        yield from self.tokens.parts("decoder.embed_tokens.")
        yield from self.positions.parts("decoder.embed_positions.")
        if self.project_in is not None:
            yield from self.project_in.parts("decoder.project_in.")


class OPTHead(nn.Module):
    """From what the last layer returns to logits.

    Args:
        config: the architecture.
        tp: who shares the head.
        tied: the table that it shares with this rank's embedding; None where it has its own,
            untied or because the embedding is on another stage.
    """

    def __init__(
        self, config: OPTConfig, tp: TensorParallel, tied: VocabParallelEmbedding | None
    ) -> None:
        super().__init__()
        width, hidden_size = config.word_embed_proj_dim, config.hidden_size
        self.final_layer_norm = _norm(config, tp) if config.has_final_layer_norm else None
        self.project_out = ReplicatedLinear(hidden_size, width) if config.has_projections else None
        self.tokens = tied or VocabParallelEmbedding(config.vocab_size, width, tp)
        stored = "decoder.embed_tokens." if config.tie_word_embeddings else "lm_head."
        self._stored = None if tied else stored

    def pack(self) -> None:
        """Store the table as products want it; see ``OPTDecoder.pack``."""
        self.tokens.pack(is_looked_up=self._stored is None)

    def forward(self, x: Tensor) -> Tensor:
        if self.final_layer_norm is not None:
            _, x = self.final_layer_norm(x)
        if self.project_out is not None:
            x = self.project_out(x)
        return self.tokens.logits(x)

    def parts(self) -> Iterator[Part]:
        """Yield the parts of what is its own."""
        if self.final_layer_norm is not None:
            yield from self.final_layer_norm.parts("decoder.final_layer_norm.")
        if self.project_out is not None:
            yield from self.project_out.parts("decoder.project_out.")
        if self._stored is not None:
            yield from self.tokens.parts(self._stored)


class OPTDecoder(nn.Module):
    """One rank's share of the network, from token ids to logits."""

    def __init__(self, config: OPTConfig, place: Place) -> None:
        super().__init__()
        share, tp = place.share, place.tensor
        self.tp = tp
        self.first_layer = share.layers.start
        self.embedding = OPTEmbedding(config, tp) if share.is_first else None
        self.layers = nn.ModuleList(OPTLayer(config, tp) for _ in share.layers)
        tied = self.embedding.tokens if self.embedding and config.tie_word_embeddings else None
        self.head = OPTHead(config, tp, tied) if share.is_last else None

    @classmethod
    def empty(
        cls,
        config: OPTConfig,
        place: Place,
        device: torch.device,
        dtype: torch.dtype,
        quantizer: Quantizer | None = None,
    ) -> OPTDecoder:
        """Return a decoder whose weights are allocated but hold nothing yet; see ``parts``.

        With a quantizer, it makes the weights of the layers' linears; no others.
        """
        with torch.device("meta"):
            decoder = cls(config, place)
        decoder.to(dtype)
        if quantizer is not None:
            quantize(decoder.layers, quantizer)
        for module in decoder.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, _allocated(weight, device))
        return decoder

    def pack(self) -> None:
        """Store weights as this device multiplies with them fastest, once they are all read.

        A head that is tied to the embedding takes a second copy of the table.
        """
        for module in self.modules():
            if isinstance(module, Linear | OPTHead):
                module.pack()
        share_scratch(self.layers)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return what the first layer takes; see pluribus.interfaces.Network."""
        assert self.embedding is not None, "only the first stage embeds"
        x: Tensor = self.embedding(tokens, positions)
        return x

    def forward(self, x: Tensor, kv: KVStore, wanted: Tensor | None = None) -> Tensor:
        """Run this rank's layers; see pluribus.interfaces.Network."""
        delta: Tensor | None = None
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x, delta = layer(x, delta, kv, index, wanted if index == last else None)
        return x if delta is None else x + self.tp.all_reduce(delta)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of some rows of what the last layer returned, whole on every rank."""
        assert self.head is not None, "only the last stage has the head"
        logits: Tensor = self.head(x)
        return logits

    def parts(self) -> Iterator[Part]:
        """Yield every piece of the checkpoint that this rank holds, under its canonical name."""
        if self.embedding is not None:
            yield from self.embedding.parts()
        layers = cast(Iterable[OPTLayer], self.layers)
        for index, layer in enumerate(layers, start=self.first_layer):
            yield from layer.parts(f"decoder.layers.{index}.")
        if self.head is not None:
            yield from self.head.parts()


def _select(x: Tensor, wanted: Tensor | None) -> Tensor:
    return x if wanted is None else x.index_select(0, wanted)


def _allocated(weight: nn.Parameter, device: torch.device) -> nn.Parameter:
    # Not with empty_like or to_empty: of what lies nowhere, they import a compiler for a second.
    there = torch.empty(weight.shape, dtype=weight.dtype, device=device)
    return nn.Parameter(there, requires_grad=False)


def _norm(config: OPTConfig, tp: TensorParallel) -> LayerNorm:
    return LayerNorm(config.hidden_size, config.layer_norm_elementwise_affine, tp)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    function, settings = ACTIVATIONS[name]
    return partial(getattr(F, function), **settings)
