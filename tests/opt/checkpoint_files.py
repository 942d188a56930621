"""Tiny OPTs with random weights, and their checkpoints in every layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from pluribus_opt.checkpoint import Checkpoint, resolve
from pluribus_opt.parts import Part

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "ffn_dim": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 32,
}
POST_NORM = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}

NOT_SERVED = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
    torch.complex64,
    torch.int8,
    torch.int64,
    torch.uint16,
    torch.bool,
)
"""Dtypes that files can hold and weights cannot be of."""

State = dict[str, Tensor]


def tiny_opt(**changes: object) -> OPTForCausalLM:
    """Make an OPT whose every weight is random, biases and norms included."""
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(**{**TINY, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def canonical_state(model: OPTForCausalLM) -> State:
    """Return the weights by canonical name, less the head where it is tied."""
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def metaseq_state(model: OPTForCausalLM) -> State:
    """Return the weights as metaseq's singletons name them."""
    renamed = {
        "decoder.final_layer_norm.": "decoder.layer_norm.",
        "decoder.project_in.": "decoder.project_in_dim.",
        "decoder.project_out.": "decoder.project_out_dim.",
    }
    state: State = {"decoder.version": torch.tensor([3.0])}
    for name, tensor in canonical_state(model).items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs) if name.startswith(ours) else name
        state[name] = tensor
    return state


def fuse(state: Mapping[str, Tensor]) -> State:
    """Fuse keys, values and queries, in this order, as metaseq's consolidated parts do."""
    fused = {name: t for name, t in state.items() if not _is_projection(name)}
    for name in state:
        if ".k_proj." in name:
            rows = [state[name.replace(".k_proj.", f".{one}_proj.")] for one in "kvq"]
            fused[name.replace(".k_proj.", ".qkv_proj.")] = torch.cat(rows)
    return fused


def _is_projection(name: str) -> bool:
    return any(f".{one}_proj." in name for one in "kvq")


def save_bins(model: OPTForCausalLM, folder: Path, num_shards: int, *, index: bool = True) -> None:
    """Write ``pytorch_model-0000i-of-0000n.bin``, dealing out the tensors in turn."""
    folder.mkdir(exist_ok=True)
    state = model.state_dict()
    weight_map: dict[str, str] = {}
    for i in range(num_shards):
        name = f"pytorch_model-{i + 1:05}-of-{num_shards:05}.bin"
        shard = dict(list(state.items())[i::num_shards])
        torch.save(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    if index:
        write_index(folder / "pytorch_model.bin.index.json", weight_map)


def write_index(file: Path, weight_map: Mapping[str, str]) -> None:
    """Write an index of shards."""
    file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def parts_for(state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> list[Part]:
    """Return parts that ask for the whole of each tensor."""
    return [
        Part(name, tuple(t.shape), (slice(None),) * t.dim(), torch.empty(t.shape, dtype=dtype))
        for name, t in state.items()
    ]


def open_at(path: Path) -> Checkpoint:
    """Open the checkpoint at a path."""
    return resolve(str(path)).open()


def assert_loads(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint fills parts with exactly these tensors."""
    parts = parts_for(expected)
    open_at(path).read_into(parts, lambda done, total: None)
    for part in parts:
        assert torch.equal(part.target, expected[part.name].float()), part.name
