"""What a network is made of, by canonical name, whole and in parts; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TypeAlias

from pluribus_opt.checkpoint.names import flat_name, split_dim
from pluribus_opt.config import POSITION_OFFSET, OPTConfig

Shape: TypeAlias = tuple[int, ...]


def tensor_shapes(config: OPTConfig) -> dict[str, Shape]:
    """Return the shapes of all tensors of the whole network, in the order of its modules."""
    hidden, width = config.hidden_size, config.word_embed_proj_dim
    norm = _norm(config)
    shapes: dict[str, Shape] = {"decoder.embed_tokens.weight": (config.vocab_size, width)}
    if config.has_projections:
        shapes["decoder.project_in.weight"] = (hidden, width)
    num_positions = config.max_position_embeddings + POSITION_OFFSET
    shapes["decoder.embed_positions.weight"] = (num_positions, hidden)
    for index in range(config.num_hidden_layers):
        layer = _layer(config)
        shapes |= {f"decoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    if config.has_final_layer_norm:
        shapes |= {f"decoder.final_layer_norm.{name}": shape for name, shape in norm.items()}
    if config.has_projections:
        shapes["decoder.project_out.weight"] = (width, hidden)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def flat_layout(config: OPTConfig, num_parts: int) -> dict[str, dict[str, Shape]]:
    """Return what each flattened parameter of a model-parallel part holds, in order.

    This is how metaseq's FSDP lays parameters out: in the order of the modules, a layer in one
    vector and all that is in no layer in another.
    """
    layout: dict[str, dict[str, Shape]] = {}
    for name, shape in tensor_shapes(config).items():
        layout.setdefault(flat_name(name), {})[name] = part_shape(name, shape, num_parts)
    return layout


def part_shape(name: str, shape: Shape, num_parts: int) -> Shape:
    """Return the shape of a tensor in one of ``num_parts`` model-parallel parts."""
    dim = split_dim(name)
    return tuple(size // num_parts if i == dim else size for i, size in enumerate(shape))


def num_elements(shapes: Mapping[str, Shape]) -> int:
    """Return how many numbers there are in all."""
    return sum(map(prod, shapes.values()))


def _layer(config: OPTConfig) -> dict[str, Shape]:
    hidden, ffn = config.hidden_size, config.ffn_dim
    # As metaseq fuses them: all weights of key, value and query, then all biases.
    shapes: dict[str, Shape] = {
        f"self_attn.{projection}_proj.{kind}": shape
        for kind, shape in _linear(config, hidden, hidden).items()
        for projection in "kvq"
    }
    for name, tensors in (
        ("self_attn.out_proj", _linear(config, hidden, hidden)),
        ("self_attn_layer_norm", _norm(config)),
        ("fc1", _linear(config, ffn, hidden)),
        ("fc2", _linear(config, hidden, ffn)),
        ("final_layer_norm", _norm(config)),
    ):
        shapes |= {f"{name}.{kind}": shape for kind, shape in tensors.items()}
    return shapes


def _linear(config: OPTConfig, rows: int, columns: int) -> dict[str, Shape]:
    weight: dict[str, Shape] = {"weight": (rows, columns)}
    return weight | {"bias": (rows,)} if config.enable_bias else weight


def _norm(config: OPTConfig) -> dict[str, Shape]:
    if not config.layer_norm_elementwise_affine:
        return {}
    return {"weight": (config.hidden_size,), "bias": (config.hidden_size,)}
