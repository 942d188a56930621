"""From what files hold to canonical tensors, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.files import Entries, open_weights
from pluribus_opt.checkpoint.names import IGNORED, canonical, is_flat, is_fused, split_fused
from pluribus_opt.checkpoint.reader import Checkpoint, StoredTensor

_ELSEWHERE = (
    "Set model.checkpoint to the Hugging Face release of the model, or to a restored.pt of "
    "metaseq's convert_to_singleton."
)


def open_checkpoint(path: Path, where: str) -> Checkpoint:
    """Map the weights at ``path`` and name their tensors; nothing is read yet."""
    opened = open_weights(path)
    _refuse_shards(opened)
    stored: dict[str, StoredTensor] = {}
    for file, entries in opened.items():
        for name, tensor in _canonical_tensors(file, entries):
            if name in stored:
                raise CheckpointError(
                    f"{name} is there twice: in {stored[name].file} and in {file}"
                )
            stored[name] = StoredTensor(file, tensor)
    return Checkpoint(where, stored)


def _refuse_shards(opened: Mapping[Path, Entries]) -> None:
    fused = []
    for file, entries in opened.items():
        names = list(map(str, entries))
        if flat := next(filter(is_flat, names), None):
            raise CheckpointError(
                f"{file} is one FSDP shard of a metaseq checkpoint (it holds {flat}), which "
                f"cannot be read. {_ELSEWHERE}"
            )
        if any(map(is_fused, names)):
            fused.append(file.name)
    if len(fused) > 1:
        raise CheckpointError(
            f"{', '.join(fused)} are {len(fused)} model-parallel parts of a metaseq "
            f"checkpoint; only a single part can be read. {_ELSEWHERE}"
        )


def _canonical_tensors(file: Path, entries: Entries) -> Iterator[tuple[str, Tensor]]:
    for stored_name, tensor in entries.items():
        name = canonical(str(stored_name))
        if name in IGNORED:
            continue
        if not isinstance(tensor, Tensor):
            kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
            raise CheckpointError(f"{file}: {stored_name} is a {kind}, not a tensor")
        if not is_fused(name):
            yield name, tensor
        elif tensor.shape[:1].numel() % 3 == 0:
            yield from zip(split_fused(name), tensor.tensor_split(3), strict=True)
        else:
            raise CheckpointError(
                f"{file}: {stored_name} {list(tensor.shape)} does not divide into key, value, query"
            )
