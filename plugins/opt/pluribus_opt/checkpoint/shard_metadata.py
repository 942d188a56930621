"""What FSDP writes beside its shards to say what was flattened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.shapes import Shape


@dataclass(frozen=True, slots=True)
class Flat:
    """What one flattened parameter holds.

    Attributes:
        shapes: by name, in order.
        padding: numbers at the end of this file's piece that mean nothing.
    """

    shapes: Mapping[str, Shape]
    padding: int


def read_metadata(file: Path, metadata: Any) -> Mapping[str, Flat] | None:
    """Return what a file says of each flattened parameter, or None if it says nothing.

    Raises:
        CheckpointError: it is not what FSDP writes.
    """
    if metadata is None:
        return None
    try:
        return dict(_flats(metadata))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its shard_metadata makes no sense: {error!r}") from error


def _flats(metadata: Any) -> Iterator[tuple[str, Flat]]:
    for module in metadata["param_metadata"]:
        prefix = f"{module['fsdp_path']}." if module["fsdp_path"] else ""
        for name, info in module["params"].items():
            shapes = {
                f"{prefix}{one}": _shape(shape)
                for one, shape in zip(info["names"], info["shapes"], strict=True)
            }
            padding = int(info["padding"])
            if padding < 0:
                raise ValueError(f"{prefix}{name} has a padding of {padding}")
            yield f"{prefix}{name}", Flat(shapes, padding)


def _shape(sizes: Any) -> Shape:
    shape = tuple(map(int, sizes))
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise ValueError(f"{shape} is not the shape of a vector or matrix")
    return shape
