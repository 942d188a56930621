"""What ranks of one host exchange through memory that all of them see.

Between two layers there are tens of microseconds of work to exchange, and Gloo's way through
sockets takes many times as long.

The memory is a file without a name, which the others open through the first rank's process: it
is gone with the last of them, however they end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import secrets
import select
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pluribus.parallel.agreement import smallest
from pluribus.parallel.exchange import TIMEOUT, Exchange

# Counts tell what has been written before them only where processors keep stores in order and
# loads as well; elsewhere that takes barriers, which Python does not have.
CAN_SHARE = sys.platform == "linux" and platform.machine() == "x86_64"
PIECE = 2**20
"""Bytes of a buffer; what is larger goes in pieces."""
LINE = 128
"""Bytes between two counts, so that processors do not fight for one line of their caches."""
NO_FILE = -1
SECONDS_TO_YIELD = 0.002
MILLISECONDS_TO_SLEEP = 1


class RankLostError(Exception):
    """Another rank's process has ended."""


class SharedMemory(Exchange):
    """Two buffers for each rank, and a count of the pieces that it has put into them by turns.

    Who has counted a piece has read all before it. So once everybody has counted one, the
    buffers of the one before are free, and nobody needs to be waited for a second time.

    Args:
        rank, size: of the group.
        memory: of ``num_bytes(size, piece)``, zeros at first, the same for all ranks.
        partners: watches the other ranks' processes, each a pidfd that can be read at its end.
        piece: bytes of a buffer, a multiple of 64.
    """

    def __init__(
        self, rank: int, size: int, memory: mmap.mmap, partners: select.poll, piece: int = PIECE
    ) -> None:
        self._rank = rank
        self._size = size
        self._memory = memory
        self._counts = memoryview(memory).cast("q")[: size * LINE // 8 : LINE // 8]
        self._partners = partners
        self._piece = piece
        self._turn = 0

    @staticmethod
    def num_bytes(size: int, piece: int = PIECE) -> int:
        """Return how much memory a group takes."""
        return size * (LINE + 2 * piece)

    def all_reduce(self, x: Tensor) -> None:
        """Sum ``x`` in place, in the order of ranks; see Exchange."""
        if not x.numel():
            return
        for piece in torch.split(x.view(-1), self._piece // x.element_size()):
            first, second, *others = self._show(piece)
            torch.add(first, second, out=piece)
            for other in others:
                piece += other

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate along the last dimension; see Exchange."""
        *shape, width = x.shape
        whole = x.new_empty(*shape, self._size, width)
        if not x.numel():
            return whole.flatten(-2)
        parts = whole.view(-1, self._size, width).unbind(1)
        x = x.reshape(-1, width)
        for rows, columns in _blocks(len(x), width, self._piece // x.element_size()):
            for part, shown in zip(parts, self._show(x[rows, columns]), strict=True):
                part[rows, columns] = shown
        return whole.flatten(-2)

    def _show(self, piece: Tensor) -> list[Tensor]:
        """Return what every rank shows at this turn; it stays until the turn after the next."""
        self._turn += 1
        shown = [self._buffer(rank, piece) for rank in range(self._size)]
        shown[self._rank].copy_(piece)
        self._counts[self._rank] = self._turn
        for rank in range(self._size):
            self._wait_for(rank)
        return shown

    def _buffer(self, rank: int, like: Tensor) -> Tensor:
        """Return a rank's buffer of this turn, in the shape and dtype of what it holds."""
        offset = self._size * LINE + (2 * rank + self._turn % 2) * self._piece
        buffer = torch.frombuffer(self._memory, dtype=like.dtype, count=like.numel(), offset=offset)
        return buffer.view(like.shape)

    def _wait_for(self, rank: int) -> None:
        """Wait until a rank has counted this turn's piece.

        Raises:
            RankLostError: a rank's process has ended.
            TimeoutError: it has not come for as long as anything may take.
        """
        if self._counts[rank] >= self._turn:
            return
        start = time.monotonic()
        while self._counts[rank] < self._turn:
            seconds = time.monotonic() - start
            if seconds < SECONDS_TO_YIELD:
                os.sched_yield()  # there may be fewer processors than ranks
            elif self._partners.poll(MILLISECONDS_TO_SLEEP):
                raise RankLostError("another rank has ended in the middle of a collective")
            elif seconds > TIMEOUT.total_seconds():
                raise TimeoutError(f"rank {rank} of the group has not come for {TIMEOUT}")


def _blocks(num_rows: int, width: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of blocks of at most ``size`` numbers, which together are all."""
    columns = min(width, size)
    rows = size // columns
    for left in range(0, width, columns):
        for top in range(0, num_rows, rows):
            yield slice(top, top + rows), slice(left, left + columns)


def share_memory(group: dist.ProcessGroup) -> SharedMemory | None:
    """Return what the ranks of a group exchange through, or None if they do not all see it.

    Every rank calls it at the same time.
    """
    rank, size = group.rank(), group.size()
    num_bytes, token = SharedMemory.num_bytes(size), secrets.randbits(62)
    with _memory_file(token, num_bytes if rank == 0 else 0) as file:
        offers = _tell(group, Offer(os.getpid(), file, token))
        try:
            memory = offers[0].open(num_bytes)
            partners = _watch([each.process for each in offers if each.token != token])
        except OSError:
            memory = None
        is_seen = smallest(int(memory is not None), torch.device("cpu"), group)
    if memory is None or not is_seen:
        return None
    return SharedMemory(rank, size, memory, partners)


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a rank is, and a file that is open there.

    Attributes:
        process: its id.
        file: a descriptor, or NO_FILE.
        token: in the file's name. On another host, or in another container, there may be another
            process of this id.
    """

    process: int
    file: int
    token: int

    def open(self, num_bytes: int) -> mmap.mmap:
        """Map the file.

        Raises:
            OSError: it is not there, or not for us.
        """
        path = f"/proc/{self.process}/fd/{self.file}"
        if os.readlink(path) != f"/memfd:{_name(self.token)} (deleted)":
            raise FileNotFoundError(f"{path} is somebody else's")
        with open(path, "r+b", buffering=0) as file:
            return mmap.mmap(file.fileno(), num_bytes)


def _name(token: int) -> str:
    return f"pluribus-ranks-{token}"


@contextlib.contextmanager
def _memory_file(token: int, num_bytes: int) -> Iterator[int]:
    """Make a file in memory that others can open meanwhile; yield its descriptor, or NO_FILE."""
    if not (CAN_SHARE and num_bytes):
        yield NO_FILE
        return
    file = os.memfd_create(_name(token))
    try:
        os.ftruncate(file, num_bytes)
        yield file
    finally:
        os.close(file)


def _tell(group: dist.ProcessGroup, offer: Offer) -> list[Offer]:
    """Return every rank's offer."""
    own = torch.tensor([offer.process, offer.file, offer.token])
    offers = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(offers, own, group=group)
    return [Offer(*each.tolist()) for each in offers]


def _watch(processes: Sequence[int]) -> select.poll:
    """Return what becomes readable once one of the processes has ended."""
    poll = select.poll()
    for process in processes:
        poll.register(os.pidfd_open(process), select.POLLIN)
    return poll
