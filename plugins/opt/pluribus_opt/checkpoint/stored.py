"""Tensors on disk, whatever they are pieced together from; a slice at a time is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from pluribus_opt.checkpoint.mapped import drop_pages
from pluribus_opt.checkpoint.staging import Put, put

Index: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of a tensor, mapped: read when touched.

    Attributes:
        start: where in the tensor its first number belongs.
    """

    file: Path
    data: Tensor
    start: tuple[int, ...]

    def overlap(self, index: Index) -> tuple[Index, Index] | None:
        """Return what they share: where it is in the block, and where in ``index``; or None."""
        here, there = [], []
        for start, size, wanted in zip(self.start, self.data.shape, index, strict=True):
            first, end = max(start, wanted.start), min(start + size, wanted.stop)
            if first >= end:
                return None
            here.append(slice(first - start, end - start))
            there.append(slice(first - wanted.start, end - wanted.start))
        return tuple(here), tuple(there)

    def moved(self, dim: int, distance: int) -> Block:
        """Return the block, further along ``dim`` of the tensor."""
        start = list(self.start)
        start[dim] += distance
        return replace(self, start=tuple(start))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as files hold it: blocks that do not overlap and leave no gap."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: tuple[Block, ...]

    @classmethod
    def in_one(cls, file: Path, data: Tensor) -> StoredTensor:
        """Return a tensor that one file holds in one piece."""
        block = Block(file, data, (0,) * data.dim())
        return cls(tuple(data.shape), data.dtype, (block,))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold some of it."""
        return tuple(dict.fromkeys(block.file for block in self.blocks))

    @property
    def position(self) -> tuple[Path, int]:
        """Where it begins: reading in this order goes through files from start to end."""
        first = self.blocks[0]
        return first.file, first.data.data_ptr()

    def region(self, index: Index) -> Index:
        """Return ``index`` with every slice's bounds filled in."""
        bounds = (one.indices(size) for one, size in zip(index, self.shape, strict=True))
        return tuple(slice(start, end) for start, end, _ in bounds)

    def copy(self, index: Index, target: Tensor, put: Put = put) -> None:
        """Copy a piece into ``target``, which has its shape and may differ in dtype and device.

        Only the blocks that hold some of the piece are touched, one at a time.
        """
        region = self.region(index)
        for block in self.blocks:
            if shared := block.overlap(region):
                piece = block.data[shared[0]]
                put(piece, target[shared[1]])
                drop_pages(piece)

    def forget(self, index: Index) -> None:
        """Let go of a piece's pages: what is copied bit by bit leaves some at every seam."""
        region = self.region(index)
        for block in self.blocks:
            if shared := block.overlap(region):
                drop_pages(block.data[shared[0]])

    def read(self, index: Index) -> Tensor:
        """Return a copy of a piece."""
        shape = [one.stop - one.start for one in self.region(index)]
        copy = torch.empty(shape, dtype=self.dtype)
        self.copy(index, copy)
        return copy

    def rows(self, start: int, end: int) -> StoredTensor:
        """Return the rows from ``start`` to ``end`` as a tensor."""
        shape = (end - start, *self.shape[1:])
        index = self.region((slice(start, end), *[slice(None)] * (len(shape) - 1)))
        return StoredTensor(shape, self.dtype, tuple(self._cut(index)))

    def _cut(self, index: Index) -> Iterator[Block]:
        for block in self.blocks:
            if shared := block.overlap(index):
                here, there = shared
                yield Block(block.file, block.data[here], tuple(one.start for one in there))


def join(tensors: Sequence[StoredTensor], dim: int) -> StoredTensor:
    """Return tensors, alike but for their size along ``dim``, put one after another along it."""
    first, blocks, size = tensors[0], [], 0
    for tensor in tensors:
        blocks += [block.moved(dim, size) for block in tensor.blocks]
        size += tensor.shape[dim]
    shape = (*first.shape[:dim], size, *first.shape[dim + 1 :])
    return StoredTensor(shape, first.dtype, tuple(blocks))


def unflatten(flat: StoredTensor, start: int, shape: tuple[int, ...]) -> StoredTensor:
    """Return a vector or a matrix whose numbers lie in the vector ``flat`` from ``start``."""
    numbers = flat.rows(start, start + torch.Size(shape).numel())
    if len(shape) == 1:
        return numbers
    return StoredTensor(shape, flat.dtype, tuple(_rectangles(numbers.blocks, shape[1])))


def _rectangles(blocks: Iterable[Block], width: int) -> Iterator[Block]:
    """Cut runs of numbers into what fills whole rows, and what is left at both ends."""
    for block in blocks:
        numbers, (at,) = block.data, block.start
        while len(numbers):
            row, column = divmod(at, width)
            num_rows = 1 if column else max(1, len(numbers) // width)
            count = min(num_rows * width - column, len(numbers))
            rectangle = numbers[:count].view(num_rows, -1)
            yield Block(block.file, rectangle, (row, column))
            numbers, at = numbers[count:], at + count
