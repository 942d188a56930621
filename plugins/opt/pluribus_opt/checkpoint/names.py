"""What tensors are called in each layout, and what Pluribus calls them."""

from __future__ import annotations

import re

RENAMED = {
    "decoder.layer_norm.": "decoder.final_layer_norm.",
    "decoder.project_in_dim.": "decoder.project_in.",
    "decoder.project_out_dim.": "decoder.project_out.",
    "head.dense.": "lm_head.",
}
"""Prefixes of metaseq's and EnergonAI's names, and Hugging Face's for the same tensors."""

IGNORED = frozenset({"decoder.version", "decoder.output_projection.weight"})
"""Bookkeeping, and a second copy of the tied head."""

HEAD = "lm_head.weight"
"""Written by some tools even where it is a copy of the embedding."""

_LAYER = re.compile(r"decoder\.layers\.\d+\.")
_SPLIT_BY_ROW = re.compile(
    r"(decoder\.embed_tokens|lm_head|.*\.self_attn\.[kvq]_proj|.*\.fc1)\.(weight|bias)"
)
_SPLIT_BY_COLUMN = re.compile(r".*\.(self_attn\.out_proj|fc2)\.weight")


def canonical(stored: str) -> str:
    """Return a tensor's canonical name: Hugging Face's less ``model.``."""
    name = stored.removeprefix("model.") if stored.startswith("model.decoder.") else stored
    for theirs, ours in RENAMED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def is_opt(stored: str) -> bool:
    """Whether a tensor of this name can belong to an OPT checkpoint of any layout."""
    return canonical(stored).startswith("decoder.") or is_flat(stored)


def is_flat(stored: str) -> bool:
    """Whether the tensor is many parameters in one, as metaseq's FSDP shards hold them."""
    return stored.rpartition(".")[2].startswith("flat_param")


def flat_name(name: str) -> str:
    """Return the flattened parameter that metaseq puts a tensor into."""
    layer = _LAYER.match(name)
    return f"{layer[0] if layer else ''}flat_param_0"


def is_fused(stored: str) -> bool:
    """Whether the tensor is metaseq's key, value and query projections in one."""
    return ".qkv_proj." in stored


def split_fused(name: str) -> tuple[str, str, str]:
    """Return the names of the thirds of a fused projection, in the order of its rows."""
    key, value, query = (name.replace(".qkv_proj.", f".{one}_proj.") for one in "kvq")
    return key, value, query


def split_dim(name: str) -> int | None:
    """Return the dimension that model-parallel parts share out; None where each has it all."""
    if _SPLIT_BY_ROW.fullmatch(name):
        return 0
    return 1 if _SPLIT_BY_COLUMN.fullmatch(name) else None
