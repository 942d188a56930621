"""The tensors of a checkpoint under canonical names, and copying pieces of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.names import HEAD

if TYPE_CHECKING:
    from torch import Tensor

    from pluribus.interfaces.model import Progress
    from pluribus_opt.parts import Part

_MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    Attributes:
        shape: of the whole tensor.
        dtype: as the file has it, e.g. ``"float16"``.
        file: that holds it.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in its file: mapped into memory, read when touched."""

    file: Path
    data: Tensor

    @property
    def info(self) -> TensorInfo:
        """What is known of it without reading it."""
        dtype = str(self.data.dtype).removeprefix("torch.")
        return TensorInfo(tuple(self.data.shape), dtype, self.file)


class Checkpoint:
    """Weights on disk. Reading keeps no more in memory than the tensor being read."""

    def __init__(self, where: str, stored: Mapping[str, StoredTensor]) -> None:
        self.where = where
        self._stored = stored
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: tensor.info for name, tensor in stored.items()}
        )

    def read(self, name: str, index: tuple[slice, ...]) -> Tensor:
        """Return a copy of a piece of one tensor: one slice per dimension."""
        from pluribus_opt.checkpoint.mapped import drop_pages

        if name not in self._stored:
            raise CheckpointError(f"{self.where} has no tensor {name}")
        piece = self._stored[name].data[index]
        copy = piece.clone()
        drop_pages(piece)
        return copy

    def read_into(self, parts: Sequence[Part], progress: Progress) -> None:
        """Fill every part's target, in the order of the files, converting the dtype.

        Raises:
            CheckpointError: before anything is read, if tensors are missing, left over, or
                not of the shape that the parts expect.
        """
        from pluribus_opt.checkpoint.mapped import drop_pages

        self.check({part.name: part.shape for part in parts})
        done, total = 0, sum(self._stored[p.name].data[p.index].nbytes for p in parts)
        for part in sorted(parts, key=self._position):
            piece = self._stored[part.name].data[part.index]
            assert piece.shape == part.target.shape, f"{part.name}: piece and target differ"
            part.target.detach().copy_(piece)
            drop_pages(piece)
            done += piece.nbytes
            progress(done, total)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Compare names, shapes and kinds of number with what a network is made of.

        Raises:
            CheckpointError: lists everything that does not fit.
        """
        missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in self]
        unexpected = [
            f"{name} {list(info.shape)} in {info.file}"
            for name, info in self.tensors.items()
            if name not in expected and name != HEAD
        ]
        misfits = [
            f"{name}: expected {list(shape)}, got {list(info.shape)} of {info.dtype} in {info.file}"
            for name, shape in expected.items()
            if (info := self.tensors.get(name)) and (info.shape != shape or not _is_float(info))
        ]
        problems = [
            *_listed("missing", missing),
            *_listed("unexpected", unexpected),
            *_listed("not of the expected shape, or not floating point", misfits),
        ]
        if problems:
            raise CheckpointError(
                "\n".join([f"{self.where} does not fit the model:", *problems])
                + "\nCheck model.name against model.checkpoint and its config.json."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def _position(self, part: Part) -> tuple[Path, int]:
        stored = self._stored[part.name]
        return stored.file, stored.data.data_ptr()


def _is_float(info: TensorInfo) -> bool:
    return "float" in info.dtype


def _listed(kind: str, entries: Iterable[str]) -> list[str]:
    """Return a heading with the count, then the first few."""
    entries = list(entries)
    if not entries:
        return []
    shown = [f"  {entry}" for entry in entries[:_MAX_LISTED]]
    more = [f"  … and {len(entries) - _MAX_LISTED} more"] if len(entries) > _MAX_LISTED else []
    return [f"{len(entries)} {kind}:", *shown, *more]
