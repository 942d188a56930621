"""From what files hold to canonical tensors, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint import fsdp
from pluribus_opt.checkpoint.files import open_weights
from pluribus_opt.checkpoint.names import IGNORED, canonical, is_flat, is_fused, split_fused
from pluribus_opt.checkpoint.opened import Opened
from pluribus_opt.checkpoint.parts import Share, combine
from pluribus_opt.checkpoint.reader import Checkpoint
from pluribus_opt.checkpoint.shapes import tensor_shapes
from pluribus_opt.checkpoint.stored import StoredTensor
from pluribus_opt.config import OPTConfig


def open_checkpoint(path: Path, where: str, architecture: OPTConfig | None = None) -> Checkpoint:
    """Map the weights at ``path`` and name their tensors; hardly anything is read yet.

    Args:
        path: a file, or a folder.
        where: names the checkpoint in messages.
        architecture: what to expect; flattened shards may need it to be understood.
    """
    opened = open_weights(path)
    is_flattened = any(is_flat(str(name)) for one in opened.values() for name in one.entries)
    held = (
        fsdp.restore(opened, architecture)
        if is_flattened
        else {file: one.entries for file, one in opened.items()}
    )
    shares = [_share(file, entries) for file, entries in held.items()]
    return Checkpoint(
        where=where,
        layout=_describe(opened, num_parts=shares[0].num_parts, is_flattened=is_flattened),
        stored=combine(shares),
        expected=None if architecture is None else tensor_shapes(architecture),
    )


def _share(file: Path, entries: Mapping[str, object]) -> Share:
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _canonical_tensors(file, entries):
        if name in tensors:
            raise CheckpointError(f"{name} is there twice, under two names in {file}")
        tensors[name] = tensor
    return Share(file, tensors)


def _canonical_tensors(
    file: Path, entries: Mapping[str, object]
) -> Iterator[tuple[str, StoredTensor]]:
    for stored_name, entry in entries.items():
        name = canonical(str(stored_name))
        if name in IGNORED:
            continue
        tensor = StoredTensor.in_one(file, entry) if isinstance(entry, Tensor) else entry
        if not isinstance(tensor, StoredTensor):
            kind = f"{type(entry).__module__}.{type(entry).__qualname__}"
            raise CheckpointError(f"{file}: {stored_name} is a {kind}, not a tensor")
        if not is_fused(name):
            yield name, tensor
        elif tensor.shape and tensor.shape[0] % 3 == 0:
            third = tensor.shape[0] // 3
            for i, one in enumerate(split_fused(name)):
                yield one, tensor.rows(i * third, (i + 1) * third)
        else:
            raise CheckpointError(
                f"{file}: {stored_name} {list(tensor.shape)} does not divide into key, value, query"
            )


def _describe(opened: Mapping[Path, Opened], *, num_parts: int, is_flattened: bool) -> str:
    """Return for people what the files are."""
    first, num_files = next(iter(opened.values())), len(opened)
    files = "1 file" if num_files == 1 else f"{num_files} files"
    if is_flattened:
        described = "with" if first.shard_metadata is not None else "without"
        return f"metaseq's FSDP shards {described} shard_metadata, {num_parts} part(s) in {files}"
    if num_parts > 1:
        writer = "metaseq's" if first.is_wrapped else "EnergonAI's unwrapped"
        return f"{writer} model-parallel parts, {files}"
    if not first.is_pickle:
        return f"Hugging Face safetensors, {files}"
    names = {str(name) for one in opened.values() for name in one.entries}
    if "head.dense.weight" in names:
        return f"EnergonAI's fragments, {files}"
    if first.is_wrapped or any(name.startswith("decoder.layer_norm.") for name in names):
        return f"metaseq's singleton, {files}"
    return f"Hugging Face .bin, {files}"
