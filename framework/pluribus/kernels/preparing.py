"""What Triton does once in a process before it has any kernel, begun while torch is imported."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress


def prepare() -> None:
    """Have Triton get ready, on threads that need neither torch nor much of Python.

    It builds what it speaks to the driver by with a C compiler, unless that is in its cache, and
    reads its own files, several hundred megabytes, by which it knows its cache.
    """
    with suppress(ImportError):  # they are no part of what Triton promises
        from triton.backends.nvidia.driver import CudaUtils
        from triton.runtime.cache import triton_key

        for name, task in (("triton-utils", CudaUtils), ("triton-key", triton_key)):
            threading.Thread(target=_attempt, args=(task,), name=name, daemon=True).start()


def _attempt(task: Callable[[], object]) -> None:
    """Do something ahead of time; where it cannot be done, that is told when it is needed."""
    with suppress(Exception):
        task()
