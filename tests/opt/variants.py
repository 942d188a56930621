"""Tiny OPTs of every kind, in transformers with random weights: the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import OPTConfig as HuggingFaceConfig
from transformers import OPTForCausalLM

from pluribus_opt.config import OPTConfig

VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "pre-norm": {},
        "post-norm-with-projections": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        "post-norm": {"do_layer_norm_before": False},
        "pre-norm-with-projections": {"word_embed_proj_dim": 48},
        "no-final-norm": {"_remove_final_layer_norm": True},
        "no-bias": {"enable_bias": False},
        "plain-norms": {"layer_norm_elementwise_affine": False},
        "three-heads": {"hidden_size": 48, "num_attention_heads": 3},
        "head-dim-80": {"hidden_size": 160, "num_attention_heads": 2},
        "odd-vocabulary": {"vocab_size": 101},
        "gelu": {"activation_function": "gelu"},
        "untied-head": {"tie_word_embeddings": False},
        "untied-head-with-projections": {
            "tie_word_embeddings": False,
            "word_embed_proj_dim": 16,
            "vocab_size": 101,
        },
    }
)


def hugging_face(variant: str, vocab_size: int = 96) -> OPTForCausalLM:
    """Return transformers' network, every parameter of it random, biases and norms too."""
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "ffn_dim": 56,
        "max_position_embeddings": 40,
    }
    model = OPTForCausalLM(HuggingFaceConfig(**{**sizes, **VARIANTS[variant]}))
    model.train(False)
    generator = torch.Generator().manual_seed(len(variant))
    for name, parameter in model.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean, 0.2, generator)
    return model


def architecture(model: OPTForCausalLM) -> OPTConfig:
    """Return our reading of transformers' configuration."""
    return OPTConfig.from_json(model.config.to_dict(), "transformers")


def canonical(model: OPTForCausalLM) -> dict[str, Tensor]:
    """Return the weights by the names that parts use; a tied head is not among them."""
    tensors = {name.removeprefix("model."): t for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors
