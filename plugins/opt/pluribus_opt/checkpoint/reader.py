"""The tensors of a checkpoint under canonical names, and copying pieces of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.dtypes import DTYPES
from pluribus_opt.checkpoint.names import HEAD

if TYPE_CHECKING:
    from torch import Tensor

    from pluribus.interfaces.model import Progress
    from pluribus_opt.checkpoint.shapes import Shape
    from pluribus_opt.checkpoint.stored import StoredTensor
    from pluribus_opt.parts import Part

_MAX_LISTED = 5
_CHUNK_BYTES = 2**23


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    Attributes:
        shape: of the whole tensor.
        dtype: as the files have it, e.g. ``"float16"``.
        files: that hold some of it.
    """

    shape: Shape
    dtype: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{list(self.shape)} of {self.dtype} in {self.files[0]}{more}"


class Checkpoint:
    """Weights on disk. Reading keeps no more in memory than the tensor being read.

    Attributes:
        where: for people: the name, path or repo id.
        layout: for people: who wrote it, in how many files.
        tensors: what is known of each, by canonical name.
    """

    def __init__(
        self,
        *,
        where: str,
        layout: str,
        stored: Mapping[str, StoredTensor],
        expected: Mapping[str, Shape] | None = None,
    ) -> None:
        self.where = where
        self.layout = layout
        self._stored = stored
        self._expected = expected
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: _info(tensor) for name, tensor in stored.items()}
        )

    def read(self, name: str, index: tuple[slice, ...]) -> Tensor:
        """Return a copy of a piece of one tensor: one slice per dimension."""
        if name not in self._stored:
            raise CheckpointError(f"{self.where} has no tensor {name}")
        return self._stored[name].read(index)

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Yield copies of a tensor's rows in order, never many at a time."""
        stored = self._stored[name]
        num_rows = stored.shape[0] if stored.shape else 0
        row_bytes = prod(stored.shape[1:]) * stored.dtype.itemsize
        step = max(1, _CHUNK_BYTES // max(1, row_bytes))
        for start in range(0, num_rows, step):
            rows = slice(start, min(start + step, num_rows))
            yield stored.read((rows, *[slice(None)] * (len(stored.shape) - 1)))

    def read_into(self, parts: Sequence[Part], progress: Progress) -> None:
        """Fill every part's target, in the order of the files, converting or quantising.

        Parts may be some of the network, as in a pipeline: what is compared with the checkpoint
        is the whole architecture, where the checkpoint was opened with it.

        Raises:
            CheckpointError: before anything is read, if tensors are missing, left over, or
                not of the shape that the network expects.
        """
        wanted = {part.name: part.shape for part in parts}
        if self._expected is None:
            self.check(wanted)
        else:
            self.check(self._expected)
            assert wanted.items() <= self._expected.items(), "the network is of another shape"
        sizes = [part.target.numel() * self._stored[part.name].dtype.itemsize for part in parts]
        done, total = 0, sum(sizes)
        from pluribus_opt.checkpoint.staging import staging_for

        in_order = sorted(zip(parts, sizes, strict=True), key=self._position)
        put = staging_for([part.target for part in parts])
        for part, size in in_order:
            stored = self._stored[part.name]
            part.fill(stored.dtype, partial(stored.copy, put=put))
            stored.forget(part.index)
            done += size
            progress(done, total)

    def check(self, expected: Mapping[str, Shape]) -> None:
        """Compare names, shapes and kinds of number with what a network is made of.

        Raises:
            CheckpointError: lists everything that does not fit.
        """
        if problems := self.problems(expected):
            raise CheckpointError(
                "\n".join([f"{self.where} does not fit the model:", *problems])
                + "\nCheck model.size or model.config against what is in model.checkpoint."
            )

    def problems(self, expected: Mapping[str, Shape]) -> list[str]:
        """Return what does not fit a network of these tensors, as lines for people."""
        missing = [
            f"{name} {list(shape)}" for name, shape in expected.items() if name not in self.tensors
        ]
        unexpected = [
            f"{name} {info}"
            for name, info in self.tensors.items()
            if name not in expected and name != HEAD
        ]
        misfits = [
            f"{name}: expected {list(shape)}, got {info}"
            for name, shape in expected.items()
            if (info := self.tensors.get(name))
            and (info.shape != shape or info.dtype not in DTYPES)
        ]
        return [
            *_listed("missing", missing),
            *_listed("unexpected", unexpected),
            *_listed(f"not of the expected shape, or of none of {', '.join(DTYPES)}", misfits),
        ]

    def _position(self, sized: tuple[Part, int]) -> tuple[Path, int]:
        return self._stored[sized[0].name].position


def _info(tensor: StoredTensor) -> TensorInfo:
    return TensorInfo(tensor.shape, str(tensor.dtype).removeprefix("torch."), tensor.files)


def _listed(kind: str, entries: Iterable[str]) -> list[str]:
    """Return a heading with the count, then the first few."""
    entries = list(entries)
    if not entries:
        return []
    shown = [f"  {entry}" for entry in entries[:_MAX_LISTED]]
    more = [f"  … and {len(entries) - _MAX_LISTED} more"] if len(entries) > _MAX_LISTED else []
    return [f"{len(entries)} {kind}:", *shown, *more]
