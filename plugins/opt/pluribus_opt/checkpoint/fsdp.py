"""FSDP's shards: parameters flattened into vectors, each cut into equal pieces over files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.names import is_flat
from pluribus_opt.checkpoint.numbering import PART, SHARD, in_order, missing, number_of
from pluribus_opt.checkpoint.opened import Opened
from pluribus_opt.checkpoint.parts import Share, check_alike, check_different
from pluribus_opt.checkpoint.shapes import Shape, flat_layout, num_elements
from pluribus_opt.checkpoint.shard_metadata import Flat, read_metadata
from pluribus_opt.checkpoint.stored import StoredTensor, join, unflatten
from pluribus_opt.config import OPTConfig

Layout: TypeAlias = Mapping[str, Mapping[str, Shape]]
"""What each flattened parameter holds, in order: shapes by name."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file's pieces of the flattened parameters.

    Attributes:
        others: what the file holds that is not flattened.
        metadata: what the file says of its pieces; None where it says nothing.
    """

    file: Path
    pieces: Mapping[str, Tensor]
    others: Mapping[str, object]
    metadata: Mapping[str, Flat] | None


def restore(
    opened: Mapping[Path, Opened], architecture: OPTConfig | None
) -> Mapping[Path, Mapping[str, object]]:
    """Return, by the first file of each model-parallel part, what its flattened vectors hold.

    Raises:
        CheckpointError: shards are missing or do not belong together; or neither they nor the
            architecture, where it is known, say what they hold.
    """
    parts: dict[int | None, list[Path]] = {}
    for file in opened:
        parts.setdefault(number_of(file, PART), []).append(file)
    if None in parts and len(parts) > 1:
        raise CheckpointError(
            f"{parts[None][0]}: its name does not say which model-parallel part it is of, as "
            "those of other files in its folder do: they are not one checkpoint"
        )
    ordered = [in_order(files, SHARD) for files in parts.values()]
    most = max(map(len, ordered))
    for files in ordered:
        _check_present(files, max(most, 1 + (number_of(files[-1], SHARD) or 0)))
    return {
        files[0]: _restore([_shard(file, opened[file]) for file in files], architecture, len(parts))
        for files in ordered
    }


def _shard(file: Path, opened: Opened) -> Shard:
    pieces: dict[str, Tensor] = {}
    others: dict[str, object] = {}
    for name, entry in opened.entries.items():
        if not is_flat(str(name)):
            others[name] = entry
        elif isinstance(entry, Tensor) and entry.dim() == 1:
            pieces[name] = entry
        else:
            raise CheckpointError(f"{file}: {name} is not a vector of flattened parameters")
    if not pieces:
        raise CheckpointError(
            f"{file} holds no flattened parameters, as other files in its folder do: they are "
            "not one checkpoint"
        )
    return Shard(file, pieces, others, read_metadata(file, opened.shard_metadata))


def _check_present(files: Sequence[Path], count: int) -> None:
    if absent := missing(files, SHARD, count):
        raise CheckpointError(
            f"{files[0].parent} has {len(files)} of the {count} shards that {files[0].name} is "
            f"one of; missing: {absent}"
        )


def _restore(
    shards: Sequence[Shard], architecture: OPTConfig | None, num_parts: int
) -> Mapping[str, object]:
    _check_described_alike(shards)
    pieces = [_pieces(shard) for shard in shards]
    check_alike(pieces)
    check_different(pieces, shards[0].pieces)
    restored = dict(shards[0].others)
    for flat, shapes in _layout(shards, architecture, num_parts).items():
        restored |= _restore_flat(shards, flat, shapes)
    return restored


def _pieces(shard: Shard) -> Share:
    pieces = {name: StoredTensor.in_one(shard.file, one) for name, one in shard.pieces.items()}
    return Share(shard.file, pieces)


def _check_described_alike(shards: Sequence[Shard]) -> None:
    first, expected = shards[0], _described(shards[0])
    for shard in shards[1:]:
        described, why = _described(shard), ""
        if (first.metadata is None) != (shard.metadata is None):
            why = "only one of them has shard_metadata"
        elif described != expected:
            names = expected.keys() | described.keys()
            name = min(name for name in names if expected.get(name) != described.get(name))
            why = f"what {name} holds differs between their shard_metadata"
        if why:
            raise CheckpointError(
                f"{first.file} and {shard.file} are not shards of one checkpoint: {why}"
            )


def _described(shard: Shard) -> Mapping[str, Sequence[tuple[str, Shape]]]:
    """Return what each flattened parameter holds, in order, as far as the file says."""
    return {name: [*flat.shapes.items()] for name, flat in (shard.metadata or {}).items()}


def _layout(shards: Sequence[Shard], architecture: OPTConfig | None, num_parts: int) -> Layout:
    first, layout = shards[0], {}
    if first.metadata is not None:
        layout = {name: flat.shapes for name, flat in first.metadata.items()}
        source = "its shard_metadata"
    elif architecture is not None:
        layout = dict(_derived(shards, architecture, num_parts))
        source = "the architecture"
    else:
        raise CheckpointError(
            f"{first.file} holds flattened parameters and no shard_metadata that says which: set "
            "model.size, or model.config to the path of a config.json"
        )
    if differing := layout.keys() ^ first.pieces.keys():
        name = min(differing)
        verb = "lacks" if name in layout else "holds"
        raise CheckpointError(f"{first.file} {verb} {name}, against {source}")
    return layout


def _derived(shards: Sequence[Shard], config: OPTConfig, num_found: int) -> Layout:
    """Return the layout of as many parts as the sizes fit: a part's file may be alone here."""
    heads = config.num_attention_heads
    others = [n for n in range(1, heads + 1) if heads % n == 0 and n != num_found]
    for num_parts in (num_found, *others):
        layout = flat_layout(config, num_parts)
        if all(_fits(shards, name, shapes) for name, shapes in layout.items()):
            return layout
    return flat_layout(config, num_found)  # and what does not fit is said when it is cut


def _fits(shards: Sequence[Shard], name: str, shapes: Mapping[str, Shape]) -> bool:
    found = sum(len(shard.pieces.get(name, ())) for shard in shards)
    return 0 <= found - num_elements(shapes) < len(shards)


def _restore_flat(
    shards: Sequence[Shard], name: str, shapes: Mapping[str, Shape]
) -> dict[str, StoredTensor]:
    first = shards[0]
    flat = join([StoredTensor.in_one(s.file, _without_padding(s, name)) for s in shards], 0)
    # Without metadata the padding is not known, but it makes the pieces equally long.
    padding = 0 if first.metadata is not None else len(shards) - 1
    if not 0 <= flat.shape[0] - num_elements(shapes) <= padding:
        raise CheckpointError(_misfit(shards, name, flat.shape[0], num_elements(shapes)))
    restored, start = {}, 0
    for one, shape in shapes.items():
        restored[one] = unflatten(flat, start, shape)
        start += prod(shape)
    return restored


def _misfit(shards: Sequence[Shard], name: str, found: int, needed: int) -> str:
    first, files = shards[0], [shard.file for shard in shards]
    why = [] if first.metadata is not None else ["the architecture is another"]
    count = -(-needed // max(1, len(first.pieces[name])))
    if found < needed and (absent := missing(files, SHARD, count)):
        why.append(f"shards are missing: {absent}")
    return (
        f"{first.file}: {name} has {found} numbers in {len(shards)} shard(s), but what it should "
        f"hold has {needed}: " + (", or ".join(why) or "they are not of one checkpoint")
    )


def _without_padding(shard: Shard, name: str) -> Tensor:
    piece = shard.pieces[name]
    if shard.metadata is None:
        return piece
    if name not in shard.metadata or shard.metadata[name].padding > len(piece):
        raise CheckpointError(f"{shard.file}: its shard_metadata does not fit {name}")
    return piece[: len(piece) - shard.metadata[name].padding]
