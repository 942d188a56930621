"""Memory that ends where a page begins that kills whoever touches it.

Triton's interpreter has kernels work on copies of tensors' storages. Here those end like that, so
that tests see, wherever they run, what a sanitizer of GPUs would.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any
from unittest.mock import patch

import torch
from triton.runtime.interpreter import GridExecutor

PROT_NONE = 0
LARGEST = 64 << 20
"""Bytes of a storage; larger ones are left as they are."""

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """Return a copy that ends, to the byte, where such a page begins."""
    size = storage.nbytes()
    if not 0 < size <= LARGEST:
        return storage
    num_pages = -(-size // mmap.PAGESIZE)
    room = mmap.mmap(-1, (num_pages + 1) * mmap.PAGESIZE)
    end = num_pages * mmap.PAGESIZE
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    if _libc.mprotect(ctypes.c_void_p(start + end), ctypes.c_size_t(mmap.PAGESIZE), PROT_NONE):
        raise OSError(ctypes.get_errno(), "a page cannot be protected")
    copy = torch.frombuffer(room, dtype=torch.uint8, count=size, offset=end - size)
    copy.untyped_storage().copy_(storage)
    return copy.untyped_storage()


def install() -> None:
    """Have every kernel that is interpreted in this process from now on work on such copies."""
    copy_args = GridExecutor._init_args_hst

    def copy_guarded(self: GridExecutor, *args: Any) -> Any:
        with patch.object(torch.UntypedStorage, "cpu", guarded):
            return copy_args(self, *args)

    GridExecutor._init_args_hst = copy_guarded
