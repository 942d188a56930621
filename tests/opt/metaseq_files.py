"""A model's weights as metaseq and EnergonAI lay them out: whole, in parts, in flat shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import OPTForCausalLM

from opt.checkpoint_files import State, canonical_state, fuse, metaseq_state, save_bins

Saved = dict[str, Any]

LAYER_ORDER = (
    "self_attn.qkv_proj.weight",
    "self_attn.qkv_proj.bias",
    "self_attn.out_proj.weight",
    "self_attn.out_proj.bias",
    "self_attn_layer_norm.weight",
    "self_attn_layer_norm.bias",
    "fc1.weight",
    "fc1.bias",
    "fc2.weight",
    "fc2.bias",
    "final_layer_norm.weight",
    "final_layer_norm.bias",
)
ROOT_ORDER = (
    "decoder.embed_tokens.weight",
    "decoder.project_in_dim.weight",
    "decoder.embed_positions.weight",
    "decoder.layer_norm.weight",
    "decoder.layer_norm.bias",
    "decoder.project_out_dim.weight",
)


def model_parallel(model: OPTForCausalLM, num_parts: int, *, noise: float = 0.0) -> list[State]:
    """Return the weights in parts, key, value and query of each part fused.

    Args:
        noise: how much what every part has a copy of differs in all parts but the first.
    """
    return [fuse(_part(metaseq_state(model), i, num_parts, noise)) for i in range(num_parts)]


def _part(state: State, i: int, num_parts: int, noise: float) -> State:
    part: State = {}
    for name, tensor in state.items():
        if any(word in name for word in ("embed_tokens", "fc1", "k_proj", "v_proj", "q_proj")):
            part[name] = tensor.chunk(num_parts, 0)[i].clone()
        elif name.endswith(("fc2.weight", "out_proj.weight")):
            part[name] = tensor.chunk(num_parts, 1)[i].clone()
        else:
            part[name] = tensor + noise * i
    return part


def fully_sharded(part: State, num_shards: int, *, described: bool = True) -> list[Saved]:
    """Return a part as FSDP saves it: flattened, cut into shards, the last of them padded.

    Args:
        described: with ``shard_metadata``.
    """
    buffers = [name for name in part if name == "decoder.version"]
    shards: list[Saved] = [
        {"model": {name: part[name] for name in buffers}, "cfg": {"lr": 1}}
        for _ in range(num_shards)
    ]
    modules: list[list[Saved]] = [[] for _ in range(num_shards)]
    for path, names in filter(itemgetter(1), _flattened(part)):
        whole = [part[f"{path}.{name}" if path else name] for name in names]
        flat = torch.cat([tensor.reshape(-1) for tensor in whole])
        size = math.ceil(len(flat) / num_shards)
        for i, shard in enumerate(shards):
            piece = flat[i * size : (i + 1) * size]
            padding = size - len(piece)
            key = f"{path}.flat_param_0" if path else "flat_param_0"
            shard["model"][key] = F.pad(piece, (0, padding)).clone()
            modules[i].append(_module(path, names, whole, padding))
    if described:
        for shard, metadata in zip(shards, modules, strict=True):
            shard["shard_metadata"] = {"param_metadata": metadata, "buffer_names": buffers}
    return shards


def _flattened(part: State) -> Iterator[tuple[str, list[str]]]:
    """Yield each wrapped module's path, and the names under it in the order of its parameters."""
    num_layers = 1 + max(int(name.split(".")[2]) for name in part if ".layers." in name)
    yield "", [name for name in ROOT_ORDER if name in part]
    for path in (f"decoder.layers.{i}" for i in range(num_layers)):
        yield path, [name for name in LAYER_ORDER if f"{path}.{name}" in part]


def _module(path: str, names: list[str], whole: list[Tensor], padding: int) -> Saved:
    flat = {
        "names": names,
        "shapes": [tensor.shape for tensor in whole],  # torch.Size, as fairscale has it
        "numels": [tensor.numel() for tensor in whole],
        "padding": padding,
    }
    shared = [("decoder.embed_tokens.weight", "decoder.output_projection.weight")]
    return {
        "fsdp_path": path,
        "params": {"flat_param_0": flat},
        "no_broadcast_optim_state": False,
        "shared_param_info": [] if path else shared,
    }


def save_parts(
    model: OPTForCausalLM, folder: Path, num_parts: int, *, wrapped: bool = True
) -> list[Path]:
    """Write ``reshard-model_part-{i}.pt``: under ``model`` as metaseq, or bare as EnergonAI."""
    files = []
    for i, part in enumerate(model_parallel(model, num_parts, noise=1e-9)):
        if not wrapped:  # views of one vector, as what unflattens a shard leaves them
            del part["decoder.version"]
            part = _views(part)
        torch.save(
            {"model": part, "cfg": {"lr": 1}} if wrapped else part,
            file := folder / f"reshard-model_part-{i}.pt",
        )
        files.append(file)
    return files


def _views(part: State) -> State:
    flat = torch.cat([tensor.reshape(-1) for tensor in part.values()])
    pieces = torch.split(flat, [tensor.numel() for tensor in part.values()])
    return {name: p.view(t.shape) for (name, t), p in zip(part.items(), pieces, strict=True)}


def save_shards(
    model: OPTForCausalLM, folder: Path, num_parts: int, num_shards: int, *, described: bool = True
) -> list[Path]:
    """Write ``checkpoint_last-model_part-{i}-shard{j}.pt``."""
    files = []
    for i, part in enumerate(model_parallel(model, num_parts)):
        for j, shard in enumerate(fully_sharded(part, num_shards, described=described)):
            file = folder / f"checkpoint_last-model_part-{i}-shard{j}.pt"
            torch.save(shard, file)
            files.append(file)
    return files


def save_fragments(model: OPTForCausalLM, folder: Path, num_fragments: int) -> None:
    """Write ``{n}-restored.pt``, as EnergonAI's script makes them of Hugging Face's files."""
    state: dict[str, Any] = {
        name.replace("decoder.final_layer_norm.", "decoder.layer_norm."): tensor
        for name, tensor in canonical_state(model).items()
    }
    state["head.dense.weight"] = model.lm_head.weight.detach()
    state["decoder.version"] = "0.0"
    size = math.ceil(len(state) / num_fragments)
    for i in range(num_fragments):
        names = list(state)[i * size : (i + 1) * size]
        torch.save({name: state[name] for name in names}, folder / f"{i + 1}-restored.pt")


Writer = Callable[[OPTForCausalLM, Path], object]


def _save_singleton(model: OPTForCausalLM, folder: Path) -> None:
    torch.save({"model": metaseq_state(model), "cfg": {"lr": 1}}, folder / "restored.pt")


LAYOUTS: Mapping[str, Writer] = MappingProxyType(
    {
        "safetensors": lambda model, folder: model.save_pretrained(folder),
        "safetensors-sharded": lambda m, folder: m.save_pretrained(folder, max_shard_size="40KB"),
        "bins": lambda model, folder: save_bins(model, folder, 3),
        "singleton": _save_singleton,
        **{f"parts-{n}": partial(save_parts, num_parts=n) for n in (1, 2, 4, 8)},
        "energonai-175b": lambda model, folder: save_parts(model, folder, 8, wrapped=False),
        "energonai-66b": lambda model, folder: save_fragments(model, folder, 7),
        "shards-1x1": lambda model, folder: save_shards(model, folder, 1, 1),
        "shards-2x3": lambda model, folder: save_shards(model, folder, 2, 3),
        "shards-1x12": lambda model, folder: save_shards(model, folder, 1, 12),
        "bare-shards-1x1": lambda m, folder: save_shards(m, folder, 1, 1, described=False),
        "bare-shards-2x3": lambda m, folder: save_shards(m, folder, 2, 3, described=False),
        "bare-shards-8x11": lambda m, folder: save_shards(m, folder, 8, 11, described=False),
    }
)
"""What writes each layout into a folder."""
