"""The OPT decoder: one rank's share of it, run a step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.interfaces import KVStore
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
from pluribus_opt.parts import Part


class OPTAttention(nn.Module):
    """Self-attention over what the KV store holds."""

    def __init__(self, config: OPTConfig, tp: TensorParallel) -> None:
        super().__init__()
        hidden_size, bias = config.hidden_size, config.enable_bias
        self.head_dim = config.head_dim
        self.qkv_proj = QKVParallelLinear(hidden_size, config.num_attention_heads, bias, tp)
        num_heads = config.num_attention_heads
        self.out_proj = RowParallelLinear(hidden_size, hidden_size, bias, tp, num_heads)

    def forward(self, x: Tensor, kv: KVStore, layer: int) -> Tensor:
        qkv: Tensor = self.qkv_proj(x).unflatten(-1, (3, -1, self.head_dim))
        query, key, value = qkv.unbind(1)
        attended = kv.attend(layer, query * self.head_dim**-0.5, key, value)
        output: Tensor = self.out_proj(attended.flatten(1))
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
        self.activation = _activation(config.activation_function)
        self.fc2 = RowParallelLinear(ffn_dim, hidden_size, bias, tp, ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.activation(self.fc1(x)))
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
        self.attention_norm = _norm(config)
        self.feed_forward = OPTFeedForward(config, tp)
        self.feed_forward_norm = _norm(config)

    def forward(self, x: Tensor, kv: KVStore, layer: int) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), kv, layer)
            x = x + self.feed_forward(self.feed_forward_norm(x))
        else:
            x = self.attention_norm(x + self.attention(x, kv, layer))
            x = self.feed_forward_norm(x + self.feed_forward(x))
        return x

    def parts(self, prefix: str) -> Iterator[Part]:
        """Yield the parts of everything in the layer."""
        yield from self.attention.parts(f"{prefix}self_attn.")
        yield from self.attention_norm.parts(f"{prefix}self_attn_layer_norm.")
        yield from self.feed_forward.parts(prefix)
        # Not the decoder's last norm, which has the same name one level up.
        yield from self.feed_forward_norm.parts(f"{prefix}final_layer_norm.")


class OPTDecoder(nn.Module):
    """One rank's share of the network, from token ids to logits."""

    def __init__(self, config: OPTConfig, tp: TensorParallel) -> None:
        super().__init__()
        width, hidden_size = config.word_embed_proj_dim, config.hidden_size
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, width, tp)
        self.embed_positions = PositionEmbedding(config.max_position_embeddings, hidden_size)
        self.project_in = ReplicatedLinear(width, hidden_size) if config.has_projections else None
        self.layers = nn.ModuleList(OPTLayer(config, tp) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = _norm(config) if config.has_final_layer_norm else None
        self.project_out = ReplicatedLinear(hidden_size, width) if config.has_projections else None
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else VocabParallelEmbedding(config.vocab_size, width, tp)
        )

    @classmethod
    def empty(
        cls, config: OPTConfig, tp: TensorParallel, device: torch.device, dtype: torch.dtype
    ) -> OPTDecoder:
        """Return a decoder whose weights are allocated but hold nothing yet; see ``parts``."""
        with torch.device("meta"):
            decoder = cls(config, tp)
        return decoder.to(dtype).to_empty(device=device)

    def forward(self, tokens: Tensor, positions: Tensor, kv: KVStore, wanted: Tensor) -> Tensor:
        """Run one step; return what ``logits`` takes. See pluribus.interfaces.Network."""
        x: Tensor = self.embed_tokens(tokens)
        if self.project_in is not None:
            x = self.project_in(x)
        x = x + self.embed_positions(positions)
        for index, layer in enumerate(self.layers):
            x = layer(x, kv, index)
        return x[wanted]

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of some rows of what a step returned, whole on every rank."""
        if self.final_layer_norm is not None:
            x = self.final_layer_norm(x)
        if self.project_out is not None:
            x = self.project_out(x)
        head = self.lm_head or self.embed_tokens
        return head.logits(x)

    def parts(self) -> Iterator[Part]:
        """Yield every piece of the checkpoint that this rank holds, under its canonical name."""
        yield from self.embed_tokens.parts("decoder.embed_tokens.")
        yield from self.embed_positions.parts("decoder.embed_positions.")
        if self.project_in is not None:
            yield from self.project_in.parts("decoder.project_in.")
        for index, layer in enumerate(cast(Iterable[OPTLayer], self.layers)):
            yield from layer.parts(f"decoder.layers.{index}.")
        if self.final_layer_norm is not None:
            yield from self.final_layer_norm.parts("decoder.final_layer_norm.")
        if self.project_out is not None:
            yield from self.project_out.parts("decoder.project_out.")
        if self.lm_head is not None:
            yield from self.lm_head.parts("lm_head.")


def _norm(config: OPTConfig) -> LayerNorm:
    return LayerNorm(config.hidden_size, config.layer_norm_elementwise_affine)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    function, settings = ACTIVATIONS[name]
    return partial(getattr(F, function), **settings)
