"""What Triton does once in a process before it has any kernel, begun while torch is imported."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from pluribus.errors import ConfigError

_building: threading.Thread | None = None
"""Builds, or has built, what Triton speaks to the driver by."""


def prepare() -> None:
    """Have Triton get ready, on threads that need neither torch nor much of Python.

    It builds what it speaks to the driver by with a C compiler, unless that is in its cache, and
    reads its own files, several hundred megabytes, by which it knows its cache.
    """
    with suppress(ImportError):  # they are no part of what Triton promises
        from triton.backends.nvidia.driver import CudaUtils
        from triton.runtime.cache import triton_key

        global _building
        _building = _start("triton-utils", CudaUtils)
        _start("triton-key", triton_key)


def _start(name: str, task: Callable[[], object]) -> threading.Thread:
    """Do something ahead of time; an error that stops it comes up again when it is needed."""

    def attempt() -> None:
        with suppress(Exception):
            task()

    thread = threading.Thread(target=attempt, name=name, daemon=True)
    thread.start()
    return thread


def check() -> None:
    """See that Triton can speak to the driver, by what there is of its own to tell.

    Raises:
        ConfigError: it can not, most often as there is no C compiler.
    """
    try:
        from triton.backends.nvidia.driver import CudaUtils
    except ImportError:
        return
    if _building is not None:
        _building.join()  # two that build it at once would not be of one kind
    try:
        CudaUtils()
    except Exception as error:
        raise ConfigError(
            "device=cuda: Triton cannot build what launches its kernels; it needs a C compiler "
            "(gcc, clang, or what CC names) and Python's headers (python3-dev). Or choose "
            "device=cpu. "
            f"It says: {' '.join(str(error).split())}"
        ) from error
