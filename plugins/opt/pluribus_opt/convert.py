"""Write a checkpoint of any layout as a Hugging Face folder of sharded safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pluribus.errors import CheckpointError
from pluribus.interfaces.model import Progress
from pluribus.units import format_bytes
from pluribus_opt.checkpoint import Checkpoint, Source, manifest
from pluribus_opt.checkpoint.manifest import Manifest
from pluribus_opt.checkpoint.safetensors_file import Planned, bytes_of, header_of
from pluribus_opt.checkpoint.shapes import tensor_shapes
from pluribus_opt.checkpoint.source import TOKENIZER
from pluribus_opt.checkpoint.writing import HashedFile, replacing
from pluribus_opt.config import OPTConfig

Shards: TypeAlias = Mapping[str, Sequence[Planned]]
"""What each file is to hold, by its name."""

_RENAMED = {"eos_token_ids": "eos_token_id", "remove_final_layer_norm": "_remove_final_layer_norm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What to write, and where.

    Attributes:
        tokenizer_folder: of a tokenizer to take instead of the source's own; None for that.
        dtype: of the tensors written; None for that which each one has.
        max_shard_size: bytes of tensors that a file may hold; a larger tensor has one to itself.
    """

    source: Source
    architecture: OPTConfig
    tokenizer_folder: Path | None
    to: Path
    dtype: str | None
    max_shard_size: int

    @property
    def made_of(self) -> dict[str, Any]:
        """What decides the content, as JSON has it."""
        decisive = {
            "checkpoint": self.source.where,
            "fingerprint": self.source.fingerprint,
            "architecture": asdict(self.architecture),
            "dtype": self.dtype,
            "max_shard_size": self.max_shard_size,
        }
        made_of: dict[str, Any] = json.loads(json.dumps(decisive))
        return made_of

    @property
    def small_files(self) -> Mapping[str, Path]:
        """What goes along as it is, by name."""
        own = {file.name: file for file in self.source.description if file.name != "config.json"}
        if self.tokenizer_folder is None:
            return own
        kept = {name: file for name, file in own.items() if name not in TOKENIZER}
        other = {name: self.tokenizer_folder / name for name in TOKENIZER}
        return kept | {name: file for name, file in other.items() if file.is_file()}


def convert(conversion: Conversion, progress: Progress) -> None:
    """Write the checkpoint; a conversion that was cut short goes on where it was.

    Raises:
        ConfigError: the folder holds something else.
        CheckpointError: the checkpoint is not as it should be, or the folder cannot be written.
    """
    to, made_of = conversion.to, conversion.made_of
    try:
        manifest.find(to, made_of)  # refuses at once what would be refused after a download
        checkpoint = conversion.source.open(conversion.architecture)
        shards = _plan(conversion, checkpoint)
        with manifest.claimed(to, made_of) as claimed:
            _write_shards(claimed, shards, checkpoint, progress)
            _write_description(claimed, shards, conversion)
            claimed.finish()
    except OSError as error:
        raise CheckpointError(
            f"to={to} cannot be written: {error}. Once that is put right, the same command goes "
            "on where this one ended"
        ) from error


def _plan(conversion: Conversion, checkpoint: Checkpoint) -> Shards:
    expected = tensor_shapes(conversion.architecture)
    checkpoint.check(expected)
    dtypes = {name: conversion.dtype or checkpoint.tensors[name].dtype for name in expected}
    tensors = [Planned(name, shape, dtypes[name]) for name, shape in expected.items()]
    return _shards(tensors, conversion.max_shard_size)


def _shards(tensors: Sequence[Planned], max_size: int) -> Shards:
    """Share tensors out over files, in order, and name the files as Hugging Face does."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > max_size:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    for shard in shards:
        shard.sort(key=lambda tensor: -getattr(torch, tensor.dtype).itemsize)  # for alignment
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    count = len(shards)
    return {f"model-{i:05}-of-{count:05}.safetensors": s for i, s in enumerate(shards, start=1)}


def _num_bytes(shard: Sequence[Planned]) -> int:
    return sum(tensor.num_bytes for tensor in shard)


def _write_shards(
    claimed: Manifest, shards: Shards, checkpoint: Checkpoint, progress: Progress
) -> None:
    left = {name: shard for name, shard in shards.items() if not claimed.holds(name)}
    total, num_left = (sum(map(_num_bytes, some.values())) for some in (shards, left))
    _check_room(claimed.folder, num_left)
    done = total - num_left
    progress(done, total)
    for name, shard in left.items():
        with replacing(claimed.folder / name) as out:
            out.write(header_of(shard))
            for tensor in shard:
                _write_tensor(out, checkpoint, tensor)
                done += tensor.num_bytes
                progress(done, total)
        claimed.add(name, out.record)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"to={folder} has room for {format_bytes(free)}, but {format_bytes(needed)} are to be "
            "written: make room, or choose another disk or a smaller dtype"
        )


def _write_tensor(out: HashedFile, checkpoint: Checkpoint, tensor: Planned) -> None:
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    for chunk in checkpoint.chunks(tensor.name):
        numbers = chunk.to(dtype)
        if dtype != chunk.dtype and not _is_finite(numbers) and _is_finite(chunk):
            raise CheckpointError(
                f"{tensor.name} holds numbers beyond {tensor.dtype}'s range: choose "
                "dtype=bfloat16 or dtype=float32"
            )
        out.write(bytes_of(numbers))


def _is_finite(numbers: Tensor) -> bool:
    return bool(numbers.isfinite().all())


def _write_description(claimed: Manifest, shards: Shards, conversion: Conversion) -> None:
    """Write the small files, without which the folder is no model."""
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(_num_bytes, shards.values()))},
            "weight_map": {t.stored_name: name for name, shard in shards.items() for t in shard},
        }
        _write_json(claimed, "model.safetensors.index.json", index)
    for name, file in conversion.small_files.items():
        _write(claimed, name, file.read_bytes())
    dtype = next(iter(shards.values()))[0].dtype
    _write_json(claimed, "config.json", _hugging_face_config(conversion, dtype))


def _hugging_face_config(conversion: Conversion, dtype: str) -> dict[str, Any]:
    config = conversion.source.config
    if config is None:
        settings = asdict(conversion.architecture)
        config = {"architectures": ["OPTForCausalLM"], "model_type": "opt"}
        config |= {_RENAMED.get(name, name): value for name, value in settings.items()}
        config["eos_token_id"] = _one_or_all(conversion.architecture.eos_token_ids)
    return {**{key: value for key, value in config.items() if key != "torch_dtype"}, "dtype": dtype}


def _one_or_all(ids: Sequence[int]) -> int | list[int] | None:
    return ids[0] if len(ids) == 1 else (list(ids) or None)


def _write_json(claimed: Manifest, name: str, content: object) -> None:
    _write(claimed, name, json.dumps(content, indent=2).encode() + b"\n")


def _write(claimed: Manifest, name: str, content: bytes) -> None:
    with replacing(claimed.folder / name) as out:
        out.write(content)
    claimed.add(name, out.record)
