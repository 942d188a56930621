"""Model-parallel parts: whether all are there and belong together, and how they join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.names import split_dim
from pluribus_opt.checkpoint.numbering import PART, in_order, in_short, missing, number_of
from pluribus_opt.checkpoint.safetensors_file import bytes_of
from pluribus_opt.checkpoint.stored import StoredTensor, join

_NUM_LEADING = 4096


@dataclass(frozen=True, slots=True)
class Share:
    """The tensors of one model-parallel part, or of any one file, by name.

    Attributes:
        file: that holds them, or the first that does.
    """

    file: Path
    tensors: Mapping[str, StoredTensor]

    @property
    def num_parts(self) -> int:
        """In how many parts the network is, as the shapes tell; 1 where they do not."""
        for name, tensor in self.tensors.items():
            if name.endswith(".k_proj.weight") and len(tensor.shape) == 2:
                rows, columns = tensor.shape
                return max(1, columns // max(1, rows))
        return 1


def combine(shares: Sequence[Share]) -> Mapping[str, StoredTensor]:
    """Return the whole tensors of a checkpoint, whether its files are parts or each has some.

    Raises:
        CheckpointError: a part or tensor is missing, there twice, or not of this checkpoint.
    """
    # Those that are no parts by their names come first, for a message to name them.
    shares = sorted(shares, key=lambda share: number_of(share.file, PART) is not None)
    if repeated := _first_repeated(shares):
        if number_of(shares[0].file, PART) is not None:
            return _join(shares)
        name, first, second = repeated
        raise CheckpointError(
            f"{name} is there twice: in {first} and in {second}; set model.checkpoint to one of "
            "the files, or to a folder that holds one checkpoint"
        )
    for share in shares:
        if share.num_parts > 1:
            raise CheckpointError(_lone(share))
    return {name: tensor for share in shares for name, tensor in share.tensors.items()}


def _first_repeated(shares: Sequence[Share]) -> tuple[str, Path, Path] | None:
    seen: dict[str, Path] = {}
    for share in shares:
        for name in share.tensors:
            if name in seen:
                return name, seen[name], share.file
            seen[name] = share.file
    return None


def _lone(share: Share) -> str:
    number, num_parts = number_of(share.file, PART), share.num_parts
    if number is None:
        return (
            f"{share.file} is one of {num_parts} model-parallel parts, as its shapes tell: set "
            "model.checkpoint to a folder with all of them, named …model_part-0.pt and so on"
        )
    return (
        f"{share.file} is part {number} of a checkpoint in {num_parts} model-parallel parts; "
        f"missing: {missing([share.file], PART, num_parts)}. "
        "Set model.checkpoint to a folder with all of them"
    )


def _join(shares: Sequence[Share]) -> Mapping[str, StoredTensor]:
    by_file = {share.file: share for share in shares}
    parts = [by_file[file] for file in in_order(by_file, PART)]
    _check_count(parts)
    check_alike(parts)
    split = (n for n, t in parts[0].tensors.items() if split_dim(n) == 0 and len(t.shape) == 2)
    check_different(parts, split)
    joined = {}
    for name, tensor in parts[0].tensors.items():
        dim = split_dim(name)
        # Copies of what is not split may differ by noise; the first is as good as any.
        joined[name] = tensor if dim is None else join([p.tensors[name] for p in parts], dim)
    return joined


def _check_count(parts: Sequence[Share]) -> None:
    first, files = parts[0], [part.file for part in parts]
    for part in parts:
        if part.num_parts != first.num_parts:
            raise CheckpointError(
                f"{part.file} is one of {part.num_parts} parts but {first.file} is one of "
                f"{first.num_parts}, as their shapes tell: they are of different checkpoints"
            )
    if absent := missing(files, PART, first.num_parts):
        raise CheckpointError(
            f"{first.file.parent} has {len(parts)} of the {first.num_parts} model-parallel parts "
            f"of a checkpoint; missing: {absent}"
        )
    if len(parts) > first.num_parts:
        raise CheckpointError(
            f"{in_short([file.name for file in files])} are {len(parts)} parts by their names, "
            f"but each is one of {first.num_parts} by its shapes: they are not one checkpoint"
        )


def check_alike(shares: Sequence[Share]) -> None:
    """Refuse files that do not hold the same tensors by name, shape and dtype.

    Raises:
        CheckpointError: names the tensor and both files.
    """
    first = shares[0]
    for share in shares[1:]:
        if differing := first.tensors.keys() ^ share.tensors.keys():
            name = min(differing)
            has, lacks = (first, share) if name in first.tensors else (share, first)
            raise CheckpointError(f"{lacks.file} lacks {name}, which {has.file} holds")
        for name, tensor in share.tensors.items():
            other = first.tensors[name]
            if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
                raise CheckpointError(
                    f"{name} is {_kind(tensor)} in {share.file} but {_kind(other)} in "
                    f"{first.file}: they are of different checkpoints"
                )


def _kind(tensor: StoredTensor) -> str:
    return f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def check_different(shares: Sequence[Share], names: Iterable[str]) -> None:
    """Refuse a copy of a file under another's name, told by the first numbers of a tensor.

    Args:
        names: of what no two files hold alike; what comes later is read where the first numbers
            of what came before are all the same, which says nothing.

    Raises:
        CheckpointError: names both files.
    """
    suspects = list(shares)
    for name in names:
        seen: dict[bytes, list[Share]] = {}
        for share in suspects:
            tensor = share.tensors[name]
            leading = _leading(tensor)
            alike = seen.setdefault(leading, [])
            if alike and not _is_constant(leading, tensor.dtype.itemsize):
                raise CheckpointError(
                    f"{share.file} holds the same numbers as {alike[0].file}: it is a copy of "
                    "that file"
                )
            alike.append(share)
        suspects = [share for alike in seen.values() if len(alike) > 1 for share in alike]


def _leading(tensor: StoredTensor) -> bytes:
    """Return the first numbers of a vector, or the first row of a matrix."""
    is_matrix = len(tensor.shape) == 2
    index = (slice(0, 1), slice(None)) if is_matrix else (slice(0, _NUM_LEADING),)
    return bytes(bytes_of(tensor.read(index)))


def _is_constant(numbers: bytes, itemsize: int) -> bool:
    return numbers == numbers[:itemsize] * (len(numbers) // itemsize)
