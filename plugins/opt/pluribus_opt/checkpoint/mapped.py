"""Files mapped into memory, and how to let go of pages that have been read."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch
from torch import Tensor

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedFile:
    """A file as memory: read when touched, never written."""

    def __init__(self, file: Path) -> None:
        self._size = file.stat().st_size
        self._bytes = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=self._size)

    def part(self, start: int, num_bytes: int) -> torch.UntypedStorage:
        """Return ``num_bytes`` from ``start``; ValueError where the file ends before."""
        if not 0 <= start <= start + num_bytes <= self._size:
            # Touching a mapping beyond the end of its file kills the process.
            raise ValueError(f"it ends at byte {self._size}, not at {start + num_bytes}")
        part: torch.UntypedStorage = self._bytes[start : start + num_bytes]
        return part


def drop_pages(tensor: Tensor) -> None:
    """Let go of the pages under a mapped tensor; touching them again reads the file again."""
    if tensor.numel() == 0:
        return
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    end = tensor.data_ptr() + (last + 1) * tensor.element_size()
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(start, end - start, mmap.MADV_DONTNEED)
