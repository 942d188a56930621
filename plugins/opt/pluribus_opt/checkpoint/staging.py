"""The way of tensors from mapped files to where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pluribus_opt.checkpoint.mapped import drop_pages

NUM_BYTES = 2**23
"""Of each piece that is on its way to a device."""
MAX_THREADS = 8
"""More do not make memory any faster."""

Put: TypeAlias = Callable[[Tensor, Tensor], None]
"""Copies a mapped tensor into a target of its shape, which may differ in dtype and device, and
lets go of the pages that it has read."""


def put(source: Tensor, target: Tensor) -> None:
    """Copy a tensor into a target."""
    target.copy_(source)
    drop_pages(source)


class Way(Protocol):
    """How tensors get to where they are wanted. As a context, nothing is under way at its end."""

    def put(self, source: Tensor, target: Tensor) -> None:
        """Copy a tensor into a target, or begin to; see ``Put``."""

    def put_at_once(self, source: Tensor, target: Tensor) -> None:
        """Copy a tensor into a target, for the device to use in whatever it does next."""

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do something once all that was put has been read."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Direct:
    """Copies at once."""

    put = put_at_once = staticmethod(put)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do something at once."""
        action()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Staging:
    """Copies to a device through pinned memory, several pieces at a time.

    One processor alone takes longer to read mapped pages and to let go of them than a device to
    receive them; and what is copied from memory that is not pinned, CUDA itself copies there
    first, and does nothing meanwhile.

    Args:
        device: that all goes to.
        num_bytes: of a piece.
        num_threads: that read; two pieces for each of them take pinned memory.
    """

    def __init__(
        self, device: torch.device, num_bytes: int = NUM_BYTES, num_threads: int | None = None
    ) -> None:
        self._device = device
        self._num_bytes = num_bytes
        num_threads = num_threads or min(MAX_THREADS, torch.get_num_threads())
        memory = torch.empty(2 * num_threads, num_bytes, dtype=torch.uint8).pin_memory()
        self._buffers = [_Buffer(each, device) for each in memory]
        self._turn = 0
        self._afterwards: list[Callable[[], None]] = []
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="staging")

    def put(self, source: Tensor, target: Tensor) -> None:
        """Begin to copy a tensor into a target; what cannot be cut into rows is copied at once."""
        row_bytes = source[0].nbytes if source.dim() and len(source) else 0
        if not 0 < row_bytes <= self._num_bytes:
            put(source, target)
            return
        num_rows = self._num_bytes // row_bytes
        for rows, there in zip(*(torch.split(x, num_rows) for x in (source, target)), strict=True):
            buffer = self._buffers[self._turn]
            self._turn = (self._turn + 1) % len(self._buffers)
            buffer.wait()
            buffer.under_way = self._threads.submit(buffer.send, rows, there)

    def put_at_once(self, source: Tensor, target: Tensor) -> None:
        """Copy a tensor into a target; when it returns, the copy is in the device's stream."""
        self.put(source, target)
        self._wait()

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do something at the end of the context."""
        self._afterwards.append(action)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=error is not None)
        if error is None:
            self._wait()
            for action in self._afterwards:
                action()

    def _wait(self) -> None:
        for buffer in self._buffers:
            buffer.wait()


class _Buffer:
    """Pinned memory that one piece at a time goes through."""

    def __init__(self, memory: Tensor, device: torch.device) -> None:
        self._memory = memory
        self._device = device
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.under_way: Future[None] | None = None

    def wait(self) -> None:
        """Wait until what is under way has been read."""
        if self.under_way is not None:
            self.under_way.result()
            self.under_way = None

    def send(self, source: Tensor, target: Tensor) -> None:
        """Read a piece, on whichever thread, and send it."""
        self._sent.synchronize()
        piece = self._memory[: source.nbytes].view(source.dtype).view(source.shape)
        np.copyto(_bits(piece), _bits(source))  # other threads run meanwhile
        drop_pages(source)
        with torch.inference_mode(), torch.cuda.device(self._device):
            target.copy_(piece, non_blocking=True)
            self._sent.record()


def _bits(x: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a tensor's numbers as NumPy knows them, whatever they mean."""
    same_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
    return x.view(same_size).numpy()


def way_to(targets: Iterable[Tensor]) -> Way:
    """Return how tensors in mapped files get to these targets, which are all on one device."""
    device = next((target.device for target in targets if target.is_cuda), None)
    return Direct() if device is None else Staging(device)
